// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package matrix

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"time"

	"github.com/sif-project/sif/api"
	"github.com/sif-project/sif/fabric"
)

const (
	// attempts is the number of times that a lost or failed probe is repeated.
	attempts = 3
	// batch is the number of concurrent probes.
	batch = 500
	// untried is what became of a request from inside a virtual machine.
	untried = "not tried"
	// requestTimeout limits a request to a listener.
	requestTimeout = 3 * time.Second
)

// Prober asks nodes to run tasks. *api.Client implements it.
type Prober interface {
	Probe(ctx context.Context, tasks []api.Task) ([]api.TaskResult, error)
}

// Outcome is the result of a probe.
type Outcome struct {
	Probe
	Observed bool   `json:"observed"`
	Request  string `json:"request,omitempty"` // "completed", "not tried" or why not; empty: nobody listens, or not declared
	Agree    bool   `json:"agree"`
	Why      string `json:"why,omitempty"` // they do not
	Attempts int    `json:"attempts"`
}

// Report is the outcome of all probes.
type Report struct {
	Pairs     int       `json:"pairs"`
	Probes    int       `json:"probes"`
	Requests  int       `json:"requests"` // completed
	Agreed    int       `json:"agreed"`
	Agreement float64   `json:"agreement"` // percent
	Outcomes  []Outcome `json:"outcomes"`
	// Unproven is the number of probes that correctly stayed silent, but whose node has no declared
	// flow that could prove that its probes are sent.
	Unproven int `json:"unproven"`

	Outside []OutsideOutcome `json:"outside,omitempty"`
	// Unanswered is the number of probes of the outside that correctly failed, but whose target
	// answered nobody.
	Unanswered int `json:"unanswered,omitempty"`
	// Untried is the number of requests, and of probes of the outside, that were left out because
	// they begin inside virtual machines, where nodes can open no connection.
	Untried int `json:"untried,omitempty"`
}

// Disagreements returns the outcomes where graph and network differ.
func (r Report) Disagreements() (between []Outcome, outside []OutsideOutcome) {
	for _, o := range r.Outcomes {
		if !o.Agree {
			between = append(between, o)
		}
	}
	for _, o := range r.Outside {
		if !o.Agree {
			outside = append(outside, o)
		}
	}
	return between, outside
}

// Run sends the probes. Each observation lasts window, which must be longer than starting all
// observations of a batch takes. Run returns an error if the controller cannot be reached; a probe
// that a node cannot run is a disagreement.
//
// Silence proves something only if a packet would have been observed. Therefore every sending node
// sends a control as the last of a batch of probes that should stay silent: a declared probe, whose
// observation was started first. If the control is lost, the silent probes are repeated.
func Run(ctx context.Context, p Prober, probes []Probe, window time.Duration, progress func(done, all int)) (Report, error) {
	r := &run{prober: p, window: window, outcomes: make([]Outcome, len(probes)), controls: map[fabric.NodeID][]int{}}
	var todo, silent []int
	for i, probe := range probes {
		r.outcomes[i].Probe = probe
		if probe.Declared() {
			todo = append(todo, i)
			r.controls[probe.From.Node] = append(r.controls[probe.From.Node], i)
		} else {
			silent = append(silent, i)
		}
	}
	// Declared probes come first, because the results tell which of them can be controls.
	done := 0
	for _, todo := range [][]int{todo, silent} {
		for attempt := 1; attempt <= attempts && len(todo) > 0; attempt++ {
			var again []int
			for len(todo) > 0 {
				n := min(len(todo), batch)
				repeat, err := r.probe(ctx, todo[:n], attempt)
				if err != nil {
					return Report{}, err
				}
				todo, again = todo[n:], append(again, repeat...)
				done += n - len(repeat)
				progress(done, len(probes))
			}
			todo = again
		}
		done += len(todo)
	}
	if err := r.request(ctx); err != nil {
		return Report{}, err
	}
	return r.report(), nil
}

type run struct {
	prober   Prober
	window   time.Duration
	outcomes []Outcome
	controls map[fabric.NodeID][]int // declared probes by the sender's node
}

// probe sends some of the probes and returns those that must be repeated.
func (r *run) probe(ctx context.Context, some []int, attempt int) (again []int, err error) {
	controls := r.pickControls(some, attempt)
	order := make([]int, 0, len(some)+len(controls)) // of the observations
	at := map[fabric.NodeID]int{}                    // controls by node: position in order
	for node, i := range controls {
		at[node] = len(order)
		order = append(order, i)
	}
	first := len(order)
	order = append(order, some...)
	nonces := make([]uint64, len(order))
	tasks := make([]api.Task, 0, 2*len(order))
	for k, i := range order {
		nonces[k] = rand.Uint64()
		tasks = append(tasks, r.observation(i, nonces[k]))
	}
	for k := range order { // the controls last
		k = (k + first) % len(order)
		tasks = append(tasks, r.sending(order[k], nonces[k]))
	}
	results, err := r.prober.Probe(ctx, tasks)
	if err != nil {
		return nil, fmt.Errorf("send and observe probes: %w", err)
	}
	if len(results) != len(tasks) {
		return nil, fmt.Errorf("send and observe probes: %d results for %d tasks", len(results), len(tasks))
	}
	seen := func(k int) bool { return results[k].Error == "" && results[k].Done }
	for k := first; k < len(order); k++ {
		sent := results[len(order)+k-first]
		o := &r.outcomes[order[k]]
		o.Attempts = attempt
		r.judge(o, results[k], sent)
		if control, ok := at[o.From.Node]; o.Agree && !o.Declared() && ok && !seen(control) {
			o.Agree, o.Why = false, "no packet arrived, but neither did the control "+r.outcomes[order[control]].Probe.String()
		}
		if !o.Agree && !(o.Observed && !o.Declared()) {
			again = append(again, order[k])
		}
	}
	return again, nil
}

// pickControls returns a control for each node that sends a probe which should stay silent, if the
// node has one.
func (r *run) pickControls(some []int, attempt int) map[fabric.NodeID]int {
	picked := map[fabric.NodeID]int{}
	for _, i := range some {
		o := r.outcomes[i]
		list := r.controls[o.From.Node]
		if _, ok := picked[o.From.Node]; ok || o.Declared() || len(list) == 0 {
			continue
		}
		control := list[(attempt-1)%len(list)]
		for k := range list {
			if c := list[(attempt-1+k)%len(list)]; r.outcomes[c].Observed {
				control = c
				break
			}
		}
		picked[o.From.Node] = control
	}
	return picked
}

func (r *run) observation(i int, nonce uint64) api.Task {
	p := r.outcomes[i].Probe
	return api.Task{Node: p.To.Node, Kind: api.TaskObserve, Endpoint: p.To.ID, Peer: p.destination(), Protocol: p.Protocol, Nonce: nonce, Timeout: r.window}
}

func (r *run) sending(i int, nonce uint64) api.Task {
	p := r.outcomes[i].Probe
	return api.Task{Node: p.From.Node, Kind: api.TaskSend, Endpoint: p.From.ID, Peer: p.destination(), Protocol: p.Protocol, Nonce: nonce, Timeout: r.window}
}

// judge decides whether graph and network agree about a probe.
func (r *run) judge(o *Outcome, observed, sent api.TaskResult) {
	o.Observed, o.Agree, o.Why = observed.Error == "" && observed.Done, false, ""
	switch {
	case o.Observed && o.Declared() && observed.Source == o.source():
		o.Agree = true
	case o.Observed && o.Declared():
		o.Why = fmt.Sprintf("it arrived from %s, expected %s", observed.Source, o.source())
	case o.Observed:
		o.Why = "not declared, but it arrived"
	case sent.Error != "":
		o.Why = "it could not be sent: " + sent.Error
	case observed.Error != "":
		o.Why = "it could not be observed: " + observed.Error
	case !sent.Done:
		o.Why = "it was not sent: " + sent.Reason
	case o.Declared():
		o.Why = "declared, but it did not arrive"
	default:
		o.Agree = true
	}
}

// request sends a request to each listener of a declared probe that arrived.
func (r *run) request(ctx context.Context) error {
	type place struct {
		endpoint string
		at       netip.AddrPort
		protocol fabric.Protocol
	}
	placeOf := func(o Outcome) place { return place{o.To.ID, o.destination(), o.Protocol} }
	listening := map[place]bool{}
	var questions []api.Task
	var places []place
	for _, o := range r.outcomes {
		pl := placeOf(o)
		if _, asked := listening[pl]; !o.Declared() || !o.Observed || asked {
			continue
		}
		listening[pl] = false
		places = append(places, pl)
		questions = append(questions, api.Task{Node: o.To.Node, Kind: api.TaskListening, Endpoint: o.To.ID, Peer: pl.at, Protocol: o.Protocol, Timeout: requestTimeout})
	}
	answers, err := r.inBatches(ctx, questions)
	if err != nil {
		return fmt.Errorf("find listeners: %w", err)
	}
	for i, a := range answers {
		listening[places[i]] = a.Error == "" && a.Done
	}
	var requests []api.Task
	var of []int
	for i, o := range r.outcomes {
		if o.Declared() && o.Observed && listening[placeOf(o)] {
			of = append(of, i)
			requests = append(requests, api.Task{Node: o.From.Node, Kind: api.TaskRequest, Endpoint: o.From.ID, Peer: o.destination(), Protocol: o.Protocol, Nonce: rand.Uint64(), Timeout: requestTimeout})
		}
	}
	if answers, err = r.inBatches(ctx, requests); err != nil {
		return fmt.Errorf("send requests: %w", err)
	}
	for k, a := range answers {
		o := &r.outcomes[of[k]]
		switch {
		case a.Error == "" && a.Done:
			o.Request = "completed"
		case a.Guest:
			o.Request = untried
		case o.Protocol == fabric.UDP:
			// A service may ignore a packet that it does not understand.
			o.Request = "no answer"
		default:
			o.Request = a.Reason + a.Error
			o.Agree, o.Why = false, "declared, but a request failed: "+o.Request
		}
	}
	return nil
}

func (r *run) inBatches(ctx context.Context, tasks []api.Task) ([]api.TaskResult, error) {
	var all []api.TaskResult
	for len(tasks) > 0 {
		n := min(len(tasks), batch)
		results, err := r.prober.Probe(ctx, tasks[:n])
		if err != nil {
			return nil, err
		}
		if len(results) != n {
			return nil, fmt.Errorf("%d results for %d tasks", len(results), n)
		}
		all, tasks = append(all, results...), tasks[n:]
	}
	return all, nil
}

func (r *run) report() Report {
	report := Report{Outcomes: r.outcomes}
	pairs := map[[2]string]bool{}
	for _, o := range r.outcomes {
		pairs[[2]string{o.From.ID, o.To.ID}] = true
		switch o.Request {
		case "completed":
			report.Requests++
		case untried:
			report.Untried++
		}
		if !o.Declared() && o.Agree && len(r.controls[o.From.Node]) == 0 {
			report.Unproven++
		}
	}
	report.Pairs = len(pairs)
	report.count()
	return report
}

// count counts the probes, and those that agree with the graph.
func (r *Report) count() {
	r.Probes, r.Agreed, r.Agreement = len(r.Outcomes)+len(r.Outside), len(r.Outcomes)+len(r.Outside), 100
	between, outside := r.Disagreements()
	r.Agreed -= len(between) + len(outside)
	if r.Probes > 0 {
		r.Agreement = 100 * float64(r.Agreed) / float64(r.Probes)
	}
}
