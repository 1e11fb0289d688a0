// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package bpf

import (
	"net/netip"
	"slices"
	"testing"
	"time"
)

// step is a packet at the fixture's endpoint, or a change between packets.
type step struct {
	want    Reason
	dir     Direction
	packet  []byte                // an IP packet
	ingress func(*fixture) uint32 // to the workload: interface where it arrived
	change  func(*fixture)
	frame   []byte // instead of packet: with its Ethernet header
	at      func(*fixture) uint32
	mark    uint32 // of a packet from the workload that passes
}

// unmarked is the mark of a step that does not say one.
const unmarked = 0xffffffff

// sent is a packet from the workload; wire, host and underlay are packets to it.
func sent(want Reason, packet []byte) step {
	return step{want: want, dir: FromWorkload, packet: packet, mark: unmarked}
}
func wire(want Reason, packet []byte) step {
	return step{want: want, dir: ToWorkload, packet: packet, ingress: func(f *fixture) uint32 { return f.wire }}
}
func host(want Reason, packet []byte) step {
	return step{want: want, dir: ToWorkload, packet: packet, ingress: func(*fixture) uint32 { return 0 }}
}
func underlay(want Reason, packet []byte) step {
	return step{want: want, dir: ToWorkload, packet: packet, ingress: func(f *fixture) uint32 { return f.underlay }}
}
func neighbour(want Reason, packet []byte) step {
	return step{want: want, dir: ToWorkload, packet: packet, ingress: func(f *fixture) uint32 { return f.neighbour }}
}
func then(change func(*fixture)) step { return step{change: change} }
func raise(f *fixture)                { _, _ = f.RaiseGeneration() }
func later(d time.Duration) step      { return then(func(f *fixture) { f.age(d) }) }

func TestVerdicts(t *testing.T) {
	f := newFixture(t)
	out := ip(me4, friend4, 6, tcp(4000, 8080, syn))
	outData := ip(me4, friend4, 6, tcp(4000, 8080, ack))
	outAnswer := ip(friend4, me4, 6, tcp(8080, 4000, syn|ack))
	outReply := ip(friend4, me4, 6, tcp(8080, 4000, ack))
	in := ip(friend4, me4, 6, tcp(5000, 80, syn))
	inData := ip(friend4, me4, 6, tcp(5000, 80, ack))
	inReply := ip(me4, friend4, 6, tcp(80, 5000, ack))
	check := ip(host4, me4, 6, tcp(6000, 80, syn))
	checkReply := ip(me4, host4, 6, tcp(80, 6000, syn|ack))
	query := ip(me4, resolver4, 17, udp(7000, 53))
	reply := ip(resolver4, me4, 17, udp(53, 7000))
	revoke := then(func(f *fixture) { f.rules(idMe, idFriend) })
	v6 := func(next byte, rest []byte) []byte { return ip(me6, friend6, next, rest) }

	tests := []struct {
		name  string
		steps []step
	}{
		{"tcp out and back", []step{
			sent(AllowedContract, out), wire(AllowedConnection, outAnswer), sent(AllowedConnection, outData), wire(AllowedConnection, outReply)}},
		{"tcp out, picked up in the middle", []step{sent(AllowedContract, outData), wire(AllowedConnection, outReply)}},
		{"tcp out, other port", []step{sent(NoContract, ip(me4, friend4, 6, tcp(4000, 8081, syn)))}},
		{"tcp out, other protocol on the port", []step{sent(NoContract, ip(me4, friend4, 17, udp(4000, 8080)))}},
		{"tcp out to a peer without contract", []step{sent(NoContract, ip(me4, stranger4, 6, tcp(4000, 8080, syn)))}},
		{"tcp out to nobody", []step{sent(UnknownDestination, ip(me4, nobody4, 6, tcp(4000, 8080, syn)))}},
		{"tcp out to nobody, v6", []step{sent(UnknownDestination, ip(me6, nobody6, 6, tcp(4000, 8080, syn)))}},
		{"tcp out beyond the fabric", []step{sent(Outside, ip(me4, elsewhere4, 6, tcp(4000, 8080, syn)))}},
		{"tcp out to this node", []step{sent(Outside, ip(me4, host4, 6, tcp(4000, 22, syn)))}},
		{"all ports", []step{
			sent(AllowedContract, ip(me4, neighbour4, 6, tcp(4000, 0, syn))),
			sent(AllowedContract, ip(me4, neighbour4, 6, tcp(4000, 33333, syn))),
			sent(AllowedContract, ip(me4, neighbour4, 6, tcp(4000, 65535, syn)))}},
		{"udp range", []step{
			sent(NoContract, ip(me4, friend4, 17, udp(4000, 8999))), sent(AllowedContract, ip(me4, friend4, 17, udp(4000, 9000))),
			sent(AllowedContract, ip(me4, friend4, 17, udp(4000, 9010))), sent(NoContract, ip(me4, friend4, 17, udp(4000, 9011)))}},
		{"udp answered", []step{
			sent(AllowedContract, ip(me4, friend4, 17, udp(4000, 9005))), wire(AllowedConnection, ip(friend4, me4, 17, udp(9005, 4000))),
			wire(NoContract, ip(friend4, me4, 17, udp(9005, 4001)))}},
		{"v6 out and back", []step{
			sent(AllowedContract, ip(me6, friend6, 6, tcp(4000, 8080, syn))), wire(AllowedConnection, ip(friend6, me6, 6, tcp(8080, 4000, syn|ack))),
			sent(AllowedConnection, ip(me6, friend6, 6, tcp(4000, 8080, ack)))}},
		{"v6 udp and other port", []step{
			sent(AllowedContract, ip(me6, friend6, 17, udp(4000, 9000))), sent(NoContract, ip(me6, friend6, 17, udp(4000, 9011)))}},

		{"tcp in and back", []step{wire(AllowedContract, in), sent(AllowedConnection, inReply), wire(AllowedConnection, inData)}},
		{"tcp in, other port", []step{wire(NoContract, ip(friend4, me4, 6, tcp(5000, 81, syn)))}},
		{"tcp in from a stranger", []step{wire(NoContract, ip(stranger4, me4, 6, tcp(5000, 80, syn)))}},
		{"tcp in from nobody", []step{wire(UnknownSource, ip(nobody4, me4, 6, tcp(5000, 80, syn)))}},
		{"tcp in, friend's address from the underlay", []step{underlay(WrongInterface, in)}},
		{"tcp in, friend's address from another endpoint", []step{
			{want: WrongInterface, dir: ToWorkload, packet: in, ingress: func(f *fixture) uint32 { return f.neighbour }}}},
		{"tcp in, friend's address from a host socket", []step{host(WrongInterface, in)}},
		{"tcp in, known flow by the wrong interface", []step{
			wire(AllowedContract, in), underlay(WrongInterface, inData), host(WrongInterface, inData), wire(AllowedConnection, inData)}},
		{"tcp in to another's address", []step{wire(UnknownDestination, ip(friend4, neighbour4, 6, tcp(5000, 80, syn)))}},
		{"an answer by the wrong interface", []step{
			sent(AllowedContract, out), underlay(WrongInterface, outAnswer), wire(AllowedConnection, outAnswer)}},
		{"a responder opens no flow", []step{
			sent(AllowedContract, out), wire(AllowedConnection, outAnswer),
			wire(NoContract, ip(friend4, me4, 6, tcp(8080, 4000, syn))), sent(AllowedConnection, outData)}},
		{"an answer to nothing", []step{wire(NoConnection, outAnswer), sent(NoConnection, ip(me4, friend4, 6, tcp(4000, 8080, syn|ack)))}},

		{"spoofed address of a neighbour", []step{sent(SpoofedSource, ip(neighbour4, friend4, 6, tcp(4000, 8080, syn)))}},
		{"spoofed address, in a known flow", []step{
			sent(AllowedContract, out), sent(SpoofedSource, ip(neighbour4, friend4, 6, tcp(4000, 8080, ack)))}},
		{"spoofed v6", []step{sent(SpoofedSource, ip("fd5f::3", friend6, 6, tcp(4000, 8080, syn)))}},
		{"link-local v6 source", []step{sent(SpoofedSource, ip("fe80::2", friend6, 6, tcp(4000, 8080, syn)))}},
		{"unspecified source", []step{sent(SpoofedSource, ip("::", friend6, 6, tcp(4000, 8080, syn))), sent(SpoofedSource, ip("0.0.0.0", friend4, 6, tcp(4000, 8080, syn)))}},
		{"v4-mapped v6", []step{sent(Malformed, v6Mapped())}},
		{"no endpoint", []step{
			{want: NoEndpoint, dir: FromWorkload, packet: out, at: func(f *fixture) uint32 { return f.bare }},
			{want: NoEndpoint, dir: ToWorkload, packet: in, at: func(f *fixture) uint32 { return f.bare }, ingress: func(f *fixture) uint32 { return f.wire }}}},

		{"check and answer", []step{
			host(AllowedCheck, check), sent(AllowedConnection, checkReply), host(AllowedConnection, ip(host4, me4, 6, tcp(6000, 80, ack)))}},
		{"check of another port", []step{host(NoCheck, ip(host4, me4, 6, tcp(6000, 81, syn)))}},
		{"check, v6 of no endpoint's kind", []step{host(NoCheck, ip(host6, me6, 17, udp(6000, 80)))}},
		{"check from elsewhere", []step{underlay(UnknownSource, check)}},
		{"check's flow from elsewhere", []step{host(AllowedCheck, check), underlay(UnknownSource, ip(host4, me4, 6, tcp(6000, 80, ack)))}},
		{"check withdrawn", []step{
			host(AllowedCheck, check), then(func(f *fixture) { _ = f.DeleteCheck(Check{f.me, 6, 80}) }),
			sent(StaleConnection, checkReply), host(NoCheck, check),
			then(func(f *fixture) { _ = f.PutCheck(Check{f.me, 6, 80}) })}},

		{"resolver", []step{sent(AllowedDNS, query), host(AllowedConnection, reply)}},
		{"resolver, tcp", []step{sent(AllowedDNS, ip(me4, resolver4, 6, tcp(7000, 53, syn))), host(AllowedConnection, ip(resolver4, me4, 6, tcp(53, 7000, syn|ack)))}},
		{"resolver, v6", []step{sent(AllowedDNS, ip(me6, resolver6, 17, udp(7000, 53))), host(AllowedConnection, ip(resolver6, me6, 17, udp(53, 7000)))}},
		{"resolver's address, other port", []step{sent(Outside, ip(me4, resolver4, 17, udp(7000, 54)))}},
		{"resolver's answer by a wire", []step{sent(AllowedDNS, query), wire(WrongInterface, reply)}},
		{"resolver's answer unasked", []step{host(NoCheck, reply)}},
		{"resolver after a change", []step{sent(AllowedDNS, query), then(raise), host(AllowedConnection, reply), sent(AllowedConnection, query)}},

		{"external in", []step{
			underlay(AllowedContract, ip(user4, me4, 6, tcp(5000, 443, syn))), sent(AllowedConnection, ip(me4, user4, 6, tcp(443, 5000, syn|ack))),
			then(raise), sent(AllowedConnection, ip(me4, user4, 6, tcp(443, 5000, ack))), underlay(AllowedConnection, ip(user4, me4, 6, tcp(5000, 443, ack)))}},
		{"external in, v6", []step{underlay(AllowedContract, ip(user6, me6, 6, tcp(5000, 443, syn)))}},
		{"external in, other port", []step{underlay(NoContract, ip(user4, me4, 6, tcp(5000, 80, syn)))}},
		{"external by another interface", []step{wire(UnknownSource, ip(user4, me4, 6, tcp(5000, 443, syn)))}},
		{"external prefix over the fabric's", []step{underlay(UnknownSource, ip(nobody4, me4, 6, tcp(5000, 443, syn)))}},
		{"external of nobody", []step{underlay(UnknownSource, ip(elsewhere4, me4, 6, tcp(5000, 443, syn)))}},
		{"users are not called", []step{sent(Outside, ip(me4, user4, 6, tcp(5000, 443, syn)))}},
		{"external out", []step{
			sent(AllowedContract, ip(me4, bank4, 6, tcp(5000, 443, syn))), wire(UnknownSource, ip(bank4, me4, 6, tcp(443, 5000, syn|ack))),
			host(WrongInterface, ip(bank4, me4, 6, tcp(443, 5000, syn|ack))),
			underlay(AllowedConnection, ip(bank4, me4, 6, tcp(443, 5000, syn|ack))), then(raise),
			sent(AllowedConnection, ip(me4, bank4, 6, tcp(5000, 443, ack))), underlay(AllowedConnection, ip(bank4, me4, 6, tcp(443, 5000, ack)))}},

		{"external out, its interface no longer trusted", []step{
			sent(AllowedContract, ip(me4, bank4, 6, tcp(5000, 443, syn))), underlay(AllowedConnection, ip(bank4, me4, 6, tcp(443, 5000, syn|ack))),
			then(func(f *fixture) {
				_ = f.DeleteExternal(External{Prefix: netip.MustParsePrefix("198.51.100.0/24"), Interface: f.underlay})
			}),
			sent(AllowedConnection, ip(me4, bank4, 6, tcp(5000, 443, ack))), underlay(UnknownSource, ip(bank4, me4, 6, tcp(443, 5000, ack)))}},

		{"echo", []step{
			sent(AllowedContract, ip(me4, friend4, 1, icmp(8, 0, 77))), wire(AllowedConnection, ip(friend4, me4, 1, icmp(0, 0, 77))),
			wire(NoConnection, ip(friend4, me4, 1, icmp(0, 0, 78))), wire(NoContract, ip(friend4, me4, 1, icmp(8, 0, 77)))}},
		{"echo, v6 both ways at once", []step{
			sent(AllowedContract, ip(me6, friend6, 58, icmp(128, 0, 77))), wire(AllowedContract, ip(friend6, me6, 58, icmp(128, 0, 77))),
			wire(AllowedConnection, ip(friend6, me6, 58, icmp(129, 0, 77))), sent(AllowedConnection, ip(me6, friend6, 58, icmp(129, 0, 77)))}},
		{"echo after a change", []step{
			sent(AllowedContract, ip(me4, friend4, 1, icmp(8, 0, 77))), then(raise), wire(AllowedConnection, ip(friend4, me4, 1, icmp(0, 0, 77))),
			revoke, wire(StaleConnection, ip(friend4, me4, 1, icmp(0, 0, 77)))}},
		{"sctp out and back", []step{
			sent(AllowedContract, ip(me4, friend4, 132, sctp(4000, 7000))), wire(AllowedConnection, ip(friend4, me4, 132, sctp(7000, 4000))),
			sent(AllowedConnection, ip(me4, friend4, 132, sctp(4000, 7000))), wire(NoContract, ip(friend4, me4, 132, sctp(7000, 4001))),
			sent(NoContract, ip(me4, friend4, 132, sctp(4000, 7001))), wire(AllowedError, ip(friend4, me4, 1, icmp(3, 3, 0, ip(me4, friend4, 132, sctp(4000, 7000))...))),
			revoke, wire(StaleConnection, ip(friend4, me4, 132, sctp(7000, 4000)))}},
		{"sctp, v6", []step{
			sent(AllowedContract, v6(132, sctp(4000, 7000))), wire(AllowedConnection, ip(friend6, me6, 132, sctp(7000, 4000))),
			sent(NoContract, v6(60, append([]byte{132, 0, 1, 4, 0, 0, 0, 0}, sctp(4000, 7001)...)))}},
		{"sctp cut short", []step{sent(Malformed, ip(me4, friend4, 132, sctp(4000, 7000)[:6]))}},
		{"other ICMP", []step{sent(NoContract, ip(me4, friend4, 1, icmp(13, 0, 1)))}},
		{"redirect, advertisement", []step{
			sent(Protocol, ip(me4, friend4, 1, icmp(5, 0, 1))), sent(Protocol, ip(me6, friend6, 58, icmp(134, 0, 1))), sent(Protocol, ip(me6, friend6, 58, icmp(135, 0, 1)))}},

		{"error about my flow, from its end", []step{
			sent(AllowedContract, out), wire(AllowedError, ip(friend4, me4, 1, icmp(3, 3, 0, out...)))}},
		{"error about no flow", []step{wire(NoConnection, ip(friend4, me4, 1, icmp(3, 3, 0, out...)))}},
		{"error by the wrong interface", []step{
			sent(AllowedContract, out), underlay(WrongInterface, ip(friend4, me4, 1, icmp(3, 3, 0, out...)))}},
		{"error from a stranger", []step{
			sent(AllowedContract, out), wire(UnknownSource, ip(stranger4, me4, 1, icmp(3, 3, 0, out...)))}},
		{"error from this node", []step{
			sent(AllowedContract, out), host(AllowedError, ip(host4, me4, 1, icmp(3, 1, 0, out...)))}},
		{"error of the resolver's port", []step{
			sent(AllowedDNS, query), host(AllowedError, ip(resolver4, me4, 1, icmp(3, 3, 0, query...)))}},
		{"too big from any router", []step{
			sent(AllowedContract, out), underlay(AllowedError, ip(elsewhere4, me4, 1, icmp(3, 4, 0, out...))),
			wire(AllowedError, ip(nobody4, me4, 1, icmp(3, 4, 0, out...)))}},
		{"too big about no flow", []step{underlay(NoConnection, ip(elsewhere4, me4, 1, icmp(3, 4, 0, out...)))}},
		{"too big after the contract went", []step{
			sent(AllowedContract, out), then(raise), underlay(AllowedError, ip(elsewhere4, me4, 1, icmp(3, 4, 0, out...))),
			revoke, underlay(StaleConnection, ip(elsewhere4, me4, 1, icmp(3, 4, 0, out...)))}},
		{"too big, v6", []step{
			sent(AllowedContract, v6(6, tcp(4000, 8080, syn))),
			wire(AllowedError, ip(nobody6, me6, 58, icmp(2, 0, 0, v6(6, tcp(4000, 8080, syn))...)))}},
		{"too big about a flow of the neighbour's", []step{
			sent(AllowedContract, out), underlay(UnknownDestination, ip(elsewhere4, neighbour4, 1, icmp(3, 4, 0, out...)))}},
		{"error about an answer", []step{
			wire(AllowedContract, in), wire(AllowedError, ip(friend4, me4, 1, icmp(11, 0, 0, inReply...)))}},
		{"error about an echo", []step{
			sent(AllowedContract, ip(me4, friend4, 1, icmp(8, 0, 77))),
			wire(AllowedError, ip(friend4, me4, 1, icmp(3, 1, 0, ip(me4, friend4, 1, icmp(8, 0, 77))...)))}},
		{"my error about its flow", []step{
			wire(AllowedContract, in), sent(AllowedError, ip(me4, friend4, 1, icmp(3, 3, 0, in...))),
			sent(NoConnection, ip(me4, stranger4, 1, icmp(3, 3, 0, in...))),
			sent(SpoofedSource, ip(neighbour4, friend4, 1, icmp(3, 3, 0, in...)))}},
		{"my error about nothing", []step{sent(NoConnection, ip(me4, friend4, 1, icmp(3, 3, 0, in...)))}},
		{"error cut short", []step{sent(Malformed, ip(me4, friend4, 1, icmp(3, 3, 0, in[:24]...)))}},
		{"error about an error", []step{
			sent(Protocol, ip(me4, friend4, 1, icmp(3, 3, 0, ip(friend4, me4, 1, icmp(3, 3, 0, out...))...)))}},

		{"v6 options walked", []step{
			sent(AllowedContract, v6(0, append([]byte{60, 0, 1, 4, 0, 0, 0, 0}, append([]byte{6, 1, 1, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}, tcp(4000, 8080, syn)...)...))),
			sent(NoContract, v6(60, append([]byte{6, 0, 1, 4, 0, 0, 0, 0}, tcp(4000, 8081, syn)...)))}},
		{"v6 routing header", []step{sent(ExtensionHeader, v6(43, append([]byte{6, 0, 0, 0, 0, 0, 0, 0}, tcp(4000, 8080, syn)...)))}},
		{"v6 too many headers", []step{sent(ExtensionHeader, v6(60, append(slices.Repeat([]byte{60, 0, 1, 4, 0, 0, 0, 0}, 5), tcp(4000, 8080, syn)...)))}},
		{"v6 header past the end", []step{sent(Malformed, v6(60, []byte{6, 200, 1, 4, 0, 0, 0, 0}))}},
		{"v4 options", []step{sent(IPOption, append(with(out[:20:20], 0, 0x46), append([]byte{1, 1, 1, 1}, out[20:]...)...)), sent(Malformed, with(out, 0, 0x44))}},
		{"wrong version", []step{{want: Malformed, dir: FromWorkload, frame: frame(0x0800, with(out, 0, 0x65))}, {want: Malformed, dir: FromWorkload, frame: frame(0x86dd, out)}}},
		{"cut short", []step{sent(Malformed, out[:27]), sent(Malformed, out[:33])}},
		{"not IP", []step{{want: NotIP, dir: FromWorkload, frame: frame(0x0806, make([]byte, 28))}, {want: NotIP, dir: ToWorkload, frame: frame(0x88cc, make([]byte, 60))}}},
		{"other protocols", []step{sent(Protocol, ip(me4, friend4, 50, tcp(4000, 8080, syn))), sent(Protocol, ip(me4, friend4, 41, v6(6, tcp(1, 2, syn)))), sent(Protocol, ip(me6, friend6, 59, nil)), sent(Protocol, ip(me4, friend4, 58, icmp(128, 0, 1))), sent(Protocol, ip(me6, friend6, 1, icmp(8, 0, 1)))}},
		{"multicast", []step{sent(Multicast, ip(me4, "224.0.0.251", 17, udp(5353, 5353))), sent(Multicast, ip(me4, "255.255.255.255", 17, udp(68, 67))), sent(Multicast, ip("fe80::2", "ff02::fb", 17, udp(5353, 5353)))}},

		{"revoked: cut both ways", []step{
			sent(AllowedContract, out), wire(AllowedConnection, outAnswer), revoke, wire(StaleConnection, outReply), wire(NoContract, outReply), sent(NoContract, outData)}},
		{"revoked: cut from the opener's side", []step{
			sent(AllowedContract, out), wire(AllowedConnection, outAnswer), revoke, sent(StaleConnection, outData), sent(NoContract, out)}},
		{"another contract revoked: goes on", []step{
			sent(AllowedContract, out), wire(AllowedConnection, outAnswer), then(func(f *fixture) { f.rules(idFriend, idMe) }), wire(AllowedConnection, outReply), sent(AllowedConnection, outData)}},
		{"in, revoked", []step{
			wire(AllowedContract, in), then(func(f *fixture) { f.rules(idFriend, idMe) }), sent(StaleConnection, inReply), wire(NoContract, inData)}},
		{"peer gone", []step{
			sent(AllowedContract, out), then(func(f *fixture) { _ = f.DeletePeer(addr(friend4)) }), wire(StaleConnection, outAnswer), sent(UnknownDestination, out)}},
		{"peer's address now a stranger's", []step{
			sent(AllowedContract, out), then(func(f *fixture) { _ = f.PutPeer(peer(friend4, idStranger, f.wire)) }), sent(StaleConnection, outData)}},
		{"peer moved to another interface", []step{
			sent(AllowedContract, out), wire(AllowedContract, in),
			then(func(f *fixture) { _ = f.PutPeer(peer(friend4, idFriend, f.underlay)) }),
			wire(WrongInterface, outAnswer), underlay(AllowedConnection, outAnswer), sent(AllowedConnection, inReply), underlay(AllowedConnection, inData)}},
		{"endpoint of another identity", []step{
			sent(AllowedContract, out), then(func(f *fixture) { _ = f.PutEndpoint(endpoint(f.me, idStranger, me4, me6)) }), sent(StaleConnection, outData)}},
		{"endpoint gone", []step{
			sent(AllowedContract, out), then(func(f *fixture) { _ = f.DeleteEndpoint(f.me) }), sent(NoEndpoint, outData), wire(NoEndpoint, outAnswer)}},

		{"unanswered for 61 s", []step{sent(AllowedContract, out), later(61 * time.Second), wire(NoConnection, outAnswer)}},
		{"unanswered for 58 s", []step{sent(AllowedContract, out), later(58 * time.Second), wire(AllowedConnection, outAnswer)}},
		{"idle for 5 h", []step{sent(AllowedContract, out), wire(AllowedConnection, outAnswer), later(5 * time.Hour), wire(AllowedConnection, outReply)}},
		{"idle for 7 h", []step{sent(AllowedContract, out), wire(AllowedConnection, outAnswer), later(7 * time.Hour), wire(NoContract, outReply)}},
		{"udp idle", []step{
			sent(AllowedContract, ip(me4, friend4, 17, udp(1, 9000))), later(170 * time.Second), wire(AllowedConnection, ip(friend4, me4, 17, udp(9000, 1))),
			later(181 * time.Second), wire(NoContract, ip(friend4, me4, 17, udp(9000, 1)))}},
		{"reset", []step{
			sent(AllowedContract, out), wire(AllowedConnection, ip(friend4, me4, 6, tcp(8080, 4000, rst|ack))), later(11 * time.Second), wire(NoContract, outReply)}},
		{"closed by both", []step{
			sent(AllowedContract, out), wire(AllowedConnection, outAnswer), sent(AllowedConnection, ip(me4, friend4, 6, tcp(4000, 8080, fin|ack))), later(100 * time.Second),
			wire(AllowedConnection, ip(friend4, me4, 6, tcp(8080, 4000, fin|ack))), later(11 * time.Second), wire(NoContract, outReply)}},
		{"port used again", []step{
			sent(AllowedContract, out), wire(AllowedConnection, ip(friend4, me4, 6, tcp(8080, 4000, rst|ack))), sent(AllowedConnection, out), wire(AllowedConnection, outAnswer),
			later(time.Hour), wire(AllowedConnection, outReply)}},
		{"a reset opens nothing", []step{sent(AllowedContract, ip(me4, friend4, 6, tcp(4000, 8080, rst))), wire(NoContract, outReply)}},
	}
	for _, test := range tests {
		for i, s := range test.steps {
			if s.change != nil {
				s.change(f)
				continue
			}
			if got := f.step(s); got != s.want {
				t.Errorf("%s, step %d: %s, want %s", test.name, i, got, s.want)
			}
		}
		f.restore()
	}
}

func (f *fixture) step(s step) Reason {
	f.t.Helper()
	data, at, ingress := s.frame, f.me, uint32(0)
	if data == nil {
		data = ethernet(s.packet)
	}
	if s.at != nil {
		at = s.at(f)
	}
	if s.ingress != nil {
		ingress = s.ingress(f)
	}
	return f.run(s.dir, at, ingress, data)
}

// restore undoes the changes between packets.
func (f *fixture) restore() {
	f.t.Helper()
	f.forget()
	f.policy()
	_ = f.PutPeer(peer(friend4, idFriend, f.wire))
	f.endpoint(nil)
	_ = f.PutCheck(Check{f.me, 6, 80})
	_ = f.PutExternal(External{netip.MustParsePrefix("198.51.100.0/24"), idBank, f.underlay})
}

// v6Mapped is an IPv6 packet whose addresses have the form of IPv4 addresses in the maps.
func v6Mapped() []byte {
	packet := ip(me6, friend6, 6, tcp(4000, 8080, syn))
	a, b := addr(me4).As16(), addr(friend4).As16()
	return with(with(packet, 8, a[:]...), 24, b[:]...)
}
