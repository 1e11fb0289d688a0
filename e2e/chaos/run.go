// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

// Package chaos lets faults happen to a fabric that carries traffic while graphs are applied and
// rolled back, workloads come and go, and certificates are rotated; and looks at it from outside:
// what arrives, what does not, what is answered. The faults follow a schedule of package schedule.
//
// It knows the product by its API and by packets only. What must hold is at Result.
package chaos

import (
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	nomad "github.com/hashicorp/nomad/api"

	"github.com/sif-project/sif/api"
	"github.com/sif-project/sif/e2e/chaos/schedule"
	"github.com/sif-project/sif/e2e/lab"
	"github.com/sif-project/sif/fabric"
)

// Options configure a run.
type Options struct {
	Lab     *lab.Lab
	Seed    uint64
	Length  time.Duration
	Faults  []schedule.Fault // nil: those of the seed
	Out     io.Writer
	Picture string // file for a picture of a history that no order explains; may be empty
	// Early ends the run with the first violation.
	Early bool
}

// Result is what a run found. A fabric that is sound has no violations:
//
//  1. No packet arrives that neither the graph in force nor the one before allows (observer).
//  2. No allowed flow that exists stands still for longer than is stated, or breaks (judgeFlows).
//  3. What apply, rollback and reads answer is explained by some order of them, in which the
//     pointer's sequence grows by one with each change; pools and addresses have one owner.
//  4. Within 30 s after the last fault, `sif status` and `sif verify` say that all is well, all
//     daemons enforce the revision in force, and packets pass just as it says.
//  5. Nothing is left of the lab (the caller's to check, with Allocs).
type Result struct {
	Violations []string
	Allocs     []string // IDs of all allocations
}

type run struct {
	Options
	nomad       *nomad.Client
	controllers *controllers
	observer    *observer
	agents      []string
	near, far   *endpoint
	began       time.Time
	working     context.Context // until changes are made no more

	mu     sync.Mutex
	allocs map[string]bool
	shares []float64 // of measure
}

func (r *run) say(format string, args ...any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := time.Now()
	fmt.Fprintf(r.Out, "%s %7.3f  %s\n", now.Format(clockFormat), now.Sub(r.began).Seconds(), fmt.Sprintf(format, args...))
}

func (r *run) remember(alloc string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.allocs[alloc] = true
}

// join has the observer see what arrives at an endpoint, until ctx ends.
func (r *run) join(ctx context.Context, e *endpoint) error {
	r.observer.know(e)
	return capture(ctx, e, r.observer.seen)
}

// Prepared is a lab with the workloads and the disks that a run needs.
type Prepared struct {
	lab   *lab.Lab
	disks map[string]*disk
	first content
}

// Prepare applies the first graph and starts the workloads.
func Prepare(ctx context.Context, l *lab.Lab) (*Prepared, error) {
	p := &Prepared{lab: l, disks: map[string]*disk{}, first: content{mask: 1}}
	f, err := parts(l)
	if err != nil {
		return nil, err
	}
	for _, node := range f.Disks {
		if p.disks[node], err = newDisk(ctx, l, node); err != nil {
			return nil, fmt.Errorf("give %s a disk of its own: %w", node, err)
		}
	}
	client, err := l.Nomad(l.Secrets.NomadManagement)
	if err != nil {
		return nil, err
	}
	c, err := newControllers(l)
	if err != nil {
		return nil, err
	}
	if _, err := c.call(ctx, http.MethodPut, "/v1/graph", api.GraphRequest{Domains: map[string]*fabric.Domain{
		domainName: p.first.domain(), otherName: p.first.otherDomain(),
	}}, nil); err != nil {
		return nil, fmt.Errorf("apply the first graph: %w", err)
	}
	for service := range places {
		if _, _, err := client.Jobs().Register(job(service), (&nomad.WriteOptions{}).WithContext(ctx)); err != nil {
			return nil, fmt.Errorf("run the job of %s: %w", service, err)
		}
	}
	return p, nil
}

// Run lets the faults happen and returns what was found. The error is about the run, not about the
// fabric.
func Run(parent context.Context, p *Prepared, o Options) (result *Result, err error) {
	o.Lab = p.lab
	r := &run{Options: o, observer: newObserver(), agents: agentsOf(o.Lab), began: time.Now(), allocs: map[string]bool{}}
	if r.nomad, err = o.Lab.Nomad(o.Lab.Secrets.NomadManagement); err != nil {
		return nil, err
	}
	if r.controllers, err = newControllers(o.Lab); err != nil {
		return nil, err
	}
	breakable, err := parts(o.Lab)
	if err != nil {
		return nil, err
	}
	if r.Faults == nil {
		r.Faults = schedule.Generate(o.Seed, o.Length, breakable)
	}
	if len(r.Faults) == 0 {
		return nil, fmt.Errorf("no fault of seed %d ends within %s: let the run be longer", o.Seed, o.Length)
	}
	if err := breakable.Check(r.Faults); err != nil {
		return nil, err
	}
	fmt.Fprintf(r.Out, "seed %d, %d faults in %s:\n", o.Seed, len(r.Faults), o.Length)
	if err := schedule.Write(r.Out, r.Faults); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(parent)
	defer cancel()

	flows, probes, err := r.traffic(ctx)
	if err != nil {
		return nil, fmt.Errorf("begin the traffic: %w", err)
	}
	var graph api.GraphReply
	if _, err := r.controllers.call(ctx, http.MethodGet, "/v1/graph", nil, &graph); err != nil {
		return nil, err
	}
	first, err := contentOf(graph.Graph)
	if err != nil {
		return nil, err
	}
	before := r.observer.asks(first)
	before.began = time.Time{} // it was in force before the traffic
	r.observer.known(before, graph.Pointer.Sequence, false)
	w := &work{
		r: r, rand: rand.New(rand.NewPCG(o.Seed, 1)), register: &register{began: r.began}, last: first,
		kept: map[uint64]content{}, editions: first.edition,
	}
	f := &faults{lab: o.Lab, disks: p.disks, between: map[string][]string{}, away: map[string]bool{}}

	if err := r.settles(ctx, flows, probes, first); err != nil {
		r.observer.judge()
		r.observer.violation("before any fault: %v", err)
		return r.result(), parent.Err()
	}
	working, stop := context.WithCancel(ctx)
	defer stop()
	r.working = working
	var workers, watchers sync.WaitGroup
	workers.Go(func() { w.applies(working) })
	workers.Go(func() { w.others(working, first.other) })
	workers.Go(func() { w.guests(working) })
	for at := range r.controllers.addresses {
		workers.Go(func() { w.reads(working, at) })
	}
	watchers.Go(func() { w.watches(ctx) })
	watchers.Go(func() { r.measure(ctx) })
	watchers.Go(func() {
		f.tend(ctx, func(node, daemon string) {
			r.say("%s/%s had ended by itself, and is started again; its log ended with:\n%s", node, daemon, o.Lab.Tail(node, daemon))
		})
	})
	faulting, enough := context.WithCancel(ctx)
	watchers.Go(func() {
		for pause(ctx, time.Second) {
			if r.observer.judge(); r.Early && len(r.observer.found()) > 0 {
				enough()
			}
		}
	})
	r.say("the first fault comes in %s", r.Faults[0].At)
	if err := f.play(faulting, r.Faults, time.Now(), r.say); err != nil {
		r.observer.violation("a fault could not be made or ended: %v", err)
	}
	last := time.Now()
	ended := faulting.Err() != nil
	enough()
	r.say("the last fault has ended")
	stop()
	workers.Wait()
	if !ended && parent.Err() == nil {
		r.finally(ctx, flows, probes, last)
		r.judgeFlows(flows, f.events)
		if n, err := w.register.check(state{graph.Pointer.Sequence, first}, o.Picture); err != nil {
			r.observer.violation("%v", err)
		} else {
			r.say("an order of %d applies, rollbacks and reads explains their answers", n)
		}
	}
	cancel()
	watchers.Wait()
	r.observer.judge()
	r.say("%d applies, %d rollbacks, %d guests of which %d were revoked; %d changes failed; %d packets judged; a piece of work took %.1f times its processor time",
		w.made.applies, w.made.rollbacks, w.made.guests, w.made.revoked, w.made.failed, r.observer.judged, r.scale())
	return r.result(), parent.Err()
}

// result returns what was found. It says what led to it.
func (r *run) result() *Result {
	result := &Result{Violations: r.observer.found()}
	if len(result.Violations) > 0 {
		fmt.Fprintf(r.Out, "what was asked for, and confirmed:\n  %s\n", strings.Join(r.observer.history(), "\n  "))
	}
	for id := range r.allocs {
		result.Allocs = append(result.Allocs, id)
	}
	slices.Sort(result.Allocs)
	return result
}

// traffic waits for the workloads and opens flows and probes between them.
func (r *run) traffic(ctx context.Context) (flows []*flow, p *probes, err error) {
	found := map[string]*endpoint{}
	for _, service := range []string{originator, near, far} {
		if err := await(ctx, time.Minute, func(ctx context.Context) (err error) {
			found[service], err = r.find(ctx, service, "")
			return err
		}); err != nil {
			return nil, nil, err
		}
		if err := r.join(ctx, found[service]); err != nil {
			return nil, nil, err
		}
	}
	origin := found[originator]
	r.near, r.far = found[near], found[far]
	if p, err = openProbes(ctx, origin, r.near, r.far); err != nil {
		return nil, nil, err
	}
	for _, to := range []*endpoint{r.near, r.far} {
		f, err := openFlow(ctx, origin, to)
		if err != nil {
			return nil, nil, err
		}
		flows = append(flows, f)
	}
	return flows, p, nil
}

// settles waits until all is as a content says. The error says what is not.
func (r *run) settles(ctx context.Context, flows []*flow, p *probes, c content) error {
	return await(ctx, time.Minute, func(ctx context.Context) error { return r.settled(ctx, flows, p, c) })
}

// settled returns an error unless `sif status` and `sif verify` say that all is well, and packets
// pass as a content says.
func (r *run) settled(ctx context.Context, flows []*flow, p *probes, c content) error {
	for _, f := range flows {
		if err := f.passes(); err != nil {
			return err
		}
	}
	if err := p.agree(c); err != nil {
		return err
	}
	var s api.Status
	if _, err := r.controllers.call(ctx, http.MethodGet, "/v1/status", nil, &s); err != nil {
		return err
	}
	for _, n := range s.Nodes {
		if n.Sequence != s.Pointer.Sequence {
			return fmt.Errorf("%s enforces sequence %d of %d", n.ID(), n.Sequence, s.Pointer.Sequence)
		}
	}
	for _, command := range []string{"status", "verify"} {
		if out, err := r.Lab.SIF(ctx, command); err != nil {
			return fmt.Errorf("sif %s: %w\n%s", command, err, lastLines(out))
		}
	}
	return nil
}

// finally checks that all is well soon after the last fault.
func (r *run) finally(ctx context.Context, flows []*flow, p *probes, last time.Time) {
	var graph api.GraphReply
	limit := time.Duration(float64(recovery) * min(r.scale(), steepest))
	ctx, cancel := context.WithDeadline(ctx, last.Add(limit))
	defer cancel()
	said := ""
	err := await(ctx, limit, func(ctx context.Context) (err error) {
		defer func() {
			if err != nil && err.Error() != said {
				said = err.Error()
				r.say("not all is well: %.500s", said)
			}
		}()
		if _, err := r.controllers.call(ctx, http.MethodGet, "/v1/graph", nil, &graph); err != nil {
			return err
		}
		c, err := contentOf(graph.Graph)
		if err != nil {
			return err
		}
		return r.settled(ctx, flows, p, c)
	})
	if err != nil {
		r.observer.violation("%s after the last fault not all is well: %v", time.Since(last).Round(time.Second), err)
		return
	}
	r.say("all is well %.1f s after the last fault", time.Since(last).Seconds())
}

func lastLines(text string) string {
	const n = 1500
	return text[max(0, len(text)-n):]
}
