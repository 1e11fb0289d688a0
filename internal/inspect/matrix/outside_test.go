// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package matrix

import (
	"context"
	"net/netip"
	"slices"
	"testing"

	"github.com/shoenig/test/must"

	"github.com/sif-project/sif/api"
	"github.com/sif-project/sif/fabric"
)

var (
	byPrefix = Target{Address: netip.MustParseAddr("203.0.113.10")}
	byName   = Target{Name: "api.example.com", Address: netip.MustParseAddr("198.51.100.10")}
	metadata = Target{Address: netip.MustParseAddr("169.254.169.254")}
)

// outsideFixture lets shop/web call a prefix and a name.
func outsideFixture() (api.Status, *fabric.Graph) {
	status, graph := fixture()
	shop := graph.Domains["shop"]
	shop.Externals = []fabric.External{
		{Name: "partner", Prefixes: []netip.Prefix{netip.MustParsePrefix("203.0.113.0/24"), netip.MustParsePrefix("169.254.0.0/16")}},
		{Name: "api", Names: []string{"api.example.com"}},
	}
	for _, name := range []string{"partner", "api"} {
		shop.Contracts = append(shop.Contracts, fabric.Contract{
			Name: "to-" + name, Originators: []fabric.Ref{ref("shop/web")}, Responders: []fabric.Ref{ref("shop/" + name)},
			Rules: []fabric.Rule{{Protocol: fabric.TCP, Ports: []fabric.PortRange{{From: 443, To: 443}}}},
		})
	}
	web := &status.Nodes[0].Endpoints[0]
	web.Roles.Originate = append(web.Roles.Originate, ref("shop/to-partner"), ref("shop/to-api"))
	return status, graph
}

func TestTargets(t *testing.T) {
	for text, want := range map[string]Target{
		"203.0.113.10":                   byPrefix,
		"API.example.com.=198.51.100.10": byName,
		"2001:db8::1":                    {Address: netip.MustParseAddr("2001:db8::1")},
	} {
		got, err := ParseTarget(text)
		must.NoError(t, err)
		must.Eq(t, want, got)
	}
	for _, text := range []string{"", "api.example.com", "=203.0.113.10", "203.0.113.10:80", "fe80::1%eth0"} {
		_, err := ParseTarget(text)
		must.ErrorContains(t, err, "neither an address")
	}
}

func TestOutside(t *testing.T) {
	status, graph := outsideFixture()
	targets := []Target{byPrefix, byName, metadata}
	options := Options{IPs: []int{4}}
	probes := PlanOutside(status, graph, fabric.Outside{}, targets, options)
	must.Len(t, 4*3*6*2, probes) // endpoints, targets, ports, protocols
	var declared []string
	for _, p := range probes {
		if p.Declared() {
			declared = append(declared, p.From.ID+" "+p.To.String()+" "+p.Contract.String())
		}
	}
	must.Eq(t, []string{"e-web 203.0.113.10 shop/to-partner", "e-web api.example.com shop/to-api"}, declared)

	answers := func(leak, hole bool) *network {
		return &network{status: status, request: func(task api.Task) api.TaskResult {
			to, https := task.Peer.Addr(), task.Peer.Port() == 443 && task.Protocol == fabric.TCP
			switch {
			case leak && to == metadata.Address && task.Endpoint == "e-lone":
				return api.TaskResult{Done: true}
			case task.Endpoint == "e-web" && https && to == byPrefix.Address:
				return api.TaskResult{Done: true}
			case task.Endpoint == "e-web" && https && to == byName.Address && task.Name == byName.Name && !hole:
				return api.TaskResult{Done: true}
			}
			return api.TaskResult{Error: "connection refused"}
		}}
	}
	run := func(n *network) Report {
		t.Helper()
		report := Report{Agreement: 100}
		must.NoError(t, RunOutside(context.Background(), n, probes, &report, func(done, all int) { must.LessEq(t, all, done) }))
		return report
	}

	report := run(answers(false, false))
	must.Eq(t, 100.0, report.Agreement)
	must.Eq(t, len(probes), report.Probes)
	must.Eq(t, 2, report.Requests)
	must.Eq(t, 12, report.Pairs)
	// Nobody was answered over UDP, or by the metadata server.
	must.Eq(t, 4*3*6+4*6, report.Unanswered)

	report = run(answers(true, false))
	_, bad := report.Disagreements()
	must.Len(t, 6*2, bad)
	must.Eq(t, "not declared, but it was answered", bad[0].Why)

	report = run(answers(false, true))
	_, bad = report.Disagreements()
	must.Len(t, 1, bad)
	must.Eq(t, "declared, but it failed: connection refused", bad[0].Why)
	must.Eq(t, attempts, bad[0].Attempts)

	// A binding that lists exactly the address opens it.
	graph.Bindings = []fabric.Binding{{Domain: "shop", Outside: []fabric.OutsideGrants{{Prefixes: []netip.Prefix{
		netip.MustParsePrefix("203.0.113.0/24"), netip.MustParsePrefix("169.254.0.0/16"), netip.MustParsePrefix("169.254.169.254/32"),
	}}}}}
	probes = PlanOutside(status, graph, fabric.Outside{}, targets, options)
	must.True(t, slices.ContainsFunc(probes, func(p OutsideProbe) bool { return p.Declared() && p.To == metadata }))
}
