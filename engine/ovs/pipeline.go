// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package ovs

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"sync/atomic"

	of "github.com/sif-project/sif/engine/openflow"
)

// Pipeline writes the flows of one bridge. The switch enforces them also when this process has
// stopped.
//
// Its methods may be called at the same time. Changes are made one after the other, each with its
// wait for the datapath: a later change must not widen what an earlier one has not yet taken away.
type Pipeline struct {
	revalidated func(context.Context) error
	conn        atomic.Pointer[of.Conn]
	passAll     atomic.Bool
	floods      floods

	mu     sync.Mutex // held during a change
	wanted *wanted    // by the last Set or Reconcile
	// known says that the tables contain the flows of wanted. It is false on a new connection and
	// after a failed write; the next change then reads the tables back.
	known bool
	// lagging says that the datapath may still decide by earlier tables because a wait for it
	// failed.
	lagging bool
}

// NewPipeline returns a pipeline without a connection. zone is the connection tracking zone, which
// no other bridge of the same switch may use. revalidated returns when the switch has compared the
// datapath with its tables once more; see Switch.Revalidated.
func NewPipeline(zone uint16, revalidated func(context.Context) error) *Pipeline {
	return &Pipeline{revalidated: revalidated, wanted: newWanted(zone)}
}

// ErrNotConnected is returned while the pipeline has no connection to the switch.
var ErrNotConnected = errors.New("no connection to the switch")

// UseConn makes conn the pipeline's connection: the first one, or the successor of one that ended.
// It changes nothing in the switch. The next Set reads back what an earlier process or connection
// left there.
func (p *Pipeline) UseConn(conn *of.Conn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.conn.Store(conn)
	p.known = false
}

// Set makes the switch enforce state and writes only what differs from the previous state, as one
// OpenFlow bundle. When it returns without an error, no packet passes by what state no longer
// allows, connections included, and what it newly allows passes. The one exception is a Set that
// only adds endpoints or ports: the switch may drop packets to and from them for some more
// milliseconds if it dropped such packets before.
//
// Until Set returns, each packet is treated as the previous state or the new one says, or is
// dropped. If the difference is such that a mix of old and new decisions could let another packet
// pass, Set writes two bundles: what takes away, and, when the datapath follows, what adds.
//
// What cannot be in a switch is left out and named by a *LeftOutError; everything else is applied.
// So are limits of new connections if the switch has no meters for them.
// After any other error the switch may have either state, or only less than before; the next Set or
// Reconcile reads it back.
//
// The pipeline keeps the lists of state, so the caller must not modify them afterwards. Lists in
// order of numbers are compared fastest.
func (p *Pipeline) Set(ctx context.Context, state State) error {
	if _, err := p.set(ctx, state, false); err != nil {
		return fmt.Errorf("program the switch: %w", err)
	}
	return nil
}

// Reconcile is Set with the difference between state and what the switch really contains, which it
// returns: flows that were missing, altered or foreign. Flows that were right keep their counters.
func (p *Pipeline) Reconcile(ctx context.Context, state State) (Diff, error) {
	diff, err := p.set(ctx, state, true)
	if err != nil {
		return diff, fmt.Errorf("repair the switch: %w", err)
	}
	return diff, nil
}

func (p *Pipeline) set(ctx context.Context, state State, readBack bool) (Diff, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	change, left := p.wanted.change(state)
	var diff Diff
	if p.known && !readBack && state.Rates == p.wanted.state.Rates {
		before, metersBefore := p.wanted.flowsBefore(change), p.wanted.metersOf(change)
		p.wanted.apply(change)
		diff = compareOwn(before, p.wanted.flowsAfter(change))
		diff.Meters = compareMeters(slices.Collect(maps.Values(metersBefore)), p.wanted.metersOf(change))
	} else {
		have, err := p.flows(ctx, of.Filter{Table: of.AllTables})
		if err != nil {
			return Diff{}, err
		}
		most, meters, err := p.meters(ctx)
		if err != nil {
			return Diff{}, err
		}
		p.wanted.apply(change)
		p.wanted.offer(most)
		want := p.wanted.flows()
		if p.passAll.Load() {
			put(want, passAllFlows())
		}
		diff = compare(have, want)
		diff.Meters = compareMeters(meters, p.wanted.meters())
	}
	if p.wanted.meterage().lacking() {
		left = append(left, LeftOut{Err: errNoMeters})
	}
	p.known = false
	refused, err := p.writeMeters(ctx, diff.Meters.before(), &diff)
	if err != nil {
		return diff, err
	}
	if err := p.write(ctx, diff); err != nil {
		return diff, err
	}
	// A switch removes the flows of a meter with it.
	if _, err := p.writeMeters(ctx, diff.Meters.after(), &diff); err != nil {
		return diff, err
	}
	p.known = true
	if left = append(left, refused...); len(left) > 0 {
		return diff, &LeftOutError{left}
	}
	return diff, nil
}

// SetPassAll switches the policy off or on again, for tests of the other layers: every packet to a
// known destination passes, from any source. The first Set of the next process switches the policy
// on again.
func (p *Pipeline) SetPassAll(ctx context.Context, on bool) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	diff := Diff{Added: passAllFlows()}
	if !on {
		diff = Diff{Removed: passAllFlows()}
	}
	p.passAll.Store(on)
	p.known = false
	if err := p.write(ctx, diff); err != nil {
		return fmt.Errorf("set pass-all to %t: %w", on, err)
	}
	return nil
}

// PassAll says whether the policy is switched off. A status must show it.
func (p *Pipeline) PassAll() bool { return p.passAll.Load() }

// write brings the tables and then the datapath from one side of a difference to the other.
func (p *Pipeline) write(ctx context.Context, d Diff) error {
	steps := d.steps(p.lagging)
	err := p.writeSteps(ctx, steps)
	takes := len(d.Removed)+len(d.Changed) > 0
	if refused := new(of.Error); takes && len(steps) == 1 && errors.As(err, &refused) {
		// The switch refused the bundle, for example because a table is full. That must not keep it
		// from removing what is no longer allowed.
		err = p.writeSteps(ctx, d.steps(true))
	}
	return err
}

func (p *Pipeline) writeSteps(ctx context.Context, steps []step) error {
	for _, s := range steps {
		p.lagging = p.lagging || s.wait
		if err := p.send(ctx, s.mods()); err != nil {
			return err
		}
		if !s.wait {
			continue
		}
		if err := p.awaitDatapath(ctx); err != nil {
			return err
		}
		p.lagging = false
	}
	return nil
}

func (p *Pipeline) send(ctx context.Context, mods []of.FlowMod) error {
	if len(mods) == 0 {
		return nil
	}
	conn, err := p.connection()
	switch {
	case err != nil:
		return err
	case len(mods) == 1:
		return conn.Apply(ctx, mods...) // a single change needs no bundle to be atomic
	}
	return conn.Bundle(ctx, mods...)
}

// connection returns the connection to the switch, or ErrNotConnected.
func (p *Pipeline) connection() (*of.Conn, error) {
	if conn := p.conn.Load(); conn != nil {
		return conn, nil
	}
	return nil, ErrNotConnected
}

// flows reads back the flows that a filter selects.
func (p *Pipeline) flows(ctx context.Context, filter of.Filter) ([]of.FlowStats, error) {
	conn, err := p.connection()
	if err != nil {
		return nil, err
	}
	return conn.Flows(ctx, filter)
}
