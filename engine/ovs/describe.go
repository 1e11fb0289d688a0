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

// Names tells people what the numbers in flows stand for.
type Names interface {
	Class(class uint32) string // whose endpoints are of it
	Port(no uint32) string     // where it leads
	Entry(id uint64) string    // in whose name it admits
}

// Describe puts a flow into words: which packets, and what becomes of them. What
// it has no words for stays as the switch writes it, with the reason.
func Describe(f of.Flow, names Names) string {
	d := describer{names}
	packets, err := d.packets(f.Match)
	if err == nil {
		var fate string
		if fate, err = d.fate(f); err == nil {
			return fmt.Sprintf("table %s, priority %d: %s: %s", tableName(f.Table), f.Priority, packets, fate)
		}
	}
	return fmt.Sprintf("%v (as the switch writes it: %v)", f, err)
}

// Describe puts a difference into words, a sentence for each flow.
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
			must, err := describer{names}.fate(c.Want)
			if err != nil {
				must = c.Want.Instructions.String()
			}
			say("altered flow: %s; must be: %s", is, must)
		case c.Have.Cookie != c.Want.Cookie:
			say("altered flow: %s; its cookie is %#x, must be %#x", is, c.Have.Cookie, c.Want.Cookie)
		default:
			say("altered flow: %s; it has timeouts or flags, which flows of ours never have", is)
		}
	}
	for _, f := range d.Removed {
		say("foreign flow: %s; its cookie is %#x", Describe(f, names), f.Cookie)
	}
	slices.Sort(list)
	return list
}

var tableNames = map[uint8]string{
	tableSource: "source", tableDestination: "destination", tableTrack: "track", tableState: "state",
	tablePolicy: "policy", tableOutput: "output", tablePoke: "poke",
}

func tableName(table uint8) string {
	if name, ok := tableNames[table]; ok {
		return name
	}
	return fmt.Sprint(table)
}

type describer struct{ names Names }

// protocolNames are those of header fields, whatever entries can name.
var protocolNames = map[uint8]string{protoICMP: "icmp", 6: "tcp", 17: "udp", protoICMP6: "icmpv6", 132: "sctp"}

const ethARP = 0x0806

// packets says which packets a flow takes.
func (d describer) packets(m of.Match) (string, error) {
	var protocol, version, state string
	var words []string
	say := func(format string, args ...any) { words = append(words, fmt.Sprintf(format, args...)) }
	for _, f := range m.Fields() {
		exact := func(bytes int) (n uint64, err error) {
			if f.Mask != nil || len(f.Value) != bytes {
				return 0, fmt.Errorf("%s is not matched as a whole", f.Field)
			}
			return number(f.Value), nil
		}
		var n uint64
		var err error
		switch f.Field {
		case of.InPort:
			if n, err = exact(4); err == nil {
				say("coming in by %s", d.port(uint32(n)))
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
		case of.IPProto:
			if n, err = exact(1); err == nil {
				if protocol = protocolNames[uint8(n)]; protocol == "" {
					protocol = fmt.Sprintf("protocol %d", n)
				}
			}
		case of.EthSrc, of.EthDst:
			if f.Mask != nil || len(f.Value) != 6 {
				err = fmt.Errorf("%s is not matched as a whole", f.Field)
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
		case of.TCPDst, of.UDPDst, of.SCTPDst:
			var r PortRange
			if r, err = portsOf(f); err == nil {
				if r.First == r.Last {
					say("to port %d", r.First)
				} else {
					say("to ports %d-%d", r.First, r.Last)
				}
			}
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
				say("for %s", d.class(uint32(n)))
			}
		case regPort:
			if n, err = exact(4); err == nil {
				say("leaving by %s", d.port(uint32(n)))
			}
		case of.CTState:
			state, err = stateText(f)
		case of.CTLabel:
			if f.Mask != nil || len(f.Value) != 16 || number(f.Value[:8]) != 0 {
				err = fmt.Errorf("%s is none of ours", f.Field)
				break
			}
			say("of connections of %s", d.names.Entry(number(f.Value[8:])))
		default:
			err = fmt.Errorf("there are no words for matching %s", f.Field)
		}
		if err != nil {
			return "", err
		}
	}
	if state != "" {
		say("%s", state)
	}
	what := "every packet"
	switch {
	case protocol != "" && version != "":
		what = protocol + " over " + version
	case protocol != "" || version != "":
		what = protocol + version
	case len(words) > 0:
		what = "packets"
	}
	return strings.Join(append([]string{what}, words...), " "), nil
}

func direction(source bool) string {
	if source {
		return "from"
	}
	return "to"
}

// number reads up to eight bytes in network order.
func number(b []byte) (n uint64) {
	for _, c := range b {
		n = n<<8 | uint64(c)
	}
	return n
}

// prefixOf returns the prefix that an address field is matched by.
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
			return netip.Prefix{}, fmt.Errorf("the mask of %s is no prefix", f.Field)
		}
		length = ones
	}
	return netip.PrefixFrom(addr, length), nil
}

// portsOf returns the ports that a port field is matched by.
func portsOf(f of.FieldMatch) (PortRange, error) {
	if len(f.Value) != 2 {
		return PortRange{}, fmt.Errorf("%s has %d bytes", f.Field, len(f.Value))
	}
	m := maskedPort{Value: binary.BigEndian.Uint16(f.Value), Mask: 0xffff}
	if f.Mask != nil {
		m.Mask = binary.BigEndian.Uint16(f.Mask)
	}
	if free := ^m.Mask; free&(free+1) != 0 {
		return PortRange{}, fmt.Errorf("the mask of %s is no range", f.Field)
	}
	return m.ports(), nil
}

// stateText says what is demanded of the state of a connection.
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
		{of.CTInvalid, "that fit no connection", "that are valid"},
		{of.CTNew, "that open a connection", "that open no connection"},
		{of.CTEstablished, "of a connection that exists", "of no connection that exists"},
		{of.CTRelated, "about a connection that exists", "that are not about another connection"},
		{of.CTReply, "that answer", "in the direction of the first packet"},
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
	if class == routerClass {
		return "a router on the way"
	}
	return d.names.Class(class)
}

// Port numbers of OpenFlow that are no devices.
var reservedPorts = map[uint32]string{
	0xfffffff8: "the port of their arrival", 0xfffffff9: "the tables, from the beginning", 0xfffffffa: "whatever port a learning switch would take",
	0xfffffffb: "all ports but that of their arrival, as a learning switch does", 0xfffffffc: "all ports", 0xfffffffd: "the controller of the switch", of.LocalPort: "the bridge's own device",
}

func (d describer) port(no uint32) string {
	if name, ok := reservedPorts[no]; ok {
		return name
	}
	return d.names.Port(no)
}

// fate says what becomes of the packets of a flow.
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
		words = append(words, "go on to table "+tableName(uint8(next)))
	case len(words) == 0:
		words = append(words, "dropped")
		if n := f.Cookie & maxID; f.Cookie>>cookieShift == cookieDrop && n >= 1 && n <= uint64(len(dropReasons)) {
			words[0] += " as " + dropReasons[n-1]
		}
	}
	return strings.Join(words, ", "), nil
}

func (d describer) action(a of.Action) (string, error) {
	switch a := a.(type) {
	case of.Output:
		return "out by " + d.port(a.Port), nil
	case of.SetField:
		return d.set(a)
	case of.CT:
		return d.track(a)
	}
	return "", fmt.Errorf("there are no words for the action %v", a)
}

func (d describer) set(a of.SetField) (string, error) {
	switch {
	case a.Field == of.EthSrc && len(a.Value) == 6:
		return "given source " + MAC(a.Value).String(), nil
	case a.Field == of.EthDst && len(a.Value) == 6:
		return "given destination " + MAC(a.Value).String(), nil
	case a.Field == regSource && len(a.Value) == 4:
		return "taken to be from " + d.class(uint32(number(a.Value))), nil
	case a.Field == regDestination && len(a.Value) == 4:
		return "taken to be for " + d.class(uint32(number(a.Value))), nil
	case a.Field == regPort && len(a.Value) == 4:
		return "to leave by " + d.port(uint32(number(a.Value))), nil
	}
	return "", fmt.Errorf("there are no words for setting %s", a.Field)
}

func (d describer) track(a of.CT) (string, error) {
	text := "tracked"
	if a.Commit {
		text = "their connection is remembered"
	}
	for _, exec := range a.Exec {
		label, ok := exec.(of.SetField)
		if !ok || label.Field != of.CTLabel || len(label.Value) != 16 || number(label.Value[:8]) != 0 {
			return "", fmt.Errorf("there are no words for the action %v on a connection", exec)
		}
		text += " as one of " + d.names.Entry(number(label.Value[8:]))
	}
	text += fmt.Sprintf(" in zone %d", a.Zone)
	if a.Table != nil {
		text += ", go on to table " + tableName(*a.Table)
	}
	return text, nil
}
