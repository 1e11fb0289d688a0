// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package chaos

import (
	"context"
	"fmt"
	"runtime"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sif-project/sif/e2e/chaos/schedule"
)

// recovery is how soon all must be well after the last fault, on a machine that is not busy
// otherwise.
const recovery = 30 * time.Second

// steepest bounds by what that grows: a run must end.
const steepest = 8

// piece is how much processor time a piece of work takes that measures the machine.
const piece = 10 * time.Millisecond

// measure notes, until ctx ends, how much longer than its processor time a piece of work takes.
func (r *run) measure(ctx context.Context) {
	runtime.LockOSThread() // its processor time is that of a thread, which ends with this
	for pause(ctx, time.Second) {
		began, used := time.Now(), processorTime()
		for processorTime()-used < piece {
		}
		r.mu.Lock()
		r.shares = append(r.shares, float64(time.Since(began))/float64(processorTime()-used))
		r.mu.Unlock()
	}
}

// processorTime returns how long this thread has run.
func processorTime() time.Duration {
	var t unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &t) // it never fails for this clock
	return time.Duration(t.Nano())
}

// scale is by what bounds on times grow: the mean of how much longer than its processor time a
// piece of work took during the run, because it shared the processors with others. What is not a
// bound on a time does not grow.
func (r *run) scale() float64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return max(1, mean(r.shares))
}

func mean(list []float64) float64 {
	sum := 0.0
	for _, v := range list {
		sum += v
	}
	return sum / float64(max(1, len(list)))
}

// judgeFlows adds a violation for each flow that broke, or stood still for longer than its faults
// explain.
func (r *run) judgeFlows(flows []*flow, events []event) {
	scale := r.scale()
	for _, f := range flows {
		if f.broken != nil {
			r.observer.violation("the connection from %s to %s broke at %s: %v", f.from, f.to, f.brokenAt.Format(clockFormat), f.broken)
		}
		gaps, sent := f.gaps()
		lost, longest, quiet := 0, time.Duration(0), 0
		for _, g := range gaps {
			lost += g.lost
			length := g.to.Sub(g.from)
			longest = max(longest, length)
			bound, why := r.bound(f, g, events, scale)
			if why == "" {
				quiet += g.lost
				why = "no fault concerned it"
			}
			if length > bound {
				r.observer.violation("from %s to %s nothing passed for %.2f s from %s on, %d datagrams; at most %.2f s are explained: %s",
					f.from, f.to, length.Seconds(), g.from.Format(clockFormat), g.lost, bound.Seconds(), why)
			}
		}
		r.say("from %s to %s: %d of %d datagrams lost (%d of them while no fault concerned the way), the longest gap %.2f s; %d bytes by the connection",
			f.from, f.to, lost, sent, quiet, longest.Seconds(), f.returned)
	}
}

// What is stated, on a machine with a core for each process (docs/performance.md, "When a process
// is restarted"; docs/operations.md): nothing is lost when an agent, an engine or a server ends; a
// link or a switch is there again within so long after its process is; where another processor can
// carry what one did, it does so within a second; and WireGuard in user space tries again every
// five seconds, and a little, when its packets were lost.
const (
	restartGap  = 450 * time.Millisecond
	failoverGap = time.Second
	retryGap    = 5500 * time.Millisecond
	// noise is what passes for no gap at all: the two processes of the test wait for a core, too.
	noise = 250 * time.Millisecond
)

// bound returns how long a gap of a flow may be by the faults that concern its way, and names them.
func (r *run) bound(f *flow, g gap, events []event, scale float64) (bound time.Duration, why string) {
	scaled := func(d time.Duration) time.Duration { return time.Duration(float64(d) * scale) }
	bound = scaled(noise)
	for _, e := range events {
		after := r.explains(f, e)
		if after == 0 {
			continue
		}
		// The gap begins while the fault lasts, or in what follows it.
		if g.to.Before(e.began) || g.from.After(e.end.Add(scaled(after))) {
			continue
		}
		bound += e.end.Sub(e.began) + scaled(after)
		why += fmt.Sprintf(" [%s]", e.Fault)
	}
	return bound, why
}

// explains returns for how long after a fault a flow may still stand still because of it; 0: it
// does not concern the flow.
func (r *run) explains(f *flow, e event) time.Duration {
	t := r.Lab.Topology
	across := t.Node(f.from.node).Zone != t.Node(f.to.node).Zone
	on := func(node string) bool {
		n := t.Node(node)
		return node == f.from.node || node == f.to.node || across && n != nil && n.HasSwitch()
	}
	switch e.Kind {
	case schedule.Cut, schedule.OneWay, schedule.Loss:
		if on(e.Node) && on(e.Peer) {
			return retryGap
		}
	case schedule.Kill, schedule.Stop, schedule.Restart:
		switch {
		case !on(e.Node):
		case e.Daemon == "link":
			return retryGap
		case e.Daemon == "ovs-vswitchd":
			return restartGap
		case e.Daemon == "engine":
			return failoverGap
		}
	}
	return 0
}
