// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package link

import (
	"cmp"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"
)

// uapiState is a device's answer to the UAPI operation "get".
type uapiState struct {
	privateKey PrivateKey
	listenPort uint16
	peers      []PeerStatus // sorted by key; their allowed addresses are sorted
}

// parseUAPI parses the answer to "get". It ignores keys that this package does not use, such as
// preshared_key. Format: https://www.wireguard.com/xplatform/#configuration-protocol
func parseUAPI(text string) (uapiState, error) {
	var s uapiState
	var handshakeSec, handshakeNsec int64
	peer := func() (*PeerStatus, error) {
		if len(s.peers) == 0 {
			return nil, errors.New("a property of a peer precedes its public_key")
		}
		return &s.peers[len(s.peers)-1], nil
	}
	for line := range strings.Lines(text) {
		line = strings.TrimSuffix(line, "\n")
		if line == "" {
			break
		}
		key, value, found := strings.Cut(line, "=")
		if !found {
			return uapiState{}, errors.New("parse UAPI: a line has no =")
		}
		var p *PeerStatus
		var n uint64
		var err error
		switch key {
		case "private_key":
			var b [32]byte
			b, err = parseHexKey(value)
			s.privateKey = PrivateKey(b)
		case "listen_port":
			n, err = strconv.ParseUint(value, 10, 16)
			s.listenPort = uint16(n)
		case "public_key":
			var b [32]byte
			b, err = parseHexKey(value)
			s.peers = append(s.peers, PeerStatus{Peer: Peer{PublicKey: b}})
			handshakeSec, handshakeNsec = 0, 0
		case "endpoint", "allowed_ip", "persistent_keepalive_interval", "rx_bytes", "tx_bytes",
			"last_handshake_time_sec", "last_handshake_time_nsec":
			if p, err = peer(); err != nil {
				break
			}
			switch key {
			case "endpoint":
				p.Endpoint, err = netip.ParseAddrPort(value)
			case "allowed_ip":
				var prefix netip.Prefix
				prefix, err = netip.ParsePrefix(value)
				p.AllowedIPs = append(p.AllowedIPs, prefix)
			case "persistent_keepalive_interval":
				n, err = strconv.ParseUint(value, 10, 16)
				p.PersistentKeepalive = time.Duration(n) * time.Second
			case "rx_bytes":
				p.ReceivedBytes, err = strconv.ParseUint(value, 10, 64)
			case "tx_bytes":
				p.SentBytes, err = strconv.ParseUint(value, 10, 64)
			case "last_handshake_time_sec":
				handshakeSec, err = strconv.ParseInt(value, 10, 64)
			case "last_handshake_time_nsec":
				handshakeNsec, err = strconv.ParseInt(value, 10, 64)
			}
			if handshakeSec != 0 || handshakeNsec != 0 {
				p.LastHandshake = time.Unix(handshakeSec, handshakeNsec)
			}
		}
		if err != nil {
			// The value is left out because it may be a private key.
			return uapiState{}, fmt.Errorf("parse UAPI: value of %s: %w", key, err)
		}
	}
	slices.SortFunc(s.peers, func(a, b PeerStatus) int { return slices.Compare(a.PublicKey[:], b.PublicKey[:]) })
	for _, p := range s.peers {
		sortPrefixes(p.AllowedIPs)
	}
	return s, nil
}

func parseHexKey(s string) (b [32]byte, err error) {
	if len(s) != hex.EncodedLen(len(b)) {
		return b, fmt.Errorf("must have %d characters", hex.EncodedLen(len(b)))
	}
	if _, err := hex.Decode(b[:], []byte(s)); err != nil {
		return b, errors.New("must be hexadecimal")
	}
	return b, nil
}

// sessionAlive is how long after a handshake WireGuard uses the session (its REJECT_AFTER_TIME).
const sessionAlive = 180 * time.Second

// uapiChange returns the "set" lines that change a device from state to want, or "" if they are
// equal. It does not name peers that do not change, so that their sessions continue. declared has
// the endpoints that were wanted last time.
//
// When a peer moves, WireGuard learns its new endpoint, which then differs from the declared one.
// So a different endpoint is set only if the declaration changed or the session is dead.
func uapiChange(state uapiState, want Device, declared map[Key]netip.AddrPort, now time.Time) string {
	var b strings.Builder
	if state.privateKey != want.PrivateKey {
		fmt.Fprintf(&b, "private_key=%s\n", want.PrivateKey.hex())
	}
	if state.listenPort != want.ListenPort {
		fmt.Fprintf(&b, "listen_port=%d\n", want.ListenPort)
	}
	wanted := make(map[Key]bool, len(want.Peers))
	for _, p := range want.Peers {
		wanted[p.PublicKey] = true
	}
	have := make(map[Key]PeerStatus, len(state.peers))
	for _, p := range state.peers {
		have[p.PublicKey] = p
		if !wanted[p.PublicKey] {
			fmt.Fprintf(&b, "public_key=%x\nremove=true\n", p.PublicKey[:])
		}
	}
	for _, p := range want.Peers {
		old, exists := have[p.PublicKey]
		var lines strings.Builder
		if p.Endpoint.IsValid() && old.Endpoint != p.Endpoint {
			last, known := declared[p.PublicKey]
			changed := known && last != p.Endpoint
			if changed || now.Sub(old.LastHandshake) > sessionAlive {
				fmt.Fprintf(&lines, "endpoint=%s\n", p.Endpoint)
			}
		}
		if old.PersistentKeepalive != p.PersistentKeepalive {
			fmt.Fprintf(&lines, "persistent_keepalive_interval=%d\n", p.PersistentKeepalive/time.Second)
		}
		for _, prefix := range p.AllowedIPs {
			if !slices.Contains(old.AllowedIPs, prefix) {
				fmt.Fprintf(&lines, "allowed_ip=%s\n", prefix)
			}
		}
		for _, prefix := range old.AllowedIPs {
			if !slices.Contains(p.AllowedIPs, prefix) {
				fmt.Fprintf(&lines, "allowed_ip=-%s\n", prefix)
			}
		}
		if !exists || lines.Len() > 0 {
			fmt.Fprintf(&b, "public_key=%x\n%s", p.PublicKey[:], lines.String())
		}
	}
	return b.String()
}

func sortPrefixes(prefixes []netip.Prefix) {
	slices.SortFunc(prefixes, func(a, b netip.Prefix) int {
		return cmp.Or(a.Addr().Compare(b.Addr()), cmp.Compare(a.Bits(), b.Bits()))
	})
}
