// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package controller

import (
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"testing"
	"time"

	consulapi "github.com/hashicorp/consul/api"
	"github.com/shoenig/test/must"

	"github.com/sif-project/sif/api"
	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/internal/clock"
	"github.com/sif-project/sif/internal/kvkey"
	"github.com/sif-project/sif/internal/trust/identity"
)

func TestNodes(t *testing.T) {
	w := newWorld(t)
	t.Run("registration", func(t *testing.T) { testRegistration(t, w) })
	t.Run("read again", func(t *testing.T) { testReadAgain(t, w) })
	t.Run("empty report", func(t *testing.T) { testEmptyReport(t, w) })
	t.Run("drain", func(t *testing.T) { testDrain(t, w) })
	t.Run("link", func(t *testing.T) { testLink(t, w) })
	t.Run("two daemons", func(t *testing.T) { testTwoDaemons(t, w) })
	t.Run("admission", func(t *testing.T) { testAdmission(t, w) })
	t.Run("lives", func(t *testing.T) { testLives(t, w) })
	t.Run("addresses", func(t *testing.T) { testAddresses(t, w) })
	t.Run("lost releases", func(t *testing.T) { testLostReleases(t, w) })
	t.Run("clock", func(t *testing.T) { testClockSteps(t, w) })
	t.Run("certificate", func(t *testing.T) { testCertificate(t, w) })
	t.Run("SVIDs", func(t *testing.T) { testSVIDs(t, w) })
	t.Run("tasks", func(t *testing.T) { testTasks(t, w) })
	t.Run("enforced", func(t *testing.T) { testEnforced(t, w) })
	t.Run("flows", func(t *testing.T) { testFlows(t, w) })
}

func testRegistration(t *testing.T, w *world) {
	c, ctx := w.fresh(t, nil), t.Context()
	w1, p1 := w.node(t, c, "w1"), w.node(t, c, "p1")
	a := w1.register(t, "10.0.0.1")
	must.Eq(t, fabric.KindWorkload, a.Kind)
	must.Eq(t, "100.64.0.0/24", a.Pool4.String())
	must.Eq(t, "fd5f:7369:6600::/64", a.Pool6.String())
	must.Len(t, 2, a.Ranges)

	record, err := p1.RegisterNode(ctx, api.NodeRequest{Underlay: netip.MustParseAddr("10.0.0.9"), Engine: 8441})
	must.NoError(t, err)
	var b fabric.Node
	must.NoError(t, p1.source.Keys().Verify(record.Node, fabric.KindNode, &b))
	must.Eq(t, fabric.KindProcessor, b.Kind)
	must.Eq(t, "100.64.1.0/24", b.Pool4.String())
	must.Eq(t, "fd5f:7369:6600:1::/64", b.Pool6.String())

	again, err := p1.RegisterNode(ctx, api.NodeRequest{Underlay: netip.MustParseAddr("10.0.0.9"), Engine: 8441})
	must.NoError(t, err)
	must.Eq(t, record, again)

	// A node keeps its pool when it moves, and when the controller restarts.
	c.stop()
	c = w.start(t, c.dir, nil, false)
	must.Eq(t, a.Pool4, w.node(t, c, "w1").register(t, "10.0.0.2").Pool4)
	must.Eq(t, "100.64.2.0/24", w.node(t, c, "w2").register(t, "10.0.0.3").Pool4.String())

	for name, req := range map[string]api.NodeRequest{
		"no underlay":         {},
		"unspecified":         {Underlay: netip.MustParseAddr("0.0.0.0")},
		"inside the fabric":   {Underlay: netip.MustParseAddr("100.64.3.3")},
		"engine on workloads": {Underlay: netip.MustParseAddr("10.0.0.1"), Engine: 1},
	} {
		_, err := w.node(t, c, "w1").RegisterNode(ctx, req)
		must.Error(t, err, must.Sprint(name))
	}

	// An altered record is refused, and replaced when its node registers again.
	must.NoError(t, putString(w, kvkey.Node{Zone: "aws1", Name: "w1"}.String(), "{}"))
	c.stop()
	c = w.start(t, c.dir, nil, false)
	status, err := c.operator.Status(ctx)
	must.NoError(t, err)
	must.Len(t, 3, status.Nodes, must.Sprint("the controller's disk has its record"))
	must.Len(t, 1, status.Controller.Degraded)
	must.Eq(t, a.Pool4, w.node(t, c, "w1").register(t, "10.0.0.2").Pool4)
	status, err = c.operator.Status(ctx)
	must.NoError(t, err)
	must.Len(t, 3, status.Nodes)
	must.SliceEmpty(t, status.Controller.Degraded)

	w.node(t, c, "w1").report(t, api.NodeStatus{Zone: "forged", Node: "name", Sequence: 5})
	status, err = c.operator.Status(ctx)
	must.NoError(t, err)
	must.Eq(t, "aws1/w1", status.Nodes[1].ID().String())
	must.Eq(t, 5, status.Nodes[1].Sequence)
	must.Len(t, 1, status.Controller.Degraded)
	must.StrContains(t, status.Controller.Degraded[0], "node aws1/w1 reports that it enforces sequence 5, but the newest that this controller knows is 0")
	must.False(t, status.Nodes[1].Reported.IsZero())
}

// A report that nobody could decode again is refused: one node does not keep operators from seeing
// the others.
// A drained processor stays so when it registers again and when the controller restarts.
func testDrain(t *testing.T, w *world) {
	c, ctx := w.fresh(t, nil), t.Context()
	w1, p1 := w.node(t, c, "w1"), w.node(t, c, "p1")
	w1.register(t, "10.0.0.1")
	id := fabric.NodeID{Zone: "aws1", Name: "p1"}
	register := func() (n fabric.Node) {
		t.Helper()
		record, err := w.node(t, c, "p1").RegisterNode(ctx, api.NodeRequest{Underlay: netip.MustParseAddr("10.0.0.9"), Engine: 8441})
		must.NoError(t, err)
		must.NoError(t, p1.source.Keys().Verify(record.Node, fabric.KindNode, &n))
		return n
	}
	before := register()
	must.False(t, before.Draining)
	drain := func(id fabric.NodeID, draining bool) (fabric.Node, error) {
		return c.operator.DrainNode(ctx, id, api.DrainRequest{Draining: draining}, "new disk")
	}
	drained, err := drain(id, true)
	must.NoError(t, err)
	must.True(t, drained.Draining)
	must.True(t, drained.Issued.After(before.Issued))
	again, err := drain(id, true)
	must.NoError(t, err)
	must.Eq(t, drained, again)
	must.Eq(t, drained, register())
	c.stop()
	c = w.start(t, c.dir, nil, false)
	must.True(t, register().Draining)

	_, err = drain(fabric.NodeID{Zone: "aws1", Name: "w1"}, true)
	must.ErrorContains(t, err, "no packets of other zones pass node aws1/w1: it has no switch")
	_, err = drain(fabric.NodeID{Zone: "aws1", Name: "p9"}, true)
	must.ErrorContains(t, err, "aws1/p9")
	_, err = w1.DrainNode(ctx, id, api.DrainRequest{}, "")
	must.Error(t, err)
	must.True(t, register().Draining)

	back, err := drain(id, false)
	must.NoError(t, err)
	must.False(t, back.Draining)
	must.False(t, register().Draining)
}

func testEmptyReport(t *testing.T, w *world) {
	c, ctx := w.fresh(t, nil), t.Context()
	w1 := w.node(t, c, "w1")
	w1.register(t, "10.0.0.1")
	for _, report := range []string{`{"flows":[{}]}`, `{"flows":[null]}`, `{"audited":[{"from":"a/b"}]}`, `{"endpoints":[{"checks":[{}]}]}`} {
		status, reply := c.put(t, w1.source.ClientTLS(identity.Subject{Controller: true}), "/v1/node/status", "", report)
		must.Eq(t, http.StatusBadRequest, status, must.Sprint(report, reply))
		_, err := c.operator.Status(ctx)
		must.NoError(t, err, must.Sprint(report))
	}
	w1.report(t, api.NodeStatus{Version: "fine"})
	status, err := c.operator.Status(ctx)
	must.NoError(t, err)
	must.Eq(t, "fine", status.Nodes[0].Version)
}

func putString(w *world, key, value string) error {
	_, err := w.consul.KV().Put(&consulapi.KVPair{Key: key, Value: []byte(value)}, nil)
	return err
}

func testLink(t *testing.T, w *world) {
	c, ctx := w.fresh(t, nil), t.Context()
	w1, w2 := w.node(t, c, "w1"), w.node(t, c, "w2")
	statement := func(of fabric.NodeID, signer *testNode, key byte) api.NodeRequest {
		t.Helper()
		return linked(t, of, signer, key)
	}
	req := statement(w1.id, w1, 1)
	record, err := w1.RegisterNode(ctx, req)
	must.NoError(t, err)
	must.Eq(t, req.Link, record.Link)
	signer, _, err := identity.VerifyBy(w1.source.Roots(), trustDomain, record.Certificate, fabric.LinkSigningInput(record.Link), record.Signature)
	must.NoError(t, err)
	must.Eq(t, "/node/aws1/w1", signer.SPIFFE())

	// A record that is too large for every node to read is not stored.
	var large fabric.Link
	must.NoError(t, json.Unmarshal(req.Link, &large))
	for n := range maxStored / 20 {
		large.Ports[fabric.NodeID{Zone: "gcp1", Name: fmt.Sprint("p", n)}] = 51820
	}
	tooLarge := req
	tooLarge.Link, err = json.Marshal(large)
	must.NoError(t, err)
	tooLarge.Signature, tooLarge.Certificate, err = w1.source.Sign(fabric.LinkSigningInput(tooLarge.Link))
	must.NoError(t, err)
	_, err = w1.RegisterNode(ctx, tooLarge)
	must.StrContains(t, code(t, api.CodeInvalid, err).Message, "the record of node aws1/w1 would have ")

	// Registering without a link keeps the stored link.
	record, err = w1.RegisterNode(ctx, api.NodeRequest{Underlay: netip.MustParseAddr("10.0.0.7")})
	must.NoError(t, err)
	must.Eq(t, req.Link, record.Link)

	_, err = w1.RegisterNode(ctx, statement(w1.id, w2, 2))
	code(t, api.CodeForbidden, err)
	_, err = w1.RegisterNode(ctx, statement(w2.id, w1, 2))
	code(t, api.CodeForbidden, err)
	_, err = w2.RegisterNode(ctx, statement(w2.id, w2, 1))
	must.StrContains(t, code(t, api.CodeForbidden, err).Message, "node aws1/w1 has the same public key")
	_, err = w1.RegisterNode(ctx, statement(w1.id, w1, 0))
	must.StrContains(t, code(t, api.CodeInvalid, err).Message, "its public key is zero")
	broken := statement(w1.id, w1, 3)
	broken.Link = append(broken.Link, ' ')
	_, err = w1.RegisterNode(ctx, broken)
	code(t, api.CodeInvalid, err)
}

// linked returns the registration of a node with the link that signer states.
func linked(t *testing.T, of fabric.NodeID, signer *testNode, key byte) api.NodeRequest {
	t.Helper()
	public := make([]byte, 32)
	public[0] = key
	link, err := json.Marshal(fabric.Link{Node: of, PublicKey: public, Ports: map[fabric.NodeID]uint16{{}: 51820}})
	must.NoError(t, err)
	sig, chain, err := signer.source.Sign(fabric.LinkSigningInput(link))
	must.NoError(t, err)
	return api.NodeRequest{Underlay: netip.MustParseAddr("10.0.0.1"), Link: link, Certificate: chain, Signature: sig}
}

// Of a node with an agent and an engine, each registers what it has, whichever comes first, and
// neither takes the other's away. Both report.
func testTwoDaemons(t *testing.T, w *world) {
	c, ctx := w.fresh(t, nil), t.Context()
	b1 := w.node(t, c, "b1")
	lose := func() { // everything that the controller and Consul have
		c.stop()
		c = w.fresh(t, nil)
		b1 = w.node(t, c, "b1")
	}
	engine := api.NodeRequest{Underlay: netip.MustParseAddr("10.0.0.1"), Engine: 8441, NoSwitch: true}
	agent := linked(t, b1.id, b1, 1)
	register := func(req api.NodeRequest) (fabric.Node, fabric.NodeRecord) {
		t.Helper()
		record, err := b1.RegisterNode(ctx, req)
		must.NoError(t, err)
		var n fabric.Node
		must.NoError(t, b1.source.Keys().Verify(record.Node, fabric.KindNode, &n))
		must.Eq(t, fabric.KindBoth, n.Kind)
		must.True(t, n.NoSwitch)
		return n, record
	}
	for _, order := range [][]api.NodeRequest{{engine, agent, engine}, {agent, engine, agent}} {
		lose()
		for _, req := range order {
			register(req)
		}
		n, record := register(order[0])
		must.Eq(t, 8441, n.Engine)
		must.Eq(t, agent.Link, record.Link)
	}
	// What the engine's port was is in the record that the agent holds, too.
	_, held := register(agent)
	lose()
	again := agent
	again.Record = &held.Node
	n, _ := register(again)
	must.Eq(t, 8441, n.Engine)

	withSwitch := engine
	withSwitch.NoSwitch = false
	_, err := b1.RegisterNode(ctx, withSwitch)
	must.StrContains(t, code(t, api.CodeInvalid, err).Message, "node aws1/b1 also runs workloads, so its engine cannot have a switch")
	_, err = w.node(t, c, "w1").RegisterNode(ctx, api.NodeRequest{Underlay: netip.MustParseAddr("10.0.0.2"), NoSwitch: true})
	code(t, api.CodeForbidden, err)

	b1.report(t, api.NodeStatus{Kind: fabric.KindProcessor, Version: "engine"})
	b1.report(t, api.NodeStatus{Kind: fabric.KindWorkload, Version: "agent"})
	_, err = b1.Report(ctx, api.NodeStatus{Kind: fabric.KindBoth})
	code(t, api.CodeInvalid, err)
	status, err := c.operator.Status(ctx)
	must.NoError(t, err)
	must.Len(t, 2, status.Nodes)
	for i, want := range []string{"engine", "agent"} {
		must.Eq(t, want, status.Nodes[i].Version)
		must.Eq(t, b1.id, status.Nodes[i].ID())
		must.Eq(t, want == "engine", status.Nodes[i].NoSwitch)
	}

	// A processor whose engine has no switch any more has no links either.
	p1 := w.node(t, c, "p1")
	for _, noSwitch := range []bool{false, true} {
		req := api.NodeRequest{Underlay: netip.MustParseAddr("10.0.0.9"), Engine: 8441, NoSwitch: noSwitch}
		if !noSwitch {
			link := linked(t, p1.id, p1, 2)
			req.Link, req.Certificate, req.Signature = link.Link, link.Certificate, link.Signature
		}
		record, err := p1.RegisterNode(ctx, req)
		must.NoError(t, err)
		must.Eq(t, noSwitch, len(record.Link) == 0)
		var p fabric.Node
		must.NoError(t, p1.source.Keys().Verify(record.Node, fabric.KindNode, &p))
		must.Eq(t, !noSwitch, p.Boundary())
	}
}

// allocation returns the n-th ID of an allocation.
func allocation(n int) string { return fmt.Sprintf("%08x-0000-4000-8000-000000000000", n) }

func placed(job, group string) Placement {
	return Placement{Machine: machine("nomad-1", "10.0.0.1"), Workload: fabric.Workload{Namespace: "default", Job: job, Group: group}}
}

// machine returns a node of the scheduler whose name and datacenter are nobody's in the fabric.
func machine(id string, addresses ...string) Machine {
	m := Machine{ID: id, Name: "IP-10-0-0-1.EU.Internal", Datacenter: "dc1"}
	for _, a := range addresses {
		m.Addresses = append(m.Addresses, netip.MustParseAddr(a))
	}
	return m
}

func request4(n int, host byte) api.AdmissionRequest {
	v6 := netip.MustParseAddr("fd5f:7369:6600::").As16()
	v6[15] = host
	return api.AdmissionRequest{Allocation: allocation(n), IPv4: netip.AddrFrom4([4]byte{100, 64, 0, host}), IPv6: netip.AddrFrom16(v6)}
}

func testAdmission(t *testing.T, w *world) {
	scheduler := &fakeScheduler{placed: map[string]Placement{}}
	c, ctx := w.fresh(t, scheduler), t.Context()
	w1, w2, p1 := w.node(t, c, "w1"), w.node(t, c, "w2"), w.node(t, c, "p1")
	twice := testDomain("twice")
	twice.Services[0].Selectors = append(twice.Services[0].Selectors, fabric.Selector{Kind: fabric.SelectNomad, Namespace: "default", Job: "both"})
	twice.Services[1].Selectors = append(twice.Services[1].Selectors, fabric.Selector{Kind: fabric.SelectNomad, Namespace: "default", Job: "both"})
	_, err := c.operator.Apply(ctx, api.GraphRequest{Domains: domains(testDomain("app"), twice)})
	must.NoError(t, err)

	place := placed("app-web", "proxy")
	place.Checks = []fabric.Check{{Protocol: fabric.TCP, Port: 8080}}
	place.Ports = []fabric.NamedPort{{Name: "http", Port: 8080}}
	scheduler.placed[allocation(1)] = place
	_, err = w1.Admit(ctx, request4(1, 10))
	code(t, api.CodeNotRegistered, err)
	w1.register(t, "10.0.0.1")
	w2.register(t, "10.0.0.2")
	p1.register(t, "10.0.0.9")

	reply, err := w1.Admit(ctx, request4(1, 10))
	must.NoError(t, err)
	must.SliceEmpty(t, reply.Certificate)
	var a fabric.Admission
	must.NoError(t, w1.source.Keys().Verify(reply.Admission, fabric.KindAdmission, &a))
	must.NoError(t, a.Current(testFabric, time.Now()))
	must.Eq(t, allocation(1), a.Endpoint)
	must.Eq(t, "app/proxy >app/frontend", a.Identity().Key())
	must.Eq(t, place.Checks, a.Checks)
	must.Eq(t, place.Ports, a.Ports)
	must.Eq(t, AdmissionLife, a.Expires.Sub(a.Issued))

	// Renewal: the same endpoint, a later admission. What an earlier version connected goes on.
	place.RefusedNow = "its resolver is another one"
	scheduler.mu.Lock()
	scheduler.placed[allocation(1)] = place
	scheduler.mu.Unlock()
	reply, err = w1.Admit(ctx, request4(1, 10))
	must.NoError(t, err)
	var renewed fabric.Admission
	must.NoError(t, w1.source.Keys().Verify(reply.Admission, fabric.KindAdmission, &renewed))
	must.True(t, renewed.Expires.After(a.Expires))

	refused := func(wantCode string, node *testNode, p Placement, text string) {
		t.Helper()
		scheduler.mu.Lock()
		scheduler.placed[allocation(2)] = p
		scheduler.mu.Unlock()
		_, err := node.Admit(ctx, request4(2, 20))
		must.StrContains(t, code(t, wantCode, err).Message, text)
	}
	refused(api.CodeJob, w1, place, "its resolver is another one")
	stanza := func(p Placement, service, originate string) Placement {
		p.Meta = map[string]string{"sif.service": service, "sif.originate": originate}
		return p
	}
	foreign := placed("app", "g")
	foreign.Machine = machine("nomad-2", "10.0.0.1")
	stopped := placed("app", "g")
	stopped.Stopped = "it is failed"
	namespace := placed("app", "g")
	namespace.Workload.Namespace = "other"
	refused(api.CodeNotPlaced, w1, foreign, `Nomad placed it on Nomad node nomad-2 ("IP-10-0-0-1.EU.Internal" in datacenter "dc1"), but node aws1/w1 is Nomad node nomad-1`)
	refused(api.CodeNotPlaced, w1, stopped, "it is failed")
	refused(api.CodeNoSelector, w1, namespace, `tried: app/svc: nomad(namespace=default, job=app): namespace is "other"; `)
	refused(api.CodeNoSelector, w1, placed("ap", "g"), `app/svc: nomad(namespace=default, job=app): job is "ap"; `)
	refused(api.CodeNoSelector, w1, stanza(placed("app", "g"), "app/proxy", ""), `no selector of service app/proxy; tried: app/proxy: nomad(namespace=default, job=app-web, group=proxy): job is "app", group is "g"`)
	refused(api.CodeUnknownService, w1, stanza(placed("app", "g"), "app/nobody", ""), `names service "app/nobody", which is not in the graph`)
	refused(api.CodeAmbiguous, w1, placed("both", "g"), "matches several services: twice/proxy, twice/svc")
	refused(api.CodeUnknownRole, w1, stanza(placed("app", "g"), "app/svc", "frontend"), "service app/svc is not an originator of contract app/frontend; it may originate nothing and respond to app/frontend")
	refused(api.CodeUnknownRole, w1, stanza(placed("app", "g"), "svc", "Front End"), "the connectivity stanza names an invalid contract")

	scheduler.placed[allocation(3)] = stanza(placed("both", "g"), "proxy", "frontend,twice/frontend")
	reply, err = w1.Admit(ctx, request4(3, 30))
	must.NoError(t, err)
	must.NoError(t, w1.source.Keys().Verify(reply.Admission, fabric.KindAdmission, &a))
	must.Eq(t, "twice/proxy >twice/frontend", a.Identity().Key())

	// An allocation of another node, a processor node, and an unknown allocation.
	_, err = w2.Admit(ctx, request4(1, 10))
	code(t, api.CodeAddress, err)
	req := request4(1, 0)
	req.IPv4, req.IPv6 = netip.MustParseAddr("100.64.1.10"), netip.MustParseAddr("fd5f:7369:6600:1::10")
	_, err = w2.Admit(ctx, req)
	code(t, api.CodeNotPlaced, err)
	_, err = p1.Admit(ctx, req)
	code(t, api.CodeForbidden, err)
	_, err = w1.Admit(ctx, request4(99, 40))
	must.StrContains(t, code(t, api.CodeNotPlaced, err).Message, "Nomad knows no allocation")
	req = request4(1, 10)
	req.Allocation = "../../x"
	_, err = w1.Admit(ctx, req)
	code(t, api.CodeInvalid, err)
	scheduler.mu.Lock()
	scheduler.err = errors.New("ask Nomad for allocation: connection refused")
	scheduler.mu.Unlock()
	_, err = w1.Admit(ctx, request4(1, 10))
	code(t, api.CodeNomad, err)
}

// A controller whose clock jumps by a day, in either direction, keeps the admissions in force and
// renews them in order; a node's record that is issued after the jump is newer than the one before.
func testClockSteps(t *testing.T, w *world) {
	scheduler := &fakeScheduler{placed: map[string]Placement{allocation(1): placed("app", "g")}}
	for _, step := range []time.Duration{25 * time.Hour, -25 * time.Hour} {
		c, ctx := w.fresh(t, scheduler), t.Context()
		start := time.Now()
		passed, wrong := time.Duration(0), time.Duration(0)
		stepping := clock.Of(func() time.Time { return start.Add(passed + wrong) }, func() time.Duration { return passed })
		c.table.mu.Lock()
		c.table.now = stepping.Now
		c.table.mu.Unlock()
		w1 := w.node(t, c, "w1")
		_, err := c.operator.Apply(ctx, api.GraphRequest{Domains: domains(testDomain("app"))})
		must.NoError(t, err)
		w1.register(t, "10.0.0.1")
		_, err = w1.Admit(ctx, request4(1, 10))
		must.NoError(t, err)
		first := c.table.get(kvkey.Admission{Node: w1.id, Endpoint: allocation(1)}).admission

		wrong, passed = step, time.Minute
		stepping.Confirm("Vault", start.Add(passed))
		c.table.sweepOnce(ctx)
		must.Eq(t, 1, c.table.count())
		_, err = w1.Admit(ctx, request4(1, 10))
		must.NoError(t, err)
		second := c.table.get(kvkey.Admission{Node: w1.id, Endpoint: allocation(1)}).admission
		must.True(t, second.Issued.After(first.Issued))
		must.Less(t, time.Hour, second.Issued.Sub(first.Issued))

		// As if the record had been issued by a clock that was ahead.
		c.nodes.mu.Lock()
		ahead := time.Now().Add(time.Hour).UTC().Truncate(time.Millisecond)
		c.nodes.members[w1.id].node.Issued = ahead
		c.nodes.mu.Unlock()
		must.True(t, w1.register(t, "10.0.0.2").Issued.After(ahead))
		c.stop()
	}
}

// The releases of 130 endpoints were lost. Their node compares, releases them, and the next
// endpoint is admitted at once. What was admitted after the node had compared stays.
func testLostReleases(t *testing.T, w *world) {
	const gone = 130
	scheduler := &fakeScheduler{placed: map[string]Placement{}}
	for n := range gone + 1 {
		scheduler.placed[allocation(n)] = placed("app", "g")
	}
	c, ctx := w.fresh(t, scheduler), t.Context()
	w1, w2 := w.node(t, c, "w1"), w.node(t, c, "w2")
	_, err := c.operator.Apply(ctx, api.GraphRequest{Domains: domains(testDomain("app"))})
	must.NoError(t, err)
	w1.register(t, "10.0.0.1")
	w2.register(t, "10.0.0.2")
	for n := range gone {
		_, err := w1.Admit(ctx, request4(n, byte(n+2)))
		must.NoError(t, err)
	}
	has, err := w1.Admissions(ctx)
	must.NoError(t, err)
	must.SliceLen(t, gone, has.Live)
	must.SliceEmpty(t, has.Resting)
	must.Eq(t, allocation(0), has.Live[0].Endpoint)
	req := api.ReleaseRequest{Issued: map[string]time.Time{}}
	for _, l := range has.Live {
		req.Issued[l.Endpoint] = l.Issued
	}
	others, err := w2.Admissions(ctx)
	must.NoError(t, err)
	must.SliceEmpty(t, others.Live)
	must.NoError(t, w2.ReleaseLost(ctx, req)) // not its own
	must.Eq(t, gone, c.table.count())

	_, err = w1.Admit(ctx, request4(7, 9)) // it is back
	must.NoError(t, err)
	must.NoError(t, w1.ReleaseLost(ctx, req))
	has, err = w1.Admissions(ctx)
	must.NoError(t, err)
	must.SliceLen(t, 1, has.Live)
	must.Eq(t, allocation(7), has.Live[0].Endpoint)
	must.SliceLen(t, 2*(gone-1), has.Resting)
	must.Eq(t, "100.64.0.2", has.Resting[0].Address.String())
	_, err = w1.Admit(ctx, request4(gone, gone+2))
	must.NoError(t, err)

	many := api.ReleaseRequest{Issued: map[string]time.Time{}}
	for n := range maxReleases + 1 {
		many.Issued[fmt.Sprint(n)] = time.Now()
	}
	must.ErrorContains(t, w1.ReleaseLost(ctx, many), "at most 5000")
}

func testAddresses(t *testing.T, w *world) {
	scheduler := &fakeScheduler{placed: map[string]Placement{}}
	for n := range 10 {
		scheduler.placed[allocation(n)] = placed("app", "g")
	}
	c, ctx := w.fresh(t, scheduler), t.Context()
	w1 := w.node(t, c, "w1")
	_, err := c.operator.Apply(ctx, api.GraphRequest{Domains: domains(testDomain("app"))})
	must.NoError(t, err)
	w1.register(t, "10.0.0.1")
	admit := func(n int, host byte) error {
		_, err := w1.Admit(ctx, request4(n, host))
		return err
	}
	must.NoError(t, admit(1, 10))
	must.StrContains(t, code(t, api.CodeAddress, admit(2, 10)).Message, "is in use by endpoint "+allocation(1))
	code(t, api.CodeAddress, admit(2, 0))
	code(t, api.CodeAddress, admit(2, 1))
	outside := request4(2, 20)
	outside.IPv6 = netip.MustParseAddr("fd5f:7369:6600:1::20")
	_, err = w1.Admit(ctx, outside)
	code(t, api.CodeAddress, err)

	// If an endpoint changes its addresses, the old ones rest.
	must.NoError(t, admit(1, 11))
	must.StrContains(t, code(t, api.CodeAddress, admit(2, 10)).Message, "rests until")
	must.NoError(t, admit(1, 10))

	must.NoError(t, w1.Release(ctx, allocation(1)))
	must.NoError(t, w1.Release(ctx, allocation(1)))
	must.NoError(t, w1.Release(ctx, allocation(9)))
	must.StrContains(t, code(t, api.CodeAddress, admit(2, 10)).Message, "rests until")
	must.NoError(t, admit(1, 10)) // its own
	must.NoError(t, w1.Release(ctx, allocation(1)))

	// The table is still there after a restart of the controller. Addresses rest for ten minutes.
	c.stop()
	c = w.start(t, c.dir, scheduler, false)
	w1 = w.node(t, c, "w1")
	code(t, api.CodeAddress, admit(2, 10))
	c.table.mu.Lock()
	c.table.now = func() time.Time { return time.Now().Add(restTime - time.Minute) }
	c.table.mu.Unlock()
	c.table.sweepOnce(ctx)
	code(t, api.CodeAddress, admit(2, 10))
	c.table.mu.Lock()
	c.table.now = func() time.Time { return time.Now().Add(restTime + time.Minute) }
	c.table.mu.Unlock()
	c.table.sweepOnce(ctx)
	keys, _, err := w.consul.KV().Keys(kvkey.Admissions, "", nil)
	must.NoError(t, err)
	must.SliceEmpty(t, keys)
	must.NoError(t, admit(2, 10))
	must.Eq(t, 1, c.table.count())
}

func csr(t *testing.T, id string) []byte {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must.NoError(t, err)
	u, err := url.Parse(id)
	must.NoError(t, err)
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{URIs: []*url.URL{u}}, key)
	must.NoError(t, err)
	return der
}

func testCertificate(t *testing.T, w *world) {
	scheduler := &fakeScheduler{placed: map[string]Placement{allocation(1): placed("app", "g")}}
	c, ctx := w.fresh(t, scheduler), t.Context()
	w1, w2 := w.node(t, c, "w1"), w.node(t, c, "w2")
	_, err := c.operator.Apply(ctx, api.GraphRequest{Domains: domains(testDomain("app"))})
	must.NoError(t, err)
	w1.register(t, "10.0.0.1")
	w2.register(t, "10.0.0.2")
	service := fabric.Ref{Domain: "app", Name: "svc"}
	own := csr(t, "spiffe://"+trustDomain+service.SPIFFE())
	_, err = w1.Certificate(ctx, api.CertificateRequest{Service: service, CSR: own})
	code(t, api.CodeForbidden, err)

	req := request4(1, 10)
	req.CSR = own
	reply, err := w1.Admit(ctx, req)
	must.NoError(t, err)
	leaf, err := x509.ParseCertificate(reply.Certificate[0])
	must.NoError(t, err)
	must.Eq(t, "spiffe://sif.test/app/svc", leaf.URIs[0].String())
	_, err = leaf.Verify(x509.VerifyOptions{Roots: w1.source.Roots(), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}})
	must.NoError(t, err)

	_, err = w1.Certificate(ctx, api.CertificateRequest{Service: service, CSR: own})
	must.NoError(t, err)
	_, err = w2.Certificate(ctx, api.CertificateRequest{Service: service, CSR: own})
	code(t, api.CodeForbidden, err)
	_, err = w1.Certificate(ctx, api.CertificateRequest{Service: fabric.Ref{Domain: "app", Name: "proxy"}, CSR: own})
	code(t, api.CodeForbidden, err)
	// The names in the signing request are ignored.
	for _, id := range []string{"/app/proxy", "/node/aws1/w1", "/controller"} {
		_, err = w1.Certificate(ctx, api.CertificateRequest{Service: service, CSR: csr(t, "spiffe://"+trustDomain+id)})
		must.Error(t, err, must.Sprint(id))
	}
	must.NoError(t, w1.Release(ctx, allocation(1)))
	_, err = w1.Certificate(ctx, api.CertificateRequest{Service: service, CSR: own})
	code(t, api.CodeForbidden, err)
}

func testTasks(t *testing.T, w *world) {
	c, ctx := w.fresh(t, nil), t.Context()
	w1, w2 := w.node(t, c, "w1"), w.node(t, c, "w2")
	w1.register(t, "10.0.0.1")
	w2.register(t, "10.0.0.2")
	none, err := w1.Tasks(ctx, 10*time.Millisecond)
	must.NoError(t, err)
	must.SliceEmpty(t, none)

	begun := make(chan struct{})
	go func() { // the node that observes
		tasks, err := w2.Tasks(ctx, 10*time.Second)
		if err != nil || len(tasks) != 1 || tasks[0].Kind != api.TaskObserve {
			t.Errorf("w2 got %v, %v", tasks, err)
			return
		}
		if err := w1.TaskDone(ctx, api.TaskResult{ID: tasks[0].ID, Done: true}); !api.IsCode(err, api.CodeNotFound) {
			t.Errorf("another node's result was taken: %v", err)
		}
		time.Sleep(100 * time.Millisecond)
		close(begun)
		if err := w2.TaskDone(ctx, api.TaskResult{ID: tasks[0].ID, Ready: true}); err != nil {
			t.Error(err)
		}
		if err := w2.TaskDone(ctx, api.TaskResult{ID: tasks[0].ID, Done: true, Source: netip.MustParseAddr("100.64.0.5")}); err != nil {
			t.Error(err)
		}
	}()
	go func() { // the node that sends, but only when the other one observes
		tasks, err := w1.Tasks(ctx, 10*time.Second)
		if err != nil || len(tasks) != 1 || tasks[0].Nonce != 7 {
			t.Errorf("w1 got %v, %v", tasks, err)
			return
		}
		select {
		case <-begun:
		default:
			t.Error("sent before the other side observed")
		}
		if err := w1.TaskDone(ctx, api.TaskResult{ID: tasks[0].ID, Done: true, Reason: "sent"}); err != nil {
			t.Error(err)
		}
	}()
	peer := netip.MustParseAddrPort("100.64.0.9:8080")
	results, err := c.operator.Probe(ctx, []api.Task{
		{Node: fabric.NodeID{Zone: "aws1", Name: "w1"}, Kind: api.TaskSend, Endpoint: "a", Peer: peer, Protocol: fabric.TCP, Nonce: 7, Timeout: time.Second},
		{Node: fabric.NodeID{Zone: "aws1", Name: "w2"}, Kind: api.TaskObserve, Endpoint: "b", Peer: peer, Protocol: fabric.TCP, Nonce: 7, Timeout: time.Second},
	})
	must.NoError(t, err)
	must.Eq(t, "sent", results[0].Reason)
	must.Eq(t, "100.64.0.5", results[1].Source.String())

	results, err = c.operator.Probe(ctx, []api.Task{{Node: fabric.NodeID{Zone: "aws1", Name: "w1"}, Kind: api.TaskSend, Protocol: fabric.UDP}})
	must.NoError(t, err)
	must.StrContains(t, results[0].Error, "did not answer in time")
	left, err := w1.Tasks(ctx, 0)
	must.NoError(t, err)
	must.SliceEmpty(t, left)
	_, err = c.operator.Probe(ctx, []api.Task{{Node: fabric.NodeID{Zone: "aws1", Name: "nobody"}, Protocol: fabric.UDP}})
	code(t, api.CodeNotFound, err)
}

// A controller that stands by reads its state again with each change of anything. It writes its
// disk only if that lacks something.
func testReadAgain(t *testing.T, w *world) {
	c := w.fresh(t, nil)
	w.node(t, c, "w1").register(t, "192.0.2.1")
	must.NoError(t, c.nodes.load(t.Context()))
	must.NoError(t, c.bound.load(t.Context()))
	for file, load := range map[string]func(context.Context) error{"nodes.json": c.nodes.load, "bindings.json": c.bound.load} {
		file = filepath.Join(c.dir, file)
		before, err := os.Stat(file)
		must.NoError(t, err)
		must.NoError(t, load(t.Context()))
		after, err := os.Stat(file)
		must.NoError(t, err)
		must.True(t, os.SameFile(before, after), must.Sprint(file))
		must.NoError(t, os.Remove(file))
		must.NoError(t, load(t.Context()))
		_, err = os.Stat(file)
		must.NoError(t, err)
	}
	must.Len(t, 1, c.nodes.all())
}

// What was read before counts without another look at its signature only while the version of the
// key does, also if Vault lists an older one again.
func TestReadBefore(t *testing.T) {
	kv := &consulapi.KVPair{ModifyIndex: 7}
	m, g := &member{index: 7}, &grant{index: 7}
	m.record.Node.Version, g.Signed.Version = 1, 1
	keys := fabric.KeySet{Keys: map[int]ed25519.PublicKey{1: nil, 2: nil}, Min: 1}
	must.True(t, m.readAt(kv, keys))
	must.True(t, g.readAt(kv, keys))
	keys.Min = 2
	must.False(t, m.readAt(kv, keys))
	must.False(t, g.readAt(kv, keys))
}
