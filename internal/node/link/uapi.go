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

// parseUAPI parses the answer to the UAPI operation "get". It ignores keys that this package does
// not use, such as preshared_key. Format:
// https://www.wireguard.com/xplatform/#configuration-protocol
func parseUAPI(text string) (wireguardState, error) {
	var s wireguardState
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
			return wireguardState{}, errors.New("parse UAPI: a line has no =")
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
			return wireguardState{}, fmt.Errorf("parse UAPI: value of %s: %w", key, err)
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

func sortPrefixes(prefixes []netip.Prefix) {
	slices.SortFunc(prefixes, func(a, b netip.Prefix) int {
		return cmp.Or(a.Addr().Compare(b.Addr()), cmp.Compare(a.Bits(), b.Bits()))
	})
}

// uapi returns the lines of the UAPI operation "set" that make the change, or "" if there is none.
func (c change) uapi() string {
	var b strings.Builder
	if c.privateKey != nil {
		fmt.Fprintf(&b, "private_key=%s\n", c.privateKey.hex())
	}
	if c.listenPort != nil {
		fmt.Fprintf(&b, "listen_port=%d\n", *c.listenPort)
	}
	for _, p := range c.peers {
		fmt.Fprintf(&b, "public_key=%x\n", p.key[:])
		if p.remove {
			b.WriteString("remove=true\n")
			continue
		}
		if p.endpoint.IsValid() {
			fmt.Fprintf(&b, "endpoint=%s\n", p.endpoint)
		}
		if p.keepalive != nil {
			fmt.Fprintf(&b, "persistent_keepalive_interval=%d\n", *p.keepalive/time.Second)
		}
		for _, prefix := range p.gained {
			fmt.Fprintf(&b, "allowed_ip=%s\n", prefix)
		}
		for _, prefix := range p.lost {
			fmt.Fprintf(&b, "allowed_ip=-%s\n", prefix)
		}
	}
	return b.String()
}
