// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package controller

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"
	"time"

	consulapi "github.com/hashicorp/consul/api"
	"github.com/shoenig/test/must"
	"pgregory.net/rapid"

	"github.com/sif-project/sif/api"
	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/internal/kvkey"
)

func TestAttached(t *testing.T) {
	w := newWorld(t)
	t.Run("admission", func(t *testing.T) { testAttachedAdmission(t, w) })
	t.Run("renewal", func(t *testing.T) { testAttachedRenewal(t, w) })
	t.Run("hostile nodes", func(t *testing.T) { testHostileAttachments(t, w) })
	t.Run("Consul agents", func(t *testing.T) { testOwnAgents(t, w) })
	t.Run("node class", func(t *testing.T) { testAttachedByClass(t, w) })
}

// consulNodes of the test: the Consul server itself has the address of node w1, and others are in
// the catalog only.
func (w *world) consulNode(t testing.TB) string {
	t.Helper()
	name, err := w.consul.Agent().NodeName()
	must.NoError(t, err)
	return name
}

// inConsul registers a service with the Consul agent, and waits until the catalog has it.
func (w *world) inConsul(t testing.TB, s consulapi.AgentServiceRegistration) {
	t.Helper()
	must.NoError(t, w.consul.Agent().ServiceRegister(&s))
	t.Cleanup(func() { _ = w.consul.Agent().ServiceDeregister(cmp.Or(s.ID, s.Name)) })
	eventually(t, func() error {
		list, _, err := w.consul.Catalog().Service(s.Name, "", nil)
		if err == nil && len(list) == 0 {
			err = errors.New("not in the catalog yet")
		}
		return err
	})
	if len(s.Checks) > 0 {
		eventually(t, func() error {
			list, _, err := w.consul.Health().Checks(s.Name, nil)
			if err == nil && len(list) < len(s.Checks) {
				err = errors.New("its checks are not in the catalog yet")
			}
			return err
		})
	}
}

func (w *world) notInConsul(t testing.TB, id, name string) {
	t.Helper()
	must.NoError(t, w.consul.Agent().ServiceDeregister(id))
	eventually(t, func() error {
		list, _, err := w.consul.Catalog().Service(name, "", nil)
		if err == nil && len(list) > 0 {
			err = errors.New("still in the catalog")
		}
		return err
	})
}

// inCatalog registers a service on a node that has no agent.
func (w *world) inCatalog(t testing.TB, node, address, service string, meta map[string]string) {
	t.Helper()
	_, err := w.consul.Catalog().Register(&consulapi.CatalogRegistration{
		Node: node, Address: address, NodeMeta: meta, SkipNodeUpdate: false,
		Service: &consulapi.AgentService{ID: service, Service: service, Port: 5432},
		Checks: consulapi.HealthChecks{{
			Node: node, CheckID: service + "-check", ServiceID: service, Type: "http", Status: "passing",
			Definition: consulapi.HealthCheckDefinition{HTTP: "http://" + address + ":9090/health"},
		}},
	}, nil)
	must.NoError(t, err)
	t.Cleanup(func() { _, _ = w.consul.Catalog().Deregister(&consulapi.CatalogDeregistration{Node: node}, nil) })
}

// attachDomain is a domain whose service db is the Consul service of that name.
func attachDomain(name string, selectors ...fabric.Selector) *fabric.Domain {
	d := testDomain(name)
	if len(selectors) == 0 {
		selectors = []fabric.Selector{{Kind: fabric.SelectConsul, Namespace: fabric.DefaultNamespace, Service: "db"}}
	}
	ref := func(n string) []fabric.Ref { return []fabric.Ref{{Domain: name, Name: n}} }
	d.Services = append(d.Services, fabric.Service{Name: "db", Selectors: selectors})
	d.Contracts = append(d.Contracts, fabric.Contract{Name: "sql", Originators: ref("svc"), Responders: ref("db"), Rules: d.Contracts[0].Rules})
	return d
}

// attaches is a binding of a domain with an attach block.
func attaches(domain string, scopes ...fabric.AttachScope) fabric.Binding {
	b := bind(domain, domain, domain+"-*")
	b.Attach = scopes
	return b
}

func onNode(node string, services ...string) fabric.AttachScope {
	return fabric.AttachScope{Services: services, Zone: "aws1", Node: node}
}

// attachment returns the request of a node for a workload that it attached as Consul service db.
func (w *world) attachment(t testing.TB, n int, pool, host byte) api.AdmissionRequest {
	req := request4(n, host)
	req.IPv4 = netip.AddrFrom4([4]byte{100, 64, pool, host})
	req.IPv6 = netip.MustParseAddr(fmt.Sprintf("fd5f:7369:6600:%x::%x", pool, host))
	req.Attached = &fabric.Attached{Name: "db", ConsulService: "db", ConsulNode: w.consulNode(t)}
	return req
}

// admitted has a node admit a workload.
func (n *testNode) admitted(t testing.TB, req api.AdmissionRequest) fabric.Admission {
	t.Helper()
	reply, err := n.Admit(t.Context(), req)
	must.NoError(t, err)
	var a fabric.Admission
	must.NoError(t, n.source.Keys().Verify(reply.Admission, fabric.KindAdmission, &a))
	return a
}

func testAttachedAdmission(t *testing.T, w *world) {
	scheduler := &fakeScheduler{placed: map[string]Placement{}}
	c, ctx := w.fresh(t, scheduler), t.Context()
	w1, w2 := w.node(t, c, "w1"), w.node(t, c, "w2")
	w1.register(t, "127.0.0.1")
	w2.register(t, "10.0.0.2")
	apply := func(req api.GraphRequest) {
		t.Helper()
		_, err := c.operator.Apply(ctx, req)
		must.NoError(t, err)
	}
	refused := func(want string, change func(*fabric.Attached), text string) {
		t.Helper()
		req := w.attachment(t, 1, 0, 10)
		if change != nil {
			change(req.Attached)
		}
		_, err := w1.Admit(ctx, req)
		must.StrContains(t, code(t, want, err).Message, text)
	}

	// Nothing but a binding of the domain's own with an attach block lets it in.
	apply(api.GraphRequest{Domains: domains(attachDomain("shop"))})
	refused(api.CodeUnregistered, nil, `Consul service "db" is not registered with Consul agent`)
	w.inConsul(t, consulapi.AgentServiceRegistration{Name: "db", Port: 5432, Tags: []string{"primary"}, Meta: map[string]string{"tier": "gold"}, Checks: consulapi.AgentServiceChecks{
		{TCP: "127.0.0.1:1", Interval: "10m"}, {UDP: "127.0.0.1:1", Interval: "10m"}, {TTL: "10m"},
	}})
	barred := `service shop/db selects it, but domain "shop" has no binding with an attach block that names Consul service "db" and node aws1/w1 or its class`
	refused(api.CodeBeyond, nil, barred)
	for _, b := range [][]fabric.Binding{
		{{Domain: fabric.EveryDomain}},
		{{Domain: fabric.EveryDomain, Nomad: []fabric.NomadScope{{Namespace: "*"}}}},
		{{Domain: "shop", Nomad: []fabric.NomadScope{{Namespace: "*"}}, Consul: []fabric.ConsulScope{{Namespace: "*", Services: []string{"*"}}}, Nodes: []fabric.NodeScope{{Zone: "*"}}}},
		{attaches("shop", onNode("w2", "db"), fabric.AttachScope{Services: []string{"d"}, Node: "w1"}, fabric.AttachScope{Services: []string{"db"}, NodeClass: "spot"})},
		{attaches("other", onNode("w1", "db")), {Domain: "shop", Consul: []fabric.ConsulScope{{Namespace: "default", Services: []string{"db"}}}}},
	} {
		apply(api.GraphRequest{Bindings: b})
		refused(api.CodeBeyond, nil, barred)
	}
	must.Eq(t, 0, c.table.count())
	apply(api.GraphRequest{RemoveBindings: []string{"other", fabric.EveryDomain}, Bindings: []fabric.Binding{attaches("shop", onNode("w*", "d*"))}})

	a := w1.admitted(t, w.attachment(t, 1, 0, 10))
	must.Eq(t, "shop/db <shop/sql", a.Identity().Key())
	must.Eq(t, fabric.Origin{Consul: "db", Attached: "db"}, a.Origin)
	must.Eq(t, []fabric.NamedPort{{Name: "db", Port: 5432}}, a.Ports)
	must.Eq(t, []fabric.Check{{Protocol: fabric.TCP, Port: 5432}, {Protocol: fabric.UDP, Port: 5432}}, a.Checks)
	must.False(t, a.Registration.IsZero())
	entries := auditLines(t, filepath.Join(c.dir, auditFile))
	must.Eq(t, `shop/db <shop/sql, "db" attached as Consul service "db" on Consul agent "`+w.consulNode(t)+`"`, entries[len(entries)-1].Message)
	must.Eq(t, allocation(1), entries[len(entries)-1].Target)

	// What the node says can only narrow.
	refused(api.CodeUnknownService, func(a *fabric.Attached) { a.Service = "shop/nobody" }, `the attachment of the workload (Consul service "db", attached on node aws1/w1) names service "shop/nobody", which is not in the graph`)
	refused(api.CodeNoSelector, func(a *fabric.Attached) { a.Service = "shop/proxy" }, `nomad(namespace=default, job=shop-web, group=proxy): it is not in Nomad`)
	refused(api.CodeUnknownRole, func(a *fabric.Attached) { a.Originate = []string{"sql"} }, "the attachment requests a role that the graph does not give")
	for name, change := range map[string]func(*fabric.Attached){
		"of the fabric itself":       func(a *fabric.Attached) { a.ConsulService = "sif-shop--db" },
		"is a pattern":               func(a *fabric.Attached) { a.ConsulService = "*" },
		"must have a name":           func(a *fabric.Attached) { a.ConsulService = "" },
		"no name of a workload":      func(a *fabric.Attached) { a.Name = "../x" },
		"no name of a Consul agent":  func(a *fabric.Attached) { a.ConsulNode = "x/../y" },
		"at most 64":                 func(a *fabric.Attached) { a.Name = strings.Repeat("x", 65) },
		"at most 1000":               func(a *fabric.Attached) { a.Respond = make([]string, 1001) },
		"longer than any name":       func(a *fabric.Attached) { a.Respond = []string{strings.Repeat("x", 100)} },
		"is no name of a Consul ser": func(a *fabric.Attached) { a.ConsulService = `db" or ID != "` },
	} {
		refused(api.CodeInvalid, change, name)
	}
	bad := w.attachment(t, 1, 0, 10)
	bad.Allocation = "db"
	_, err := w1.Admit(ctx, bad)
	code(t, api.CodeInvalid, err)

	// Two domains: the attachment names one.
	apply(api.GraphRequest{Domains: domains(attachDomain("store")), Bindings: []fabric.Binding{attaches("store", onNode("w1", "db"))}})
	refused(api.CodeAmbiguous, nil, "matches several services: shop/db, store/db; name one of them as `service` in the attachment")
	req := w.attachment(t, 2, 0, 20)
	req.Attached.Service = "store/db"
	must.Eq(t, "store/db", w1.admitted(t, req).Service.String())
	apply(api.GraphRequest{Bindings: []fabric.Binding{attaches("store", onNode("w2", "db"))}})
	w1.admitted(t, w.attachment(t, 1, 0, 10))
	_, err = w1.Admit(ctx, req)
	must.StrContains(t, code(t, api.CodeBeyond, err).Message, `service store/db selects it, but domain "store" has no binding with an attach block that names Consul service "db" and node aws1/w1`)

	// Tags, metadata, and where it runs.
	apply(api.GraphRequest{RemoveDomains: []string{"store"}})
	for _, tc := range []struct {
		selector fabric.Selector
		matches  bool
	}{
		{fabric.Selector{Tags: []string{"primary"}, Meta: map[string]string{"tier": "gold"}, Datacenter: "dc1"}, true},
		{fabric.Selector{Tags: []string{"replica"}}, false},
		{fabric.Selector{Datacenter: "dc2"}, false},
		{fabric.Selector{Namespace: "prod"}, false},
	} {
		tc.selector.Kind, tc.selector.Service = fabric.SelectConsul, "db"
		if tc.selector.Namespace == "" {
			tc.selector.Namespace = fabric.DefaultNamespace
		}
		apply(api.GraphRequest{Bindings: []fabric.Binding{{Domain: "shop", Consul: []fabric.ConsulScope{{Namespace: "*", Services: []string{"db"}}}, Nomad: bind("shop", "shop*").Nomad, Attach: []fabric.AttachScope{onNode("w1", "db")}}}, Domains: domains(attachDomain("shop", tc.selector))})
		if tc.matches {
			w1.admitted(t, w.attachment(t, 1, 0, 10))
		} else {
			refused(api.CodeNoSelector, nil, "matches no selector of the graph")
		}
	}
}

// An endpoint that was admitted keeps what Consul said when its registration is gone; only bindings
// and the graph end it.
func testAttachedRenewal(t *testing.T, w *world) {
	scheduler := &fakeScheduler{placed: map[string]Placement{}}
	c, ctx := w.fresh(t, scheduler), t.Context()
	w1 := w.node(t, c, "w1")
	w1.register(t, "127.0.0.1")
	primary := fabric.Selector{Kind: fabric.SelectConsul, Namespace: fabric.DefaultNamespace, Service: "db", Tags: []string{"primary"}}
	_, err := c.operator.Apply(ctx, api.GraphRequest{Domains: domains(attachDomain("shop", primary)), Bindings: []fabric.Binding{attaches("shop", onNode("w1", "db"))}})
	must.NoError(t, err)
	w.inConsul(t, consulapi.AgentServiceRegistration{Name: "db", Port: 5432, Tags: []string{"primary"}})
	first := w1.admitted(t, w.attachment(t, 1, 0, 10))
	w.notInConsul(t, "db", "db")
	_, err = w1.Admit(ctx, w.attachment(t, 2, 0, 20))
	code(t, api.CodeUnregistered, err)

	same := func(req api.AdmissionRequest) {
		t.Helper()
		a := w1.admitted(t, req)
		must.True(t, a.Issued.After(first.Issued))
		first.Issued, first.Expires = a.Issued, a.Expires
		must.Eq(t, first, a)
	}
	same(w.attachment(t, 1, 0, 10))
	renamed := w.attachment(t, 1, 0, 10)
	renamed.Attached.ConsulNode = "unknown"
	same(renamed)
	c.stop() // also by the next leader
	c = w.start(t, c.dir, scheduler, false)
	w1 = w.node(t, c, "w1")
	same(w.attachment(t, 1, 0, 10))

	// What the controller keeps is protected: who alters it in Consul makes it unknown.
	key := kvkey.Admission{Node: w1.id, Endpoint: allocation(1)}
	kv, _, err := w.consul.KV().Get(key.String(), nil)
	must.NoError(t, err)
	altered := strings.Replace(string(kv.Value), `"tags":["primary"]`, `"tags":["replica"]`, 1)
	must.NotEq(t, string(kv.Value), altered)
	must.NoError(t, putString(w, key.String(), altered))
	c.stop()
	c = w.start(t, c.dir, scheduler, false)
	w1 = w.node(t, c, "w1")
	_, err = w1.Admit(ctx, w.attachment(t, 1, 0, 10))
	code(t, api.CodeUnregistered, err)
	must.Eq(t, 1, c.table.count())
	w.inConsul(t, consulapi.AgentServiceRegistration{Name: "db", Port: 5433, Tags: []string{"primary"}})
	moved := w1.admitted(t, w.attachment(t, 1, 0, 10))
	must.Eq(t, []fabric.NamedPort{{Name: "db", Port: 5433}}, moved.Ports)
	must.NotEq(t, first.Registration, moved.Registration)

	// What the registration says now counts.
	w.inConsul(t, consulapi.AgentServiceRegistration{Name: "db", Port: 5433, Tags: []string{"replica"}})
	eventually(t, func() error {
		_, err := w1.Admit(ctx, w.attachment(t, 1, 0, 10))
		if !api.IsCode(err, api.CodeNoSelector) {
			return fmt.Errorf("want no-selector-matched, not %v", err)
		}
		return nil
	})

	// A binding that is withdrawn ends it at the renewal, and others go on.
	w.inConsul(t, consulapi.AgentServiceRegistration{Name: "db", Port: 5433, Tags: []string{"primary"}})
	eventually(t, func() error {
		_, err := w1.Admit(ctx, w.attachment(t, 1, 0, 10))
		return err
	})
	// Its selector may select as before in Nomad.
	narrow := bind("shop", "shop", "shop-*")
	narrow.Consul = []fabric.ConsulScope{{Namespace: fabric.DefaultNamespace, Services: []string{"db"}}}
	withdraw := api.GraphRequest{Bindings: []fabric.Binding{narrow}}
	plan, err := c.operator.Plan(ctx, withdraw)
	must.NoError(t, err)
	must.SliceEmpty(t, plan.Problems)
	must.Eq(t, []string{"may select attach(services=db, zone=aws1, node=w1)"}, plan.Delta.Bindings[0].Lost)
	must.Eq(t, []api.Touched{{Endpoint: allocation(1), Node: "aws1/w1", Service: fabric.Ref{Domain: "shop", Name: "db"}, Effect: "binding"}}, plan.Touched)
	_, err = c.operator.Apply(ctx, withdraw)
	must.NoError(t, err)
	_, err = w1.Admit(ctx, w.attachment(t, 1, 0, 10))
	code(t, api.CodeBeyond, err)

	// What is released comes back only with its registration.
	_, err = c.operator.Apply(ctx, api.GraphRequest{Bindings: []fabric.Binding{attaches("shop", onNode("w1", "db"))}})
	must.NoError(t, err)
	w.notInConsul(t, "db", "db")
	w1.admitted(t, w.attachment(t, 1, 0, 10))
	must.NoError(t, w1.Release(ctx, allocation(1)))
	_, err = w1.Admit(ctx, w.attachment(t, 1, 0, 10))
	code(t, api.CodeUnregistered, err)

	// So does what expired, and the node that was removed speaks for nothing.
	w.inConsul(t, consulapi.AgentServiceRegistration{Name: "db", Tags: []string{"primary"}})
	w1.admitted(t, w.attachment(t, 1, 0, 10))
	w.notInConsul(t, "db", "db")
	c.table.mu.Lock()
	c.table.now = func() time.Time { return time.Now().Add(AdmissionLife + time.Minute) }
	c.table.mu.Unlock()
	_, err = w1.Admit(ctx, w.attachment(t, 1, 0, 10))
	code(t, api.CodeUnregistered, err)
}

// A stolen node has the certificate of one node, and says what it likes.
func testHostileAttachments(t *testing.T, w *world) {
	scheduler := &fakeScheduler{placed: map[string]Placement{allocation(7): placed("shop", "g"), allocation(8): placed("shop", "g")}}
	c, ctx := w.fresh(t, scheduler), t.Context()
	w1, w2, p1 := w.node(t, c, "w1"), w.node(t, c, "w2"), w.node(t, c, "p1")
	w1.register(t, "127.0.0.1")
	w2.register(t, "10.0.0.2")
	p1.register(t, "10.0.0.9")
	_, err := c.operator.Apply(ctx, api.GraphRequest{Domains: domains(attachDomain("shop")), Bindings: []fabric.Binding{attaches("shop", onNode("w1", "db"))}})
	must.NoError(t, err)
	w.inConsul(t, consulapi.AgentServiceRegistration{Name: "db", Port: 5432})
	w.inCatalog(t, "consul-2", "10.0.0.2", "db", nil)
	first := w1.admitted(t, w.attachment(t, 1, 0, 10))

	by := func(want string, node *testNode, req api.AdmissionRequest, text string) {
		t.Helper()
		_, err := node.Admit(ctx, req)
		must.StrContains(t, code(t, want, err).Message, text)
	}
	on := func(req api.AdmissionRequest, agent string) api.AdmissionRequest {
		req.Attached.ConsulNode = agent
		return req
	}
	second := w.attachment(t, 2, 1, 20)
	by(api.CodeElsewhere, w2, second, "127.0.0.1 is the address of node aws1/w1; attach the workload there")
	by(api.CodeBeyond, w2, on(second, "consul-2"), "names Consul service \"db\" and node aws1/w2")
	by(api.CodeElsewhere, w1, on(w.attachment(t, 3, 0, 30), "consul-2"), "10.0.0.2 is the address of node aws1/w2")
	by(api.CodeUnregistered, w1, on(w.attachment(t, 3, 0, 30), "nobody"), `Consul knows no agent "nobody"`)
	by(api.CodeForbidden, p1, second, "only a workload node has endpoints")

	// The ID of an endpoint of another node, and of an allocation.
	_, err = c.operator.Apply(ctx, api.GraphRequest{Bindings: []fabric.Binding{attaches("shop", onNode("w*", "db"))}})
	must.NoError(t, err)
	by(api.CodeTaken, w2, on(w.attachment(t, 1, 1, 20), "consul-2"), "that is an endpoint of node aws1/w1")
	by(api.CodeTaken, w1, w.attachment(t, 7, 0, 30), "that is allocation "+allocation(7)+" of Nomad")
	_, err = w1.Admit(ctx, request4(8, 80))
	code(t, api.CodeNotPlaced, err) // w1 is not at the address of the Nomad node
	scheduler.mu.Lock()
	for n := range scheduler.placed {
		p := scheduler.placed[n]
		p.Machine.Addresses = []netip.Addr{netip.MustParseAddr("127.0.0.1")}
		scheduler.placed[n] = p
	}
	scheduler.mu.Unlock()
	_, err = w1.Admit(ctx, request4(8, 80))
	must.NoError(t, err)
	by(api.CodeTaken, w1, w.attachment(t, 8, 0, 80), "that is allocation "+allocation(8)+" of Nomad")
	by(api.CodeTaken, w2, on(w.attachment(t, 8, 1, 80), "consul-2"), "that is an endpoint of node aws1/w1")
	other := w.attachment(t, 1, 0, 10)
	other.Attached.Name = "db2"
	by(api.CodeTaken, w1, other, `that is "db", attached as Consul service "db"`)
	plain := w.attachment(t, 1, 0, 10)
	plain.Attached = nil
	by(api.CodeNotPlaced, w1, plain, "Nomad knows no allocation")
	must.Eq(t, first, c.table.get(kvkey.Admission{Node: w1.id, Endpoint: allocation(1)}).admission)

	// With Nomad away, a node takes the ID of an allocation before that is admitted: whoever Nomad
	// placed it with gets it, and the other one not again.
	scheduler.mu.Lock()
	scheduler.err = errors.New("connection refused")
	scheduler.mu.Unlock()
	squat := on(w.attachment(t, 7, 1, 70), "consul-2")
	w2.admitted(t, squat)
	scheduler.mu.Lock()
	scheduler.err = nil
	scheduler.mu.Unlock()
	_, err = w1.Admit(ctx, request4(7, 70))
	must.NoError(t, err)
	must.False(t, c.table.get(kvkey.Admission{Node: w2.id, Endpoint: allocation(7)}).live(time.Now()))
	by(api.CodeTaken, w2, squat, "that is an endpoint of node aws1/w1")

	// Its pool bounds how many it has.
	full := map[bool]int{}
	for host := 100; host < 104; host++ {
		req := w.attachment(t, 100+host, 0, byte(host))
		req.Attached.Name = fmt.Sprint("db-", host)
		_, err := w1.Admit(ctx, req)
		full[err == nil]++
	}
	must.Eq(t, 4, full[true])
	by(api.CodeAddress, w1, w.attachment(t, 300, 0, 100), "is in use by endpoint")
	by(api.CodeAddress, w1, w.attachment(t, 300, 1, 100), "is not in pool")

	// A node that was removed.
	_, err = c.operator.RemoveNode(ctx, w2.id, "stolen")
	must.NoError(t, err)
	_, err = w2.Admit(ctx, on(w.attachment(t, 400, 1, 40), "consul-2"))
	code(t, api.CodeRemoved, err)
}

// Whose a Consul agent is.
func testOwnAgents(t *testing.T, w *world) {
	scheduler := &fakeScheduler{machines: []Machine{{ID: "00000000-0000-4000-8000-0000000000a1", Addresses: []netip.Addr{netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("192.168.7.1")}}}}
	c, ctx := w.fresh(t, scheduler), t.Context()
	w1, w2 := w.node(t, c, "w1"), w.node(t, c, "w2")
	_, err := w1.RegisterNode(ctx, api.NodeRequest{Underlay: netip.MustParseAddr("10.0.0.1"), NomadNode: scheduler.machines[0].ID})
	must.NoError(t, err)
	w2.register(t, "10.0.0.2")
	_, err = c.operator.Apply(ctx, api.GraphRequest{Domains: domains(attachDomain("shop")), Bindings: []fabric.Binding{attaches("shop", onNode("w*", "db"))}})
	must.NoError(t, err)
	for n, tc := range []struct {
		name, address string
		meta          map[string]string
		refused       string
	}{
		{"its address", "10.0.0.1", nil, ""},
		{"its address, whatever else is said", "10.0.0.1", map[string]string{metaOfNode: "aws1/w2"}, ""},
		{"another address of its machine", "192.168.7.1", nil, ""},
		{"by its metadata", "172.16.3.4", map[string]string{metaOfNode: "aws1/w1"}, ""},
		{"another node's address", "10.0.0.2", map[string]string{metaOfNode: "aws1/w1"}, "10.0.0.2 is the address of node aws1/w2"},
		{"another node's by metadata", "172.16.3.4", map[string]string{metaOfNode: "aws1/w2"}, `its metadata sif-node says "aws1/w2"`},
		{"nobody's", "172.16.3.4", nil, `set node_meta { sif-node = "aws1/w1" } in the configuration of the Consul agent`},
		{"a name", "db.example.com", nil, "its addresses are []"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			agent := fmt.Sprint("agent-", n)
			w.inCatalog(t, agent, tc.address, "db", tc.meta)
			req := w.attachment(t, 50+n, 0, byte(50+n))
			req.Attached.ConsulNode = agent
			if tc.refused == "" {
				must.Eq(t, []fabric.Check{{Protocol: fabric.TCP, Port: 9090}}, w1.admitted(t, req).Checks)
				return
			}
			_, err := w1.Admit(ctx, req)
			must.StrContains(t, code(t, api.CodeElsewhere, err).Message, tc.refused)
		})
	}
}

// The class of a node is that of the Nomad node to which it is bound.
func testAttachedByClass(t *testing.T, w *world) {
	scheduler := &fakeScheduler{machines: []Machine{{ID: "00000000-0000-4000-8000-0000000000a1", Class: "database", Addresses: []netip.Addr{netip.MustParseAddr("127.0.0.1")}}}}
	c, ctx := w.fresh(t, scheduler), t.Context()
	w1, w2 := w.node(t, c, "w1"), w.node(t, c, "w2")
	w1.register(t, "127.0.0.1")
	w2.register(t, "10.0.0.2")
	scope := fabric.AttachScope{Services: []string{"db"}, NodeClass: "data*"}
	_, err := c.operator.Apply(ctx, api.GraphRequest{Domains: domains(attachDomain("shop")), Bindings: []fabric.Binding{attaches("shop", scope)}})
	must.NoError(t, err)
	w.inConsul(t, consulapi.AgentServiceRegistration{Name: "db", Port: 5432})
	w.inCatalog(t, "consul-2", "10.0.0.2", "db", nil)
	_, err = w1.Admit(ctx, w.attachment(t, 1, 0, 10))
	code(t, api.CodeBeyond, err) // not bound yet
	_, err = w1.RegisterNode(ctx, api.NodeRequest{Underlay: netip.MustParseAddr("127.0.0.1"), NomadNode: scheduler.machines[0].ID})
	must.NoError(t, err)
	w1.admitted(t, w.attachment(t, 1, 0, 10))
	second := w.attachment(t, 2, 1, 20)
	second.Attached.ConsulNode = "consul-2"
	_, err = w2.Admit(ctx, second)
	code(t, api.CodeBeyond, err)

	// Without Nomad, the class of the node is not known, and nothing is said about the binding.
	scheduler.mu.Lock()
	scheduler.err = errors.New("connection refused")
	scheduler.mu.Unlock()
	_, err = w1.Admit(ctx, w.attachment(t, 3, 0, 30))
	must.StrContains(t, code(t, api.CodeNomad, err).Message, "connection refused")
	must.Eq(t, "shop/db", w1.admitted(t, w.attachment(t, 1, 0, 10)).Service.String()) // as it was
	_, err = c.operator.Apply(ctx, api.GraphRequest{Bindings: []fabric.Binding{attaches("shop", fabric.AttachScope{Services: []string{"db"}, NodeClass: "web"})}})
	must.NoError(t, err)
	_, err = w1.Admit(ctx, w.attachment(t, 1, 0, 10))
	code(t, api.CodeBeyond, err)
}

// A registration is bounded, whatever is in Consul.
func TestRegistrationOf(t *testing.T) {
	service := func(id string, port int) *consulapi.AgentService {
		return &consulapi.AgentService{ID: id, Service: "db", Port: port, Tags: []string{id}}
	}
	check := func(id, kind string, d consulapi.HealthCheckDefinition) *consulapi.HealthCheck {
		return &consulapi.HealthCheck{ServiceID: id, Type: kind, Definition: d}
	}
	instances := instancesOf([]*consulapi.AgentService{service("a", 1), service("b", 2)}, "b")
	must.Len(t, 1, instances)
	must.Eq(t, "b", instances[0].ID)
	must.Len(t, 2, instancesOf([]*consulapi.AgentService{service("a", 1), service("b", 2)}, "c"))
	type kinds = consulapi.HealthCheckDefinition
	for _, tc := range []struct {
		name  string
		check *consulapi.HealthCheck
		port  int
		want  []fabric.Check
	}{
		{"of an agent", check("a", "tcp", kinds{}), 5432, []fabric.Check{{Protocol: fabric.TCP, Port: 5432}}},
		{"http", check("a", "http", kinds{HTTP: "http://[::1]:8080/x:1"}), 5432, []fabric.Check{{Protocol: fabric.TCP, Port: 8080}}},
		{"http without a port", check("a", "http", kinds{HTTP: "https://db/health"}), 5432, []fabric.Check{{Protocol: fabric.TCP, Port: 5432}}},
		{"tcp", check("a", "TCP", kinds{TCP: "127.0.0.1:80"}), 0, []fabric.Check{{Protocol: fabric.TCP, Port: 80}}},
		{"grpc", check("a", "grpc", kinds{GRPC: "127.0.0.1:81/svc"}), 0, []fabric.Check{{Protocol: fabric.TCP, Port: 81}}},
		{"h2ping", check("a", "h2ping", kinds{}), 82, []fabric.Check{{Protocol: fabric.TCP, Port: 82}}},
		{"udp", check("a", "udp", kinds{UDP: "127.0.0.1:53"}), 1, []fabric.Check{{Protocol: fabric.UDP, Port: 53}}},
		{"ttl", check("a", "ttl", kinds{}), 5432, nil},
		{"no port", check("a", "tcp", kinds{}), 0, nil},
		{"a port that is none", check("a", "tcp", kinds{TCP: "x:70000"}), 70000, nil},
		{"of another instance", check("b", "tcp", kinds{}), 5432, nil},
		{"of the node", check("", "tcp", kinds{}), 5432, nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r := registrationOf("dc1", []*consulapi.AgentService{service("a", tc.port)}, consulapi.HealthChecks{tc.check, tc.check})
			must.Eq(t, tc.want, r.Checks)
			text, err := json.Marshal(r)
			must.NoError(t, err)
			var back registration
			must.NoError(t, json.Unmarshal(text, &back))
			must.Eq(t, r.hash(), back.hash())
		})
	}
	var many consulapi.HealthChecks
	for n := range 100 {
		many = append(many, check("a", "tcp", kinds{TCP: fmt.Sprint("x:", n+1)}))
	}
	must.Len(t, maxInstances, registrationOf("dc1", []*consulapi.AgentService{service("a", 1)}, many).Checks)
	must.True(t, (*registration)(nil).hash().IsZero())
}

// What the controller stores of a registration has the hash that was signed, however it is written.
func TestRegistrationIsKept(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		text := rapid.String()
		r := &registration{Datacenter: text.Draw(t, "datacenter"), NodeClass: text.Draw(t, "class")}
		for range rapid.IntRange(0, 2).Draw(t, "services") {
			r.Services = append(r.Services, fabric.WorkloadService{
				Name: text.Draw(t, "name"), Tags: rapid.SliceOfN(text, 0, 2).Draw(t, "tags"), Meta: rapid.MapOfN(text, text, 0, 2).Draw(t, "meta"),
			})
		}
		g := grant{Registered: r, admission: fabric.Admission{Registration: r.hash()}}
		stored, err := json.Marshal(g)
		must.NoError(t, err)
		back := grant{admission: g.admission}
		must.NoError(t, json.Unmarshal(stored, &back))
		back.bound(time.Now(), fabric.Node{})
		must.NotNil(t, back.Registered)
		other := grant{Registered: back.Registered}
		other.bound(time.Now(), fabric.Node{})
		must.Nil(t, other.Registered)
	})
}
