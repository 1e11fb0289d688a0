// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package ovs

import (
	"net/netip"

	of "github.com/sif-project/sif/engine/openflow"
	"github.com/sif-project/sif/internal/wellknown"
)

// The tables, in the order in which packets pass them.
const (
	tableSource uint8 = iota
	tableDestination
	tableLow
	tableHigh
	tableTrack
	tableState
	tablePolicy
	tableMoved
	tableEndpoint
	tableZone
	tableCommit
	tableWay
	tableOutput

	tablePoke uint8 = 253
)

// The first byte of a cookie is the kind of part that a flow belongs to; the rest is the part's
// number.
const (
	cookieBase uint64 = iota + 1
	cookieDrop
	cookiePort
	cookieEndpoint
	cookieEntry
	cookiePassAll
	cookieHole // an endpoint's number; the reason follows from the table
	cookieWay
	cookieMoved
	cookieGate

	cookieShift = 56
)

func cookie(kind, number uint64) uint64 { return kind<<cookieShift | number }

// Reasons why packets are dropped, as Drops names them.
const (
	DropNotIP              = "not unicast ip"
	DropUnknownSource      = "unknown source"
	DropUnknownDestination = "unknown destination"
	DropInvalid            = "invalid connection state"
	DropNoContract         = "no contract"
	DropEntryGone          = "entry gone"
	DropNoPort             = "no port"
	DropNoWay              = "no way"

	// DropTooFast is that of meters, not of flows.
	DropTooFast = "too fast"
)

// dropReasons numbers the reasons why flows drop packets, from 1, for the cookies of drop flows.
var dropReasons = []string{
	DropNotIP, DropUnknownSource, DropUnknownDestination, DropInvalid,
	DropNoContract, DropEntryGone, DropNoPort, DropNoWay,
}

// Priorities within a table.
const (
	priorityMiss      = 0
	priorityMissIP    = 1
	priorityMulticast = 2
	priorityPassAny   = 3
	priorityPrefix    = 100 // plus the prefix length
	priorityRouter    = 300 // above all prefixes, so that no party outside hides its routers
	priorityCommand   = 400
	priorityNone      = 50
	priorityPickUp    = 90
	priorityJudge     = 100
	priorityAnswer    = 150
	priorityLater     = 160
	priorityRelated   = 200
	priorityLiving    = 500
	priorityEach      = 600
	priorityInvalid   = 1000
	priorityPassAll   = 2000

	priorityAllBuckets = 100
	priorityOneBucket  = 200
)

const (
	ethIPv4    = 0x0800
	ethIPv6    = 0x86dd
	protoICMP  = 1
	protoTCP   = 6
	protoUDP   = 17
	protoSCTP  = 132
	protoICMP6 = 58
)

var (
	regSource      = of.Reg(0)
	regDestination = of.Reg(1)
	regPort        = of.Reg(2)

	regFrom  = of.Reg(3) // the group of the source
	regTo    = of.Reg(4) // the group of the destination
	regClass = of.Reg(9) // the class of the entry

	// The numbers of both ends are gone after table track: a packet's way through the rest depends
	// on the bucket only, so that the datapath has one decision for all pairs in it.
	regNumberFrom = of.Reg(5)
	regNumberTo   = of.Reg(6)
	regLow        = of.Reg(7) // the lower four bits of the bucket
	regHigh       = of.Reg(8) // its upper four bits, as they are in the bucket

	// regCommit says how table commit makes a connection, and regEntry the number of the entry that
	// admits it.
	regCommit = of.Reg(10)
	regEntry  = of.LongReg(3)

	portFields = map[uint8]struct{ dst, src of.Field }{
		protoTCP: {of.TCPDst, of.TCPSrc}, protoUDP: {of.UDPDst, of.UDPSrc}, protoSCTP: {of.SCTPDst, of.SCTPSrc},
	}

	// typeFields are the protocols that have message types instead of ports.
	typeFields = map[uint8]struct {
		field of.Field
		eth   uint16
	}{protoICMP: {of.ICMPv4Type, ethIPv4}, protoICMP6: {of.ICMPv6Type, ethIPv6}}

	allTypes = PortRange{First: 0, Last: 255}

	ethIP = []uint16{ethIPv4, ethIPv6}
)

func flow(table uint8, priority uint16, cookie uint64, in of.Instructions, match ...of.FieldMatch) of.Flow {
	return of.Flow{
		Key:          of.Key{Table: table, Priority: priority, Match: of.NewMatch(match...)},
		Cookie:       cookie,
		Instructions: in,
	}
}

func drop(table uint8, priority uint16, reason string, match ...of.FieldMatch) of.Flow {
	for i, r := range dropReasons {
		if r == reason {
			return flow(table, priority, cookie(cookieDrop, uint64(i+1)), of.Drop, match...)
		}
	}
	panic("ovs: unknown drop reason " + reason)
}

// baseFlows are the flows of an empty State.
func baseFlows(zone uint16) []of.Flow {
	state := tableState
	base := cookie(cookieBase, 0)
	flows := []of.Flow{
		drop(tableSource, priorityMiss, DropNotIP),
		// Neighbour discovery and multicast listener reports of the kernels behind the ports.
		drop(tableSource, priorityMulticast, DropNotIP, of.Is16(of.EthType, ethIPv6),
			of.Within(of.IPv6Dst, netip.MustParsePrefix("ff00::/8"))),
		drop(tableDestination, priorityMiss, DropUnknownDestination),
		drop(tableState, priorityInvalid, DropInvalid, of.State(of.CTTracked|of.CTInvalid, 0)),
		// An error report about a connection that no longer passes must not open one.
		drop(tableState, priorityRelated, DropEntryGone, of.State(of.CTTracked|of.CTRelated, 0)),
		flow(tableState, priorityJudge, base, of.Drop.Goto(tablePolicy), of.State(of.CTTracked|of.CTNew, 0)),
		flow(tableState, priorityJudge, base, of.Drop.Goto(tablePolicy), of.State(of.CTTracked|of.CTEstablished, 0)),
		drop(tableState, priorityMiss, DropInvalid),
		drop(tablePolicy, priorityMiss, DropNoContract),
		drop(tablePolicy, priorityMissIP, DropEntryGone, of.State(of.CTTracked|of.CTReply, 0)),
		drop(tableMoved, priorityMiss, DropNoContract),
		drop(tableWay, priorityNone, DropNoWay, of.Is32(regPort, 0)),
		flow(tableWay, priorityMiss, base, of.Drop.Goto(tableOutput)),
		drop(tableOutput, priorityMiss, DropNoPort),
		pokeFlow(),
	}
	flows = append(flows, bucketFlows()...)
	for _, kind := range commands {
		flows = append(flows, drop(tableSource, priorityCommand, DropInvalid, of.Is16(of.EthType, ethIPv4), of.Is8(of.IPProto, protoICMP), of.Is8(of.ICMPv4Type, kind)))
	}
	flows = append(flows, commitFlows(zone)...)
	for _, table := range []uint8{tableEndpoint, tableZone} {
		flows = append(flows, flow(table, priorityMiss, base, of.Drop.Goto(table+1)))
	}
	for _, eth := range ethIP {
		flows = append(flows,
			flow(tableState, priorityEach, base, of.Drop.Goto(tablePolicy), // see policyFlows
				of.State(of.CTTracked, of.CTInvalid), of.Is16(of.EthType, eth), of.Is8(of.IPProto, protoSCTP)),
			drop(tableSource, priorityMissIP, DropUnknownSource, of.Is16(of.EthType, eth)),
			flow(tableTrack, priorityJudge, base, of.Drop.Goto(tableWay),
				of.Is32(regSource, ProbeClass), of.Is32(regDestination, ProbeClass), of.Is16(of.EthType, eth), of.Is8(of.IPProto, protoUDP),
				of.Is16(of.UDPSrc, wellknown.ProbePort), of.Is16(of.UDPDst, wellknown.ProbePort)),
			flow(tableTrack, priorityMissIP, base, of.Apply(of.Load(regNumberFrom, 0), of.Load(regNumberTo, 0), of.CT{Zone: zone, Table: &state}), of.Is16(of.EthType, eth)))
	}
	return flows
}

// What table commit does with a connection that an entry admits.
const (
	commitOpen  = iota + 1 // the packet's direction is the original one
	commitKeep             // the direction stays
	commitFirst            // without a label, so that its next packet is judged
)

// commitFlows make connections. A connection between two endpoints may have become that of another
// entry.
func commitFlows(zone uint16) (flows []of.Flow) {
	label := []of.Action{of.Move{From: regEntry, To: of.CTLabel, Length: 16}}
	for _, x := range []struct {
		how uint32
		ct  of.CT
	}{
		{commitOpen, of.CT{Zone: zone, Commit: true, Force: true, Exec: label}},
		{commitKeep, of.CT{Zone: zone, Commit: true, Exec: label}},
		{commitFirst, of.CT{Zone: zone, Commit: true}},
	} {
		for _, eth := range ethIP {
			flows = append(flows, flow(tableCommit, priorityJudge, cookie(cookieBase, 0), of.Apply(x.ct).Goto(tableWay), of.Is32(regCommit, x.how), of.Is16(of.EthType, eth)))
		}
	}
	return flows
}

// bucketFlows compute the exclusive or of both ends' numbers, which Open vSwitch has no action for,
// four bits a table.
func bucketFlows() (flows []of.Flow) {
	for _, half := range []struct {
		table, next uint8
		shift       int
		to          of.Field
	}{{tableLow, tableHigh, 0, regLow}, {tableHigh, tableTrack, 4, regHigh}} {
		mask := uint32(0xf) << half.shift
		for a := range uint32(16) {
			for b := range uint32(16) {
				flows = append(flows, flow(half.table, priorityJudge, cookie(cookieBase, 0),
					of.Apply(of.Load(half.to, (a^b)<<half.shift)).Goto(half.next),
					of.Masked32(regNumberFrom, a<<half.shift, mask), of.Masked32(regNumberTo, b<<half.shift, mask)))
			}
		}
	}
	return flows
}

// passAllFlows let every packet to a known destination pass. Connections are still tracked, so that
// those that exist survive the return of the policy.
func passAllFlows() []of.Flow {
	c := cookie(cookiePassAll, 0)
	flows := []of.Flow{flow(tableState, priorityPassAll, c, of.Drop.Goto(tableWay))}
	for _, eth := range ethIP {
		flows = append(flows, flow(tableSource, priorityPassAny, c, of.Drop.Goto(tableDestination), of.Is16(of.EthType, eth)))
	}
	return flows
}

// report is an ICMP message about a packet.
type report struct {
	protocol, kind uint8
	code           int // -1: every code
}

// The messages of RFC 792 and RFC 4443 that report errors.
var (
	routerReports = []report{
		{protoICMP, 3, 4}, {protoICMP, 11, -1}, // fragmentation needed, time exceeded
		{protoICMP6, 2, 0}, {protoICMP6, 3, -1}, // packet too big, time exceeded
	}
	outsideReports = []report{
		{protoICMP, 3, -1}, {protoICMP, 11, -1}, {protoICMP, 12, -1},
		{protoICMP6, 1, -1}, {protoICMP6, 2, -1}, {protoICMP6, 3, -1}, {protoICMP6, 4, -1},
	}
)

// commands are the messages of IPv4 that connection tracking takes for reports, but that would have
// their receiver do something: nobody behind the switch chooses an endpoint's next hop (redirect),
// or slows it down (source quench, RFC 6633). Those of IPv6 belong to no connection.
var commands = []uint8{4, 5}

func (r report) match(port uint32) []of.FieldMatch {
	kind, code := typeFields[r.protocol], of.ICMPv4Code
	if r.protocol == protoICMP6 {
		code = of.ICMPv6Code
	}
	match := []of.FieldMatch{of.Is32(of.InPort, port), of.Is16(of.EthType, kind.eth), of.Is8(of.IPProto, r.protocol), of.Is8(kind.field, r.kind)}
	if r.code >= 0 {
		match = append(match, of.Is8(code, uint8(r.code)))
	}
	return match
}

func (p Port) flows() []of.Flow {
	c := cookie(cookiePort, uint64(p.No))
	flows := []of.Flow{flow(tableOutput, priorityJudge, c, of.Apply(
		of.SetField{Field: of.EthSrc, Value: p.MAC[:]},
		of.SetField{Field: of.EthDst, Value: p.Peer[:]},
		of.Output{Port: p.No},
	), of.Is32(regPort, p.No))}
	var reports []report
	switch {
	case p.Outside:
		reports = outsideReports
	case p.Routers:
		reports = routerReports
	}
	for _, r := range reports {
		flows = append(flows, flow(tableSource, priorityRouter, c, of.Apply(of.Load(regSource, routerClass)).Goto(tableDestination), r.match(p.No)...))
	}
	return flows
}

// flows appends the flows of an endpoint to a list. What it opens is shown a meter, unless that is
// 0.
func (e *Endpoint) flows(flows []of.Flow, meter uint32) []of.Flow {
	if e.Hole {
		return append(flows, e.holeFlows()...)
	}
	c := cookie(cookieEndpoint, e.ID)
	from, to, next := []of.Action{of.Load(regSource, e.Class)}, []of.Action{of.Load(regDestination, e.Class)}, tableTrack
	if e.OutPort != 0 {
		to = append(to, of.Load(regPort, e.OutPort))
	}
	if e.Group != 0 {
		from = append(from, of.Load(regFrom, uint32(e.Group)), of.Load(regNumberFrom, uint32(e.Number)))
		to, next = append(to, of.Load(regTo, uint32(e.Group)), of.Load(regNumberTo, uint32(e.Number))), tableLow
	}
	source, destination := of.Apply(from...).Goto(tableDestination), of.Apply(to...).Goto(next)
	for _, prefix := range e.Prefixes {
		eth, src, dst := addressFields(prefix)
		priority := priorityPrefix + uint16(prefix.Bits())
		for _, port := range e.SourcePorts {
			flows = append(flows, flow(tableSource, priority, c, source,
				of.Is32(of.InPort, port), of.Is16(of.EthType, eth), of.Within(src, prefix)))
		}
		flows = append(flows, flow(tableDestination, priority, c, destination,
			of.Is16(of.EthType, eth), of.Within(dst, prefix)))
		if meter != 0 {
			flows = append(flows, flow(tableEndpoint, priority, c, of.Drop.Goto(tableZone).Metered(meter),
				of.Is16(of.EthType, eth), of.Within(src, prefix), opening))
		}
	}
	return flows
}

// opening matches packets that open a connection, or seem to at a switch that has not seen its
// beginning.
var opening = of.State(of.CTTracked|of.CTNew, 0)

func (g Gate) flow(meter uint32) of.Flow {
	return flow(tableZone, priorityJudge, cookie(cookieGate, uint64(g.Group)<<16|uint64(g.Zone)),
		of.Drop.Goto(tableCommit).Metered(meter), of.Is32(regFrom, uint32(g.Group)), opening)
}

// addressFields returns what matches a prefix's addresses.
func addressFields(p netip.Prefix) (eth uint16, src, dst of.Field) {
	if p.Addr().Is6() {
		return ethIPv6, of.IPv6Src, of.IPv6Dst
	}
	return ethIPv4, of.IPv4Src, of.IPv4Dst
}

// holeFlows drop what wider prefixes would let pass.
func (e *Endpoint) holeFlows() (flows []of.Flow) {
	c := cookie(cookieHole, e.ID)
	for _, prefix := range e.Prefixes {
		eth, src, dst := addressFields(prefix)
		priority := priorityPrefix + uint16(prefix.Bits())
		flows = append(flows,
			flow(tableSource, priority, c, of.Drop, of.Is16(of.EthType, eth), of.Within(src, prefix)),
			flow(tableDestination, priority, c, of.Drop, of.Is16(of.EthType, eth), of.Within(dst, prefix)))
	}
	return flows
}

// stateFlows let packets of the entry's connections pass.
func (e Entry) stateFlows() []of.Flow {
	c := cookie(cookieEntry, e.ID)
	pass := e.next(tableWay)
	return []of.Flow{
		flow(tableState, priorityLiving, c, pass, of.Label(e.ID), of.State(of.CTTracked, of.CTReply),
			of.Is32(regSource, e.Src), of.Is32(regDestination, e.Dst)),
		flow(tableState, priorityLiving, c, pass, of.Label(e.ID), of.State(of.CTTracked|of.CTReply, 0),
			of.Is32(regSource, e.Dst), of.Is32(regDestination, e.Src)),
		flow(tableState, priorityLiving, c, of.Drop.Goto(tableWay), of.Label(e.ID), of.State(of.CTTracked|of.CTRelated, 0),
			of.Is32(regSource, routerClass)),
	}
}

// next makes packets go on with the class of the entry in a table, after some actions.
func (e Entry) next(table uint8, actions ...of.Action) of.Instructions {
	if e.Class != 0 {
		actions = append(actions, of.Load(regClass, uint32(e.Class)))
	}
	return of.Apply(actions...).Goto(table)
}

// policyFlows admit new connections, and those whose own entry is gone by the next packet in either
// direction. Another entry may have flows with the same keys.
//
// Later fragments have no ports. They pass between classes with an entry of their protocol, which
// nobody can use without the first fragment. In user space, Open vSwitch keeps fragments in each
// action that tracks them until the last one is there, and goes on as the last one says: so they
// are committed as well, but leave the connection without an entry, and its next packet is judged.
//
// A connection may have begun at another processor. Its originator's next packet is judged as if it
// opened the connection. Answers of TCP, which are more than a SYN, go to table moved: they pass if
// their way changed just now, and the connection begins here with the next packet of its
// originator.
//
// In user space, Open vSwitch takes all SCTP between two addresses for one connection. So each
// packet of SCTP is judged by its ports, in both directions.
func (e Entry) policyFlows() []of.Flow {
	c := cookie(cookieEntry, e.ID)
	commit := func(table uint8, how uint32, number ...of.Action) of.Instructions {
		return e.next(table, append(number, of.Load(regCommit, how))...)
	}
	entry := of.SetField{Field: regEntry, Value: of.LabelBytes(e.ID)}
	admit, answer, follow := commit(tableEndpoint, commitOpen, entry), commit(tableCommit, commitKeep, entry), commit(tableEndpoint, commitFirst)
	pickUp := e.next(tableMoved)
	answering := of.State(of.CTTracked|of.CTReply, of.CTInvalid)
	if e.Protocol == protoSCTP {
		admit, answering = commit(tableEndpoint, commitKeep, entry), of.State(of.CTTracked|of.CTEstablished, of.CTInvalid)
	}
	var flows []of.Flow
	add := func(priority uint16, in of.Instructions, eth uint16, src, dst uint32, more ...of.FieldMatch) {
		match := []of.FieldMatch{of.Is32(regSource, src), of.Is32(regDestination, dst), of.Is16(of.EthType, eth), of.Is8(of.IPProto, e.Protocol)}
		flows = append(flows, flow(tablePolicy, priority, c, in, append(match, more...)...))
	}
	// Not the packet's protocol, which a later fragment of IPv6 does not name.
	later := func(eth uint16) {
		for _, way := range []struct {
			src, dst uint32
			state    of.FieldMatch
		}{{e.Src, e.Dst, of.State(of.CTTracked, of.CTInvalid|of.CTReply)}, {e.Dst, e.Src, answering}} {
			flows = append(flows, flow(tablePolicy, priorityLater, c, follow, of.Is32(regSource, way.src), of.Is32(regDestination, way.dst),
				of.Is16(of.EthType, eth), of.Is8(of.IPFrag, of.FragAny|of.FragLater), of.Is8(of.CTProto, e.Protocol), way.state))
		}
	}
	if icmp, ok := typeFields[e.Protocol]; ok {
		for _, r := range e.Ports {
			// A switch cannot mask a type: all types are one flow, others one flow each.
			if r == allTypes {
				add(priorityJudge, admit, icmp.eth, e.Src, e.Dst)
				add(priorityAnswer, answer, icmp.eth, e.Dst, e.Src, answering, of.Is8(of.CTProto, e.Protocol))
				continue
			}
			for kind := int(r.First); kind <= int(r.Last); kind++ {
				add(priorityJudge, admit, icmp.eth, e.Src, e.Dst, of.Is8(icmp.field, uint8(kind)))
				add(priorityAnswer, answer, icmp.eth, e.Dst, e.Src, answering, of.Is8(of.CTProto, e.Protocol), of.Is16(of.CTSrc, uint16(kind)))
			}
		}
		if len(e.Ports) > 0 {
			later(icmp.eth)
		}
		return flows
	}
	fields := portFields[e.Protocol]
	for _, eth := range ethIP {
		for _, r := range e.Ports {
			for _, m := range r.masks() {
				add(priorityJudge, admit, eth, e.Src, e.Dst, of.Masked16(fields.dst, m.Value, m.Mask))
				add(priorityAnswer, answer, eth, e.Dst, e.Src, answering, of.Masked16(fields.src, m.Value, m.Mask))
				if e.Protocol == protoTCP {
					add(priorityPickUp, pickUp, eth, e.Dst, e.Src, of.State(of.CTTracked|of.CTNew, of.CTReply|of.CTEstablished),
						of.Masked16(fields.src, m.Value, m.Mask), of.WithoutFlags(of.TCPSyn))
				}
			}
		}
		if len(e.Ports) > 0 {
			later(eth)
		}
	}
	return flows
}

// match is what packets of a course have in table moved and later.
func (c Course) match() []of.FieldMatch {
	match := []of.FieldMatch{of.Is32(regFrom, uint32(c.From)), of.Is32(regTo, uint32(c.To)), of.Is32(regClass, uint32(c.Class))}
	if c.Bucket != AllBuckets {
		match = append(match, of.Is32(regLow, uint32(c.Bucket)&0xf), of.Is32(regHigh, uint32(c.Bucket)&0xf0))
	}
	return match
}

func (c Course) priority() uint16 {
	if c.Bucket == AllBuckets {
		return priorityAllBuckets
	}
	return priorityOneBucket
}

// cookie marks the flow of a course. It is for people: what the flow is follows from its match.
func (c Course) cookie(kind uint64) uint64 {
	return cookie(kind, uint64(c.From)<<40|uint64(c.To)<<24|uint64(c.Class)<<8|uint64(uint8(c.Bucket)))
}

func (c Course) flow() of.Flow {
	return flow(tableMoved, c.priority(), c.cookie(cookieMoved), of.Drop.Goto(tableWay), c.match()...)
}

func (w Way) flow() of.Flow {
	return flow(tableWay, w.priority(), w.cookie(cookieWay), of.Apply(of.Load(regPort, w.Port)).Goto(tableOutput), w.match()...)
}
