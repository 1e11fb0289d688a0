// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package ovs

import (
	"maps"
	"slices"

	of "github.com/sif-project/sif/engine/openflow"
)

// Diff says how the flows of a switch differ from those that are wanted.
type Diff struct {
	Added   []of.Flow // missing in the switch
	Removed []of.Flow // in the switch, not wanted
	Changed []Change
	Meters  MeterDiff
}

// Change is a flow that is in the switch, but not as wanted.
type Change struct {
	Have of.FlowStats
	Want of.Flow
}

// Empty says that the switch has the wanted flows and meters and no others.
func (d Diff) Empty() bool {
	return len(d.Added)+len(d.Changed)+len(d.Removed) == 0 && d.Meters.Empty()
}

// compare lists how have differs from want. It uses want up.
func compare(have []of.FlowStats, want map[of.Key]of.Flow) (d Diff) {
	for _, f := range have {
		wanted, ok := want[f.Key]
		switch {
		case !ok:
			d.Removed = append(d.Removed, f.Flow)
		case wanted != f.Flow || f.Foreign:
			d.Changed = append(d.Changed, Change{f, wanted})
		}
		delete(want, f.Key)
	}
	d.Added = slices.AppendSeq(make([]of.Flow, 0, len(want)), maps.Values(want))
	return d
}

// compareOwn is compare with what this process has written. Most changes only add or only remove.
func compareOwn(have, want []of.Flow) Diff {
	switch {
	case len(have) == 0:
		return Diff{Added: want}
	case len(want) == 0:
		return Diff{Removed: have}
	}
	byKey := make(map[of.Key]of.Flow, len(want))
	put(byKey, want)
	list := make([]of.FlowStats, len(have))
	for i, f := range have {
		list[i].Flow = f
	}
	return compare(list, byKey)
}

// step is a part of a difference that is written as one bundle.
type step struct {
	remove []of.Key
	add    []of.Flow // a flow with the same key is replaced
	wait   bool      // until the datapath follows
}

// steps returns what makes the switch as wanted, in the order in which the datapath must see it.
//
// A packet meets the tables twice: tables 0 to 4 find its classes and its port, and after
// connection tracking tables 5 to 12 judge it by these. The datapath caches the two decisions
// apart, so that while it follows a change, an old one may be combined with a new one. That is
// harmless if the change only adds or only takes away, or concerns only the tables before or only
// those after connection tracking. Otherwise an address could meet a new policy with its old class,
// or with its new class a policy that is gone. Then the first step only takes away, and the second
// adds when the datapath has forgotten what is gone. The same is necessary if the datapath may not
// yet have followed an earlier change (lagging).
//
// Tables moved and way are written at once: they say where a packet goes that the policy lets pass,
// and a packet without a way would be lost. So are those of limits, which let nothing pass either.
func (d Diff) steps(lagging bool) []step {
	var takes, adds [2]bool // before and after connection tracking
	leading := false        // a flow that leads is added
	for _, f := range d.Removed {
		takes[round(f)] = takes[round(f)] || !leads(f) && !throttles(f)
	}
	for _, c := range d.Changed {
		if !neutral(c.Want) {
			takes[round(c.Want)], adds[round(c.Want)] = true, true
		}
	}
	for _, f := range d.Added {
		leading = leading || leads(f)
		adds[round(f)] = adds[round(f)] || !leads(f) && !throttles(f)
	}
	if !lagging && !(takes[0] && adds[1] || adds[0] && takes[1]) {
		all := step{remove: keys(d.Removed), add: d.Added, wait: leading || len(d.Removed)+len(d.Changed) > 0 || adds[1]}
		if len(d.Changed) > 0 {
			all.add = slices.Clone(d.Added)
		}
		for _, c := range d.Changed {
			all.add = append(all.add, c.Want)
		}
		return []step{all}
	}
	less, more := step{remove: keys(d.Removed), wait: true}, step{wait: adds[1]}
	for _, c := range d.Changed {
		if neutral(c.Want) {
			less.add = append(less.add, c.Want)
			continue
		}
		less.remove, more.add = append(less.remove, c.Want.Key), append(more.add, c.Want)
	}
	for _, f := range d.Added {
		if leads(f) || throttles(f) {
			less.add = append(less.add, f)
		} else {
			more.add = append(more.add, f)
		}
	}
	return []step{less, more}
}

func keys(flows []of.Flow) []of.Key {
	list := make([]of.Key, len(flows))
	for i, f := range flows {
		list[i] = f.Key
	}
	return list
}

// neutral says whether a flow may take the place of another one with its key at any time. Of the
// policy, such flows admit the same packets, in the name of another entry.
func neutral(f of.Flow) bool { return f.Table == tablePolicy || leads(f) || throttles(f) }

// leads says whether a flow does not decide that a packet passes, but where it goes then.
func leads(f of.Flow) bool { return f.Table == tableMoved || f.Table == tableWay }

// throttles says whether a flow does not decide that a packet passes, but how many do.
func throttles(f of.Flow) bool { return f.Table == tableEndpoint || f.Table == tableZone }

// round says whether a packet meets a flow before connection tracking (0) or after it (1).
func round(f of.Flow) int {
	if f.Table < tableState {
		return 0
	}
	return 1
}

func (s step) mods() []of.FlowMod {
	mods := make([]of.FlowMod, 0, len(s.remove)+len(s.add))
	for _, key := range s.remove {
		mods = append(mods, of.DeleteStrict(key))
	}
	for _, f := range s.add {
		mods = append(mods, of.Add(f))
	}
	return mods
}
