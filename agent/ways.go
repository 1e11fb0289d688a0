// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package agent

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"github.com/sif-project/sif/api"
	"github.com/sif-project/sif/bpf"
	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/fabric/desired"
)

// relation is what ways have in common that differ in nothing but their bucket, in numbers.
type relation struct{ class, group uint16 }

// relations are ways: the marks of the buckets, 0 for a bucket without a way.
type relations map[relation][desired.Buckets]uint32

// relationsOf arranges the ways of the data path.
func relationsOf(ways map[bpf.Way]uint32) relations {
	all := relations{}
	for w, mark := range ways {
		r := relation{w.Class, w.Group}
		marks := all[r]
		marks[w.Bucket] = mark
		all[r] = marks
	}
	return all
}

// ways is the reverse of relationsOf.
func (r relations) ways() map[bpf.Way]uint32 {
	all := map[bpf.Way]uint32{}
	for key, marks := range r {
		for bucket, mark := range marks {
			if mark != 0 {
				all[bpf.Way{Class: key.class, Group: key.group, Bucket: uint8(bucket)}] = mark
			}
		}
	}
	return all
}

// and returns those of r, and of others those that r has not.
func (r relations) and(others relations) relations {
	all := maps.Clone(others)
	maps.Copy(all, r)
	return all
}

// wayNumbers gives groups and classes their numbers in the maps. The numbers mean nothing
// elsewhere, and those of a group or class stay the same for as long as it is needed. The class
// that wishes nothing is 0. The zero value has given none.
type wayNumbers struct {
	from    desired.Group // the node's own
	groups  map[desired.Group]uint16
	classes map[desired.Class]uint16
}

// assign gives numbers to the groups and classes of w, and forgets those of others.
func (n *wayNumbers) assign(w desired.Workload) {
	groups, classes := map[desired.Group]bool{}, map[desired.Class]bool{}
	for _, s := range w.Ways {
		n.from, groups[s.To] = s.From, true
	}
	for _, r := range w.Rules {
		classes[r.Class] = true
	}
	for _, e := range w.Endpoints {
		if e.Way == desired.ByWays {
			groups[e.Group] = true
		}
	}
	delete(classes, "")
	n.groups, n.classes = numbered(n.groups, groups), numbered(n.classes, classes)
}

// numbered returns the numbers of the keys that are needed: those that they have, and for others
// the lowest, from 1, that no key had until now.
func numbered[K comparable](have map[K]uint16, need map[K]bool) map[K]uint16 {
	taken, all := map[uint16]bool{}, map[K]uint16{}
	for key, n := range have {
		taken[n] = true
		if need[key] {
			all[key] = n
		}
	}
	next := uint16(1)
	for key := range need {
		if _, has := all[key]; has {
			continue
		}
		for taken[next] {
			next++
		}
		all[key], taken[next] = next, true
	}
	return all
}

// resume takes over the numbers that an earlier agent gave, from what it wrote for the endpoints
// and the contracts of w: peers and, by the numbers of contracts, their classes.
func (n *wayNumbers) resume(w desired.Workload, num numbers, peers []bpf.Peer, classes map[uint32]uint16) {
	n.groups, n.classes = map[desired.Group]uint16{}, map[desired.Class]uint16{}
	groups := map[netip.Addr]uint16{}
	for _, p := range peers {
		groups[p.Address] = p.Group
	}
	for _, e := range w.Endpoints {
		if e.Way == desired.ByWays {
			take(n.groups, e.Group, groups[e.IPv4])
		}
	}
	for _, r := range w.Rules {
		if contract, err := num.Of(desired.ContractKey{Contract: r.Contract}.String()); err == nil && r.Class != "" {
			take(n.classes, r.Class, classes[contract])
		}
	}
}

// take gives a key a number unless either is taken.
func take[K comparable](all map[K]uint16, key K, n uint16) {
	if _, has := all[key]; has || n == 0 || slices.Contains(slices.Collect(maps.Values(all)), n) {
		return
	}
	all[key] = n
}

// wayNames are what the numbers in ways stand for. The zero value knows none.
type wayNames struct {
	from       desired.Group
	groups     map[uint16]desired.Group
	classes    map[uint16]desired.Class
	processors map[uint32]fabric.NodeID // by the marks of packets to them
}

// names returns what the numbers stand for, given the marks of the zone's processors. It may be
// called on nil.
func (n *wayNumbers) names(marks map[fabric.NodeID]uint32) wayNames {
	names := wayNames{groups: map[uint16]desired.Group{}, classes: map[uint16]desired.Class{0: ""}, processors: map[uint32]fabric.NodeID{}}
	for processor, mark := range marks {
		names.processors[mark] = processor
	}
	if n == nil {
		return names
	}
	names.from = n.from
	for group, number := range n.groups {
		names.groups[number] = group
	}
	for class, number := range n.classes {
		names.classes[number] = class
	}
	return names
}

// via names the ways of a peer.
func (n wayNames) via(p bpf.Peer) (text string, known bool) {
	group, known := n.groups[p.Group]
	if !known {
		return fmt.Sprintf("the ways of group %d, number %d", p.Group, p.Number), false
	}
	return desired.ViaWays(group, p.Number), true
}

// dump describes ways, and says what of them nobody knows.
func (n wayNames) dump(ways relations) (list []api.DumpWay, problems []string) {
	for r, marks := range ways {
		to, known := n.groups[r.group]
		class, wished := n.classes[r.class]
		if !known || !wished {
			problems = append(problems, fmt.Sprintf("the maps contain ways of class %d to group %d, which this node never assigned", r.class, r.group))
			continue
		}
		next := [desired.Buckets]desired.Hop{}
		for bucket, mark := range marks {
			processor, leads := n.processors[mark]
			if !leads && mark != 0 {
				problems = append(problems, fmt.Sprintf("ways to %s have the mark %#x, which leads to no processor", to, mark))
			}
			next[bucket] = desired.Hop{Processor: processor}
		}
		list = append(list, api.DumpWay{From: n.from.String(), To: to.String(), Path: string(class), Next: desired.Shares(next)})
	}
	return list, problems
}
