// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package controller

import (
	"crypto/tls"
	"net/http"
	"net/netip"
	"path/filepath"
	"slices"
	"testing"

	consulapi "github.com/hashicorp/consul/api"
	"github.com/shoenig/test/must"

	"github.com/sif-project/sif/api"
	"github.com/sif-project/sif/fabric"
)

func TestBindings(t *testing.T) {
	w := newWorld(t)
	t.Run("an owner keeps to his binding", func(t *testing.T) { testOwnerKeepsToBinding(t, w) })
	t.Run("admission", func(t *testing.T) { testBoundAdmission(t, w) })
	t.Run("narrowing", func(t *testing.T) { testNarrowing(t, w) })
	t.Run("rollback", func(t *testing.T) { testRollbackKeepsOperatorBlocks(t, w) })
	t.Run("labels of guardrails", func(t *testing.T) { testGuardrailLabels(t, w) })
}

// greedy is a domain that selects every workload of the zone.
func greedy() *fabric.Domain {
	return &fabric.Domain{Name: "evil", Services: []fabric.Service{{Name: "grab", Selectors: []fabric.Selector{
		{Kind: fabric.SelectNode, Zone: "aws1", Pos: fabric.Position{File: "evil.sif.hcl", Line: 3, Column: 14}},
	}}}}
}

// bind binds a domain to jobs in the namespace "default".
func bind(domain string, jobs ...string) fabric.Binding {
	return fabric.Binding{Domain: domain, Nomad: []fabric.NomadScope{{Namespace: "default", Jobs: jobs}}, Pos: fabric.Position{File: "ops.sif.hcl", Line: 1, Column: 9}}
}

func (w *world) ownerOf(t *testing.T, c *running, domain string) *api.Client {
	t.Helper()
	return w.client(t, c.address, w.consulToken(t, &consulapi.ACLToken{Policies: w.consulPolicies(t, []string{"sif-apply-" + domain})}).SecretID)
}

func testOwnerKeepsToBinding(t *testing.T, w *world) {
	c, ctx := w.fresh(t, nil), t.Context()
	_, err := c.operator.Apply(ctx, api.GraphRequest{Domains: domains(testDomain("app")), Bindings: []fabric.Binding{bind("app", "app", "app-*")}})
	must.NoError(t, err)
	token := w.consulToken(t, &consulapi.ACLToken{Policies: w.consulPolicies(t, []string{"sif-apply-evil"})}).SecretID
	evil := w.client(t, c.address, token)
	attack := api.GraphRequest{Domains: domains(greedy())}
	refused := func(want string) {
		t.Helper()
		_, err := evil.Apply(ctx, attack)
		e := code(t, api.CodeProblems, err)
		must.Eq(t, want, e.Details.Problems[0].Summary)
		must.StrContains(t, e.Details.Problems[0].Remedy, `ask the operators of the fabric for a `)
		plan, err := evil.Plan(ctx, attack)
		must.NoError(t, err)
		must.Eq(t, e.Details.Problems, plan.Problems)
		problems, err := evil.Validate(ctx, attack)
		must.NoError(t, err)
		must.Eq(t, e.Details.Problems, problems)
	}
	refused(`no binding covers domain "evil", so its services select nothing and its externals are nowhere`)
	_, err = c.operator.Apply(ctx, api.GraphRequest{Bindings: []fabric.Binding{bind("evil", "evil")}})
	must.NoError(t, err)
	refused(`a selector of service "grab" of domain "evil", node(zone=aws1), selects beyond binding "evil" at ops.sif.hcl:1:9`)

	// JSON that no decoder of the language has seen is judged alike, and so is a plan made before.
	status, reply := c.put(t, &tls.Config{RootCAs: c.cfg.Identity.Roots()}, "/v1/graph", token,
		`{"domains":{"evil":{"name":"evil","services":[{"name":"grab","selectors":[{"kind":"node","zone":"aws1","pos":{"file":"evil.sif.json","line":4,"column":7}}]}]}}}`)
	must.Eq(t, http.StatusUnprocessableEntity, status)
	must.StrContains(t, reply, `"file":"evil.sif.json","line":4,"column":7`)
	outside := greedy()
	outside.Services, outside.Externals = nil, []fabric.External{{Name: "net", Prefixes: []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0")}}}
	_, err = evil.Apply(ctx, api.GraphRequest{Domains: domains(outside)})
	must.StrContains(t, code(t, api.CodeProblems, err).Details.Problems[0].Summary, `prefix 0.0.0.0/0 of external "net" of domain "evil" lies beyond binding "evil"`)

	// He cannot bind himself, but may read what binds him.
	_, err = evil.Apply(ctx, api.GraphRequest{Domains: domains(greedy()), Bindings: []fabric.Binding{bind("evil")}})
	must.StrContains(t, code(t, api.CodeForbidden, err).Message, "may not apply changes of guardrails, bindings and links")
	g, err := evil.Graph(ctx)
	must.NoError(t, err)
	must.Len(t, 2, g.Graph.Bindings)
	lines := auditLines(t, filepath.Join(c.dir, auditFile))
	must.Eq(t, "app,binding app", lines[0].Target)
	must.Eq(t, "evil,binding evil", lines[len(lines)-1].Target)
	must.Eq(t, api.CodeForbidden, lines[len(lines)-1].Code)

	// Within the binding, all is well.
	_, err = evil.Apply(ctx, api.GraphRequest{Domains: domains(&fabric.Domain{Name: "evil", Services: []fabric.Service{{Name: "x", Selectors: []fabric.Selector{{Kind: fabric.SelectNomad, Namespace: "default", Job: "evil"}}}}})})
	must.NoError(t, err)
}

func testBoundAdmission(t *testing.T, w *world) {
	scheduler := &fakeScheduler{placed: map[string]Placement{}}
	c, ctx := w.fresh(t, scheduler), t.Context()
	w1 := w.node(t, c, "w1")
	w1.register(t, "10.0.0.1")
	admit := func(p Placement) error {
		scheduler.mu.Lock()
		scheduler.placed[allocation(1)] = p
		scheduler.mu.Unlock()
		_, err := w1.Admit(ctx, request4(1, 10))
		return err
	}
	apply := func(req api.GraphRequest) {
		t.Helper()
		_, err := c.operator.Apply(ctx, req)
		must.NoError(t, err)
	}
	// Without bindings, anybody makes the workloads of others ambiguous, and takes those that
	// nobody claims. The status warns of it.
	apply(api.GraphRequest{Domains: domains(testDomain("app"), greedy())})
	code(t, api.CodeAmbiguous, admit(placed("app", "g")))
	must.NoError(t, admit(placed("unclaimed", "g")))
	warned := func() []string {
		s, err := c.operator.Status(ctx)
		must.NoError(t, err)
		return s.Warnings
	}
	must.Len(t, 1, warned())
	must.StrContains(t, warned()[0], "the graph has no binding")

	// The first binding ends that.
	apply(api.GraphRequest{Bindings: []fabric.Binding{bind("app", "app", "app-*")}})
	must.NoError(t, admit(placed("app", "g")))
	e := code(t, api.CodeBeyond, admit(placed("unclaimed", "g")))
	must.StrContains(t, e.Message, `service evil/grab selects it, but no binding covers domain "evil"`)
	must.Eq(t, []string{`no binding covers domain "evil", so its services select nothing and its externals are nowhere`}, warned())

	// With what is left, the domain has what is left.
	apply(api.GraphRequest{Bindings: []fabric.Binding{{Domain: fabric.EveryDomain}}})
	must.NoError(t, admit(placed("app", "g")))
	must.NoError(t, admit(placed("unclaimed", "g")))
	named := placed("app-web", "g") // bound to app, although no service of app selects the group
	named.Meta = map[string]string{"sif_service": "evil/grab"}
	must.StrContains(t, code(t, api.CodeBeyond, admit(named)).Message, `service evil/grab selects it, but it is bound to domain app`)
	must.SliceEmpty(t, warned())

	// Ports of the node.
	published := placed("app", "g")
	published.Workload.StaticPorts = []uint16{22, 8080, 9001}
	must.StrContains(t, code(t, api.CodeBeyond, admit(published)).Message, `no binding lets domain "app" publish port 22, 8080, 9001 of a node`)
	open := bind("app", "app")
	open.Outside = []fabric.OutsideGrants{{Ports: []fabric.PortRange{{From: 8080, To: 8080}, {From: 9000, To: 9010}}}}
	apply(api.GraphRequest{Bindings: []fabric.Binding{open}})
	must.StrContains(t, code(t, api.CodeBeyond, admit(published)).Message, `publish port 22 of a node`)
	published.Workload.StaticPorts = published.Workload.StaticPorts[1:]
	must.NoError(t, admit(published))
}

// An operator narrows a binding whatever the graph of the domain says. The next renewal is refused,
// and the others go on, also after a restart.
func testNarrowing(t *testing.T, w *world) {
	scheduler := &fakeScheduler{placed: map[string]Placement{allocation(1): placed("app", "g")}}
	c, ctx := w.fresh(t, scheduler), t.Context()
	w1 := w.node(t, c, "w1")
	w1.register(t, "10.0.0.1")
	app := testDomain("app")
	app.Externals = []fabric.External{{Name: "users", Prefixes: []netip.Prefix{netip.MustParsePrefix("10.99.0.0/24")}}}
	app.Contracts = append(app.Contracts, fabric.Contract{Name: "users", Originators: []fabric.Ref{{Domain: "app", Name: "users"}}, Responders: []fabric.Ref{{Domain: "app", Name: "proxy"}}, Rules: app.Contracts[0].Rules})
	_, err := c.operator.Apply(ctx, api.GraphRequest{Domains: domains(app, testDomain("other")), Bindings: []fabric.Binding{{Domain: fabric.EveryDomain}}})
	must.NoError(t, err)
	_, err = w1.Admit(ctx, request4(1, 10))
	must.NoError(t, err)

	narrow := api.GraphRequest{Bindings: []fabric.Binding{bind("app", "app-*")}}
	plan, err := c.operator.Plan(ctx, narrow)
	must.NoError(t, err)
	must.SliceEmpty(t, plan.Problems)
	must.Eq(t, []api.Touched{{Endpoint: allocation(1), Node: "aws1/w1", Service: fabric.Ref{Domain: "app", Name: "svc"}, Effect: "binding"}}, plan.Touched)
	must.Len(t, 2, plan.Delta.Excess)
	must.Len(t, 1, plan.Delta.Reach) // external users loses the proxy
	_, err = c.operator.Apply(ctx, plan.Apply())
	must.NoError(t, err)
	must.SliceEmpty(t, c.policy.current.Load().documents[fabric.Ref{Domain: "app", Name: "proxy"}].Responds[0].Peers)
	_, err = w1.Admit(ctx, request4(1, 10))
	must.StrContains(t, code(t, api.CodeBeyond, err).Message, `binding "app" does not let domain "app" select it`)

	for i, dir := range []string{c.dir, t.TempDir()} {
		c.stop()
		c = w.start(t, dir, scheduler, false)
		reply, err := w.ownerOf(t, c, "other").Apply(ctx, api.GraphRequest{Domains: domains(ported("other", uint16(100+i)))})
		must.NoError(t, err)
		must.True(t, reply.Changed)
		same, err := w.ownerOf(t, c, "app").Apply(ctx, api.GraphRequest{Domains: domains(app)})
		must.NoError(t, err)
		must.False(t, same.Changed)
		changed := testDomain("app")
		_, err = w.ownerOf(t, c, "app").Apply(ctx, api.GraphRequest{Domains: domains(changed)})
		must.StrContains(t, code(t, api.CodeProblems, err).Details.Problems[0].Summary, `selects beyond binding "app"`)
	}
	// Removing bindings grants again.
	_, err = c.operator.Apply(ctx, api.GraphRequest{RemoveBindings: []string{"app", "nobody"}})
	code(t, api.CodeNotFound, err)
	_, err = c.operator.Apply(ctx, api.GraphRequest{RemoveBindings: []string{"app", fabric.EveryDomain}})
	must.NoError(t, err)
	must.Eq(t, 1, len(c.policy.current.Load().warnings()))
}

func testRollbackKeepsOperatorBlocks(t *testing.T, w *world) {
	c, ctx := w.fresh(t, nil), t.Context()
	rail := fabric.Guardrail{Name: "g", Deny: []fabric.Denial{{From: fabric.Labels{"domain": "nobody"}}}}
	links := []fabric.LinkRule{{Name: "l", Between: [2]fabric.LinkEnd{{Zone: "z1"}, {Zone: "z2"}}, Labels: []string{"fast"}}}
	for _, req := range []api.GraphRequest{
		{Domains: domains(ported("app", 81))},
		{Domains: domains(ported("app", 82)), Bindings: []fabric.Binding{bind("app", "app", "app-web")}, Guardrails: []fabric.Guardrail{rail}, Links: links},
		{Bindings: []fabric.Binding{bind("app", "app*")}},
	} {
		_, err := c.operator.Apply(ctx, req)
		must.NoError(t, err)
	}
	roll := func(req api.RollbackRequest) *fabric.Graph {
		t.Helper()
		dry := req
		dry.DryRun = true
		planned, err := c.operator.Rollback(ctx, dry)
		must.NoError(t, err)
		reply, err := c.operator.Rollback(ctx, req)
		must.NoError(t, err)
		must.Eq(t, planned.Changed, reply.Changed)
		must.Eq(t, planned.Delta, reply.Delta)
		g, err := c.operator.Graph(ctx)
		must.NoError(t, err)
		return g.Graph
	}
	g := roll(api.RollbackRequest{Revision: 1})
	must.Eq(t, domains(ported("app", 81)), g.Domains)
	must.Eq(t, []fabric.Binding{bind("app", "app*")}, g.Bindings)
	must.Eq(t, []fabric.Guardrail{rail}, g.Guardrails)
	must.Eq(t, links, g.Links)
	g = roll(api.RollbackRequest{Revision: 2, OperatorBlocks: true})
	must.Eq(t, domains(ported("app", 82)), g.Domains)
	must.Eq(t, []fabric.Binding{bind("app", "app", "app-web")}, g.Bindings)
	entries := auditLines(t, filepath.Join(c.dir, auditFile))
	must.Eq(t, "revision 2 with guardrails, bindings and links", entries[len(entries)-1].Target)
	g = roll(api.RollbackRequest{Revision: 1, OperatorBlocks: true})
	must.SliceEmpty(t, g.Bindings)
	must.SliceEmpty(t, g.Links)

	// A domain of an old revision must keep to the bindings of today.
	_, err := c.operator.Apply(ctx, api.GraphRequest{RemoveDomains: []string{"app"}, Bindings: []fabric.Binding{bind("app", "new")}})
	must.NoError(t, err)
	_, err = c.operator.Rollback(ctx, api.RollbackRequest{Revision: 1, DryRun: true})
	code(t, api.CodeProblems, err)
	_, err = c.operator.Rollback(ctx, api.RollbackRequest{Revision: 1})
	must.StrContains(t, code(t, api.CodeProblems, err).Details.Problems[0].Summary, `selects beyond binding "app"`)
}

// Without bindings too, an owner does not change the labels by which a guardrail knows him.
func testGuardrailLabels(t *testing.T, w *world) {
	c, ctx := w.fresh(t, nil), t.Context()
	labelled := func(value string) api.GraphRequest {
		d := testDomain("app")
		d.Labels = fabric.Labels{"env": value, "team": "x"}
		if value == "" {
			delete(d.Labels, "env")
		}
		return api.GraphRequest{Domains: domains(d)}
	}
	rail := fabric.Guardrail{Name: "g", Deny: []fabric.Denial{{From: fabric.Labels{"env": "dev"}, To: fabric.Labels{"pci": "yes"}}}}
	_, err := c.operator.Apply(ctx, api.GraphRequest{Domains: labelled("dev").Domains, Guardrails: []fabric.Guardrail{rail}})
	must.NoError(t, err)
	owner := w.ownerOf(t, c, "app")
	for _, value := range []string{"", "prod"} {
		_, err = owner.Apply(ctx, labelled(value))
		must.StrContains(t, code(t, api.CodeForbidden, err).Message, "may not change label env of domain app, which a guardrail names")
	}
	ok := labelled("dev")
	ok.Domains["app"].Labels["team"] = "y"
	_, err = owner.Apply(ctx, ok)
	must.NoError(t, err)
	relabelled := labelled("dev")
	relabelled.Domains["app"].Services[1].Labels = fabric.Labels{"pci": "no"}
	_, err = owner.Apply(ctx, relabelled)
	must.StrContains(t, code(t, api.CodeForbidden, err).Message, "label pci of service svc")

	// With a binding, the label is the operators', and the owner's own value is refused with the
	// reason.
	bound := bind("app", "app*")
	_, err = c.operator.Apply(ctx, api.GraphRequest{Bindings: []fabric.Binding{bound}})
	must.StrContains(t, code(t, api.CodeProblems, err).Details.Problems[0].Summary, `label "env" of domain "app" is named by guardrail "g", so only a binding can set it`)
	bound.Labels = fabric.Labels{"env": "dev"}
	_, err = c.operator.Apply(ctx, api.GraphRequest{Bindings: []fabric.Binding{bound}})
	must.NoError(t, err)
	_, err = owner.Apply(ctx, labelled("prod"))
	must.StrContains(t, code(t, api.CodeProblems, err).Details.Problems[0].Summary, `label "env" of domain "app" is "prod", but binding "app" sets it to "dev"`)
	for _, value := range []string{"", "dev"} {
		_, err = owner.Apply(ctx, labelled(value))
		must.NoError(t, err)
	}
	cards := testDomain("cards")
	peek := fabric.Contract{Name: "peek", Originators: []fabric.Ref{{Domain: "app", Name: "svc"}}, Responders: []fabric.Ref{{Domain: "cards", Name: "svc"}}, Rules: cards.Contracts[0].Rules}
	_, err = c.operator.Apply(ctx, api.GraphRequest{Domains: domains(cards), Bindings: []fabric.Binding{{
		Domain: "cards", Nomad: []fabric.NomadScope{{Namespace: "default", Jobs: []string{"cards*"}}}, Services: []fabric.BoundService{{Name: "svc", Labels: fabric.Labels{"pci": "yes"}}},
	}}})
	must.NoError(t, err)
	d := testDomain("app")
	d.Contracts = append(slices.Clone(d.Contracts), peek)
	_, err = owner.Apply(ctx, api.GraphRequest{Domains: domains(d)})
	must.StrContains(t, code(t, api.CodeProblems, err).Details.Problems[0].Summary, `which guardrail "g" denies`)
}
