// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package catalog

import (
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	consulapi "github.com/hashicorp/consul/api"
	"github.com/hashicorp/go-hclog"
	"github.com/shoenig/test/must"

	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/internal/setup/setuptest"
	"github.com/sif-project/sif/internal/testhost"
)

// ids returns the IDs of the endpoints that are registered in the Consul agent.
func ids(t *testing.T, consul *consulapi.Client) []string {
	t.Helper()
	services, err := consul.Agent().Services()
	must.NoError(t, err)
	list := slices.Sorted(maps.Keys(services))
	return slices.DeleteFunc(list, func(id string) bool { return !strings.HasPrefix(id, "sif-") })
}

func TestRegistrar(t *testing.T) {
	t.Parallel()
	_, consul := testhost.Consul(t)
	s := newSigner(t)
	w := &wanted{}
	first, second := s.register(t, admit(1, web)), s.register(t, admit(2, db))
	w.set(first, second)

	// An endpoint of another node, and a service that only has an ID like ours.
	other := admit(9, web)
	other.Node = "aws1-w2"
	foreign, err := s.register(t, other).service(nil, "")
	must.NoError(t, err)
	must.NoError(t, consul.Agent().ServiceRegister(foreign))
	must.NoError(t, consul.Agent().ServiceRegister(&consulapi.AgentServiceRegistration{ID: "sif-aws1-by-hand", Name: "by-hand"}))
	kept := []string{foreign.ID, "sif-aws1-by-hand"}
	expect := func(ids ...string) []string {
		list := slices.Concat(ids, kept)
		slices.Sort(list)
		return list
	}

	// A registration of an earlier run that is not wanted any more.
	stale, err := s.register(t, admit(3, web)).service(nil, "")
	must.NoError(t, err)
	must.NoError(t, consul.Agent().ServiceRegister(stale))

	r, reported := startRegistrar(t, consul, s, w)
	eventually(t, "registered", func() bool { return slices.Equal(ids(t, consul), expect(first.id(), second.id())) })
	record := func() *consulapi.CatalogService {
		list, _, err := consul.Catalog().Service("sif-app--web", "", nil)
		must.NoError(t, err)
		for _, c := range list {
			if c.ServiceID == first.id() {
				return c
			}
		}
		return nil
	}
	eventually(t, "in the catalog", func() bool { return record() != nil })
	c := record()
	must.Eq(t, "100.64.1.1", c.ServiceAddress)
	must.Eq(t, "100.64.1.1", c.ServiceTaggedAddresses["lan_ipv4"].Address)
	must.Eq(t, "fd5f:1::1", c.ServiceTaggedAddresses["lan_ipv6"].Address)
	must.Eq(t, "aws1-w1", c.ServiceMeta["sif-node"])
	must.Eq(t, "app/web", c.ServiceMeta["sif-service"])
	must.MapContainsKey(t, c.ServiceMeta, "sif-admission-1")
	signed, err := decodeAdmission(joined(c.ServiceMeta, metaAdmission))
	must.NoError(t, err)
	must.Eq(t, first.Signed, signed)

	// Without a change nothing is written.
	compare := func() {
		n, _ := reported.last()
		r.Refresh()
		eventually(t, "compared", func() bool { m, err := reported.last(); must.NoError(t, err); return m > n })
	}
	compare()
	must.Eq(t, c.ModifyIndex, record().ModifyIndex)

	// A record that was altered in the Consul agent is repaired.
	altered, err := first.service(nil, "")
	must.NoError(t, err)
	altered.Address = "100.64.7.7"
	must.NoError(t, consul.Agent().ServiceRegister(altered))
	compare()
	eventually(t, "put right", func() bool { return record().ServiceAddress == "100.64.1.1" })

	// A renewed admission replaces the old one.
	renewed := first.Admission
	renewed.Expires = renewed.Expires.Add(time.Hour)
	first = s.register(t, renewed)
	w.set(first)
	r.Refresh()
	eventually(t, "deregistered", func() bool { return slices.Equal(ids(t, consul), expect(first.id())) })
	eventually(t, "renewed", func() bool {
		signed, err := decodeAdmission(joined(record().ServiceMeta, metaAdmission))
		return err == nil && string(signed.Payload) == string(first.Signed.Payload)
	})

	// An endpoint that cannot be registered is reported, and the others are registered.
	fat := admit(4, web)
	for range 2000 {
		fat.Roles.Originate = append(fat.Roles.Originate, fabric.Ref{Domain: "app", Name: "contract"})
	}
	w.set(s.register(t, fat), first, second)
	r.Refresh()
	eventually(t, "reported", func() bool { _, err := reported.last(); return err != nil })
	_, err = reported.last()
	must.ErrorContains(t, err, allocation(4))
	must.Eq(t, expect(first.id(), second.id()), ids(t, consul))
}

// While Consul cannot be reached nothing is deregistered. Changes are written later.
func TestRegistrarConsulAway(t *testing.T) {
	t.Parallel()
	server, consul := testhost.Consul(t)
	s := newSigner(t)
	w := &wanted{}
	first, second := s.register(t, admit(1, web)), s.register(t, admit(2, db))
	w.set(first)
	r, reported := startRegistrar(t, consul, s, w)
	eventually(t, "registered", func() bool { return slices.Equal(ids(t, consul), []string{first.id()}) })

	must.NoError(t, server.Pause())
	w.set(first, second)
	r.Refresh()
	eventually(t, "reported", func() bool { _, err := reported.last(); return err != nil })
	must.NoError(t, server.Resume())
	eventually(t, "registered", func() bool { return slices.Equal(ids(t, consul), []string{first.id(), second.id()}) })
	eventually(t, "recovered", func() bool { _, err := reported.last(); return err == nil })
}

// The endpoint has the health of its Nomad services from their registration until the endpoint
// ends.
func TestRegistrarMirrorsNomad(t *testing.T) {
	t.Parallel()
	_, consul := testhost.Consul(t)
	s := newSigner(t)
	w := &wanted{}
	first := s.register(t, admit(1, web))
	w.set(first, s.register(t, admit(2, web)))
	startRegistrar(t, consul, s, w)
	h := startHealth(t, consul, s, web)
	is := func(n int, want bool) func() bool {
		return func() bool { healthy, known := h.Healthy(allocation(n)); return known && healthy == want }
	}
	eventually(t, "healthy without checks", is(1, true))
	eventually(t, "healthy without checks", is(2, true))
	nomadService(t, consul, allocation(1), consulapi.HealthCritical)
	eventually(t, "unhealthy with its Nomad service", is(1, false))
	setCheck(t, consul, allocation(1), consulapi.HealthPassing)
	eventually(t, "healthy with its Nomad service", is(1, true))
	setCheck(t, consul, allocation(1), consulapi.HealthWarning)
	time.Sleep(200 * time.Millisecond)
	eventually(t, "a warning is not critical", is(1, true))
	setCheck(t, consul, allocation(1), consulapi.HealthPassing)

	// Nomad withdraws the service before it stops the tasks.
	must.NoError(t, consul.Agent().ServiceDeregister("_nomad-task-"+allocation(1)+"-group-proxy-web-http"))
	eventually(t, "unhealthy when its Nomad service has gone", is(1, false))
	time.Sleep(500 * time.Millisecond) // by now the registrar has seen it too
	must.True(t, is(1, false)(), must.Sprint("healthy again while it ends"))
	nomadService(t, consul, allocation(1), consulapi.HealthPassing)
	eventually(t, "healthy when its Nomad service is back", is(1, true))
	must.True(t, is(2, true)(), must.Sprint("the other endpoint has no part in it"))
}

func TestChecks(t *testing.T) {
	r := NewRegistrar(RegistrarConfig{})
	start := time.Now()
	for _, tc := range []struct {
		what          string
		nomad, before []string
		at            time.Duration
		want          []string
	}{
		{"nothing there yet", nil, nil, 0, nil},
		{"it appears", []string{"a", "b"}, nil, 0, []string{"a", "b"}},
		{"one of two goes: an update of the job", []string{"b"}, []string{"b", "a"}, 0, []string{"b"}},
		{"the last goes", nil, []string{"b"}, time.Second, []string{checkAbsent}},
		{"still gone", nil, []string{checkAbsent}, linger, []string{checkAbsent}},
		{"it comes back", []string{"b"}, []string{checkAbsent}, linger, []string{"b"}},
		{"and goes", nil, []string{"b"}, 2 * linger, []string{checkAbsent}},
		{"for good", nil, []string{checkAbsent}, 3 * linger, nil},
	} {
		must.Eq(t, tc.want, r.checks(Registration{Admission: admit(1, web)}, tc.nomad, tc.before, start.Add(tc.at)), must.Sprint(tc.what))
	}
}

// A node's token is sufficient for this, but not for other services, and not for a word about an
// endpoint of another node.
func TestNodeToken(t *testing.T) {
	t.Parallel()
	const management = "11111111-1111-1111-1111-111111111111"
	server, _ := testhost.Consul(t, `acl {
  enabled = true
  default_policy = "deny"
  tokens {
    initial_management = "`+management+`"
    agent = "`+management+`"
  }
}`)
	client := func(token string) *consulapi.Client {
		c, err := consulapi.NewClient(&consulapi.Config{Address: server.Address, Token: token})
		must.NoError(t, err)
		return c
	}
	manager := client(management)
	own, other := fabric.NodeID{Zone: "aws1", Name: "aws1-w1"}, fabric.NodeID{Zone: "aws1", Name: "aws1-w2"}
	tokens := setuptest.Consul(t, manager, setuptest.Settings("test", "test"),
		setuptest.Node{NodeID: own, Kind: fabric.KindWorkload}, setuptest.Node{NodeID: other, Kind: fabric.KindWorkload})
	node := client(tokens.Nodes[own])
	s := newSigner(t)
	w := &wanted{}
	dead := s.register(t, admit(2, web))
	w.set(s.register(t, admit(1, web)), dead)
	_, reported := startRegistrar(t, node, s, w)
	h := startHealth(t, node, s, web)
	is := func(n int, want bool) func() bool {
		return func() bool { healthy, known := h.Healthy(allocation(n)); return known && healthy == want }
	}
	eventually(t, "healthy", is(1, true))
	before := recordOf(t, node, allocation(2))
	nomadService(t, manager, allocation(1), consulapi.HealthCritical)
	nomadService(t, manager, allocation(2), consulapi.HealthCritical)
	eventually(t, "unhealthy", is(1, false))
	eventually(t, "dead", is(2, false))
	setCheck(t, manager, allocation(1), consulapi.HealthPassing)
	eventually(t, "healthy again", is(1, true))
	_, err := reported.last()
	must.NoError(t, err)
	must.Error(t, node.Agent().ServiceRegister(&consulapi.AgentServiceRegistration{Name: "something-else"}))

	// The token of another node, which may write every service named sif-*.
	thief := client(tokens.Nodes[other])
	attack := func(what string, n int, alter func(*consulapi.CatalogRegistration)) {
		t.Helper()
		r := recordOf(t, node, allocation(n))
		c := &consulapi.CatalogRegistration{Node: r.Node, Address: r.Address, SkipNodeUpdate: true, Service: &consulapi.AgentService{
			ID: r.ServiceID, Service: r.ServiceName, Address: r.ServiceAddress, Meta: maps.Clone(r.ServiceMeta), TaggedAddresses: r.ServiceTaggedAddresses,
		}}
		alter(c)
		_, err := thief.Catalog().Register(c, nil)
		must.NoError(t, err, must.Sprint(what))
	}
	refuted := func(what string) {
		t.Helper()
		time.Sleep(300 * time.Millisecond) // it streams within a few
		must.True(t, is(1, true)(), must.Sprint(what, ": the healthy endpoint"))
		must.True(t, is(2, false)(), must.Sprint(what, ": the dead endpoint"))
	}
	status := func(c *consulapi.CatalogRegistration, id, status string) {
		c.Checks = append(c.Checks, &consulapi.HealthCheck{Node: c.Node, CheckID: id, Name: id, ServiceID: c.Service.ID, Status: status})
	}
	attack("a check", 1, func(c *consulapi.CatalogRegistration) { status(c, "thief", consulapi.HealthCritical) })
	refuted("a check")
	mirror := dead.id() + ":_nomad-task-" + allocation(2) + "-group-proxy-web-http"
	attack("its check", 2, func(c *consulapi.CatalogRegistration) { status(c, mirror, consulapi.HealthPassing) })
	refuted("its check")
	forWord := func(n int, by string, consul string, healthy bool) func(c *consulapi.CatalogRegistration) {
		return func(c *consulapi.CatalogRegistration) {
			text, err := word{Endpoint: allocation(n), Consul: consul, Healthy: healthy, At: time.Now().Add(time.Hour)}.sign(s.node(by))
			must.NoError(t, err)
			split(c.Service.Meta, metaWord, text)
		}
	}
	attack("a word of its own", 1, forWord(1, "aws1-w2", before.Node, false))
	refuted("a word of its own")
	attack("a word of its own", 2, forWord(2, "aws1-w2", before.Node, true))
	refuted("a word of its own")
	attack("an old word", 2, func(c *consulapi.CatalogRegistration) { c.Service.Meta = before.ServiceMeta })
	refuted("an old word")
	attack("no word", 1, func(c *consulapi.CatalogRegistration) {
		maps.DeleteFunc(c.Service.Meta, func(key, _ string) bool { return strings.HasPrefix(key, metaWord) })
	})
	refuted("no word")
	_, err = thief.Catalog().Deregister(&consulapi.CatalogDeregistration{Node: before.Node, ServiceID: dead.id()}, nil)
	must.NoError(t, err)
	refuted("no record")
}

// recordOf returns the record of an endpoint of service web in the catalog.
func recordOf(t *testing.T, consul *consulapi.Client, endpoint string) (record *consulapi.CatalogService) {
	t.Helper()
	eventually(t, "in the catalog", func() bool {
		list, _, err := consul.Catalog().Service("sif-app--web", "", nil)
		must.NoError(t, err)
		i := slices.IndexFunc(list, func(c *consulapi.CatalogService) bool { return c.ServiceID == fabric.CatalogID("aws1", endpoint) })
		if i >= 0 {
			record = list[i]
		}
		return i >= 0
	})
	return record
}

// An endpoint whose job declares health checks is healthy only while its services are registered.
func TestRegistrarAwaitsChecks(t *testing.T) {
	t.Parallel()
	_, consul := testhost.Consul(t)
	s := newSigner(t)
	w := &wanted{}
	checked := admit(1, web)
	checked.HealthChecked = true
	w.set(s.register(t, checked))
	r, _ := startRegistrar(t, consul, s, w)
	h := startHealth(t, consul, s, web)
	is := func(want bool) func() bool {
		return func() bool { healthy, known := h.Healthy(allocation(1)); return known && healthy == want }
	}
	eventually(t, "not healthy before its check is there", is(false))
	id := nomadService(t, consul, allocation(1), consulapi.HealthCritical)
	time.Sleep(300 * time.Millisecond)
	must.True(t, is(false)(), must.Sprint("healthy before its check passed"))
	setCheck(t, consul, allocation(1), consulapi.HealthPassing)
	eventually(t, "healthy", is(true))
	must.NoError(t, consul.Agent().ServiceDeregister(id))
	eventually(t, "not healthy while its task waits", is(false))
	must.Eq(t, []string{checkAbsent}, r.checks(Registration{Admission: checked}, nil, []string{checkAbsent}, time.Now().Add(10*linger)))

	// What people put into maintenance is not healthy.
	nomadService(t, consul, allocation(1), consulapi.HealthPassing)
	eventually(t, "healthy again", is(true))
	must.NoError(t, consul.Agent().EnableServiceMaintenance(fabric.CatalogID("aws1", allocation(1)), "by the test"))
	eventually(t, "in maintenance", is(false))
	must.NoError(t, consul.Agent().DisableServiceMaintenance(fabric.CatalogID("aws1", allocation(1))))
	eventually(t, "out of maintenance", is(true))
}

// A word changes only with the health or the certificate, and later words have later times.
func TestWordIsRenewed(t *testing.T) {
	s := newSigner(t)
	node := s.node("aws1-w1")
	start := time.Now().UTC().Truncate(time.Millisecond)
	w := word{Endpoint: allocation(1), Consul: "n1", Healthy: true, At: start}
	first, err := w.renew("", node)
	must.NoError(t, err)
	w.At = start.Add(time.Minute)
	same, err := w.renew(first, node)
	must.NoError(t, err)
	must.Eq(t, first, same)
	w.At, w.Healthy = start.Add(-time.Hour), false // the clock was set back
	second, err := w.renew(first, node)
	must.NoError(t, err)
	_, got, err := decodeWord(second)
	must.NoError(t, err)
	must.Eq(t, start.Add(time.Millisecond), got.At)
	must.False(t, got.Healthy)
	rotated, err := w.renew(second, s.node("aws1-w1"))
	must.NoError(t, err)
	must.NotEq(t, second, rotated)
}

// BenchmarkReconcile compares the 250 endpoints of a full node without a change.
func BenchmarkReconcile(b *testing.B) {
	_, consul := testhost.Consul(b)
	s := newSigner(b)
	w := &wanted{}
	for n := range 250 {
		w.list = append(w.list, s.register(b, admit(n, web)))
	}
	r := NewRegistrar(RegistrarConfig{Consul: consul, Zone: "aws1", Node: "aws1-w1", Identity: s.node("aws1-w1"), Want: w.get, Log: hclog.NewNullLogger()})
	must.NoError(b, r.reconcile(b.Context(), time.Now()))
	for b.Loop() {
		must.NoError(b, r.reconcile(b.Context(), time.Now()))
	}
}

// A workload outside Nomad has the health of the registrations that it stands for, and none without
// them.
func TestRegistrarFollowsConsulServices(t *testing.T) {
	t.Parallel()
	_, consul := testhost.Consul(t)
	s := newSigner(t)
	w := &wanted{}
	any, one := s.register(t, admit(1, db)), s.register(t, admit(2, db))
	any.Source, one.Source = Source{Service: "postgres"}, Source{Service: "postgres", ID: "pg2"}
	w.set(any, one)
	r, _ := startRegistrar(t, consul, s, w)
	h := startHealth(t, consul, s, db)
	is := func(n int, want bool) func() bool {
		return func() bool { healthy, known := h.Healthy(allocation(n)); return known && healthy == want }
	}
	registered := func(o Source, want bool) {
		t.Helper()
		found, err := r.Registered(t.Context(), []Source{o})
		must.NoError(t, err)
		must.Eq(t, want, found[o])
	}
	register := func(id, status string) {
		t.Helper()
		must.NoError(t, consul.Agent().ServiceRegister(&consulapi.AgentServiceRegistration{ID: id, Name: "postgres",
			Check: &consulapi.AgentServiceCheck{CheckID: "check " + id, TTL: "1h", Status: status}}))
		r.Refresh()
	}
	eventually(t, "not healthy before it is registered", is(1, false))
	registered(any.Source, false)
	register("pg1", consulapi.HealthPassing)
	eventually(t, "healthy when it is registered", is(1, true))
	eventually(t, "the other one's is not there", is(2, false))
	registered(any.Source, true)
	registered(one.Source, false)
	register("pg2", consulapi.HealthCritical)
	eventually(t, "all registrations of the service count", is(1, false))
	registered(one.Source, true)
	must.NoError(t, consul.Agent().PassTTL("check pg2", ""))
	must.NoError(t, consul.Agent().FailTTL("check pg1", ""))
	eventually(t, "just the registration that was named counts", is(2, true))
	eventually(t, "any that fails", is(1, false))
	must.NoError(t, consul.Agent().ServiceDeregister("pg2"))
	r.Refresh()
	eventually(t, "not healthy without its registration", is(2, false))
}

// What the token may not read is not taken for gone.
func TestRegisteredNeedsToSeeAll(t *testing.T) {
	t.Parallel()
	const management = "11111111-1111-1111-1111-111111111111"
	server, _ := testhost.Consul(t, `acl {
  enabled = true
  default_policy = "deny"
  tokens {
    initial_management = "`+management+`"
    agent = "`+management+`"
  }
}`)
	manager, err := consulapi.NewClient(&consulapi.Config{Address: server.Address, Token: management})
	must.NoError(t, err)
	must.NoError(t, manager.Agent().ServiceRegister(&consulapi.AgentServiceRegistration{Name: "postgres"}))
	id := fabric.NodeID{Zone: "aws1", Name: "aws1-w1"}
	tokens := setuptest.Consul(t, manager, setuptest.Settings("test", "test"), setuptest.Node{NodeID: id, Kind: fabric.KindWorkload})
	o, absent := Source{Service: "postgres"}, Source{Service: "mysql"}
	for token, sees := range map[string]bool{tokens.Nodes[id]: true, "": false} {
		if token == "" {
			made, _, err := manager.ACL().TokenCreate(&consulapi.ACLToken{Description: "sees nothing"}, nil)
			must.NoError(t, err)
			token = made.SecretID
		}
		client, err := consulapi.NewClient(&consulapi.Config{Address: server.Address, Token: token})
		must.NoError(t, err)
		found, err := NewRegistrar(RegistrarConfig{Consul: client}).Registered(t.Context(), []Source{o, absent})
		if !sees {
			must.ErrorContains(t, err, "look for the registration of Consul service")
			continue
		}
		must.NoError(t, err)
		must.Eq(t, map[Source]bool{o: true, absent: false}, found)
	}
}

// An endpoint is not healthy while its workload cannot be called, whatever its checks say. What is
// unknown is as the record said before, also to a registrar that starts.
func TestRegistrarFollowsLife(t *testing.T) {
	t.Parallel()
	_, consul := testhost.Consul(t)
	s := newSigner(t)
	w := &wanted{}
	reg := s.register(t, admit(1, web))
	r := NewRegistrar(RegistrarConfig{Consul: consul, Zone: "aws1", Node: "aws1-w1", Identity: s.node("aws1-w1"), Want: w.get, Report: func(error) {}, Log: hclog.NewNullLogger()})
	h := startHealth(t, consul, s, web)
	is := func(n int, want bool) {
		t.Helper()
		eventually(t, "it is said", func() bool { healthy, known := h.Healthy(allocation(n)); return known && healthy == want })
	}
	said := func(n int, why string) {
		t.Helper()
		got, known := r.Said(allocation(n))
		must.True(t, known)
		must.Eq(t, Word{why == "", why}, got)
	}
	lives := func(life Life) {
		t.Helper()
		reg.Life = life
		w.set(reg)
		must.NoError(t, r.reconcile(t.Context(), time.Now()))
	}
	checked := func(want bool) {
		t.Helper()
		entries, _, err := consul.Health().Service(fabric.CatalogName(web), "", false, nil)
		must.NoError(t, err)
		must.Len(t, 1, entries)
		must.Eq(t, want, entries[0].Checks.AggregatedStatus() == consulapi.HealthPassing)
	}
	unknown := "is not known yet: the controller has not said what it is like in Nomad"
	lives(Life{Unknown: true})
	is(1, false)
	said(1, unknown)
	lives(Life{Waits: `waits for its start: task "a"`})
	is(1, false)
	said(1, `waits for its start: task "a"`)
	eventually(t, "Consul's own users see it", func() bool {
		entries, _, err := consul.Health().Service(fabric.CatalogName(web), "", false, nil)
		return err == nil && len(entries) == 1 && entries[0].Checks.AggregatedStatus() == consulapi.HealthCritical
	})
	lives(Life{})
	is(1, true)
	said(1, "")
	checked(true)
	lives(Life{Unknown: true})
	said(1, "")
	lives(Life{Waits: strings.Repeat("ä", maxWaits)})
	is(1, false)

	// Another agent begins, and the controller is away.
	again := NewRegistrar(r.RegistrarConfig)
	lives(Life{Waits: "is being stopped"})
	reg.Life = Life{Unknown: true}
	w.set(reg)
	must.NoError(t, again.reconcile(t.Context(), time.Now()))
	got, _ := again.Said(allocation(1))
	must.Eq(t, Word{false, "is being stopped"}, got)

	// Both count.
	id := nomadService(t, consul, allocation(1), consulapi.HealthCritical)
	lives(Life{})
	got, _ = r.Said(allocation(1))
	must.False(t, got.Healthy)
	must.StrContains(t, got.Why, "has not passed check")
	must.NoError(t, consul.Agent().ServiceDeregister(id))
}
