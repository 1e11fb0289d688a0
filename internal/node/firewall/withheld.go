// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package firewall

import (
	"bytes"
	"cmp"
	"fmt"
	"net/netip"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/sif-project/sif/fabric"
)

// letOut is what SetEgress lets out, in the form of the kernel's sets. It is compared by equal.
type letOut struct {
	wide     []Egress       // ordered and disjoint, for addresses that are not withheld
	listed   []Egress       // the same, for those that are
	withheld []netip.Prefix // ordered, none within another
}

func newLetOut(list []Egress, withheld []netip.Prefix) (l letOut) {
	withheld = slices.Clone(withheld)
	slices.SortFunc(withheld, netip.Prefix.Compare) // a prefix before those within it
	for _, p := range withheld {
		if n := len(l.withheld); n == 0 || !fabric.Covers(l.withheld[n-1], p) {
			l.withheld = append(l.withheld, p)
		}
	}
	for _, e := range list {
		if !l.withholds(e.Prefix) {
			l.wide = append(l.wide, e)
			continue
		}
		for _, e.Prefix = range carve(e.Prefix, inside(withheld, e.Prefix)) {
			l.listed = append(l.listed, e)
		}
	}
	l.wide, l.listed = disjoint(l.wide), disjoint(l.listed)
	return l
}

// inside returns those of the ordered prefixes that are smaller than p, and within it.
func inside(prefixes []netip.Prefix, p netip.Prefix) []netip.Prefix {
	from, same := slices.BinarySearchFunc(prefixes, p, netip.Prefix.Compare)
	for same && from < len(prefixes) && prefixes[from] == p {
		from++
	}
	prefixes = prefixes[from:]
	if to := slices.IndexFunc(prefixes, func(q netip.Prefix) bool { return !p.Contains(q.Addr()) }); to >= 0 {
		return prefixes[:to]
	}
	return prefixes
}

// carve returns what is left of a prefix without holes in it.
func carve(p netip.Prefix, holes []netip.Prefix) []netip.Prefix {
	holes = slices.DeleteFunc(slices.Clone(holes), func(h netip.Prefix) bool { return !h.Overlaps(p) })
	switch {
	case len(holes) == 0:
		return []netip.Prefix{p}
	case slices.ContainsFunc(holes, func(h netip.Prefix) bool { return fabric.Covers(h, p) }):
		return nil
	}
	lower := netip.PrefixFrom(p.Addr(), p.Bits()+1)
	upper := netip.PrefixFrom(lastOf(p), p.Bits()+1).Masked()
	return append(carve(lower, holes), carve(upper, holes)...)
}

// withholds reports whether the prefix is within a withheld one.
func (l letOut) withholds(p netip.Prefix) bool {
	i, found := slices.BinarySearchFunc(l.withheld, p, netip.Prefix.Compare)
	return found || i > 0 && fabric.Covers(l.withheld[i-1], p)
}

func (l *letOut) entries(listed bool) *[]Egress {
	if listed {
		return &l.listed
	}
	return &l.wide
}

func (l letOut) equal(other letOut) bool {
	return slices.Equal(l.wide, other.wide) && slices.Equal(l.listed, other.listed) && slices.Equal(l.withheld, other.withheld)
}

// withheldSet is the kernel's set of the addresses of a family that are withheld.
type withheldSet struct {
	*nftables.Set
	ipv6 bool
}

func withheldSets(table *nftables.Table) []withheldSet {
	one := func(name string, address nftables.SetDatatype, ipv6 bool) withheldSet {
		return withheldSet{&nftables.Set{Table: table, Name: name, KeyType: address, Interval: true}, ipv6}
	}
	return []withheldSet{one("withheld4", nftables.TypeIPAddr, false), one("withheld6", nftables.TypeIP6Addr, true)}
}

// elements returns the first address of each prefix of the family, and the one after its last,
// unless that is the last of all.
func (s withheldSet) elements(prefixes []netip.Prefix) (elements []nftables.SetElement) {
	for _, p := range prefixes {
		if p.Addr().Is6() != s.ipv6 {
			continue
		}
		elements = append(elements, nftables.SetElement{Key: p.Addr().AsSlice()})
		if after := lastOf(p).Next(); after.IsValid() {
			elements = append(elements, nftables.SetElement{Key: after.AsSlice(), IntervalEnd: true})
		}
	}
	return elements
}

// prefixes returns the ordered prefixes of elements that elements made.
func (s withheldSet) prefixes(elements []nftables.SetElement) (list []netip.Prefix, err error) {
	compare := func(a, b nftables.SetElement) int {
		end := func(e nftables.SetElement) int {
			if e.IntervalEnd {
				return 0
			}
			return 1
		}
		return cmp.Or(bytes.Compare(a.Key, b.Key), cmp.Compare(end(a), end(b)))
	}
	elements = slices.SortedFunc(slices.Values(elements), compare)
	for i, e := range elements {
		if e.IntervalEnd {
			continue
		}
		first, ok := netip.AddrFromSlice(e.Key)
		if !ok || first.Is6() != s.ipv6 {
			return nil, fmt.Errorf("set %s has an element of another form", s.Name)
		}
		last := lastOf(netip.PrefixFrom(first, 0))
		if i+1 < len(elements) {
			after, _ := netip.AddrFromSlice(elements[i+1].Key)
			last = after.Prev()
		}
		list = append(list, netip.PrefixFrom(first, commonBits(first.AsSlice(), last.AsSlice())).Masked())
	}
	again := slices.SortedFunc(slices.Values(s.elements(list)), compare)
	if !slices.EqualFunc(again, elements, func(a, b nftables.SetElement) bool { return compare(a, b) == 0 }) {
		return nil, fmt.Errorf("set %s has an element that is not ours", s.Name)
	}
	return list, nil
}

// lookUp matches packets of the set's family to addresses that are in the set.
func (s withheldSet) lookUp() []expr.Any {
	version, offset, length := byte(unix.NFPROTO_IPV4), destination.offset4, uint32(4)
	if s.ipv6 {
		version, offset, length = unix.NFPROTO_IPV6, destination.offset6, 16
	}
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: 1}, equal(version),
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: length},
		&expr.Lookup{SourceRegister: 1, SetName: s.Name, SetID: s.ID},
	}
}
