// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package catalog

import (
	"fmt"
	"maps"
	"testing"
	"time"

	consulapi "github.com/hashicorp/consul/api"
	"github.com/hashicorp/go-hclog"
	"github.com/shoenig/test/must"

	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/internal/testhost"
)

// write puts a record into the catalog on a Consul node without an agent, which therefore does not
// repair it, with the word of node aws1-w1 that the endpoint is as healthy as the checks.
func write(t *testing.T, consul *consulapi.Client, by signer, node string, reg Registration, alter func(*consulapi.AgentService), checks ...*consulapi.HealthCheck) {
	t.Helper()
	w := word{Endpoint: reg.Admission.Endpoint, Consul: node, Healthy: true, At: time.Now().UTC()}
	for _, c := range checks {
		w.Healthy = w.Healthy && (c.ServiceID == "" || c.Status != consulapi.HealthCritical)
	}
	text, err := w.sign(by.node("aws1-w1"))
	must.NoError(t, err)
	forge(t, consul, node, reg, text, alter, checks...)
}

// forge puts a record into the catalog, as everybody can whose token may write services named
// sif-*.
func forge(t *testing.T, consul *consulapi.Client, node string, reg Registration, health string, alter func(*consulapi.AgentService), checks ...*consulapi.HealthCheck) {
	t.Helper()
	s, err := reg.service(nil, health)
	must.NoError(t, err)
	record := &consulapi.AgentService{ID: s.ID, Service: s.Name, Address: s.Address, Meta: s.Meta, TaggedAddresses: s.TaggedAddresses}
	if alter != nil {
		alter(record)
	}
	for _, c := range checks {
		c.Node = node
		if c.ServiceID != "" {
			c.ServiceID = record.ID
		}
	}
	_, err = consul.Catalog().Register(&consulapi.CatalogRegistration{
		Node: node, Address: "192.0.2.1", Service: record, Checks: checks,
	}, nil)
	must.NoError(t, err)
}

func serviceCheck(service, status string) *consulapi.HealthCheck {
	return &consulapi.HealthCheck{CheckID: "check" + service, Name: "check", ServiceID: service, Status: status}
}

func TestHealth(t *testing.T) {
	t.Parallel()
	_, consul := testhost.Consul(t)
	s := newSigner(t)
	h := startHealth(t, consul, s, web)
	reg := func(n int) Registration { return s.register(t, admit(n, web)) }
	id := func(n int) string { return reg(n).id() }
	serf := &consulapi.HealthCheck{CheckID: "serfHealth", Name: "Serf", Status: consulapi.HealthCritical}

	write(t, consul, s, "n1", reg(1), nil)
	write(t, consul, s, "n1", reg(2), nil, serviceCheck(id(2), consulapi.HealthPassing))
	write(t, consul, s, "n1", reg(3), nil, serviceCheck(id(3), consulapi.HealthWarning))
	write(t, consul, s, "n1", reg(4), nil, serviceCheck(id(4), consulapi.HealthCritical))
	write(t, consul, s, "n2", reg(5), nil, serf)
	write(t, consul, s, "n1", reg(6), nil, &consulapi.HealthCheck{CheckID: "_service_maintenance:x", Name: "x", ServiceID: id(6), Status: consulapi.HealthCritical})
	// The same record twice: on its node, and forged on another.
	write(t, consul, s, "n1", reg(7), nil)
	record := func(n int) *consulapi.CatalogService {
		list, _, err := consul.Catalog().Service("sif-app--web", "", nil)
		must.NoError(t, err)
		for _, c := range list {
			if c.ServiceID == id(n) && c.Node == "n1" {
				return c
			}
		}
		return nil
	}
	forge(t, consul, "n3", reg(7), joined(record(7).ServiceMeta, metaWord), nil, serviceCheck(id(7), consulapi.HealthCritical))
	// A service that is not watched.
	write(t, consul, s, "n1", s.register(t, admit(8, db)), nil)

	type health struct{ healthy, known bool }
	is := func(n int, want health) func() bool {
		return func() bool { healthy, known := h.Healthy(allocation(n)); return health{healthy, known} == want }
	}
	eventually(t, "read", is(7, health{true, true}))
	for n, want := range map[int]health{
		1: {true, true}, 2: {true, true}, 3: {true, true}, 4: {false, true}, 5: {false, true}, 6: {false, true}, 7: {true, true},
		8: {false, false}, 99: {false, false},
	} {
		eventually(t, fmt.Sprint(n), is(n, want))
	}
	eventually(t, "the copy is named", func() bool { return len(h.Refused()) == 1 })
	must.StrContains(t, h.Refused()[0], "on Consul node n3: its node registered it on Consul node n1")

	// A change is seen at once. A record that is missing changes nothing.
	write(t, consul, s, "n1", reg(4), nil, serviceCheck(id(4), consulapi.HealthPassing))
	eventually(t, "recovered", is(4, health{true, true}))
	_, err := consul.Catalog().Deregister(&consulapi.CatalogDeregistration{Node: "n1", ServiceID: id(2)}, nil)
	must.NoError(t, err)
	time.Sleep(500 * time.Millisecond)
	must.True(t, is(2, health{true, true})())

	// An empty catalog changes nothing, except that no Consul node is critical any more.
	for _, node := range []string{"n1", "n2", "n3"} {
		_, err := consul.Catalog().Deregister(&consulapi.CatalogDeregistration{Node: node}, nil)
		must.NoError(t, err)
	}
	for _, n := range []int{1, 3, 4, 5, 7} {
		eventually(t, "emptied", is(n, health{true, true}))
	}
	must.True(t, is(6, health{false, true})())

	// The health of services that are no longer watched is forgotten.
	write(t, consul, s, "n1", reg(1), nil)
	write(t, consul, s, "n1", s.register(t, admit(8, db)), nil)
	h.Follow([]fabric.Ref{db})
	eventually(t, "followed", is(8, health{true, true}))
	must.True(t, is(1, health{false, false})())
	h.Follow([]fabric.Ref{db, web})
	eventually(t, "followed again", is(1, health{true, true}))
	h.Follow(nil)
	must.True(t, is(1, health{false, false})())
}

// Records that were altered or forged do not count for health, and Refused lists them with the
// reason.
func TestHealthRefuses(t *testing.T) {
	t.Parallel()
	_, consul := testhost.Consul(t)
	s := newSigner(t)
	h := startHealth(t, consul, s, web)
	for n, tc := range []struct {
		reg   Registration
		alter func(*consulapi.AgentService)
		why   string
	}{
		{s.register(t, admit(1, web)), func(r *consulapi.AgentService) { r.Address = "100.64.7.7" },
			`its address is "100.64.7.7", but 100.64.1.1 was admitted`},
		{s.register(t, admit(2, web)), func(r *consulapi.AgentService) {
			r.TaggedAddresses["lan_ipv6"] = consulapi.ServiceAddress{Address: "fd5f::bad"}
		},
			`its IPv6 address is "fd5f::bad", but fd5f:1::2 was admitted`},
		{s.register(t, admit(3, web)), func(r *consulapi.AgentService) { r.TaggedAddresses = nil },
			`its IPv4 address is "", but 100.64.1.3 was admitted`},
		{s.register(t, admit(4, web)), func(r *consulapi.AgentService) { r.Meta = nil },
			`it has no admission`},
		{s.register(t, admit(5, web)), func(r *consulapi.AgentService) { r.Meta["sif-admission-0"] = "{" },
			`its admission cannot be decoded: invalid character`},
		{newSigner(t).register(t, admit(6, web)), nil,
			`its admission is invalid: the signature of the admission does not verify`},
		{s.register(t, admit(7, db)), func(r *consulapi.AgentService) { r.Service = "sif-app--web" },
			`its admission is for service app/db`},
		{s.register(t, admit(8, web)), func(r *consulapi.AgentService) { r.ID = "sif-aws1-" + allocation(80) },
			`its admission is for the record sif-aws1-` + allocation(8)},
	} {
		id := fabric.CatalogID("aws1", allocation(n+1))
		status := serviceCheck(id, consulapi.HealthPassing)
		alter := func(r *consulapi.AgentService) {
			r.Meta = maps.Clone(r.Meta)
			if tc.alter != nil {
				tc.alter(r)
			}
			id = r.ID
		}
		write(t, consul, s, "n1", tc.reg, alter, status)
		eventually(t, "refused: "+tc.why, func() bool { return len(h.Refused()) == 1 })
		must.StrContains(t, h.Refused()[0], "catalog record "+id+" of service app/web on Consul node n1: "+tc.why)
		_, known := h.Healthy(tc.reg.Admission.Endpoint)
		must.False(t, known)
		_, err := consul.Catalog().Deregister(&consulapi.CatalogDeregistration{Node: "n1"}, nil)
		must.NoError(t, err)
		eventually(t, "no longer refused", func() bool { return len(h.Refused()) == 0 })
	}
}

// The Consul agent answers from its materialised view.
func TestHealthStreams(t *testing.T) {
	t.Parallel()
	_, consul := testhost.Consul(t)
	h := NewHealth(HealthConfig{Consul: consul, Log: hclog.NewNullLogger()})
	_, meta, err := h.query(web, (&consulapi.QueryOptions{}).WithContext(t.Context()))
	must.NoError(t, err)
	must.Positive(t, meta.LastIndex)
	_, meta, err = consul.Health().Service("sif-app--web", "", false, &consulapi.QueryOptions{UseCache: true})
	must.NoError(t, err)
	must.Eq(t, consulapi.QueryBackendStreaming, meta.QueryBackend)
}

// While Consul cannot be reached its last answer is used, later health is unknown.
func TestHealthConsulAway(t *testing.T) {
	t.Parallel()
	server, consul := testhost.Consul(t)
	s := newSigner(t)
	write(t, consul, s, "n1", s.register(t, admit(1, web)), nil, serviceCheck(s.register(t, admit(1, web)).id(), consulapi.HealthCritical))
	h := startHealth(t, consul, s, web)
	unhealthy := func() bool { healthy, known := h.Healthy(allocation(1)); return known && !healthy }
	eventually(t, "unhealthy", unhealthy)
	must.NoError(t, server.Pause())
	time.Sleep(500 * time.Millisecond)
	must.True(t, unhealthy())
	must.NoError(t, server.Resume())
	write(t, consul, s, "n1", s.register(t, admit(1, web)), nil, serviceCheck(s.register(t, admit(1, web)).id(), consulapi.HealthPassing))
	eventually(t, "healthy", func() bool { healthy, known := h.Healthy(allocation(1)); return known && healthy })
	h.mu.Lock()
	old := h.services[web]
	old.at = old.at.Add(-knownFor)
	h.services[web] = old
	h.mu.Unlock()
	_, known := h.Healthy(allocation(1))
	must.False(t, known)
}

// BenchmarkAssess assesses a service of 1,000 endpoints, without and with cached admissions.
func BenchmarkAssess(b *testing.B) {
	s := newSigner(b)
	h := NewHealth(HealthConfig{Verify: s.verify, Speaker: s.speaker, Log: hclog.NewNullLogger()})
	var entries []*consulapi.ServiceEntry
	node := s.node("aws1-w1")
	for n := range 1000 {
		health, err := word{Endpoint: allocation(n), Consul: "n1", Healthy: true, At: time.Now()}.sign(node)
		must.NoError(b, err)
		reg, err := s.register(b, admit(n, web)).service(nil, health)
		must.NoError(b, err)
		entries = append(entries, &consulapi.ServiceEntry{Node: &consulapi.Node{Node: "n1"}, Service: &consulapi.AgentService{
			ID: reg.ID, Address: reg.Address, Meta: reg.Meta, TaggedAddresses: reg.TaggedAddresses}})
	}
	b.Run("First", func(b *testing.B) {
		for b.Loop() {
			must.MapEmpty(b, h.assess(web, entries, map[string]verifiedAdmission{}, nil).refused)
		}
	})
	b.Run("Again", func(b *testing.B) {
		verified := map[string]verifiedAdmission{}
		for b.Loop() {
			must.MapEmpty(b, h.assess(web, entries, verified, nil).refused)
		}
	})
}

// The record of an endpoint whose node was removed counts for nothing, and is no problem: the
// machine may be cut off, so that nobody takes it out of the catalog.
func TestHealthOfRemovedNode(t *testing.T) {
	t.Parallel()
	_, consul := testhost.Consul(t)
	s := newSigner(t)
	verify := func(signed fabric.Signed) (fabric.Admission, error) {
		a, err := s.verify(signed)
		if a.Endpoint == allocation(1) {
			err = ErrRemoved
		}
		return a, err
	}
	h := NewHealth(HealthConfig{Consul: consul, Verify: verify, Speaker: s.speaker, Log: hclog.NewNullLogger()})
	h.Follow([]fabric.Ref{web})
	run(t, h.Run)
	write(t, consul, s, "n1", s.register(t, admit(1, web)), nil)
	write(t, consul, s, "n1", s.register(t, admit(2, web)), nil)
	eventually(t, "the other is known", func() bool { _, known := h.Healthy(allocation(2)); return known })
	_, known := h.Healthy(allocation(1))
	must.False(t, known)
	must.SliceEmpty(t, h.Refused())
}
