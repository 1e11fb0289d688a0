// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package firewall

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/internal/node/ruleset"
)

// Egress lets an endpoint reach addresses outside the fabric with the node as its exit.
type Egress struct {
	Endpoint netip.Addr
	Prefix   netip.Prefix // of the same family
	Protocol fabric.Protocol
	Ports    fabric.PortRange // of ICMP and ICMPv6: the message types
}

func (e Egress) String() string {
	return fmt.Sprintf("%s to %s, %s %s", e.Endpoint, e.Prefix, e.Protocol, e.Ports)
}

// Check returns an error if the entry can never be in force.
func (e Egress) Check() error {
	var err error
	most := uint16(65535)
	if !e.Protocol.HasPorts() {
		most = 255
	}
	switch {
	case !e.Endpoint.IsValid() || !e.Prefix.IsValid() || e.Endpoint.Is4() != e.Prefix.Addr().Is4() || e.Endpoint.Is4In6() || e.Prefix.Addr().Is4In6():
		err = errors.New("endpoint and prefix must be of one family")
	case e.Prefix != e.Prefix.Masked():
		err = errors.New("the prefix has host bits set")
	case e.Protocol == fabric.ICMP && !e.Endpoint.Is4() || e.Protocol == fabric.ICMPv6 && e.Endpoint.Is4():
		err = errors.New("the protocol is not of this family")
	case !slices.Contains(fabric.Protocols, e.Protocol):
		err = errors.New("the firewall does not know the protocol")
	case e.Ports.From > e.Ports.To || e.Ports.To > most:
		err = errors.New("this is no range")
	default:
		return nil
	}
	return fmt.Errorf("let out %s: %w", e, err)
}

// compareEgress orders by endpoint, protocol and prefix, a prefix before those that it contains.
func compareEgress(a, b Egress) int {
	return cmp.Or(a.Endpoint.Compare(b.Endpoint), cmp.Compare(a.Protocol, b.Protocol), a.Prefix.Addr().Compare(b.Prefix.Addr()),
		cmp.Compare(a.Prefix.Bits(), b.Prefix.Bits()), cmp.Compare(a.Ports.From, b.Ports.From), cmp.Compare(a.Ports.To, b.Ports.To))
}

// disjoint returns ordered entries that allow the same, and of which none overlaps another: the
// kernel refuses some elements that do. What a prefix allows is left out of those within it.
func disjoint(list []Egress) []Egress {
	list = slices.Clone(list)
	slices.SortFunc(list, compareEgress)
	type around struct {
		Egress
		ports []fabric.PortRange // of the prefix, and of all around it
	}
	var open []around // the prefixes around the current one, the innermost last
	var result []Egress
	for len(list) > 0 {
		first, n := list[0], 0
		var ports []fabric.PortRange
		for ; n < len(list) && list[n].Endpoint == first.Endpoint && list[n].Protocol == first.Protocol && list[n].Prefix == first.Prefix; n++ {
			ports = append(ports, list[n].Ports)
		}
		list = list[n:]
		for len(open) > 0 {
			last := open[len(open)-1]
			if last.Endpoint == first.Endpoint && last.Protocol == first.Protocol && last.Prefix.Contains(first.Prefix.Addr()) {
				break
			}
			open = open[:len(open)-1]
		}
		var covered []fabric.PortRange
		if len(open) > 0 {
			covered = open[len(open)-1].ports
		}
		ports = union(ports)
		for _, r := range without(ports, covered) {
			first.Ports = r
			result = append(result, first)
		}
		open = append(open, around{first, union(slices.Concat(ports, covered))})
	}
	return result
}

// union returns ordered ranges that neither overlap nor touch.
func union(ranges []fabric.PortRange) []fabric.PortRange {
	ranges = slices.Clone(ranges)
	slices.SortFunc(ranges, func(a, b fabric.PortRange) int { return cmp.Compare(a.From, b.From) })
	var result []fabric.PortRange
	for _, r := range ranges {
		if n := len(result) - 1; n >= 0 && int(r.From) <= int(result[n].To)+1 {
			result[n].To = max(result[n].To, r.To)
			continue
		}
		result = append(result, r)
	}
	return result
}

// without returns what of the ranges is in none of the others. Both are results of union.
func without(ranges, others []fabric.PortRange) []fabric.PortRange {
	var result []fabric.PortRange
	for _, r := range ranges {
		from, to := int(r.From), int(r.To)
		for _, o := range others {
			if int(o.To) < from || int(o.From) > to {
				continue
			}
			if int(o.From) > from {
				result = append(result, fabric.PortRange{From: uint16(from), To: o.From - 1})
			}
			from = int(o.To) + 1
		}
		if from <= to {
			result = append(result, fabric.PortRange{From: uint16(from), To: uint16(to)})
		}
	}
	return result
}

// egressSet is the kernel's set of what endpoints may reach with the node as exit. There are two
// for each family, by port and by ICMP message type, and the same again for what is withheld.
type egressSet struct {
	*nftables.Set
	ipv6, icmp, listed bool
}

func egressSets(table *nftables.Table) []egressSet {
	one := func(name string, ipv6, icmp, listed bool) egressSet {
		address, kind := nftables.TypeIPAddr, nftables.TypeICMPType
		if ipv6 {
			address, kind = nftables.TypeIP6Addr, nftables.TypeICMP6Type
		}
		key := []nftables.SetDatatype{address, address, nftables.TypeInetProto, nftables.TypeInetService}
		if icmp {
			key = []nftables.SetDatatype{address, address, kind}
		}
		return egressSet{ipv6: ipv6, icmp: icmp, listed: listed, Set: &nftables.Set{
			Table: table, Name: name, Concatenation: true, Interval: true, KeyType: nftables.MustConcatSetType(key...),
		}}
	}
	return []egressSet{
		one("egress4", false, false, false), one("egress_icmp4", false, true, false), one("egress6", true, false, false), one("egress_icmp6", true, true, false),
		one("listed4", false, false, true), one("listed_icmp4", false, true, true), one("listed6", true, false, true), one("listed_icmp6", true, true, true),
	}
}

// has reports whether the entry belongs into the set.
func (s egressSet) has(e Egress) bool {
	return e.Endpoint.Is6() == s.ipv6 && e.Protocol.HasPorts() != s.icmp
}

// elements returns those of the entries that belong into the set.
func (s egressSet) elements(list []Egress) []nftables.SetElement {
	var elements []nftables.SetElement
	for _, e := range list {
		if s.has(e) {
			elements = append(elements, nftables.SetElement{
				Key: s.bound(e, e.Prefix.Addr(), e.Ports.From), KeyEnd: s.bound(e, lastOf(e.Prefix), e.Ports.To),
			})
		}
	}
	return elements
}

// bound returns the first or the last key of an entry.
func (s egressSet) bound(e Egress, address netip.Addr, number uint16) []byte {
	key := append(e.Endpoint.AsSlice(), address.AsSlice()...)
	if s.icmp {
		return append(key, word(byte(number))...)
	}
	return append(append(key, word(byte(e.Protocol))...), port(number)...)
}

// entry returns the entry of an element that elements made.
func (s egressSet) entry(e nftables.SetElement) (Egress, error) {
	length, width, protocol := 4, 0, fabric.ICMP
	if s.ipv6 {
		length, protocol = 16, fabric.ICMPv6
	}
	if width = 2*length + 8; s.icmp {
		width = 2*length + 4
	}
	if len(e.Key) != width || len(e.KeyEnd) != width {
		return Egress{}, fmt.Errorf("set %s has an element of another form", s.Name)
	}
	endpoint, _ := netip.AddrFromSlice(e.Key[:length])
	first, _ := netip.AddrFromSlice(e.Key[length : 2*length])
	entry := Egress{Endpoint: endpoint, Prefix: netip.PrefixFrom(first, commonBits(e.Key[length:2*length], e.KeyEnd[length:2*length])), Protocol: protocol}
	if s.icmp {
		entry.Ports = fabric.PortRange{From: uint16(e.Key[2*length]), To: uint16(e.KeyEnd[2*length])}
	} else {
		entry.Protocol = fabric.Protocol(e.Key[2*length])
		entry.Ports = fabric.PortRange{From: binary.BigEndian.Uint16(e.Key[2*length+4:]), To: binary.BigEndian.Uint16(e.KeyEnd[2*length+4:])}
	}
	again := s.elements([]Egress{entry})
	if len(again) != 1 || !bytes.Equal(again[0].Key, e.Key) || !bytes.Equal(again[0].KeyEnd, e.KeyEnd) {
		return entry, fmt.Errorf("set %s has an element that is not ours", s.Name)
	}
	return entry, nil
}

// lookUp matches packets of the set's family that are in the set.
func (s egressSet) lookUp() []expr.Any {
	version, length := byte(unix.NFPROTO_IPV4), uint32(4)
	from, to := source.offset4, destination.offset4
	if s.ipv6 {
		version, length = unix.NFPROTO_IPV6, 16
		from, to = source.offset6, destination.offset6
	}
	const first = unix.NFT_REG32_00
	next := uint32(first) + 2*length/4
	exprs := []expr.Any{&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: 1}, equal(version)}
	if s.icmp {
		message := byte(unix.IPPROTO_ICMP)
		if s.ipv6 {
			message = unix.IPPROTO_ICMPV6
		}
		exprs = append(exprs, protocol(message)...)
	}
	exprs = append(exprs,
		&expr.Payload{DestRegister: first, Base: expr.PayloadBaseNetworkHeader, Offset: from, Len: length},
		&expr.Payload{DestRegister: first + length/4, Base: expr.PayloadBaseNetworkHeader, Offset: to, Len: length})
	if s.icmp {
		exprs = append(exprs, &expr.Payload{DestRegister: next, Base: expr.PayloadBaseTransportHeader, Offset: 0, Len: 1})
	} else {
		exprs = append(exprs, &expr.Meta{Key: expr.MetaKeyL4PROTO, Register: next},
			&expr.Payload{DestRegister: next + 1, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2})
	}
	return append(exprs, &expr.Lookup{SourceRegister: first, SetName: s.Name, SetID: s.ID})
}

// lastOf returns the last address of a prefix.
func lastOf(p netip.Prefix) netip.Addr {
	b := p.Addr().AsSlice()
	for i := p.Bits(); i < len(b)*8; i++ {
		b[i/8] |= 0x80 >> (i % 8)
	}
	last, _ := netip.AddrFromSlice(b)
	return last
}

// commonBits returns how many bits two addresses of one family begin with alike.
func commonBits(a, b []byte) int {
	for i := range len(a) * 8 {
		if (a[i/8]^b[i/8])&(0x80>>(i%8)) != 0 {
			return i
		}
	}
	return len(a) * 8
}

// readEgress returns what the kernel's sets contain.
func (f *Firewall) readEgress(conn *nftables.Conn) (have letOut, err error) {
	for _, s := range egressSets(f.table()) {
		elements, err := conn.GetSetElements(s.Set)
		if err != nil {
			return letOut{}, fmt.Errorf("read set %s: %w", s.Name, err)
		}
		for _, e := range elements {
			entry, err := s.entry(e)
			if err != nil {
				return letOut{}, err
			}
			list := have.entries(s.listed)
			*list = append(*list, entry)
		}
	}
	slices.SortFunc(have.wide, compareEgress)
	slices.SortFunc(have.listed, compareEgress)
	for _, s := range withheldSets(f.table()) {
		elements, err := conn.GetSetElements(s.Set)
		if err != nil {
			return letOut{}, fmt.Errorf("read set %s: %w", s.Name, err)
		}
		prefixes, err := s.prefixes(elements)
		if err != nil {
			return letOut{}, err
		}
		have.withheld = append(have.withheld, prefixes...)
	}
	return have, nil
}

// fillEgress replaces the content of the sets.
func (f *Firewall) fillEgress(conn *nftables.Conn, want letOut) error {
	for _, s := range egressSets(f.table()) {
		conn.FlushSet(s.Set)
		if err := inParts(s.elements(*want.entries(s.listed)), func(part []nftables.SetElement) error { return conn.SetAddElements(s.Set, part) }); err != nil {
			return err
		}
	}
	return f.fillWithheld(conn, want)
}

func (f *Firewall) fillWithheld(conn *nftables.Conn, want letOut) error {
	for _, s := range withheldSets(f.table()) {
		conn.FlushSet(s.Set)
		if err := inParts(s.elements(want.withheld), func(part []nftables.SetElement) error { return conn.SetAddElements(s.Set, part) }); err != nil {
			return err
		}
	}
	return nil
}

// inParts calls write with so many elements at once as fit into a message.
func inParts(elements []nftables.SetElement, write func([]nftables.SetElement) error) error {
	for part := range slices.Chunk(elements, elementsPerMessage) {
		if err := write(part); err != nil {
			return fmt.Errorf("write elements of a set: %w", err)
		}
	}
	return nil
}

// difference returns what is in the first of two ordered lists only.
func difference(a, b []Egress) []Egress {
	var only []Egress
	for _, e := range a {
		for len(b) > 0 && compareEgress(b[0], e) < 0 {
			b = b[1:]
		}
		if len(b) == 0 || b[0] != e {
			only = append(only, e)
		}
	}
	return only
}

// SetEgress replaces all that endpoints may reach with the node as exit, in one transaction that
// writes the differences only. Entries may overlap; each must pass Check. What is withheld, only
// entries reach whose prefix is within the innermost withheld prefix around an address. Connections
// that no entry allows any more end: the kernel forgets them. Both lists must be complete from the
// first call on.
func (f *Firewall) SetEgress(list []Egress, withheld []netip.Prefix) error {
	for _, e := range list {
		if err := e.Check(); err != nil {
			return err
		}
	}
	want := newLetOut(list, withheld)
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.egressKnown && f.egress.equal(want) {
		return f.cut() // what an earlier call could not
	}
	if err := f.writeEgress(want); err != nil {
		return fmt.Errorf("let out what may go by the node: %w", err)
	}
	return f.cut()
}

func (f *Firewall) writeEgress(want letOut) error {
	before, err := ruleset.Generation()
	if err != nil {
		return err
	}
	conn, err := newConn()
	if err != nil {
		return err
	}
	have := f.egress
	if !f.egressKnown {
		if have, err = f.readEgress(conn); err != nil {
			have = letOut{}
		}
	}
	withheld := !slices.Equal(have.withheld, want.withheld)
	gone := !f.egressKnown || withheld
	for _, s := range egressSets(f.table()) {
		have, want := *have.entries(s.listed), *want.entries(s.listed)
		less := difference(have, want)
		gone = gone || len(less) > 0
		if err := errors.Join(
			inParts(s.elements(less), func(part []nftables.SetElement) error { return conn.SetDeleteElements(s.Set, part) }),
			inParts(s.elements(difference(want, have)), func(part []nftables.SetElement) error { return conn.SetAddElements(s.Set, part) }),
		); err != nil {
			return err
		}
	}
	if withheld {
		if err := f.fillWithheld(conn, want); err != nil {
			return err
		}
	}
	if err := conn.Flush(); err != nil {
		// Somebody changed the sets.
		if err := f.fillEgress(conn, want); err != nil {
			return err
		}
		if err := conn.Flush(); err != nil {
			return err
		}
		gone = true
	}
	f.uncut.egress = f.uncut.egress || gone
	f.egress, f.egressKnown = want, true
	if after, err := ruleset.Generation(); err == nil && f.generation == before && after == before+1 {
		f.generation = after // nobody else changed anything
	}
	return nil
}
