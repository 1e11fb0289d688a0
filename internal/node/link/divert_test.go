// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package link

import (
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/containernetworking/plugins/pkg/ns"
	"github.com/shoenig/test/must"
)

// sequence is a flow of numbered datagrams, one each five milliseconds.
type sequence struct {
	conn  *net.UDPConn
	stop  chan struct{}
	sent  chan uint64
	mu    sync.Mutex
	came  map[uint64]bool
	other *net.UDPConn
}

func bind(t *testing.T, namespace string, a netip.AddrPort) (c *net.UDPConn) {
	t.Helper()
	must.NoError(t, ns.WithNetNSPath(namespace, func(ns.NetNS) (err error) {
		c, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(a))
		return err
	}))
	t.Cleanup(func() { c.Close() })
	return c
}

func startSequence(t *testing.T, fromSpace string, from netip.AddrPort, toSpace string, to netip.AddrPort) *sequence {
	t.Helper()
	s := &sequence{conn: bind(t, fromSpace, from), other: bind(t, toSpace, to), stop: make(chan struct{}), sent: make(chan uint64, 1), came: map[uint64]bool{}}
	must.NoError(t, s.other.SetReadBuffer(4<<20))
	go func() {
		b := make([]byte, 100)
		for {
			n, _, err := s.other.ReadFromUDPAddrPort(b)
			if err != nil {
				return
			}
			s.mu.Lock()
			s.came[binary.BigEndian.Uint64(b[:n])] = true
			s.mu.Unlock()
		}
	}()
	go func() {
		b := make([]byte, 100)
		for i := uint64(0); ; i++ {
			select {
			case <-s.stop:
				s.sent <- i
				return
			case <-time.After(5 * time.Millisecond):
			}
			binary.BigEndian.PutUint64(b, i)
			if _, err := s.conn.WriteToUDPAddrPort(b, to); err != nil {
				s.sent <- i
				return
			}
		}
	}()
	return s
}

// end stops the flow, and returns how many datagrams were sent and which did not come.
func (s *sequence) end() (sent uint64, lost []uint64) {
	close(s.stop)
	sent = <-s.sent
	for range 100 {
		lost = nil
		s.mu.Lock()
		for i := range sent {
			if !s.came[i] {
				lost = append(lost, i)
			}
		}
		s.mu.Unlock()
		if len(lost) == 0 {
			break
		}
		time.Sleep(20 * time.Millisecond)
	}
	return sent, lost
}

// The packets of one peer take the detour, and come back, while others stay; nothing is lost, and
// who looks at the device sees all of it. Meanwhile the key of the device is replaced.
func TestDivert(t *testing.T) {
	nodes := newNodes(t, 3)
	a, b, c := nodes[0], nodes[1], nodes[2]
	detours := map[*testNode]PrivateKey{a: newKey(t), b: newKey(t)}
	first := map[*testNode]PrivateKey{a: a.private, b: b.private}
	apply := func(n, other *testNode) {
		t.Helper()
		peer := other.peer()
		peer.PublicKey = first[other].Public()
		d := n.device(peer)
		d.PrivateKey = first[n]
		if n == a {
			d.Peers = append(d.Peers, c.peer())
		}
		by := Device{Name: "sif-zoned", Interface: Interface{Namespace: n.innerPath(), MTU: 1420}, ListenPort: testPort + 1, PrivateKey: detours[n],
			Peers: []Peer{{PublicKey: detours[other].Public(), Endpoint: netip.AddrPortFrom(other.underlay, testPort+1), AllowedIPs: other.pools()}}}
		must.NoError(t, n.client.Apply(t.Context(), []Device{d, by}))
	}
	divert := func(n, other *testNode, on bool) {
		t.Helper()
		d := Diversion{Namespace: n.innerPath(), Device: "sif-zone", Detour: "sif-zoned", Ready: true}
		if on {
			d.To = other.pools()
		}
		must.NoError(t, Divert(d))
		must.NoError(t, Divert(d)) // the same again
	}
	received := func(n *testNode, device string, key Key) uint64 {
		t.Helper()
		list, err := n.client.Status(t.Context())
		must.NoError(t, err)
		for _, d := range list {
			for _, p := range d.Peers {
				if d.Name == device && p.PublicKey == key {
					return p.ReceivedBytes
				}
			}
		}
		return 0
	}
	shaken := func(n *testNode, key Key) {
		t.Helper()
		eventually(t, func() error {
			list, err := n.client.Status(t.Context())
			for _, d := range list {
				for _, p := range d.Peers {
					if p.PublicKey == key && !p.LastHandshake.IsZero() {
						return nil
					}
				}
			}
			return errors.Join(err, errors.New("no handshake"))
		})
	}
	apply(a, b)
	apply(b, a)
	divert(a, b, false)
	divert(b, a, false)
	must.NoError(t, c.client.Apply(t.Context(), []Device{c.device(a.peer())}))
	shaken(a, detours[b].Public())
	shaken(b, detours[a].Public())
	shaken(a, c.private.Public())
	shaken(a, b.private.Public())
	shaken(b, a.private.Public())

	at := func(a netip.Addr, port uint16) netip.AddrPort { return netip.AddrPortFrom(a, port) }
	flows := []*sequence{
		startSequence(t, a.innerPath(), at(a.v4, 1000), b.innerPath(), at(b.v4, 1000)),
		startSequence(t, b.innerPath(), at(b.v6, 1001), a.innerPath(), at(a.v6, 1001)),
		startSequence(t, a.innerPath(), at(a.v4, 1002), c.innerPath(), at(c.v4, 1002)),
	}
	for range 3 {
		before := received(b, "sif-zoned", detours[a].Public())
		divert(a, b, true)
		divert(b, a, true)
		eventually(t, func() error {
			if received(b, "sif-zoned", detours[a].Public()) < before+3_000 {
				return errors.New("nothing comes by the detour")
			}
			return nil
		})
		time.Sleep(200 * time.Millisecond) // what is under way by the device
		first[b] = newKey(t)
		apply(b, a)
		apply(a, b)
		shaken(a, first[b].Public())
		shaken(b, first[a].Public())
		divert(a, b, false)
		divert(b, a, false)
		before = received(b, "sif-zone", first[a].Public())
		eventually(t, func() error {
			if received(b, "sif-zone", first[a].Public()) < before+3_000 {
				return errors.New("nothing comes by the device")
			}
			return nil
		})
	}
	must.NoError(t, Divert(Diversion{Namespace: a.innerPath(), Device: "sif-zone"}))
	for i, f := range flows {
		sent, lost := f.end()
		t.Logf("flow %d: %d datagrams", i, sent)
		must.Eq(t, nil, lost, must.Sprintf("flow %d of %d datagrams", i, sent))
	}
}

func TestFiltersOfPrefixes(t *testing.T) {
	for text, want := range map[string][]uint32{
		"0.0.0.0/0":           {0, 0},
		"100.64.4.0/22":       {0xfffffc00, 0x64400400},
		"fd5f::/16":           {0xffff0000, 0xfd5f0000},
		"fd5f:0:0:2::/64":     {0xffffffff, 0xfd5f0000, 0xffffffff, 0x00000002},
		"fd5f:0:0:2::1:1/128": {0xffffffff, 0xfd5f0000, 0xffffffff, 2, 0xffffffff, 0, 0xffffffff, 0x00010001},
	} {
		var got []uint32
		for _, k := range towards(netip.MustParsePrefix(text), 1).match {
			got = append(got, k.Mask, k.Val)
		}
		must.Eq(t, want, got, must.Sprint(text))
	}
}
