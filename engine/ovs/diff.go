// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package ovs

import of "github.com/sif-project/sif/engine/openflow"

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
	for _, f := range want {
		d.Added = append(d.Added, f)
	}
	return d
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
	var all, less, more step
	var takes, adds [2]bool // before and after connection tracking
	for _, f := range d.Removed {
		takes[round(f)] = takes[round(f)] || !leads(f) && !throttles(f)
		all.remove = append(all.remove, f.Key)
	}
	less.remove = all.remove
	for _, c := range d.Changed {
		all.add = append(all.add, c.Want)
		if c.Want.Table == tablePolicy || leads(c.Want) || throttles(c.Want) {
			// Policy flows with the same key admit the same packets, in the name of another entry.
			less.add = append(less.add, c.Want)
			continue
		}
		takes[round(c.Want)], adds[round(c.Want)] = true, true
		less.remove = append(less.remove, c.Want.Key)
		more.add = append(more.add, c.Want)
	}
	for _, f := range d.Added {
		all.add = append(all.add, f)
		if leads(f) {
			all.wait, less.add = true, append(less.add, f)
			continue
		}
		if throttles(f) {
			less.add = append(less.add, f)
			continue
		}
		adds[round(f)], more.add = true, append(more.add, f)
	}
	all.wait = all.wait || len(d.Removed)+len(d.Changed) > 0 || adds[1]
	less.wait, more.wait = true, adds[1]
	if lagging || takes[0] && adds[1] || adds[0] && takes[1] {
		return []step{less, more}
	}
	return []step{all}
}

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
