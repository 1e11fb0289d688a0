// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package engine

import (
	"hash/fnv"
	"maps"
	"slices"
	"time"

	"github.com/sif-project/sif/engine/ovs"
	"github.com/sif-project/sif/fabric/desired"
)

// movedFor is how long answers of TCP pass on connections that began at another processor, after
// their pairs came to this one.
const movedFor = 10 * time.Second

// SwitchWays is by which tunnels packets from one group to another go, of contracts of one class.
type SwitchWays struct {
	From, To, Class uint16
	Spread          desired.Spread
}

// shortNumbers gives each name a number from 1 to 65535, which follows from the name, so that it is
// the same after a restart. A name whose number another one has gets the next one that is free.
func shortNumbers[T comparable](names map[string]T) map[T]uint16 {
	taken, numbers := map[uint16]bool{}, map[T]uint16{}
	for _, name := range slices.Sorted(maps.Keys(names)) {
		h := fnv.New32a()
		_, _ = h.Write([]byte(name))
		n := uint16(h.Sum32()%0xffff) + 1
		for taken[n] {
			if n++; n == 0 {
				n = 1
			}
		}
		taken[n] = true
		numbers[names[name]] = n
	}
	return numbers
}

// ways puts the ways of a processor into numbers.
func (s *SwitchState) ways(p desired.Processor) {
	groups, classes := map[string]desired.Group{}, map[string]desired.Class{}
	group := func(g desired.Group) { groups[g.String()] = g }
	for _, e := range p.Endpoints {
		group(e.Group)
	}
	for _, n := range p.Probes {
		group(n.Group)
	}
	for _, r := range p.Rules {
		classes[string(r.Class)] = r.Class
	}
	for _, w := range p.Ways {
		group(w.From)
		group(w.To)
		classes[string(w.Class)] = w.Class
	}
	delete(classes, "")
	s.Sources = p.Sources
	s.Groups, s.Classes = shortNumbers(groups), shortNumbers(classes)
	for _, w := range p.Ways {
		s.Ways = append(s.Ways, SwitchWays{From: s.Groups[w.From], To: s.Groups[w.To], Class: s.Classes[w.Class], Spread: w})
	}
}

// relation is what ways depend on besides the bucket.
type relation struct {
	from, to desired.Group
	class    desired.Class
}

// moves remembers which buckets came to the processor moments ago.
type moves struct {
	carried map[relation][desired.Buckets]bool
	until   map[relation][desired.Buckets]time.Time // zero: not moments ago
}

// forget makes all that the processor carries count as if it came now: the switch may have lost its
// connections.
func (m *moves) forget() { m.carried = nil }

// note compares what the processor carries with what it carried before, and returns what moved.
func (m *moves) note(ways []SwitchWays, now time.Time) (list []ovs.Course) {
	carried, until := map[relation][desired.Buckets]bool{}, map[relation][desired.Buckets]time.Time{}
	for i := range ways {
		w := &ways[i]
		r := relation{w.Spread.From, w.Spread.To, w.Spread.Class}
		before, times := m.carried[r], m.until[r]
		var some []ovs.Course
		for bucket, carries := range w.Spread.Carried {
			switch {
			case !carries:
				times[bucket] = time.Time{}
				continue
			case !before[bucket]:
				times[bucket] = now.Add(movedFor)
			case !now.Before(times[bucket]):
				times[bucket] = time.Time{}
				continue
			}
			some = append(some, w.course(ovs.Bucket(bucket)))
		}
		carried[r] = w.Spread.Carried
		if len(some) > 0 {
			until[r] = times
		}
		if len(some) == desired.Buckets {
			some = []ovs.Course{w.course(ovs.AllBuckets)}
		}
		list = append(list, some...)
	}
	m.carried, m.until = carried, until
	return list
}

// over reports whether the moment of something that moved is over.
func (m *moves) over(now time.Time) bool {
	for _, times := range m.until {
		if slices.ContainsFunc(times[:], func(t time.Time) bool { return !t.IsZero() && !now.Before(t) }) {
			return true
		}
	}
	return false
}

func (w *SwitchWays) course(bucket ovs.Bucket) ovs.Course {
	return ovs.Course{From: w.From, To: w.To, Class: w.Class, Bucket: bucket}
}

// rows returns the ways for the switch whose ports lead to hops: that of most buckets, and those
// that differ. common is the port of most buckets, 0 if nothing leads to the group.
func (w *SwitchWays) rows(ports map[desired.Hop]ovs.Port) (rows []ovs.Way, common uint32) {
	var of [desired.Buckets]uint32
	count := map[uint32]int{}
	for bucket, hop := range w.Spread.Next {
		if !hop.IsZero() {
			of[bucket] = ports[hop].No
		}
		count[of[bucket]]++
	}
	nowhere := count[0]
	delete(count, 0)
	for _, port := range slices.Sorted(maps.Keys(count)) {
		if count[port] > count[common] {
			common = port
		}
	}
	if common == 0 {
		return nil, 0
	}
	if nowhere == 0 {
		rows = append(rows, ovs.Way{Course: w.course(ovs.AllBuckets), Port: common})
	}
	for bucket, port := range of {
		if port != 0 && (port != common || nowhere > 0) {
			rows = append(rows, ovs.Way{Course: w.course(ovs.Bucket(bucket)), Port: port})
		}
	}
	return rows, common
}

// ways returns the ways for the switch, and those of what routers report: to each group, the one of
// most of its pairs with the own zone.
func (b *bridge) ways() (list []ovs.Way) {
	reports := map[uint16]ovs.Way{}
	for i := range b.wanted.Ways {
		w := &b.wanted.Ways[i]
		rows, common := w.rows(b.ports)
		list = append(list, rows...)
		if _, known := reports[w.To]; common != 0 && w.Class == 0 && !known {
			reports[w.To] = ovs.Way{Course: ovs.Course{To: w.To, Bucket: ovs.AllBuckets}, Port: common}
		}
	}
	return append(list, slices.Collect(maps.Values(reports))...)
}
