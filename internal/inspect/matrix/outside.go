// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package matrix

import (
	"cmp"
	"context"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/sif-project/sif/api"
	"github.com/sif-project/sif/fabric"
)

// silentTimeout limits a request that should get no answer. Nothing shows that it was long enough
// but the answers of others.
const silentTimeout = time.Second

// Target is an address outside the fabric at which something answers on every port, over TCP and
// UDP.
type Target struct {
	// Name is a DNS name that stands for the address. A service whose contracts name it asks for it
	// first, and sends its request to what it is answered.
	Name    string     `json:"name,omitempty"`
	Address netip.Addr `json:"address"`
}

// ParseTarget reads a target as users write it: an address, or a name, "=" and an address.
func ParseTarget(text string) (Target, error) {
	name, address, named := strings.Cut(text, "=")
	if !named {
		name, address = "", text
	}
	a, err := netip.ParseAddr(address)
	if err != nil || a.Zone() != "" || named && name == "" {
		return Target{}, fmt.Errorf("%q is neither an address nor a name and an address, such as api.example.com=203.0.113.10", text)
	}
	return Target{Name: strings.ToLower(strings.TrimSuffix(name, ".")), Address: a.Unmap()}, nil
}

func (t Target) String() string { return cmp.Or(t.Name, t.Address.String()) }

// OutsideProbe is one question: may From open Protocol and Port towards a target?
type OutsideProbe struct {
	From     Endpoint        `json:"from"`
	To       Target          `json:"to"`
	Protocol fabric.Protocol `json:"protocol"`
	Port     uint16          `json:"port"`
	Contract *fabric.Ref     `json:"contract,omitempty"` // that declares it; nil: not declared
	ByName   bool            `json:"byName,omitempty"`   // the contract names the target, not its address
}

// Declared reports whether the graph allows the flow.
func (p OutsideProbe) Declared() bool { return p.Contract != nil }

// OutsideOutcome is the result of a probe of the outside.
type OutsideOutcome struct {
	OutsideProbe
	Answered bool   `json:"answered"`
	Untried  bool   `json:"untried,omitempty"` // it would begin inside a virtual machine
	Agree    bool   `json:"agree"`
	Why      string `json:"why,omitempty"` // they do not
	Attempts int    `json:"attempts"`
}

// PlanOutside returns the probes of every endpoint, port and protocol towards the targets, in a
// fixed order. known is what the caller knows of reserved addresses.
func PlanOutside(status api.Status, graph *fabric.Graph, known fabric.Outside, targets []Target, o Options) []OutsideProbe {
	o.fill()
	docs := documents(graph)
	var probes []OutsideProbe
	for _, from := range Endpoints(status) {
		if o.Domain != "" && from.Service.Domain != o.Domain {
			continue
		}
		grants := fabric.EgressGrants(fabric.Identity{Service: from.Service, Roles: from.Roles}, docs[from.Service])
		for _, to := range targets {
			if !slices.Contains(o.IPs, version(to.Address)) {
				continue
			}
			for _, protocol := range o.Protocols {
				for _, port := range ports(graph) {
					p := OutsideProbe{From: from, To: to, Protocol: protocol, Port: port}
					p.Contract, p.ByName = declaredOutside(grants, known, to, protocol, port)
					probes = append(probes, p)
				}
			}
		}
	}
	return probes
}

func version(a netip.Addr) int {
	if a.Is6() {
		return 6
	}
	return 4
}

// declaredOutside returns the contract that allows a flow to the target, and whether it names the
// target only.
func declaredOutside(grants []fabric.EgressGrant, known fabric.Outside, to Target, protocol fabric.Protocol, port uint16) (contract *fabric.Ref, byName bool) {
	single := netip.PrefixFrom(to.Address, to.Address.BitLen())
	for _, g := range grants {
		_, reserved := known.ReservedBy(g.External, single)
		if reserved || !slices.ContainsFunc(g.Rules, func(r fabric.Rule) bool { return r.Matches(protocol, port) }) {
			continue
		}
		if slices.ContainsFunc(g.External.Prefixes, func(p netip.Prefix) bool { return p.Contains(to.Address) }) {
			return &g.Contract, false
		}
		if contract == nil && to.Name != "" && slices.ContainsFunc(g.External.Names, func(n string) bool { return fabric.MatchName(n, to.Name) }) {
			contract, byName = &g.Contract, true
		}
	}
	return contract, byName
}

// RunOutside makes endpoints send requests to the targets. A request that is declared must be
// answered; one that is not must fail. That it failed proves something only if the target answers,
// so at least one declared request to each target over each protocol must have been answered;
// otherwise the probe counts as unproven.
func RunOutside(ctx context.Context, p Prober, probes []OutsideProbe, report *Report, progress func(done, all int)) error {
	r := &run{prober: p}
	outcomes := make([]OutsideOutcome, len(probes))
	var todo, silent []int
	for i, probe := range probes {
		outcomes[i].OutsideProbe = probe
		if probe.Declared() {
			todo = append(todo, i)
		} else {
			silent = append(silent, i)
		}
	}
	type place struct {
		address  netip.Addr
		protocol fabric.Protocol
	}
	answers := map[place]bool{}
	done := 0
	ask := func(some []int, attempt int) (again []int, err error) {
		for part := range slices.Chunk(some, batch) {
			tasks := make([]api.Task, len(part))
			for k, i := range part {
				tasks[k] = outcomes[i].task()
			}
			results, err := r.inBatches(ctx, tasks)
			if err != nil {
				return nil, fmt.Errorf("send requests to the outside: %w", err)
			}
			for k, i := range part {
				o := &outcomes[i]
				o.Attempts = attempt
				o.judge(results[k])
				if o.Declared() && o.Answered {
					answers[place{o.To.Address, o.Protocol}] = true
				}
				if o.Declared() && !o.Agree && attempt < attempts {
					again = append(again, i)
					continue
				}
				done++
			}
			progress(done, len(probes))
		}
		return again, nil
	}
	// Declared ones first: names must be resolved before others could use what they stand for.
	for attempt := 1; len(todo) > 0; attempt++ {
		var err error
		if todo, err = ask(todo, attempt); err != nil {
			return err
		}
	}
	if _, err := ask(silent, 1); err != nil {
		return err
	}
	pairs := map[[2]string]bool{}
	for _, o := range outcomes {
		pairs[[2]string{o.From.ID, o.To.Address.String()}] = true
		switch {
		case o.Untried:
			report.Untried++
		case o.Agree && o.Declared():
			report.Requests++
		case o.Agree && !answers[place{o.To.Address, o.Protocol}]:
			report.Unanswered++
		}
	}
	report.Pairs += len(pairs)
	report.Outside = outcomes
	report.count()
	return nil
}

func (p OutsideProbe) task() api.Task {
	t := api.Task{
		Node: p.From.Node, Kind: api.TaskRequest, Endpoint: p.From.ID, Protocol: p.Protocol, Nonce: rand.Uint64(),
		Peer: netip.AddrPortFrom(p.To.Address, p.Port), Timeout: silentTimeout,
	}
	if p.Declared() {
		t.Timeout = requestTimeout
	}
	if p.ByName {
		t.Name = p.To.Name
	}
	return t
}

// judge decides whether graph and network agree about a probe.
func (o *OutsideOutcome) judge(result api.TaskResult) {
	o.Answered, o.Agree, o.Why = result.Error == "" && result.Done, false, ""
	o.Untried = result.Guest
	switch {
	case o.Untried:
		o.Agree = true
	case o.Answered == o.Declared():
		o.Agree = true
	case o.Answered:
		o.Why = "not declared, but it was answered"
	default:
		o.Why = "declared, but it failed: " + result.Reason + result.Error
	}
}
