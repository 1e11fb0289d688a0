// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package controller

import (
	"net/netip"
	"net/url"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"github.com/sif-project/sif/api"
	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/fabric/desired"
)

// reader returns a client whose token has policies with these names.
func (w *world) reader(t *testing.T, c *running, names ...string) *api.Client {
	return w.clientOf(t, at(c, tokenKinds["consul policies"](t, w, names)))
}

// answerDumps carries out the tasks of a node until the test ends.
func (n *testNode) answerDumps(t *testing.T, result func() api.TaskResult) {
	ctx := t.Context()
	go func() {
		for ctx.Err() == nil {
			tasks, err := n.Tasks(ctx, time.Minute)
			if err != nil {
				return // the controller has stopped
			}
			for _, task := range tasks {
				if task.Kind != api.TaskDump {
					t.Errorf("node %s was given a task of kind %s", n.id, task.Kind)
				}
				r := result()
				r.ID = task.ID
				_ = n.TaskDone(ctx, r)
			}
		}
	}()
}

// Reading everything that nodes enforce needs the permission to read every domain. An explanation
// of a flow needs it only for the domains of its two parties.
func testEnforced(t *testing.T, w *world) {
	c, ctx := w.fresh(t, nil), t.Context()
	_, err := c.operator.Apply(ctx, api.GraphRequest{Domains: domains(testDomain("app"), testDomain("news"))})
	must.NoError(t, err)
	w1, w2 := w.node(t, c, "w1"), w.node(t, c, "w2")
	w1.register(t, "10.0.0.1")
	w2.register(t, "10.0.0.2")
	frontend := []fabric.Ref{{Domain: "app", Name: "frontend"}}
	proxy := api.EndpointStatus{Endpoint: "e-proxy", Service: fabric.Ref{Domain: "app", Name: "proxy"}, Roles: fabric.Roles{Originate: frontend},
		IPv4: netip.MustParseAddr("100.64.1.2"), IPv6: netip.MustParseAddr("fd5f::2")}
	svc := api.EndpointStatus{Endpoint: "e-svc", Service: fabric.Ref{Domain: "app", Name: "svc"}, Roles: fabric.Roles{Respond: frontend},
		IPv4: netip.MustParseAddr("100.64.2.2"), IPv6: netip.MustParseAddr("fd5f::3")}
	w1.report(t, api.NodeStatus{Endpoints: []api.EndpointStatus{proxy}})
	w2.report(t, api.NodeStatus{Endpoints: []api.EndpointStatus{svc}})
	const proxyKey, svcKey = "app/proxy >app/frontend", "app/svc <app/frontend"
	peers := func(e api.EndpointStatus, key, via string) []api.DumpPeer {
		return []api.DumpPeer{{Address: e.IPv4, Identity: key, Via: via}, {Address: e.IPv6, Identity: key, Via: via}}
	}
	held := api.Dump{
		Node: fabric.NodeID{Zone: "aws1", Name: "w1"}, Layer: api.LayerEBPF, Sequence: 1, Root: c.policy.pointer().Root,
		Guarded: []api.DumpEndpoint{{IPv4: proxy.IPv4, IPv6: proxy.IPv6, Identity: proxyKey}},
		Peers:   append(peers(proxy, proxyKey, desired.OwnInterface.String()), peers(svc, svcKey, desired.ZoneLink.String())...),
		Rules:   []api.DumpRule{{From: proxyKey, To: svcKey, Protocol: fabric.TCP, Ports: fabric.PortRange{From: 8080, To: 8080}, Contract: "app/frontend"}},
	}
	w1.answerDumps(t, func() api.TaskResult { return api.TaskResult{Done: true, Dump: &held} })
	w2.answerDumps(t, func() api.TaskResult { return api.TaskResult{Error: "read the data path: no maps"} })

	dumps, failed, err := w.reader(t, c, "sif-read").Dumps(ctx, []fabric.NodeID{{Zone: "aws1", Name: "w1"}, {Zone: "aws1", Name: "w2"}})
	must.NoError(t, err)
	must.Eq(t, map[fabric.NodeID]api.Dump{held.Node: held}, dumps)
	must.Eq(t, map[fabric.NodeID]string{{Zone: "aws1", Name: "w2"}: "read the data path: no maps"}, failed)
	_, _, err = c.operator.Dumps(ctx, []fabric.NodeID{{Zone: "aws1", Name: "w1"}, {Zone: "aws1", Name: "nobody"}})
	must.StrContains(t, code(t, api.CodeNotFound, err).Message, `there is no node "aws1/nobody"`)
	_, err = c.operator.Probe(ctx, []api.Task{{Node: fabric.NodeID{Zone: "aws1", Name: "w1"}, Kind: api.TaskDump, Protocol: fabric.TCP}})
	must.StrContains(t, code(t, api.CodeInvalid, err).Message, "POST /v1/dump")

	ask := func(client *api.Client, from, to string, port uint16) (api.Explanation, error) {
		return client.Explain(ctx, api.Question{From: from, To: to, Protocol: fabric.TCP, Port: port})
	}
	reader := w.reader(t, c, "sif-read-app")
	a, err := ask(reader, "e-pro", "100.64.2.2", 8080)
	must.NoError(t, err)
	must.Eq(t, c.policy.pointer(), a.Pointer)
	var vouched fabric.Pointer
	must.NoError(t, c.cfg.Identity.Keys().Verify(a.Signed, fabric.KindPointer, &vouched))
	must.Eq(t, a.Pointer, vouched)
	must.True(t, a.Allowed)
	must.False(t, a.Agree)
	must.Eq(t, []string{"what aws1/w2 enforces is not known: read the data path: no maps"}, a.Flows[0].Differs)
	must.Eq(t, "aws1/w1 ebpf at the sender: passes: contract app/frontend", a.Flows[0].Layers[0].String())
	a, err = ask(reader, "app/svc", "192.0.2.1", 80)
	must.NoError(t, err)
	must.False(t, a.Allowed)
	must.False(t, a.Agree) // the sender judges it as well
	must.Eq(t, []string{"what aws1/w2 enforces is not known: read the data path: no maps"}, a.Flows[0].Differs)

	// The endpoints of the domains that one may read.
	foreign := api.EndpointStatus{Endpoint: "e-news", Service: fabric.Ref{Domain: "news", Name: "svc"}, Origin: fabric.Origin{Attached: "mq", Consul: "rabbit"}}
	w2.report(t, api.NodeStatus{Endpoints: []api.EndpointStatus{foreign, svc}, Waiting: []api.WaitingAttachment{{Name: "db", ConsulService: "postgres", Why: "it is not registered"}}})
	seen := func(client *api.Client) (ids []string, waiting int) {
		t.Helper()
		list, err := client.Endpoints(ctx)
		must.NoError(t, err)
		for _, e := range list.Endpoints {
			ids = append(ids, e.Endpoint+" on "+e.Host().String())
		}
		return ids, len(list.Waiting)
	}
	ids, waiting := seen(reader)
	must.Eq(t, []string{proxy.Endpoint + " on aws1/w1", svc.Endpoint + " on aws1/w2"}, ids)
	must.Zero(t, waiting)
	ids, waiting = seen(w.reader(t, c, "sif-read"))
	must.Eq(t, []string{proxy.Endpoint + " on aws1/w1", svc.Endpoint + " on aws1/w2", "e-news on aws1/w2"}, ids)
	must.Eq(t, 1, waiting)

	_, err = ask(reader, "app/svc", "news/svc", 8080)
	must.StrContains(t, code(t, api.CodeForbidden, err).Message, `may not read domain "news": it has none of the Consul policies or roles sif-read, sif-read-news, sif-operator`)
	_, err = ask(reader, "app/svc", "app/nobody", 80)
	code(t, api.CodeNotFound, err)
	_, err = ask(reader, "e-", "app/svc", 80)
	must.StrContains(t, code(t, api.CodeInvalid, err).Message, "the beginning of several endpoints")
	_, err = ask(reader, "app/svc", "app/proxy", 0)
	must.StrContains(t, code(t, api.CodeInvalid, err).Message, "from 1 to 65535")
	_, err = ask(reader, "", "app/proxy", 1)
	must.StrContains(t, code(t, api.CodeInvalid, err).Message, "both are required")
	_, err = questionOf(url.Values{"from": {"a/b"}, "to": {"a/c"}, "port": {"8"}, "protocol": {"icmp"}})
	must.NoError(t, err)
	_, err = questionOf(url.Values{"from": {"a/b"}, "to": {"a/c"}, "port": {"8"}, "protocol": {"ipx"}})
	must.ErrorContains(t, err, `protocol "ipx"`)
}
