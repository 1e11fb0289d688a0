// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package chaos

import (
	"net/netip"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"github.com/sif-project/sif/api"
	"github.com/sif-project/sif/fabric"
)

// What an observer has seen is written down here with times of its own.
type script struct {
	*observer
	origin, near, far, guest *endpoint
	zero                     time.Time
}

func newScript() *script {
	s := &script{observer: newObserver(), zero: time.Now()}
	at := func(service, node, addr string) *endpoint {
		e := &endpoint{service: service, node: node, alloc: service, addr: netip.MustParseAddr(addr)}
		s.know(e)
		return e
	}
	s.origin, s.near = at(originator, "w1", "100.64.0.1"), at(near, "w2", "100.64.0.2")
	s.far, s.guest = at(far, "w3", "100.64.0.3"), at(guest, "w3", "100.64.0.4")
	return s
}

func (s *script) at(seconds int) time.Time { return s.zero.Add(time.Duration(seconds) * time.Second) }

func (s *script) revision(began int, sequence uint64, mask int) *revision {
	r := s.asks(content{mask: mask})
	r.began, r.sequence = s.at(began), sequence
	return r
}

func (s *script) confirmedAt(seconds int, node string, sequence, list uint64) {
	s.confirms(node, confirmation{s.at(seconds), sequence, list})
}

// arrives returns why a datagram must not arrive.
func (s *script) arrives(from, to *endpoint, src, dst uint16, sent, at int) string {
	return s.wrong(arrival{at: s.at(at), to: to, from: from.addr, protocol: protocolUDP, src: src, dst: dst, sent: s.at(sent)})
}

func TestObserverKnowsWhatEachRevisionAllows(t *testing.T) {
	s := newScript()
	s.revision(0, 1, 0b01)
	s.revision(10, 2, 0b10)
	for at, node := range []string{"w1", "w2"} {
		s.confirmedAt(1, node, 1, 0)
		s.confirmedAt(20+at, node, 2, 0)
	}
	const first, second = togglePort, togglePort + 1
	must.Eq(t, "", s.arrives(s.origin, s.near, 30000, first, 5, 5))
	must.StrContains(t, s.arrives(s.origin, s.near, 30000, second, 5, 5), "w2 had confirmed sequence 1 before it came")
	// The second may be in force since it was asked for, and the first until the node says so.
	for at := 11; at < 20; at++ {
		must.Eq(t, "", s.arrives(s.origin, s.near, 30000, first, at, at))
		must.Eq(t, "", s.arrives(s.origin, s.near, 30000, second, at, at))
		must.Eq(t, "", s.arrives(s.near, s.origin, first, 30000, at, at))
	}
	must.Eq(t, "", s.arrives(s.origin, s.near, 30000, second, 30, 30))
	must.StrContains(t, s.arrives(s.origin, s.near, 30000, first, 30, 30), "w2 had confirmed sequence 2 before it came")
	must.StrContains(t, s.arrives(s.near, s.origin, first, 30000, 30, 30), "w1 had confirmed sequence 2 before it came")
	// The sender must not have sent it either.
	must.StrContains(t, s.arrives(s.near, s.origin, first, 30000, 22, 20), "w2 had confirmed sequence 2 before it was sent")
	must.Eq(t, "", s.arrives(s.near, s.origin, first, 30000, 20, 20))
}

// Another author's change raises the sequence, and leaves what is allowed as it is.
func TestObserverKnowsThatAnAuthorLeavesTheOthersDomain(t *testing.T) {
	s := newScript()
	s.revision(0, 1, 0b1)
	s.confirmedAt(1, "w2", 5, 0)
	must.Eq(t, "", s.arrives(s.origin, s.near, 30000, togglePort, 2, 2))
}

func TestObserverKnowsThatARollbackMayChangeNothing(t *testing.T) {
	s := newScript()
	s.revision(0, 1, 0b1)
	s.confirmedAt(1, "w2", 2, 0)
	s.revision(5, 2, 0b1)
	must.Eq(t, "", s.arrives(s.origin, s.near, 30000, togglePort, 3, 3))
	must.Eq(t, "", s.arrives(s.origin, s.near, 30000, togglePort, 6, 6))
}

func TestObserverTakesWhatHadNoAnswerForPossible(t *testing.T) {
	s := newScript()
	s.revision(0, 1, 0)
	r := s.revision(5, 0, 0b1)
	s.confirmedAt(6, "w2", 3, 0)
	must.NotEq(t, "", s.arrives(s.origin, s.near, 30000, togglePort, 4, 4))
	must.Eq(t, "", s.arrives(s.origin, s.near, 30000, togglePort, 9, 9))
	s.known(r, 0, true)
	must.NotEq(t, "", s.arrives(s.origin, s.near, 30000, togglePort, 9, 9))
}

func TestObserverKnowsWhatNoRevisionAllows(t *testing.T) {
	s := newScript()
	s.revision(0, 1, 0b1111)
	for _, p := range []struct {
		from, to *endpoint
		src, dst uint16
		ok       bool
	}{
		{s.origin, s.near, 30000, steadyPort, true},
		{s.near, s.origin, steadyPort, 30000, true},
		{s.guest, s.near, 30000, guestPort, true},
		{s.near, s.guest, guestPort, 30000, true},
		{s.origin, s.near, 30000, neverPort, false},
		{s.origin, s.near, 30000, guestPort, false},
		{s.guest, s.near, 30000, steadyPort, false},
		{s.near, s.origin, 30000, openedPort, false},
		{s.near, s.origin, steadyPort, openedPort, false},
		{s.near, s.far, 30000, steadyPort, false},
		{s.guest, s.origin, 30000, steadyPort, false},
	} {
		why := s.arrives(p.from, p.to, p.src, p.dst, 1, 1)
		must.Eq(t, p.ok, why == "", must.Sprintf("%s:%d to %s:%d: %q", p.from, p.src, p.to, p.dst, why))
	}
}

func TestObserverKnowsWhoIsRevoked(t *testing.T) {
	s := newScript()
	s.revokes(s.guest, 7)
	s.confirmedAt(5, "w2", 1, 6)
	s.confirmedAt(8, "w2", 1, 7)
	must.Eq(t, "", s.arrives(s.guest, s.near, 30000, guestPort, 7, 7))
	must.StrContains(t, s.arrives(s.guest, s.near, 30000, guestPort, 9, 9), "revoked by list 7")
}

func TestObserverKnowsWhoseAddressesAndPoolsAre(t *testing.T) {
	s := newScript()
	s.know(&endpoint{service: guest, node: "w3", alloc: "another", addr: s.guest.addr})
	must.SliceLen(t, 1, s.found())
	node := func(name, pool, endpoint string) api.NodeStatus {
		return api.NodeStatus{Kind: fabric.KindWorkload, Node: name, Pool4: netip.MustParsePrefix(pool), Endpoints: []api.EndpointStatus{
			{Endpoint: endpoint, IPv4: netip.MustParseAddr("100.64.9.9")},
		}}
	}
	s.hears(api.Status{Nodes: []api.NodeStatus{node("w1", "100.64.0.0/24", "a"), node("w2", "100.64.1.0/24", "b")}})
	must.SliceLen(t, 2, s.found())
	must.StrContains(t, s.found()[1], "endpoints a and b both have the address")
	s.hears(api.Status{Nodes: []api.NodeStatus{node("w2", "100.64.0.0/24", "a")}})
	must.SliceLen(t, 4, s.found())
	must.StrContains(t, s.found()[2], "had 100.64.1.0/24 before")
	must.StrContains(t, s.found()[3], "overlap")
}
