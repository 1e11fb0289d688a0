// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package ovs

import (
	"encoding/binary"
	"fmt"
	"math/bits"
	"net/netip"
	"slices"
	"strings"

	of "github.com/sif-project/sif/engine/openflow"
)

// Names returns what the numbers in flows stand for, for people.
type Names interface {
	Class(class uint32) string // the identity whose endpoints have it
	Port(no uint32) string     // where it leads
	Entry(id uint64) string    // the contract of its connections
	Group(group uint16) string // whose endpoints have it
	Path(class uint16) string  // the wish of contracts that have the class
}

// Describe puts a flow into words: which packets it matches, and what it does with them. A flow
// that it cannot describe is printed as a flow, with the reason.
func Describe(f of.Flow, names Names) string {
	d := describer{names}
	packets, err := d.packets(f.Match)
	if err == nil {
		var fate string
		if fate, err = d.fate(f); err == nil {
			return fmt.Sprintf("table %s, priority %d: %s: %s", tableName(f.Table), f.Priority, packets, fate)
		}
	}
	return fmt.Sprintf("%v (cannot be described: %v)", f, err)
}

// Describe puts a difference into words, one sentence for each flow.
func (d Diff) Describe(names Names) []string {
	var list []string
	say := func(format string, args ...any) { list = append(list, fmt.Sprintf(format, args...)) }
	for _, f := range d.Added {
		say("missing flow: %s", Describe(f, names))
	}
	for _, c := range d.Changed {
		is := Describe(c.Have.Flow, names)
		switch {
		case c.Have.Instructions != c.Want.Instructions:
			expected, err := describer{names}.fate(c.Want)
			if err != nil {
				expected = c.Want.Instructions.String()
			}
			say("altered flow: %s; expected: %s", is, expected)
		case c.Have.Cookie != c.Want.Cookie:
			say("altered flow: %s; its cookie is %#x, expected %#x", is, c.Have.Cookie, c.Want.Cookie)
		default:
			say("altered flow: %s; it has timeouts or flags, expected none", is)
		}
	}
	for _, f := range d.Removed {
		say("foreign flow: %s; its cookie is %#x", Describe(f, names), f.Cookie)
	}
	for _, m := range d.Meters.Added {
		say("missing %v", m)
	}
	for _, c := range d.Meters.Changed {
		if c.Have.Foreign {
			say("altered meter %d: it has other flags or bands, expected %v", c.Have.ID, c.Want)
			continue
		}
		say("altered %v; expected: %v", c.Have, c.Want)
	}
	for _, m := range d.Meters.Removed {
		say("foreign %v", m)
	}
	slices.Sort(list)
	return list
}

var tableNames = map[uint8]string{
	tableSource: "source", tableDestination: "destination", tableLow: "bucket-low", tableHigh: "bucket-high",
	tableTrack: "track", tableState: "state", tablePolicy: "policy", tableMoved: "moved",
	tableEndpoint: "endpoint-limit", tableZone: "zone-limit", tableCommit: "commit", tableWay: "way",
	tableOutput: "output", tablePoke: "poke",
}

func tableName(table uint8) string {
	if name, ok := tableNames[table]; ok {
		return name
	}
	return fmt.Sprint(table)
}

type describer struct{ names Names }

// protocolNames are the names of IP protocols that flows match.
var protocolNames = map[uint8]string{protoICMP: "icmp", 6: "tcp", 17: "udp", protoICMP6: "icmpv6", 132: "sctp"}

const ethARP = 0x0806

// packets says which packets a flow matches.
func (d describer) packets(m of.Match) (string, error) {
	var protocol, version, state, opened string
	fragment := false
	bucket := map[of.Field]uint64{}
	var words []string
	say := func(format string, args ...any) { words = append(words, fmt.Sprintf(format, args...)) }
	for _, f := range m.Fields() {
		exact := func(bytes int) (n uint64, err error) {
			if f.Mask != nil || len(f.Value) != bytes {
				return 0, fmt.Errorf("%s is matched with a mask or has an unexpected length", f.Field)
			}
			return number(f.Value), nil
		}
		var n uint64
		var err error
		switch f.Field {
		case of.InPort:
			if n, err = exact(4); err == nil {
				say("received on %s", d.port(uint32(n)))
			}
		case of.EthType:
			if n, err = exact(2); err == nil {
				switch n {
				case ethIPv4:
					version = "IPv4"
				case ethIPv6:
					version = "IPv6"
				case ethARP:
					version = "ARP"
				default:
					version = fmt.Sprintf("ethernet type %#x", n)
				}
			}
		case of.CTProto:
			if n, err = exact(1); err == nil {
				if opened = protocolNames[uint8(n)]; opened == "" {
					opened = fmt.Sprintf("protocol %d", n)
				}
			}
		case of.IPProto:
			if n, err = exact(1); err == nil {
				if protocol = protocolNames[uint8(n)]; protocol == "" {
					protocol = fmt.Sprintf("protocol %d", n)
				}
			}
		case of.EthSrc, of.EthDst:
			if f.Mask != nil || len(f.Value) != 6 {
				err = fmt.Errorf("%s is matched with a mask or has an unexpected length", f.Field)
				break
			}
			say("%s %s", direction(f.Field == of.EthSrc), MAC(f.Value))
		case of.IPv4Src, of.IPv4Dst, of.IPv6Src, of.IPv6Dst:
			var p netip.Prefix
			if p, err = prefixOf(f); err == nil {
				text := p.String()
				if p.IsSingleIP() {
					text = p.Addr().String()
				}
				say("%s %s", direction(f.Field == of.IPv4Src || f.Field == of.IPv6Src), text)
			}
		case of.TCPDst, of.UDPDst, of.SCTPDst, of.TCPSrc, of.UDPSrc, of.SCTPSrc:
			var r PortRange
			if r, err = portsOf(f); err == nil {
				side := direction(f.Field == of.TCPSrc || f.Field == of.UDPSrc || f.Field == of.SCTPSrc)
				if r.First == r.Last {
					say("%s port %d", side, r.First)
				} else {
					say("%s ports %d-%d", side, r.First, r.Last)
				}
			}
		case of.CTSrc:
			if n, err = exact(2); err == nil {
				say("of exchanges that type %d began", n)
			}
		case of.IPFrag:
			if n, err = exact(1); err == nil && n != of.FragAny|of.FragLater {
				err = fmt.Errorf("%s is %d", f.Field, n)
			}
			fragment = true
		case of.ICMPv4Type, of.ICMPv6Type:
			if n, err = exact(1); err == nil {
				say("of type %d", n)
			}
		case of.ICMPv4Code, of.ICMPv6Code:
			if n, err = exact(1); err == nil {
				say("with code %d", n)
			}
		case regSource:
			if n, err = exact(4); err == nil {
				say("from %s", d.class(uint32(n)))
			}
		case regDestination:
			if n, err = exact(4); err == nil {
				say("to %s", d.class(uint32(n)))
			}
		case regPort:
			if n, err = exact(4); err == nil {
				say("leaving by %s", d.leaving(uint32(n)))
			}
		case regFrom, regTo:
			if n, err = exact(4); err == nil {
				say("%s %s", direction(f.Field == regFrom), d.group(n))
			}
		case regClass:
			if n, err = exact(4); err == nil && n != 0 {
				say("whose contract's path is %s", d.names.Path(uint16(n)))
			}
		case regLow, regHigh:
			if n, err = exact(4); err == nil {
				bucket[f.Field] = n
			}
		case regCommit:
			if n, err = exact(4); err == nil {
				say("that commit %s", howText(n))
			}
		case regNumberFrom, regNumberTo:
			var half string
			if half, err = halfText(f); err == nil {
				say("%s a number that %s", direction(f.Field == regNumberFrom), half)
			}
		case of.TCPFlags:
			if f.Experimenter == 0 || !slices.Equal(f.Value, []byte{0, 0}) || !slices.Equal(f.Mask, []byte{0, of.TCPSyn}) {
				err = fmt.Errorf("no description for matching %s", f)
				break
			}
			say("without SYN")
		case of.CTState:
			state, err = stateText(f)
		case of.CTLabel:
			if f.Mask != nil || len(f.Value) != 16 || number(f.Value[:8]) != 0 {
				err = fmt.Errorf("%s is not the number of an entry", f.Field)
				break
			}
			say("of connections of %s", d.names.Entry(number(f.Value[8:])))
		default:
			err = fmt.Errorf("no description for matching %s", f.Field)
		}
		if err != nil {
			return "", err
		}
	}
	low, lower := bucket[regLow]
	high, upper := bucket[regHigh]
	switch {
	case lower && upper:
		say("in bucket %d", low|high)
	case lower:
		say("in buckets that end in %x", low)
	case upper:
		say("in buckets that begin with %x", high>>4)
	}
	if state != "" {
		say("%s", state)
	}
	what := "every packet"
	if protocol == "" {
		protocol = opened
	}
	switch {
	case protocol != "" && version != "":
		what = protocol + " over " + version
	case protocol != "" || version != "":
		what = protocol + version
	case len(words) > 0:
		what = "packets"
	}
	if fragment {
		what = "later fragments of " + what
	}
	return strings.Join(append([]string{what}, words...), " "), nil
}

// howText says how an admitted packet's connection is made.
func howText(how uint64) string {
	switch how {
	case commitOpen:
		return "the connection that they open"
	case commitKeep:
		return "their connection as it is"
	case commitFirst:
		return "their connection without an entry"
	}
	return fmt.Sprintf("their connection in manner %d", how)
}

// halfText puts the match of four bits of an endpoint's number into words.
func halfText(f of.FieldMatch) (string, error) {
	if len(f.Value) == 4 && len(f.Mask) == 4 {
		switch value := number(f.Value); number(f.Mask) {
		case 0xf:
			return fmt.Sprintf("ends in %x", value), nil
		case 0xf0:
			return fmt.Sprintf("begins with %x", value>>4), nil
		}
	}
	return "", fmt.Errorf("%s is not matched by one of its halves", f.Field)
}

func direction(source bool) string {
	if source {
		return "from"
	}
	return "to"
}

// number decodes up to eight bytes in network order.
func number(b []byte) (n uint64) {
	for _, c := range b {
		n = n<<8 | uint64(c)
	}
	return n
}

// prefixOf returns the prefix of a match of an address field.
func prefixOf(f of.FieldMatch) (netip.Prefix, error) {
	addr, ok := netip.AddrFromSlice(f.Value)
	if !ok {
		return netip.Prefix{}, fmt.Errorf("%s has %d bytes", f.Field, len(f.Value))
	}
	length := addr.BitLen()
	if f.Mask != nil {
		ones := 0
		for _, b := range f.Mask {
			ones += bits.OnesCount8(b)
		}
		if within := of.Within(f.Field, netip.PrefixFrom(addr, ones)); !slices.Equal(within.Mask, f.Mask) {
			return netip.Prefix{}, fmt.Errorf("the mask of %s is not a prefix", f.Field)
		}
		length = ones
	}
	return netip.PrefixFrom(addr, length), nil
}

// portsOf returns the ports of a match of a port field.
func portsOf(f of.FieldMatch) (PortRange, error) {
	if len(f.Value) != 2 {
		return PortRange{}, fmt.Errorf("%s has %d bytes", f.Field, len(f.Value))
	}
	m := maskedPort{Value: binary.BigEndian.Uint16(f.Value), Mask: 0xffff}
	if f.Mask != nil {
		m.Mask = binary.BigEndian.Uint16(f.Mask)
	}
	if free := ^m.Mask; free&(free+1) != 0 {
		return PortRange{}, fmt.Errorf("the mask of %s is not a range", f.Field)
	}
	return m.ports(), nil
}

// stateText puts a match of the connection state into words.
func stateText(f of.FieldMatch) (string, error) {
	if len(f.Value) != 4 {
		return "", fmt.Errorf("%s has %d bytes", f.Field, len(f.Value))
	}
	value, mask := uint32(number(f.Value)), ^uint32(0)
	if f.Mask != nil {
		mask = uint32(number(f.Mask))
	}
	var words []string
	for _, flag := range []struct {
		bit     uint32
		set, no string
	}{
		{of.CTInvalid, "in an invalid connection state", "in a valid connection state"},
		{of.CTNew, "that open a connection", "that open no connection"},
		{of.CTEstablished, "of an established connection", "of no established connection"},
		{of.CTRelated, "related to a connection", "not related to another connection"},
		{of.CTReply, "in reply direction", "in original direction"},
	} {
		switch {
		case mask&flag.bit == 0:
		case value&flag.bit != 0:
			words = append(words, flag.set)
		default:
			words = append(words, flag.no)
		}
		mask &^= flag.bit
	}
	switch {
	case mask&^of.CTTracked != 0:
		return "", fmt.Errorf("%s has flags %#x", f.Field, mask&^of.CTTracked)
	case mask != 0 && value&of.CTTracked == 0:
		words = append(words, "that are not tracked")
	case len(words) == 0:
		words = append(words, "that are tracked")
	}
	return strings.Join(words, " "), nil
}

func (d describer) class(class uint32) string {
	switch class {
	case routerClass:
		return "a router on the path"
	case ProbeClass:
		return "nodes' health addresses"
	}
	return d.names.Class(class)
}

func (d describer) group(group uint64) string {
	if group == 0 {
		return "no group"
	}
	return d.names.Group(uint16(group))
}

// leaving names the port by which a packet leaves as far as the tables have decided.
func (d describer) leaving(no uint32) string {
	if no == 0 {
		return "no port"
	}
	return d.port(no)
}

// reservedPorts are the port numbers of OpenFlow that are not devices.
var reservedPorts = map[uint32]string{
	0xfffffff8: "the ingress port", 0xfffffff9: "the flow tables again, from the first one", 0xfffffffa: "the port that MAC learning chooses",
	0xfffffffb: "all ports except the ingress port", 0xfffffffc: "all ports", 0xfffffffd: "the switch's controller", of.LocalPort: "the bridge's own device",
}

func (d describer) port(no uint32) string {
	if name, ok := reservedPorts[no]; ok {
		return name
	}
	return d.names.Port(no)
}

// fate says what a flow does with its packets.
func (d describer) fate(f of.Flow) (string, error) {
	actions, next, err := f.Instructions.Decode()
	if err != nil {
		return "", err
	}
	var words []string
	for _, a := range actions {
		text, err := d.action(a)
		if err != nil {
			return "", err
		}
		words = append(words, text)
	}
	switch {
	case next >= 0:
		words = append(words, "go to table "+tableName(uint8(next)))
	case len(words) == 0:
		words = append(words, "drop")
		if reason := dropReason(f); reason != "" {
			words[0] += " as " + reason
		}
	}
	return strings.Join(words, ", "), nil
}

func (d describer) action(a of.Action) (string, error) {
	switch a := a.(type) {
	case of.Output:
		return "output to " + d.port(a.Port), nil
	case of.SetField:
		return d.set(a)
	case of.CT:
		return d.track(a)
	case of.Meter:
		return fmt.Sprintf("drop as %s beyond the rate of meter %d", DropTooFast, a.ID), nil
	}
	return "", fmt.Errorf("no description for the action %v", a)
}

func (d describer) set(a of.SetField) (string, error) {
	switch {
	case a.Field == of.EthSrc && len(a.Value) == 6:
		return "set source MAC " + MAC(a.Value).String(), nil
	case a.Field == of.EthDst && len(a.Value) == 6:
		return "set destination MAC " + MAC(a.Value).String(), nil
	case a.Field == regSource && len(a.Value) == 4:
		return "source is " + d.class(uint32(number(a.Value))), nil
	case a.Field == regDestination && len(a.Value) == 4:
		return "destination is " + d.class(uint32(number(a.Value))), nil
	case (a.Field == regFrom || a.Field == regTo) && len(a.Value) == 4:
		return fmt.Sprintf("%s is %s", side(a.Field == regFrom), d.group(number(a.Value))), nil
	case (a.Field == regNumberFrom || a.Field == regNumberTo) && len(a.Value) == 4:
		return fmt.Sprintf("number of %s is %d", side(a.Field == regNumberFrom), number(a.Value)), nil
	case a.Field == regLow && len(a.Value) == 4:
		return fmt.Sprintf("bucket ends in %x", number(a.Value)), nil
	case a.Field == regHigh && len(a.Value) == 4:
		return fmt.Sprintf("bucket begins with %x", number(a.Value)>>4), nil
	case a.Field == regClass && len(a.Value) == 4:
		return "path is " + d.names.Path(uint16(number(a.Value))), nil
	case a.Field == regCommit && len(a.Value) == 4:
		return "commit " + howText(number(a.Value)), nil
	case a.Field == regEntry && len(a.Value) == 16 && number(a.Value[:8]) == 0:
		return "admit for " + d.names.Entry(number(a.Value[8:])), nil
	case a.Field == regPort && len(a.Value) == 4:
		return "output port is " + d.port(uint32(number(a.Value))), nil
	}
	return "", fmt.Errorf("no description for setting %s", a.Field)
}

func side(source bool) string {
	if source {
		return "source"
	}
	return "destination"
}

func (d describer) track(a of.CT) (string, error) {
	text := "track the connection"
	if a.Commit {
		text = "commit the connection"
	}
	for _, exec := range a.Exec {
		if exec == (of.Action)(of.Move{From: regEntry, To: of.CTLabel, Length: 16}) {
			text += " to the entry"
			continue
		}
		label, ok := exec.(of.SetField)
		if !ok || label.Field != of.CTLabel || len(label.Value) != 16 || number(label.Value[:8]) != 0 {
			return "", fmt.Errorf("no description for the action %v on a connection", exec)
		}
		text += " to " + d.names.Entry(number(label.Value[8:]))
	}
	text += fmt.Sprintf(" in zone %d", a.Zone)
	if a.Table != nil {
		text += ", go to table " + tableName(*a.Table)
	}
	return text, nil
}
