// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package command

import (
	"testing"

	"github.com/hashicorp/cli"
	"github.com/shoenig/test/must"

	"github.com/sif-project/sif/api"
	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/internal/inspect/verify"
)

func TestParsePort(t *testing.T) {
	for _, tc := range []struct {
		in       string
		protocol fabric.Protocol
		port     uint16
	}{{"5432", fabric.TCP, 5432}, {"53/udp", fabric.UDP, 53}, {"0/icmp", fabric.ICMP, 0}, {"128/icmpv6", fabric.ICMPv6, 128}, {"7000/sctp", fabric.SCTP, 7000}, {"tcp/443", fabric.TCP, 443}, {"icmp/8", fabric.ICMP, 8}} {
		protocol, port, err := parsePort(tc.in)
		must.NoError(t, err)
		must.Eq(t, tc.protocol, protocol)
		must.Eq(t, tc.port, port)
	}
	for _, bad := range []string{"", "0", "65536", "http", "80/http", "256/icmp", "-1/tcp", "http/80", "tcp/0", "tcp/udp"} {
		_, _, err := parsePort(bad)
		must.Error(t, err, must.Sprint(bad))
	}
}

func TestExplainViewShowsDifferencesFirst(t *testing.T) {
	web := api.Party{Service: fabric.Ref{Domain: "shop", Name: "web"}, Endpoint: "web-1", Node: fabric.NodeID{Zone: "z1", Name: "w1"}}
	db := api.Party{Service: fabric.Ref{Domain: "shop", Name: "db"}, Endpoint: "db-1", Node: fabric.NodeID{Zone: "z1", Name: "w2"}}
	sql := fabric.Ref{Domain: "shop", Name: "sql"}
	answer := api.Explanation{Protocol: fabric.TCP, Port: 5432, Allowed: true, Flows: []api.ExplainedFlow{{
		From: web, To: db, Differs: []string{"declared, but the ebpf of z1/w2 drops it: no rule"},
		Declared: api.Declared{Allowed: true, Contract: sql, Reasons: []api.Reason{{Contract: sql, Pos: fabric.Position{File: "a.hcl", Line: 3, Column: 1}, Why: "allows it"}}},
		Layers:   []api.ExplainedLayer{{Node: "z1/w1", Layer: "ebpf", Place: "sender", Allowed: true, Why: "contract shop/sql"}, {Node: "z1/w2", Layer: "ebpf", Place: "receiver", Why: "no rule"}},
		Withheld: `it waits for its start: task "db"`,
	}}}
	must.Eq(t, `DECLARED AND ENFORCED DIFFER: shop/web (endpoint web-1 on z1/w1) -> shop/db (endpoint db-1 on z1/w2): declared, but the ebpf of z1/w2 drops it: no rule

shop/web (endpoint web-1 on z1/w1) -> shop/db (endpoint db-1 on z1/w2) tcp/5432: allowed
  contract shop/sql (a.hcl:3:1): allows it
  z1/w1 ebpf at the sender: passes: contract shop/sql
  z1/w2 ebpf at the receiver: drops: no rule
  DNS does not answer with the destination: it waits for its start: task "db"`, explainView(answer))
}

func TestVerifyView(t *testing.T) {
	must.Eq(t, "Revision 4: all 2 nodes enforce what they must and nothing else: 9 entries.", verifyView(verify.Report{Sequence: 4, Nodes: 2, Entries: 9}))
	must.Eq(t, "z1/w1 ebpf: missing address 100.64.0.2: must be \"shop/web\" by zone\nRevision 4: 1 difference among 9 entries of 2 nodes.",
		verifyView(verify.Report{Sequence: 4, Nodes: 2, Entries: 9, Differences: []verify.Difference{
			{Node: "z1/w1", Layer: "ebpf", Kind: verify.Missing, Entry: "address 100.64.0.2", Expected: "\"shop/web\" by zone"}}}))
}

// runOn runs a command against a controller of healthyFabric, whose nodes cannot read back their
// data paths.
func runOn(t *testing.T, command string, args ...string) (out string, code int) {
	status, graph := healthyFabric()
	status.Pointer.Root = fabric.Compile(graph).Root
	ui := cli.NewMockUi()
	code = run(ui, command, append(controllerOf(t, status, graph, nil), args...)...)
	return ui.OutputWriter.String() + ui.ErrorWriter.String(), code
}

func TestExplainExitCodes(t *testing.T) {
	withoutVault(t)
	for _, tc := range []struct {
		args []string
		code int
		want string
	}{
		{[]string{"shop/web", "shop/db", "5432"}, 2, "what aws1/w1 enforces is not known: no data path here"},
		{[]string{"192.0.2.1", "shop/web", "5432"}, 3, "no endpoint or external has address 192.0.2.1"},
		{[]string{"-json", "192.0.2.1", "shop/web", "5432"}, 3, `"allowed": false`},
		{[]string{"shop/web", "192.0.2.1", "5432"}, 2, "no endpoint has address 192.0.2.1, and no external that a contract of shop/web names"},
		{[]string{"shop/web", "api.example.com", "tcp/443"}, 2, "refused: no contract of shop/web names api.example.com"},
		{[]string{"shop/web", "node", "8500"}, 2, "refused: no contract lets shop/web reach its node"},
		{[]string{"shop/web", "shop/nobody", "5432"}, 1, "no service or external shop/nobody"},
		{[]string{"shop/web", "shop/db", "sql"}, 1, `port "sql" of tcp is not a number from 1 to 65535`},
		{[]string{"shop/web", "shop/db"}, 1, "takes <src>, <dst> and <port>"},
	} {
		out, code := runOn(t, "explain", tc.args...)
		must.Eq(t, tc.code, code, must.Sprint(out))
		must.StrContains(t, out, tc.want)
	}
}

func TestVerifyExitCodes(t *testing.T) {
	withoutVault(t)
	out, code := runOn(t, "verify")
	must.Eq(t, 2, code)
	must.StrContains(t, out, "aws1/w2 ebpf: broken data path: no data path here")
	out, code = runOn(t, "verify", "-json")
	must.Eq(t, 2, code)
	must.StrContains(t, out, `"kind": "broken"`)
	_, code = runOn(t, "verify", "now")
	must.Eq(t, 1, code)
}
