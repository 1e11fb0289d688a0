// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package bpf

import (
	"net/netip"
	"slices"
	"testing"

	"github.com/shoenig/test/must"
)

const (
	bank6    = "2001:db9::7"
	shared4  = "192.0.2.9" // a port of this node is one of the neighbour's
	hole4    = "198.51.100.200"
	router4  = "203.0.113.254"
	router6  = "2001:db8::fe"
	gone4    = "100.64.3.3"
	idNode   = 7
	idCaller = 8

	contractNode, contractCaller = 20, 21
)

// newOutside is a fixture with all that is outside the fabric.
func newOutside(t testing.TB) *fixture {
	f := newFixture(t)
	for _, e := range []External{
		{netip.MustParsePrefix("2001:db9::/32"), idBank, 0},
		{netip.MustParsePrefix("2001:db9::/32"), idBank, f.underlay},
		{netip.MustParsePrefix("2001:db9::/32"), idBank, f.wire},
		{netip.MustParsePrefix(hole4 + "/32"), 0, 0},
		{netip.MustParsePrefix(resolver4 + "/32"), idNode, 0},
		{netip.MustParsePrefix(host6 + "/128"), idNode, 0},
		{netip.MustParsePrefix("192.0.2.0/24"), idCaller, FromNode},
		{netip.MustParsePrefix("2001:db8::/32"), idCaller, FromNode},
	} {
		must.NoError(t, f.PutExternal(e))
	}
	must.NoError(t, f.PutPublished(Published{6, netip.MustParseAddrPort(shared4 + ":443"), netip.MustParseAddrPort(neighbour4 + ":8443")}))
	must.NoError(t, f.PutPeer(Peer{Address: addr(gone4), Identity: idFriend, Gone: true}))
	f.rules(idMe, idNode, rule(6, 8500, 8500, contractNode), rule(17, 8125, 8125, contractNode))
	f.rules(idCaller, idMe, rule(6, 9443, 9443, contractCaller))
	return f
}

// marked is a packet from the workload that leaves with a mark.
func marked(mark uint32, s step) step {
	s.mark = mark
	return s
}

func (f *fixture) bank(rules ...Rule) { f.rules(idMe, idBank, rules...) }

func TestOutside(t *testing.T) {
	f := newOutside(t)
	https := rule(6, 443, 443, contractBank)
	byNode := https
	byNode.ExitNode = true
	out, data, answer := ip(me4, bank4, 6, tcp(5000, 443, syn)), ip(me4, bank4, 6, tcp(5000, 443, ack)), ip(bank4, me4, 6, tcp(443, 5000, syn|ack))
	out6, data6, answer6 := ip(me6, bank6, 6, tcp(5000, 443, syn)), ip(me6, bank6, 6, tcp(5000, 443, ack)), ip(bank6, me6, 6, tcp(443, 5000, syn|ack))
	question, reply := ip(me4, bank4, 17, udp(5000, 443)), ip(bank4, me4, 17, udp(443, 5000))
	exits := func(marks ...uint32) step {
		return then(func(f *fixture) { must.NoError(t, f.SetExits(marks)) })
	}
	exit := func(mark uint32) step {
		return then(func(f *fixture) { f.endpoint(func(e *Endpoint) { e.Exit = mark }) })
	}
	bank := func(rules ...Rule) step { return then(func(f *fixture) { f.bank(rules...) }) }
	exceeded := func(from string, packet []byte) []byte { return ip(from, me4, 1, icmp(11, 0, 0, packet...)) }
	exceeded6 := func(from string, packet []byte) []byte { return ip(from, me6, 58, icmp(3, 0, 0, packet...)) }
	host4Port := func(port uint16, flags byte) []byte { return ip(shared4, me4, 6, tcp(6000, port, flags)) }

	for _, test := range []struct {
		name  string
		steps []step
	}{
		{"by the zone", []step{
			marked(exitOne, sent(AllowedContract, out)), wire(UnknownSource, answer), host(WrongInterface, answer), underlay(AllowedConnection, answer),
			marked(exitOne, sent(AllowedConnection, data)), then(raise), marked(exitOne, sent(AllowedConnection, data)), underlay(AllowedConnection, answer),
			marked(exitOne, sent(AllowedConnection, data))}},
		{"by the zone, v6", []step{
			marked(exitOne, sent(AllowedContract, out6)), underlay(AllowedConnection, answer6), wire(AllowedConnection, answer6),
			marked(exitOne, sent(AllowedConnection, data6))}},
		{"by the node", []step{
			bank(byNode), marked(exitNode, sent(AllowedContract, out)), underlay(AllowedConnection, answer), marked(exitNode, sent(AllowedConnection, data)),
			then(raise), marked(exitNode, sent(AllowedConnection, data))}},
		{"no exit", []step{exit(0), sent(NoExit, out), sent(NoContract, ip(me4, bank4, 6, tcp(5000, 444, syn))), bank(byNode), marked(exitNode, sent(AllowedContract, out))}},
		{"within the fabric there is no mark", []step{
			marked(exitOne, sent(AllowedContract, out)), marked(0, sent(AllowedContract, ip(me4, friend4, 6, tcp(4000, 8080, syn)))),
			marked(0, sent(AllowedConnection, ip(me4, friend4, 6, tcp(4000, 8080, ack)))), marked(0, sent(AllowedDNS, ip(me4, resolver4, 17, udp(7000, 53))))}},
		{"answers to users have no mark", []step{
			underlay(AllowedContract, ip(user4, me4, 6, tcp(5000, 443, syn))), marked(0, sent(AllowedConnection, ip(me4, user4, 6, tcp(443, 5000, syn|ack))))}},
		{"the exit changes, the old one lives", []step{
			exits(exitOne, exitTwo), marked(exitOne, sent(AllowedContract, out)), underlay(AllowedConnection, answer), exit(exitTwo),
			marked(exitOne, sent(AllowedConnection, data)), underlay(AllowedConnection, answer), marked(exitOne, sent(AllowedConnection, data)),
			marked(exitTwo, sent(AllowedContract, ip(me4, bank4, 6, tcp(5001, 443, syn)))), exit(0), marked(exitOne, sent(AllowedConnection, data)),
			sent(NoExit, ip(me4, bank4, 6, tcp(5002, 443, syn)))}},
		{"the exit dies", []step{
			exits(exitOne, exitTwo), marked(exitOne, sent(AllowedContract, out)), underlay(AllowedConnection, answer), marked(exitOne, sent(AllowedContract, ip(me4, bank4, 6, tcp(5001, 443, syn)))),
			exit(exitTwo), exits(exitTwo), sent(StaleConnection, data), marked(exitTwo, sent(AllowedConnection, ip(me4, bank4, 6, tcp(5001, 443, syn)))),
			marked(exitTwo, sent(AllowedContract, out))}},
		{"the exit dies, udp", []step{
			bank(https, rule(17, 443, 443, contractBank)), marked(exitOne, sent(AllowedContract, question)), underlay(AllowedConnection, reply), exit(exitTwo), exits(exitTwo),
			marked(exitTwo, sent(AllowedConnection, question)), underlay(AllowedConnection, reply)}},
		{"the kind of exit changes", []step{
			exits(exitOne), marked(exitOne, sent(AllowedContract, out)), bank(byNode), sent(StaleConnection, data), marked(exitNode, sent(AllowedContract, out))}},
		{"the contract goes", []step{marked(exitOne, sent(AllowedContract, out)), bank(), sent(StaleConnection, data), sent(NoContract, data)}},
		{"the external goes", []step{
			sent(AllowedContract, out), then(func(f *fixture) { _ = f.DeleteExternal(External{Prefix: netip.MustParsePrefix("198.51.100.0/24")}) }),
			underlay(StaleConnection, answer), sent(Outside, out),
			then(func(f *fixture) { _ = f.PutExternal(External{netip.MustParsePrefix("198.51.100.0/24"), idBank, 0}) })}},
		{"a hole", []step{sent(Outside, ip(me4, hole4, 6, tcp(5000, 443, syn)))}},
		{"all of one family is nothing of the other", []step{
			then(func(f *fixture) {
				for _, at := range []uint32{0, f.underlay, FromNode} {
					must.NoError(f.t, f.PutExternal(External{netip.MustParsePrefix("::/0"), idBank, at}))
				}
				f.rules(idBank, idMe, rule(6, 443, 443, contractCaller))
			}),
			marked(exitOne, sent(AllowedContract, ip(me6, "2001:dba::1", 6, tcp(5000, 443, syn)))), sent(Outside, ip(me4, "8.8.8.8", 6, tcp(5000, 443, syn))),
			underlay(AllowedContract, ip("2001:dba::2", me6, 6, tcp(5000, 443, syn))), underlay(UnknownSource, ip("8.8.8.8", me4, 6, tcp(5000, 443, syn))),
			host(NoCheck, ip("8.8.8.8", me4, 6, tcp(5001, 443, syn))),
			then(func(f *fixture) {
				all, err := f.Externals()
				must.NoError(f.t, err)
				for _, at := range []uint32{0, f.underlay, FromNode} {
					x := External{netip.MustParsePrefix("::/0"), idBank, at}
					must.True(f.t, slices.Contains(all, x))
					must.NoError(f.t, f.DeleteExternal(x))
				}
				f.rules(idBank, idMe)
			})}},
		{"a hole where answers arrive", []step{
			sent(AllowedContract, out), then(func(f *fixture) { _ = f.PutExternal(External{netip.MustParsePrefix(bank4 + "/32"), 0, f.underlay}) }),
			underlay(UnknownSource, answer), then(func(f *fixture) {
				_ = f.DeleteExternal(External{Prefix: netip.MustParsePrefix(bank4 + "/32"), Interface: f.underlay})
			})}},

		{"a router on the way", []step{
			sent(AllowedContract, out), wire(UnknownSource, exceeded(router4, out)), underlay(AllowedError, exceeded(router4, out)),
			underlay(AllowedConnection, answer), underlay(AllowedError, exceeded(router4, out)), wire(UnknownSource, exceeded(router4, out)),
			underlay(UnknownSource, exceeded(nobody4, out)), underlay(AllowedError, ip(router4, me4, 1, icmp(3, 1, 0, out...)))}},
		{"a router on the way, v6", []step{
			sent(AllowedContract, out6), underlay(AllowedError, exceeded6(router6, out6)), underlay(UnknownSource, exceeded6(nobody6, out6))}},
		{"a router about no flow", []step{underlay(UnknownSource, exceeded(router4, out))}},
		{"a router about a flow inside", []step{
			sent(AllowedContract, ip(me4, friend4, 6, tcp(4000, 8080, syn))), wire(UnknownSource, exceeded(router4, ip(me4, friend4, 6, tcp(4000, 8080, syn))))}},
		{"a router about a published port", []step{
			underlay(AllowedContract, ip(user4, me4, 6, tcp(5000, 443, syn))), underlay(AllowedError, exceeded(router4, ip(me4, user4, 6, tcp(443, 5000, ack))))}},
		{"my error about an answer leaves as the flow", []step{
			bank(https, rule(17, 443, 443, contractBank)), sent(AllowedContract, question), underlay(AllowedConnection, reply),
			marked(exitOne, sent(AllowedError, ip(me4, bank4, 1, icmp(3, 3, 0, reply...)))), then(raise), marked(exitOne, sent(AllowedError, ip(me4, bank4, 1, icmp(3, 3, 0, reply...))))}},

		{"this node", []step{
			marked(0, sent(AllowedContract, ip(me4, resolver4, 6, tcp(4000, 8500, syn)))), underlay(WrongInterface, ip(resolver4, me4, 6, tcp(8500, 4000, syn|ack))),
			host(AllowedConnection, ip(resolver4, me4, 6, tcp(8500, 4000, syn|ack))), then(raise), host(AllowedConnection, ip(resolver4, me4, 6, tcp(8500, 4000, ack))),
			marked(0, sent(AllowedConnection, ip(me4, resolver4, 6, tcp(4000, 8500, ack))))}},
		{"this node, v6", []step{
			sent(AllowedContract, ip(me6, host6, 17, udp(4000, 8125))), host(AllowedConnection, ip(host6, me6, 17, udp(8125, 4000)))}},
		{"this node, other port", []step{sent(NoContract, ip(me4, resolver4, 6, tcp(4000, 22, syn))), sent(NoContract, ip(me4, resolver4, 17, udp(4000, 54)))}},
		{"this node, withdrawn", []step{
			sent(AllowedContract, ip(me4, resolver4, 6, tcp(4000, 8500, syn))), then(func(f *fixture) { f.rules(idMe, idNode) }),
			host(StaleConnection, ip(resolver4, me4, 6, tcp(8500, 4000, syn|ack))), sent(NoContract, ip(me4, resolver4, 6, tcp(4000, 8500, syn))),
			marked(0, sent(AllowedDNS, ip(me4, resolver4, 17, udp(7000, 53)))),
			then(func(f *fixture) {
				f.rules(idMe, idNode, rule(6, 8500, 8500, contractNode), rule(17, 8125, 8125, contractNode))
			})}},
		{"from this node", []step{
			host(AllowedContract, host4Port(9443, syn)), marked(0, sent(AllowedConnection, ip(me4, shared4, 6, tcp(9443, 6000, syn|ack)))), then(raise),
			host(AllowedConnection, host4Port(9443, ack)), underlay(UnknownSource, host4Port(9443, ack)), host(NoContract, host4Port(9444, syn)), host(AllowedCheck, host4Port(80, syn)),
			then(func(f *fixture) { f.rules(idCaller, idMe) }), host(StaleConnection, host4Port(9443, ack)),
			then(func(f *fixture) { f.rules(idCaller, idMe, rule(6, 9443, 9443, contractCaller)) })}},
		{"from this node, v6", []step{host(AllowedContract, ip(user6, me6, 6, tcp(6000, 9443, syn))), host(NoCheck, ip(host6, me6, 6, tcp(6000, 9443, syn)))}},
		{"from this node, elsewhere", []step{host(NoCheck, ip(router4, me4, 6, tcp(6000, 9443, syn))), underlay(UnknownSource, host4Port(9443, syn))}},

		{"a port of this node is a neighbour's", []step{
			marked(0, sent(AllowedContract, ip(me4, shared4, 6, tcp(4000, 443, syn)))), underlay(WrongInterface, ip(shared4, me4, 6, tcp(443, 4000, syn|ack))),
			neighbour(AllowedConnection, ip(shared4, me4, 6, tcp(443, 4000, syn|ack))), then(raise), neighbour(AllowedConnection, ip(shared4, me4, 6, tcp(443, 4000, ack))),
			marked(0, sent(AllowedConnection, ip(me4, shared4, 6, tcp(4000, 443, ack)))),
			then(func(f *fixture) { f.rules(idMe, idNeighbour, rule(6, 8442, 8442, contractNeighbours)) }), sent(StaleConnection, ip(me4, shared4, 6, tcp(4000, 443, ack))),
			sent(NoContract, ip(me4, shared4, 6, tcp(4000, 443, syn)))}},
		{"another port of this node", []step{sent(Outside, ip(me4, shared4, 6, tcp(4000, 444, syn))), sent(Outside, ip(me4, shared4, 17, udp(4000, 443)))}},
		{"the endpoint behind a port is not known", []step{
			then(func(f *fixture) { _ = f.DeletePeer(addr(neighbour4)) }), sent(UnknownDestination, ip(me4, shared4, 6, tcp(4000, 443, syn))),
			then(func(f *fixture) { _ = f.PutPeer(Peer{Address: addr(neighbour4), Gone: true}) }), sent(PeerGone, ip(me4, shared4, 6, tcp(4000, 443, syn))),
			then(func(f *fixture) { _ = f.PutPeer(peer(neighbour4, idNeighbour, f.neighbour)) })}},

		{"a peer that is gone", []step{
			sent(PeerGone, ip(me4, gone4, 6, tcp(4000, 8080, syn))), wire(PeerGone, ip(gone4, me4, 6, tcp(5000, 80, syn))), host(PeerGone, ip(gone4, me4, 6, tcp(5000, 80, syn)))}},
		{"a peer goes", []step{
			sent(AllowedContract, ip(me4, friend4, 6, tcp(4000, 8080, syn))), then(func(f *fixture) { _ = f.PutPeer(Peer{Address: addr(friend4), Gone: true}) }),
			sent(StaleConnection, ip(me4, friend4, 6, tcp(4000, 8080, ack))), sent(PeerGone, ip(me4, friend4, 6, tcp(4000, 8080, ack)))}},
	} {
		for i, s := range test.steps {
			if s.change != nil {
				s.change(f)
				continue
			}
			if got := f.step(s); got != s.want {
				t.Errorf("%s, step %d: %s, want %s", test.name, i, got, s.want)
			}
			if s.dir == FromWorkload && s.want.Allowed() && s.mark != unmarked && f.last.mark != s.mark {
				t.Errorf("%s, step %d: mark %#x, want %#x", test.name, i, f.last.mark, s.mark)
			}
		}
		f.restore()
		must.NoError(t, f.SetExits(nil))
	}
}
