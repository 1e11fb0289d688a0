// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package matrix

import (
	"context"
	"net/netip"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"github.com/sif-project/sif/api"
	"github.com/sif-project/sif/fabric"
)

// network stands in for nodes: what arrives is up to passes.
type network struct {
	status  api.Status
	passes  func(src, dst api.EndpointStatus, t api.Task) bool
	source  func(netip.Addr) netip.Addr
	listens func(t api.Task) bool
	request func(t api.Task) api.TaskResult
	batches [][]api.Task
}

func (n *network) endpoint(id string) (found api.EndpointStatus) {
	for _, node := range n.status.Nodes {
		for _, e := range node.Endpoints {
			if e.Endpoint == id {
				found = e
			}
		}
	}
	return found
}

func (n *network) Probe(_ context.Context, tasks []api.Task) ([]api.TaskResult, error) {
	n.batches = append(n.batches, tasks)
	results := make([]api.TaskResult, len(tasks))
	for i, t := range tasks {
		switch t.Kind {
		case api.TaskObserve:
			for _, s := range tasks {
				if s.Kind == api.TaskSend && s.Nonce == t.Nonce && n.passes(n.endpoint(s.Endpoint), n.endpoint(t.Endpoint), s) {
					src := n.endpoint(s.Endpoint)
					results[i].Done, results[i].Source = true, src.IPv4
					if t.Peer.Addr().Is6() {
						results[i].Source = src.IPv6
					}
					if n.source != nil {
						results[i].Source = n.source(results[i].Source)
					}
				}
			}
		case api.TaskSend:
			results[i].Done = true
		case api.TaskListening:
			results[i].Done = n.listens != nil && n.listens(t)
		case api.TaskRequest:
			results[i] = n.request(t)
		}
	}
	return results, nil
}

func ref(s string) fabric.Ref {
	r, err := fabric.ParseRef(s)
	if err != nil {
		panic(err)
	}
	return r
}

func fixture() (api.Status, *fabric.Graph) {
	graph := &fabric.Graph{Domains: map[string]*fabric.Domain{"shop": {
		Name:     "shop",
		Services: []fabric.Service{{Name: "web"}, {Name: "db"}},
		Contracts: []fabric.Contract{{
			Name: "sql", Originators: []fabric.Ref{ref("shop/web")}, Responders: []fabric.Ref{ref("shop/db")},
			Rules: []fabric.Rule{{Protocol: fabric.TCP, Ports: []fabric.PortRange{{From: 5432, To: 5433}, {From: 6000, To: 7000}}}},
		}},
	}, "other": {Name: "other", Services: []fabric.Service{{Name: "lone"}}}}}
	endpoint := func(id, service string, n byte, roles fabric.Roles) api.EndpointStatus {
		return api.EndpointStatus{Endpoint: id, Service: ref(service), Roles: roles, InForce: true,
			IPv4: netip.AddrFrom4([4]byte{100, 64, 0, n}), IPv6: netip.AddrFrom16([16]byte{0xfd, 0x5f, 15: n})}
	}
	return api.Status{Nodes: []api.NodeStatus{
		{Zone: "z1", Node: "w1", Endpoints: []api.EndpointStatus{
			endpoint("e-web", "shop/web", 2, fabric.Roles{Originate: []fabric.Ref{ref("shop/sql")}}),
			endpoint("e-bare", "shop/web", 3, fabric.Roles{}),
		}},
		{Zone: "z2", Node: "w2", Endpoints: []api.EndpointStatus{
			endpoint("e-db", "shop/db", 4, fabric.Roles{Respond: []fabric.Ref{ref("shop/sql")}}),
			endpoint("e-lone", "other/lone", 5, fabric.Roles{}),
		}},
	}}, graph
}

func allowed(src, dst api.EndpointStatus, t api.Task) bool {
	return src.Endpoint == "e-web" && dst.Endpoint == "e-db" && t.Protocol == fabric.TCP
}

func runOn(t *testing.T, n *network, o Options) Report {
	status, graph := fixture()
	n.status = status
	report, err := Run(context.Background(), n, Plan(status, graph, o), time.Second, func(done, all int) { must.LessEq(t, all, done) })
	must.NoError(t, err)
	return report
}

func disagreements(r Report) []Outcome {
	list, _ := r.Disagreements()
	return list
}

func TestPlan(t *testing.T) {
	status, graph := fixture()
	probes := Plan(status, graph, Options{})
	must.Len(t, 4*3*5*2*2, probes) // pairs, ports, protocols, versions
	declared := 0
	for _, p := range probes {
		if p.Declared() {
			declared++
			must.Eq(t, "e-web e-db", p.From.ID+" "+p.To.ID)
			must.Eq(t, ref("shop/sql"), *p.Contract)
		}
	}
	must.Eq(t, 5*2, declared)
	must.Len(t, 4*3*5, Plan(status, graph, Options{Protocols: []fabric.Protocol{fabric.TCP}, IPs: []int{4}}))
	must.Len(t, 6*5, Plan(status, graph, Options{Domain: "other", Protocols: []fabric.Protocol{fabric.UDP}, IPs: []int{6}}))
	must.SliceEmpty(t, Plan(status, &fabric.Graph{}, Options{}))
}

func TestAgreement(t *testing.T) {
	n := &network{passes: allowed, listens: func(t api.Task) bool { return t.Peer.Port() == 5432 },
		request: func(api.Task) api.TaskResult { return api.TaskResult{Done: true} }}
	report := runOn(t, n, Options{})
	must.Eq(t, 100.0, report.Agreement)
	must.Eq(t, 12, report.Pairs)
	must.Eq(t, 240, report.Probes)
	must.Eq(t, 2, report.Requests)
	must.Eq(t, 120, report.Unproven) // nothing on w2 may originate
	must.SliceEmpty(t, disagreements(report))
	for _, tasks := range n.batches {
		must.LessEq(t, api.MaxProbeTasks, len(tasks))
	}
	// In the batch of silent probes the control is observed first and sent last.
	silent := n.batches[1]
	must.Eq(t, silent[0].Nonce, silent[len(silent)-1].Nonce)
	must.Eq(t, "e-db", silent[0].Endpoint)
}

func TestDisagreements(t *testing.T) {
	t.Run("a leak", func(t *testing.T) {
		report := runOn(t, &network{passes: func(s, d api.EndpointStatus, t api.Task) bool {
			return allowed(s, d, t) || s.Endpoint == "e-bare" && d.Endpoint == "e-db" && t.Peer.Port() == 5432 && t.Protocol == fabric.UDP
		}}, Options{})
		must.Len(t, 2, disagreements(report))
		must.Eq(t, "not declared, but it arrived", disagreements(report)[0].Why)
		must.Eq(t, 1, disagreements(report)[0].Attempts)
	})
	t.Run("a hole", func(t *testing.T) {
		report := runOn(t, &network{passes: func(s, d api.EndpointStatus, t api.Task) bool {
			return allowed(s, d, t) && t.Peer.Addr().Is4()
		}}, Options{})
		must.Len(t, 5, disagreements(report))
		must.Eq(t, "declared, but it did not arrive", disagreements(report)[0].Why)
		must.Eq(t, attempts, disagreements(report)[0].Attempts)
	})
	t.Run("loss is repeated", func(t *testing.T) {
		lost := map[uint16]bool{}
		report := runOn(t, &network{passes: func(s, d api.EndpointStatus, t api.Task) bool {
			if allowed(s, d, t) && !lost[t.Peer.Port()] {
				lost[t.Peer.Port()] = true
				return false
			}
			return allowed(s, d, t)
		}}, Options{IPs: []int{4}})
		must.Eq(t, 100.0, report.Agreement)
	})
	t.Run("silence without proof", func(t *testing.T) {
		declared := true // until the silent ones are probed
		n := &network{passes: func(s, d api.EndpointStatus, t api.Task) bool { return declared && allowed(s, d, t) }}
		status, graph := fixture()
		n.status = status
		probes := Plan(status, graph, Options{IPs: []int{4}})
		report, err := Run(context.Background(), n, probes, time.Second, func(int, int) { declared = false })
		must.NoError(t, err)
		must.Len(t, 55, disagreements(report)) // all silent ones from w1
		must.StrContains(t, disagreements(report)[0].Why, "neither did the control")
	})
	t.Run("a foreign source", func(t *testing.T) {
		report := runOn(t, &network{passes: allowed, source: func(netip.Addr) netip.Addr { return netip.MustParseAddr("192.0.2.1") }}, Options{IPs: []int{4}})
		must.StrContains(t, disagreements(report)[0].Why, "it arrived from 192.0.2.1, expected 100.64.0.2")
	})
	t.Run("a request that fails", func(t *testing.T) {
		report := runOn(t, &network{passes: allowed, listens: func(api.Task) bool { return true },
			request: func(api.Task) api.TaskResult { return api.TaskResult{Reason: "reset"} }}, Options{IPs: []int{4}})
		must.Len(t, 5, disagreements(report))
		must.StrContains(t, disagreements(report)[0].Why, "a request failed: reset")
	})
}

// Nodes cannot open connections inside virtual machines: that is no disagreement, and is counted.
func TestRequestsOfVirtualMachines(t *testing.T) {
	guest := func(api.Task) api.TaskResult { return api.TaskResult{Guest: true, Error: "it is a virtual machine"} }
	report := runOn(t, &network{passes: allowed, listens: func(api.Task) bool { return true }, request: guest}, Options{IPs: []int{4}})
	must.SliceEmpty(t, disagreements(report))
	must.Eq(t, 100.0, report.Agreement)
	must.Zero(t, report.Requests)
	must.Eq(t, 5, report.Untried)

	status, graph := outsideFixture()
	probes := PlanOutside(status, graph, fabric.Outside{}, []Target{{Address: netip.MustParseAddr("203.0.113.10")}}, Options{IPs: []int{4}})
	outside := Report{Agreement: 100}
	must.NoError(t, RunOutside(context.Background(), &network{status: status, request: guest}, probes, &outside, func(int, int) {}))
	must.Eq(t, 100.0, outside.Agreement)
	must.Zero(t, outside.Requests)
	must.Eq(t, len(probes), outside.Untried)
}
