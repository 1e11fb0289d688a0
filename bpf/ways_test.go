// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package bpf

import (
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/shoenig/test/must"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"pgregory.net/rapid"
)

const (
	far4, far6 = "100.64.5.2", "fd5f:5::2" // in another zone: me may call it, and it may call me
	idFar      = 30
	farGroup   = 3
	farNumber  = 0x5a
	meNumber   = 0x3c

	wayOne, wayTwo = 0x200, 0x201 // marks
)

// farWay is the way of a class between me and far.
func farWay(class uint16) Way { return Way{class, farGroup, meNumber ^ farNumber} }

// waysFixture is a fixture with a peer that is reached by ways, by two links.
type waysFixture struct {
	*fixture
	one, two uint32
}

func newWays(t testing.TB) *waysFixture {
	f := &waysFixture{fixture: newFixture(t)}
	f.one, f.two = device(t, "one"), device(t, "two")
	f.reset()
	return f
}

func (f *waysFixture) reset() {
	f.t.Helper()
	f.restore()
	f.endpoint(func(e *Endpoint) { e.Number = meNumber })
	f.far(true)
	f.rules(idMe, idFar, rule(6, 8080, 8080, contractOut), rule(17, 9000, 9010, contractDatagrams), rule(1, 8, 8, contractEcho), rule(58, 128, 128, contractEcho))
	f.rules(idFar, idMe, rule(6, 80, 80, contractIn))
	must.NoError(f.t, f.SetClasses(nil))
	f.links(f.one, f.two)
	f.ways(map[Way]uint32{farWay(0): wayOne})
}

// far writes the peer, which has ways or is behind the wire.
func (f *waysFixture) far(ways bool) {
	f.t.Helper()
	for _, a := range []string{far4, far6} {
		p := peer(a, idFar, f.wire)
		if ways {
			p = Peer{Address: addr(a), Identity: idFar, Ways: true, Group: farGroup, Number: farNumber}
		}
		must.NoError(f.t, f.PutPeer(p))
	}
}

func (f *waysFixture) links(list ...uint32) {
	f.t.Helper()
	must.NoError(f.t, f.SetLinks(list))
}

func (f *waysFixture) ways(ways map[Way]uint32) {
	f.t.Helper()
	must.NoError(f.t, f.SetWays(ways))
}

// by is a packet to the workload that arrives by an interface.
func by(ifindex uint32, want Reason, packet []byte) step {
	return step{want: want, dir: ToWorkload, packet: packet, ingress: func(*fixture) uint32 { return ifindex }}
}

// leaves is a packet from the workload that passes with a mark.
func leaves(mark uint32, want Reason, packet []byte) step { return marked(mark, sent(want, packet)) }

func TestWays(t *testing.T) {
	f := newWays(t)
	one := func(want Reason, packet []byte) step { return by(f.one, want, packet) }
	two := func(want Reason, packet []byte) step { return by(f.two, want, packet) }
	ways := func(list map[Way]uint32) step { return then(func(*fixture) { f.ways(list) }) }
	way := func(mark uint32) step { return ways(map[Way]uint32{farWay(0): mark}) }
	links := func(list ...uint32) step { return then(func(*fixture) { f.links(list...) }) }
	class := func(contract uint32, n uint16) step {
		return then(func(*fixture) { must.NoError(t, f.SetClasses(map[uint32]uint16{contract: n})) })
	}
	out, data := ip(me4, far4, 6, tcp(4000, 8080, syn)), ip(me4, far4, 6, tcp(4000, 8080, ack))
	answer, reply := ip(far4, me4, 6, tcp(8080, 4000, syn|ack)), ip(far4, me4, 6, tcp(8080, 4000, ack))
	in, inData := ip(far4, me4, 6, tcp(5000, 80, syn)), ip(far4, me4, 6, tcp(5000, 80, ack))
	inAnswer, inReply := ip(me4, far4, 6, tcp(80, 5000, syn|ack)), ip(me4, far4, 6, tcp(80, 5000, ack))
	ask, told := ip(me4, far4, 17, udp(4000, 9000)), ip(far4, me4, 17, udp(9000, 4000))
	shared := "192.0.2.9"

	for _, test := range []struct {
		name  string
		steps []step
	}{
		{"out and back, by any link", []step{
			leaves(wayOne, AllowedContract, out), two(AllowedConnection, answer), leaves(wayOne, AllowedConnection, data), one(AllowedConnection, reply),
			two(AllowedConnection, reply), one(AllowedConnection, reply), two(AllowedConnection, reply), leaves(wayOne, AllowedConnection, data),
			then(raise), one(AllowedConnection, reply), two(AllowedConnection, reply), leaves(wayOne, AllowedConnection, data)}},
		{"in and back, by any link", []step{
			one(AllowedContract, in), leaves(wayOne, AllowedConnection, inAnswer), two(AllowedConnection, inData), one(AllowedConnection, inData),
			leaves(wayOne, AllowedConnection, inReply), then(raise), leaves(wayOne, AllowedConnection, inReply), two(AllowedConnection, inData)}},
		{"v6", []step{
			leaves(wayOne, AllowedContract, ip(me6, far6, 6, tcp(4000, 8080, syn))), two(AllowedConnection, ip(far6, me6, 6, tcp(8080, 4000, syn|ack))),
			one(AllowedContract, ip(far6, me6, 6, tcp(5000, 80, syn))), leaves(wayOne, AllowedConnection, ip(me6, far6, 6, tcp(80, 5000, syn|ack)))}},
		{"by what is no link", []step{
			wire(WrongInterface, in), underlay(WrongInterface, in), host(WrongInterface, in), neighbour(WrongInterface, in),
			leaves(wayOne, AllowedContract, out), wire(WrongInterface, answer), underlay(WrongInterface, answer), host(WrongInterface, answer), one(AllowedConnection, answer),
			wire(WrongInterface, reply), host(WrongInterface, reply), two(AllowedConnection, reply), leaves(wayOne, AllowedConnection, data),
			one(AllowedContract, in), wire(WrongInterface, inData), host(WrongInterface, inData), one(AllowedConnection, inData), leaves(wayOne, AllowedConnection, inAnswer)}},
		{"no other peer comes by a link", []step{
			one(WrongInterface, ip(friend4, me4, 6, tcp(5000, 80, syn))), one(UnknownSource, ip(user4, me4, 6, tcp(5000, 443, syn)))}},
		{"a link goes", []step{
			leaves(wayOne, AllowedContract, out), two(AllowedConnection, answer), two(AllowedContract, in), leaves(wayOne, AllowedConnection, inAnswer), links(f.one),
			two(WrongInterface, reply), leaves(wayOne, AllowedConnection, data), two(WrongInterface, reply), one(AllowedConnection, reply),
			two(WrongInterface, inData), leaves(wayOne, AllowedConnection, inReply), two(WrongInterface, inData), one(AllowedConnection, inData),
			leaves(wayOne, AllowedConnection, inReply), two(WrongInterface, ip(far4, me4, 6, tcp(5001, 80, syn)))}},
		{"all links go", []step{
			leaves(wayOne, AllowedContract, out), one(AllowedConnection, answer), one(AllowedContract, in), links(), one(WrongInterface, reply), one(WrongInterface, inData),
			leaves(wayOne, AllowedConnection, data), leaves(wayOne, AllowedConnection, inReply), one(WrongInterface, reply), one(WrongInterface, inData),
			links(f.two), two(AllowedConnection, reply), two(AllowedConnection, inData)}},
		{"a way moves", []step{
			leaves(wayOne, AllowedContract, out), one(AllowedConnection, answer), one(AllowedContract, in), leaves(wayOne, AllowedConnection, inAnswer),
			leaves(wayOne, AllowedContract, ask), one(AllowedConnection, told), way(wayTwo),
			leaves(wayTwo, AllowedConnection, data), one(AllowedConnection, reply), two(AllowedConnection, reply), leaves(wayTwo, AllowedConnection, data),
			two(AllowedConnection, inData), leaves(wayTwo, AllowedConnection, inReply), one(AllowedConnection, inData),
			leaves(wayTwo, AllowedConnection, ask), two(AllowedConnection, told), leaves(wayTwo, AllowedConnection, ask)}},
		{"a way moves, exits live", []step{
			then(func(*fixture) { must.NoError(t, f.SetExits([]uint32{wayOne, exitOne})) }), leaves(wayOne, AllowedContract, out), way(wayTwo), leaves(wayTwo, AllowedConnection, data),
			then(func(*fixture) { must.NoError(t, f.SetExits(nil)) })}},
		{"no way", []step{
			ways(nil), sent(NoWay, out), sent(NoWay, ask), one(NoWay, in), sent(NoContract, ip(me4, far4, 6, tcp(4000, 8081, syn))), one(NoContract, ip(far4, me4, 6, tcp(5000, 81, syn))),
			sent(NoConnection, inAnswer), way(wayTwo), leaves(wayTwo, AllowedContract, out)}},
		{"only other ways", []step{
			ways(map[Way]uint32{{1, farGroup, meNumber ^ farNumber}: 1, {0, farGroup + 1, meNumber ^ farNumber}: 2, {0, farGroup, farNumber}: 3, {0, farGroup, meNumber}: 4, {0, 0, 0}: 5}),
			sent(NoWay, out)}},
		{"the way goes, and another comes", []step{
			leaves(wayOne, AllowedContract, out), one(AllowedConnection, answer), one(AllowedContract, in), leaves(wayOne, AllowedConnection, inAnswer),
			leaves(wayOne, AllowedContract, ask), one(AllowedConnection, told), ways(nil),
			sent(NoWay, data), one(NoWay, reply), sent(NoWay, data), one(NoWay, inData), sent(NoWay, inReply), sent(NoWay, ask), one(NoWay, told), one(NoWay, told), way(wayTwo),
			two(AllowedConnection, reply), leaves(wayTwo, AllowedConnection, data), leaves(wayTwo, AllowedConnection, inReply), one(AllowedConnection, inData),
			two(AllowedConnection, told), leaves(wayTwo, AllowedConnection, ask)}},
		{"the contract goes while there is no way", []step{
			leaves(wayOne, AllowedContract, out), ways(nil), sent(NoWay, data), then(func(f *fixture) { f.rules(idMe, idFar) }), sent(StaleConnection, data), sent(NoContract, data)}},
		{"class of the contract", []step{
			ways(map[Way]uint32{farWay(0): wayOne, farWay(7): wayTwo}), class(contractOut, 7), leaves(wayTwo, AllowedContract, out), leaves(wayOne, AllowedContract, ask),
			one(AllowedContract, in), leaves(wayOne, AllowedConnection, inAnswer), class(contractIn, 7), leaves(wayOne, AllowedConnection, data), leaves(wayTwo, AllowedConnection, inReply),
			class(contractDatagrams, 9), sent(NoWay, ask), leaves(wayOne, AllowedConnection, inReply)}},
		{"class of a contract in audit mode", []step{
			ways(map[Way]uint32{farWay(7): wayTwo}), class(contractOut, 7), then(func(f *fixture) { f.rules(idMe, idFar, rule(6, 8080, 8080, contractOut|AuditContract)) }),
			leaves(wayTwo, AllowedContract, out)}},
		{"class of a contract by the node's exit", []step{
			ways(map[Way]uint32{farWay(7): wayTwo}), class(contractOut, 7),
			then(func(f *fixture) { f.rules(idMe, idFar, Rule{6, 8080, 8080, contractOut, true}) }), leaves(wayTwo, AllowedContract, out)}},
		{"echo", []step{
			leaves(wayOne, AllowedContract, ip(me4, far4, 1, icmp(8, 0, 77))), two(AllowedConnection, ip(far4, me4, 1, icmp(0, 0, 77))), way(wayTwo),
			leaves(wayTwo, AllowedConnection, ip(me4, far4, 1, icmp(8, 0, 77))), one(AllowedConnection, ip(far4, me4, 1, icmp(0, 0, 77)))}},
		{"errors", []step{
			leaves(wayOne, AllowedContract, out), one(AllowedConnection, answer), two(AllowedError, ip(far4, me4, 1, icmp(3, 3, 0, out...))), wire(WrongInterface, ip(far4, me4, 1, icmp(3, 3, 0, out...))),
			two(AllowedError, ip(nobody4, me4, 1, icmp(3, 4, 0, out...))), one(AllowedContract, in), leaves(wayOne, AllowedError, ip(me4, far4, 1, icmp(3, 3, 0, in...))), way(wayTwo),
			leaves(wayTwo, AllowedError, ip(me4, far4, 1, icmp(3, 3, 0, in...))), leaves(wayTwo, AllowedError, ip(me4, far4, 1, icmp(3, 3, 0, in...))), ways(nil),
			two(NoWay, ip(far4, me4, 1, icmp(3, 3, 0, out...))), sent(NoWay, ip(me4, far4, 1, icmp(3, 3, 0, in...))), way(wayOne), leaves(wayOne, AllowedConnection, data)}},
		{"fragments", []step{
			leaves(wayOne, AllowedContract, fragment(me4, far4, 17, piece{1, 0, true, long(udp(4000, 9000), 24)})), leaves(wayOne, AllowedConnection, fragment(me4, far4, 17, piece{1, 24, false, make([]byte, 8)})),
			way(wayTwo), sent(StaleFragment, fragment(me4, far4, 17, piece{1, 24, false, make([]byte, 8)})),
			leaves(wayTwo, AllowedConnection, fragment(me4, far4, 17, piece{2, 0, true, long(udp(4000, 9000), 24)})), leaves(wayTwo, AllowedConnection, fragment(me4, far4, 17, piece{2, 24, false, make([]byte, 8)})),
			one(AllowedConnection, fragment(far4, me4, 17, piece{1, 0, true, long(udp(9000, 4000), 24)})), one(AllowedConnection, fragment(far4, me4, 17, piece{1, 24, false, make([]byte, 8)}))}},
		{"a port of this node leads to it", []step{
			then(func(f *fixture) {
				must.NoError(t, f.PutPublished(Published{6, netip.MustParseAddrPort(shared + ":443"), netip.MustParseAddrPort(far4 + ":8080")}))
			}),
			leaves(wayOne, AllowedContract, ip(me4, shared, 6, tcp(4000, 443, syn))), two(AllowedConnection, ip(shared, me4, 6, tcp(443, 4000, syn|ack))), way(wayTwo),
			leaves(wayTwo, AllowedConnection, ip(me4, shared, 6, tcp(4000, 443, ack))), wire(WrongInterface, ip(shared, me4, 6, tcp(443, 4000, ack))),
			one(AllowedConnection, ip(shared, me4, 6, tcp(443, 4000, ack))), ways(nil), sent(NoWay, ip(me4, shared, 6, tcp(4000, 443, ack))),
			then(func(f *fixture) {
				must.NoError(t, f.DeletePublished(Published{Protocol: 6, From: netip.MustParseAddrPort(shared + ":443")}))
			})}},
		{"an interface becomes ways", []step{
			then(func(*fixture) { f.far(false) }), leaves(0, AllowedContract, out), wire(AllowedConnection, answer), wire(AllowedContract, in), leaves(0, AllowedConnection, inAnswer),
			then(func(*fixture) { f.far(true) }), leaves(wayOne, AllowedConnection, data), wire(WrongInterface, reply), one(AllowedConnection, reply),
			leaves(wayOne, AllowedConnection, inReply), wire(WrongInterface, inData), two(AllowedConnection, inData)}},
		{"ways become an interface", []step{
			then(func(*fixture) { must.NoError(t, f.SetExits([]uint32{wayOne})) }),
			leaves(wayOne, AllowedContract, out), one(AllowedConnection, answer), one(AllowedContract, in), leaves(wayOne, AllowedConnection, inAnswer),
			then(func(*fixture) { f.far(false) }), leaves(0, AllowedConnection, data), one(WrongInterface, reply), wire(AllowedConnection, reply),
			leaves(0, AllowedConnection, inReply), one(WrongInterface, inData), wire(AllowedConnection, inData), then(func(*fixture) { must.NoError(t, f.SetExits(nil)) })}},
		{"the number of the endpoint changes", []step{
			leaves(wayOne, AllowedContract, out), ways(map[Way]uint32{farWay(0): wayOne, {0, farGroup, farNumber}: wayTwo}),
			then(func(f *fixture) { f.endpoint(nil) }), leaves(wayTwo, AllowedConnection, data)}},
		{"the peer goes", []step{
			leaves(wayOne, AllowedContract, out), then(func(f *fixture) { _ = f.PutPeer(Peer{Address: addr(far4), Gone: true}) }), sent(StaleConnection, data), sent(PeerGone, data), one(PeerGone, in)}},
		{"exits are as before", []step{
			ways(map[Way]uint32{farWay(0): wayOne, {0, 0, 0}: wayTwo, {0, 0, meNumber}: wayTwo}), leaves(exitOne, AllowedContract, ip(me4, bank4, 6, tcp(5000, 443, syn))),
			underlay(AllowedConnection, ip(bank4, me4, 6, tcp(443, 5000, syn|ack))), way(wayTwo), leaves(exitOne, AllowedConnection, ip(me4, bank4, 6, tcp(5000, 443, ack))),
			leaves(0, AllowedContract, ip(me4, friend4, 6, tcp(4000, 8080, syn))), underlay(AllowedContract, ip(user4, me4, 6, tcp(5000, 443, syn))),
			leaves(0, AllowedConnection, ip(me4, user4, 6, tcp(443, 5000, syn|ack)))}},
	} {
		for i, s := range test.steps {
			if s.change != nil {
				s.change(f.fixture)
				continue
			}
			if got := f.step(s); got != s.want {
				t.Errorf("%s, step %d: %s, want %s", test.name, i, got, s.want)
			}
			if s.dir == FromWorkload && s.want.Allowed() && f.last.mark != s.mark {
				t.Errorf("%s, step %d: mark %#x, want %#x", test.name, i, f.last.mark, s.mark)
			}
		}
		f.reset()
	}
}

// Each pair of endpoints has the way of its bucket, in both directions.
func TestBuckets(t *testing.T) {
	f := newWays(t)
	all := map[Way]uint32{}
	for bucket := range 256 {
		all[Way{0, farGroup, uint8(bucket)}] = wayOne + uint32(bucket)
	}
	f.ways(all)
	for n := range 256 {
		mine, its := uint8(n*7), uint8(n*3+1)
		f.endpoint(func(e *Endpoint) { e.Number = mine })
		must.NoError(t, f.PutPeer(Peer{Address: addr(far4), Identity: idFar, Ways: true, Group: farGroup, Number: its}))
		mark := wayOne + uint32(mine^its)
		f.forget()
		for _, s := range []step{
			leaves(mark, AllowedContract, ip(me4, far4, 6, tcp(4000, 8080, syn))), by(f.one, AllowedContract, ip(far4, me4, 6, tcp(5000, 80, syn))),
			leaves(mark, AllowedConnection, ip(me4, far4, 6, tcp(80, 5000, syn|ack))),
		} {
			must.Eq(t, s.want, f.step(s))
			if s.dir == FromWorkload {
				must.Eq(t, mark, f.last.mark)
			}
		}
	}
}

// Nobody is told of a way that is not there, because there may be one in a moment.
func TestNoWayIsNotTold(t *testing.T) {
	f := newWays(t)
	out, data := ip(me4, far4, 6, tcp(4000, 8080, syn)), ip(me4, far4, 6, tcp(4000, 8080, ack))
	f.endpoint(func(e *Endpoint) { e.Number, e.Reject = meNumber, true })
	f.expect("a flow", leaves(wayOne, AllowedContract, out), by(f.one, AllowedConnection, ip(far4, me4, 6, tcp(8080, 4000, syn|ack))))
	f.ways(nil)
	before, err := f.Counters()
	must.NoError(t, err)
	f.expect("no way", sent(NoWay, data), sent(NoWay, ip(me4, far4, 6, tcp(4001, 8080, syn))), sent(NoWay, ip(me4, far4, 17, udp(1, 9000))))
	after, err := f.Counters()
	must.NoError(t, err)
	must.Eq(t, before.Refusals, after.Refusals)
	// Nor does anything seem to be cut.
	roused, err := f.RouseCut()
	must.NoError(t, err)
	must.Zero(t, roused)
	connections, err := f.Connections()
	must.NoError(t, err)
	must.Len(t, 1, connections)
	must.Eq(t, wayOne, connections[0].Way)
	must.Zero(t, connections[0].Exit)
}

// Whatever happens to ways and links, in whatever order packets come by them: a packet leaves by
// the way that is there, comes by a link that is there, and no flow is forgotten.
func TestWaysAreFollowed(t *testing.T) {
	f := newWays(t)
	type flow struct {
		protocol byte
		local    uint16
		outbound bool
	}
	packet := func(fl flow, fromMe, opens bool) []byte {
		from, to, payload := far4, me4, udp
		port := uint16(9000)
		if fl.protocol == 6 {
			flags := byte(ack)
			if opens {
				flags = syn
			}
			port = 8080
			payload = func(from, to uint16) []byte { return tcp(from, to, flags) }
			if !fl.outbound {
				port = 80
			}
		}
		source, destination := port, fl.local
		if fromMe {
			from, to = to, from
		}
		if fromMe == fl.outbound {
			source, destination = destination, source
		}
		return ip(from, to, fl.protocol, payload(source, destination))
	}
	rapid.Check(t, func(t *rapid.T) {
		f.reset()
		marks, links, known := map[Way]uint32{farWay(0): wayOne}, []uint32{f.one, f.two}, map[flow]bool{}
		classes := map[uint32]uint16{}
		all := []uint32{f.one, f.two, f.wire, f.underlay}
		flows := []flow{{6, 4000, true}, {6, 4001, true}, {17, 4000, true}, {6, 5000, false}, {6, 5001, false}}
		contract := func(fl flow) uint32 {
			return map[bool]uint32{true: map[byte]uint32{6: contractOut, 17: contractDatagrams}[fl.protocol], false: contractIn}[fl.outbound]
		}
		t.Repeat(map[string]func(*rapid.T){
			"ways": func(t *rapid.T) {
				marks = map[Way]uint32{}
				for _, class := range []uint16{0, 1} {
					if mark := rapid.SampledFrom([]uint32{0, wayOne, wayTwo}).Draw(t, "mark"); mark != 0 {
						marks[farWay(class)] = mark
					}
				}
				must.NoError(t, f.SetWays(marks))
			},
			"links": func(t *rapid.T) {
				links = rapid.SliceOfNDistinct(rapid.SampledFrom([]uint32{f.one, f.two, f.wire}), 0, 3, rapid.ID).Draw(t, "links")
				must.NoError(t, f.SetLinks(links))
			},
			"classes": func(t *rapid.T) {
				classes = map[uint32]uint16{}
				for _, c := range []uint32{contractOut, contractIn} {
					if rapid.Bool().Draw(t, "class") {
						classes[c] = 1
					}
				}
				must.NoError(t, f.SetClasses(classes))
			},
			"sent": func(t *rapid.T) {
				fl := rapid.SampledFrom(flows).Draw(t, "flow")
				mark := marks[farWay(classes[contract(fl)])]
				want := known[fl] || fl.outbound
				got := f.run(FromWorkload, f.me, 0, ethernet(packet(fl, true, fl.outbound && !known[fl])))
				if pass := want && mark != 0; got.Allowed() != pass || pass && f.last.mark != mark {
					t.Fatalf("%+v: %s, mark %#x; want %t, mark %#x", fl, got, f.last.mark, pass, mark)
				}
				known[fl] = known[fl] || got.Allowed()
			},
			"received": func(t *rapid.T) {
				fl := rapid.SampledFrom(flows).Draw(t, "flow")
				ingress := rapid.SampledFrom(all).Draw(t, "ingress")
				mark := marks[farWay(classes[contract(fl)])]
				want := (known[fl] || !fl.outbound) && mark != 0 && slices.Contains(links, ingress)
				got := f.run(ToWorkload, f.me, ingress, ethernet(packet(fl, false, !fl.outbound && !known[fl])))
				if got.Allowed() != want {
					t.Fatalf("%+v by %d: %s, want %t", fl, ingress, got, want)
				}
				known[fl] = known[fl] || got.Allowed()
			},
			"": func(*rapid.T) {},
		})
	})
}

// farHost is a host behind two links of a node, which leads each mark to one.
type farHost struct {
	*workload
	indexes [2]uint32
}

func (n *node) newFar() *farHost {
	n.t.Helper()
	h := &farHost{workload: &workload{t: n.t, v4: far4, v6: far6}}
	here, err := netns.Get()
	must.NoError(n.t, err)
	defer here.Close()
	h.ns, err = netns.New() // moves the thread into it
	must.NoError(n.t, err)
	must.NoError(n.t, netns.Set(here))
	n.t.Cleanup(func() { _ = h.ns.Close() })
	for i := range h.indexes {
		name := fmt.Sprint("link", i)
		must.NoError(n.t, netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: name, HardwareAddr: net.HardwareAddr{2, 0, 0, 0, 3, byte(i)}},
			PeerName: name, PeerHardwareAddr: net.HardwareAddr{2, 0, 0, 0, 4, byte(i)}, PeerNamespace: netlink.NsFd(h.ns)}))
		l, err := netlink.LinkByName(name)
		must.NoError(n.t, err)
		h.indexes[i] = uint32(l.Attrs().Index)
		script(n.t, `
			ip link set $DEV up
			sysctl -qw net.ipv4.conf.$DEV.rp_filter=0 net.ipv4.conf.all.rp_filter=0
			for v in 4 6; do
				ip -$v rule add fwmark $MARK lookup $TABLE
				ip -$v route add default dev $DEV table $TABLE
			done
			ip neigh add $V4 lladdr $MAC dev $DEV nud permanent
			ip neigh add $V6 lladdr $MAC dev $DEV nud permanent`,
			"DEV="+name, fmt.Sprint("MARK=", wayOne+i), fmt.Sprint("TABLE=", 5200+i), fmt.Sprint("MAC=02:00:00:00:04:0", i), "V4="+far4, "V6="+far6)
		h.inside(func() {
			script(n.t, `
				ip link set lo up
				ip link set $DEV up
				sysctl -qw net.ipv4.conf.$DEV.rp_filter=0 net.ipv4.conf.all.rp_filter=0
				ip neigh add $V4 lladdr $MAC dev $DEV nud permanent
				ip neigh add $V6 lladdr $MAC dev $DEV nud permanent`,
				"DEV="+name, fmt.Sprint("MAC=02:00:00:00:03:0", i), "V4="+n.client.v4, "V6="+n.client.v6)
		})
	}
	h.inside(func() {
		script(n.t, "ip addr add $V4/32 dev lo; ip addr add $V6/128 dev lo nodad", "V4="+far4, "V6="+far6)
	})
	h.answerBy(0)
	return h
}

// connect is dial for a connection that must come about, however busy the machine is.
func (w *workload) connect(address string) (c net.Conn) {
	w.t.Helper()
	var err error
	w.inside(func() { c, err = net.DialTimeout("tcp", address, 20*time.Second) })
	must.NoError(w.t, err)
	w.t.Cleanup(func() { _ = c.Close() })
	return c
}

// answerBy makes the host send by one of its links.
func (h *farHost) answerBy(link int) {
	h.t.Helper()
	h.inside(func() {
		script(h.t, "ip route replace 100.64.0.10/32 dev $DEV src $V4; ip -6 route replace fd5f::10/128 dev $DEV src $V6", fmt.Sprint("DEV=link", link), "V4="+far4, "V6="+far6)
	})
}

// Ways and answers move while real flows go on: no datagram is lost, and no connection.
func TestRealWays(t *testing.T) { byMechanism(t, testRealWays) }

func testRealWays(t *testing.T, by Mechanism) {
	n := newNode(t, by)
	h := n.newFar()
	h.serve(":8080")
	h.echoDatagrams()
	for _, a := range []string{far4, far6} {
		must.NoError(t, n.PutPeer(Peer{Address: addr(a), Identity: idFar, Ways: true, Group: 1, Number: farNumber}))
	}
	e := endpoint(n.client.index, 1, n.client.v4, n.client.v6)
	e.Number = meNumber
	must.NoError(t, n.PutEndpoint(e))
	must.NoError(t, n.ReplacePair(Pair{1, idFar}, []Rule{rule(6, 8080, 8080, 1), rule(17, datagramPort, datagramPort, 1)}))
	must.NoError(t, n.ReplacePair(Pair{idFar, 1}, []Rule{rule(6, 8080, 8080, 1)}))
	must.NoError(t, n.SetLinks(h.indexes[:]))
	way := func(link int) {
		t.Helper()
		must.NoError(t, n.SetWays(map[Way]uint32{{0, 1, meNumber ^ farNumber}: wayOne + uint32(link)}))
	}
	_, err := n.client.dial(far4 + ":8080")
	must.Error(t, err, must.Sprint("without a way"))
	way(0)

	for _, to := range []string{far4, far6} {
		from := map[string]string{far4: n.client.v4, far6: n.client.v6}[to]
		stream, accepted := n.client.connect(net.JoinHostPort(to, "8080")), h.connect(net.JoinHostPort(from, "8080"))
		// Two flows of the workload, one that it opened and one that it accepted, transfer all the
		// while.
		var stop atomic.Bool
		ended := make(chan error, 2)
		for _, c := range []net.Conn{stream, accepted} {
			go func() {
				var err error
				for err == nil && !stop.Load() {
					err = transfer(c, 1<<20)
				}
				ended <- err
			}()
		}
		datagrams := (&path{t: t, client: n.client}).call(to)
		must.NoError(t, datagrams.SetDeadline(time.Now().Add(time.Minute)))
		question, answer := make([]byte, 8), make([]byte, 8)
		for i := range 200 {
			switch i % 20 {
			case 5:
				way(i / 20 % 2)
			case 15:
				h.answerBy(i / 20 % 3 % 2)
			}
			binary.BigEndian.PutUint64(question, uint64(i))
			_, err := datagrams.Write(question)
			must.NoError(t, err)
			_, err = io.ReadFull(datagrams, answer)
			must.NoError(t, err, must.Sprint("datagram ", i))
			must.Eq(t, question, answer)
		}
		stop.Store(true)
		must.NoError(t, <-ended)
		must.NoError(t, <-ended)
		way(0)
		h.answerBy(0)

		// What comes by a link that is none any more does not pass; without a way, flows wait.
		must.NoError(t, n.SetLinks(h.indexes[1:]))
		must.Error(t, echo(stream))
		h.answerBy(1)
		must.NoError(t, transfer(stream, 1<<16))
		must.NoError(t, n.SetWays(nil))
		must.Error(t, echo(stream))
		must.Error(t, echo(accepted))
		way(1)
		must.NoError(t, transfer(stream, 1<<16))
		must.NoError(t, transfer(accepted, 1<<16))
		must.NoError(t, n.SetLinks(h.indexes[:]))
		way(0)
		h.answerBy(0)
	}
}
