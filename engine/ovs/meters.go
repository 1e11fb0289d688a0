// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package ovs

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"

	of "github.com/sif-project/sif/engine/openflow"
)

// Rate is how many connections may open: in a second, and at once after a pause. The zero value is
// no limit.
type Rate struct{ PerSecond, Burst uint32 }

// Rates limit how fast connections open. Packets of connections that exist are not counted, nor
// those that the policy drops.
type Rates struct {
	Endpoint Rate // of each endpoint that is Limited
	Zone     Rate // of the endpoints of each zone together
}

// Gate says that what endpoints of a group open counts for a zone.
type Gate struct {
	Group uint16 // 0: endpoints without a group
	Zone  uint16 // the caller's number, from 1 on
}

// meterage says which meters packets are shown. Endpoints have no meters of their own, but one of
// those that the switch offers, by their number: two of them may share one.
type meterage struct {
	most uint32 // that the switch offers; 0: it has none
	Rates
}

// forZones is the number of meters for zones, which are the first ones.
func (m meterage) forZones() uint32 { return max(m.most/16, 1) }

// lacking reports whether there are limits, and no meter for zones and one for endpoints.
func (m meterage) lacking() bool { return m.Rates != Rates{} && m.most < 2 }

// ofEndpoint returns the meter of an endpoint, or 0.
func (m meterage) ofEndpoint(e *Endpoint) uint32 {
	if !e.Limited || m.Endpoint == (Rate{}) || m.lacking() {
		return 0
	}
	return 1 + m.forZones() + uint32(e.ID%uint64(m.most-m.forZones()))
}

// ofGate returns the meter of a gate, or 0.
func (m meterage) ofGate(g *Gate) uint32 {
	if m.Zone == (Rate{}) || m.lacking() {
		return 0
	}
	return 1 + uint32(g.Zone-1)%m.forZones()
}

// meterage says which meters the current state has.
func (w *wanted) meterage() meterage { return meterage{w.most, w.state.Rates} }

// offer says how many meters the switch has.
func (w *wanted) offer(most uint32) {
	if w.most != most {
		w.most = most
		w.recount()
	}
}

// recount finds out which meters the endpoints use.
func (w *wanted) recount() {
	w.used = map[uint32]int{}
	w.count(w.state.Endpoints, 1)
}

// count notes that the meters of some endpoints are used n times more.
func (w *wanted) count(endpoints []Endpoint, n int) {
	m := w.meterage()
	for i := range endpoints {
		id := m.ofEndpoint(&endpoints[i])
		if id == 0 {
			continue
		}
		if w.used[id] += n; w.used[id] == 0 {
			delete(w.used, id)
		}
	}
}

// meters returns the meters of the current state.
func (w *wanted) meters() map[uint32]of.MeterConfig {
	list := make(map[uint32]of.MeterConfig, len(w.used))
	for id := range w.used {
		putMeter(list, id, w.state.Rates.Endpoint)
	}
	for i := range w.state.Gates {
		putMeter(list, w.meterage().ofGate(&w.state.Gates[i]), w.state.Rates.Zone)
	}
	return list
}

// metersOf returns the meters of the current state that a change may alter.
func (w *wanted) metersOf(c change) map[uint32]of.MeterConfig {
	list, m := map[uint32]of.MeterConfig{}, w.meterage()
	for _, endpoints := range [][]Endpoint{c.before.Endpoints, c.after.Endpoints} {
		for i := range endpoints {
			if id := m.ofEndpoint(&endpoints[i]); w.used[id] > 0 {
				putMeter(list, id, m.Endpoint)
			}
		}
	}
	if len(c.before.Gates)+len(c.after.Gates) > 0 {
		for i := range w.state.Gates {
			putMeter(list, m.ofGate(&w.state.Gates[i]), m.Zone)
		}
	}
	return list
}

func putMeter(meters map[uint32]of.MeterConfig, id uint32, r Rate) {
	if id != 0 {
		meters[id] = of.MeterConfig{ID: id, PerSecond: r.PerSecond, Burst: r.Burst}
	}
}

// MeterDiff says how the meters of a switch differ from those that are wanted.
type MeterDiff struct {
	Added   []of.MeterConfig // missing in the switch
	Removed []of.MeterConfig // in the switch, not wanted
	Changed []MeterChange
}

// MeterChange is a meter that is in the switch, but not as wanted.
type MeterChange struct{ Have, Want of.MeterConfig }

// Empty says that the switch has the wanted meters and no others.
func (d MeterDiff) Empty() bool { return len(d.Added)+len(d.Removed)+len(d.Changed) == 0 }

// compareMeters lists how have differs from want. It uses want up.
func compareMeters(have []of.MeterConfig, want map[uint32]of.MeterConfig) (d MeterDiff) {
	for _, m := range have {
		wanted, ok := want[m.ID]
		switch {
		case !ok:
			d.Removed = append(d.Removed, m)
		case wanted != m:
			d.Changed = append(d.Changed, MeterChange{m, wanted})
		}
		delete(want, m.ID)
	}
	for _, m := range want {
		d.Added = append(d.Added, m)
	}
	return d
}

// before returns what must be done before the flows that use the meters are written, after what may
// be done only then.
func (d MeterDiff) before() (mods []of.MeterMod) {
	for _, m := range d.Added {
		mods = append(mods, of.AddMeter(m))
	}
	for _, c := range d.Changed {
		mods = append(mods, of.ChangeMeter(c.Want))
	}
	return mods
}

func (d MeterDiff) after() (mods []of.MeterMod) {
	for _, m := range d.Removed {
		mods = append(mods, of.DeleteMeter(m.ID))
	}
	return mods
}

// writeMeters makes changes of meters. Those that the switch refuses are no error, because they
// must not keep the policy from being enforced: the flows that need them are left out of d, and
// named in left.
func (p *Pipeline) writeMeters(ctx context.Context, mods []of.MeterMod, d *Diff) (left []LeftOut, err error) {
	if len(mods) == 0 {
		return nil, nil
	}
	conn, err := p.connection()
	if err != nil {
		return nil, err
	}
	refused, err := conn.SetMeters(ctx, mods...)
	if err != nil || len(refused) == 0 {
		return nil, err
	}
	for id, err := range refused {
		left = append(left, LeftOut{Err: fmt.Errorf("limit of new connections: meter %d: %w", id, err)})
	}
	uses := func(in of.Instructions) bool { return refused[meterOf(in)] != nil }
	d.Added = slices.DeleteFunc(d.Added, func(f of.Flow) bool { return uses(f.Instructions) })
	d.Changed = slices.DeleteFunc(d.Changed, func(c Change) bool { return uses(c.Want.Instructions) })
	return left, nil
}

// meterOf returns the meter of a flow, or 0.
func meterOf(in of.Instructions) uint32 {
	actions, _, err := in.Decode()
	if err != nil || len(actions) == 0 {
		return 0
	}
	m, _ := actions[0].(of.Meter)
	return m.ID
}

// errNoMeters is why a switch does not limit how fast connections open.
var errNoMeters = errors.New("limit of new connections: the switch's datapath offers no meters")

// meters reads back what the switch offers, and what it has.
func (p *Pipeline) meters(ctx context.Context) (most uint32, have []of.MeterConfig, err error) {
	conn, err := p.connection()
	if err != nil {
		return 0, nil, err
	}
	if most, err = conn.MostMeters(ctx); err == nil {
		have, err = conn.Meters(ctx)
	}
	return most, have, err
}

// floods counts the packets that meters dropped. A meter that is removed takes its counter with it.
type floods struct {
	mu    sync.Mutex
	total uint64
	last  map[uint32]uint64 // by meter
}

// note adds what meters have dropped since the last call, and returns the sum.
func (f *floods) note(drops map[uint32]uint64) uint64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	for id, n := range drops {
		if before := f.last[id]; n >= before {
			f.total += n - before
		} else {
			f.total += n // the switch has restarted
		}
	}
	f.last = drops
	return f.total
}
