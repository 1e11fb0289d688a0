// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package controller

import (
	"encoding/json"
	"errors"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"github.com/sif-project/sif/api"
	"github.com/sif-project/sif/fabric"
)

// FuzzRequestBody decodes bodies as the requests of all routes. A body that decodes as a change of
// the graph is planned too. This must not fail except with a refusal, and the plan must be the same
// after it was stored in a file.
func FuzzRequestBody(f *testing.F) {
	for _, v := range []any{
		api.GraphRequest{Domains: domains(testDomain("app")), Guardrails: []fabric.Guardrail{{Name: "g", Deny: []fabric.Denial{{To: fabric.Labels{"domain": "app"}}}}}},
		api.GraphRequest{RemoveDomains: []string{"app"}, RemoveGuardrails: []string{"g"}},
		api.RollbackRequest{Revision: 1}, api.DiffRequest{From: 1}, api.ProbeRequest{Tasks: []api.Task{{}}},
		api.AdmissionRequest{}, api.AdmissionRequest{Attached: &fabric.Attached{Name: "db", ConsulService: "db", ConsulNode: "n", Service: "app/db", Respond: []string{"sql"}}}, api.CertificateRequest{}, api.NodeRequest{}, api.NodeStatus{}, api.TaskResult{},
	} {
		data, err := json.Marshal(v)
		must.NoError(f, err)
		f.Add(string(data))
	}
	for _, body := range []string{
		`{"domains":{"a":null}}`, `{"flows":[{}]}`, `{"flows":[null],"endpoints":[null]}`, `{"guardrails":[null]}`, `{"guardrails":[{"deny":[null]}]}`,
		`{"domains":{"a":{"name":"a","services":[null],"externals":[{"prefixes":[null]}],"contracts":[{"originators":[null],"rules":[null]}],"accepts":[null]}}}`,
		`{"revision":1e400}`, `{"domains":{"a":{"name":"a"},"a":{"name":"a","mode":"audit"}}}`, strings.Repeat(`{"domains":`, 2000),
		`{"bindings":[null]}`, `{"bindings":[{"domain":"*","nomad":[null],"consul":[null],"nodes":[null],"attach":[null],"outside":[null],"services":[null]}],"removeBindings":["*"]}`,
		`{"bindings":[{"domain":"app","labels":{"":""},"nomad":[{"namespace":"*","jobs":["a","a",""]}],"outside":[{"prefixes":[null,"10.0.0.1/8"],"ports":["0-65535",null]}]}]}`,
		`{"dump":{"rules":[{}],"peers":[null],"endpoints":[{"checks":[null]}]}}`,
	} {
		f.Add(body)
	}
	f.Add(`{"domains":{"a":{"name":"a","mode":"audit","services":[{"name":"s"},{"name":"s"}],"contracts":[{"name":"c","originators":["a/s"],"responders":["b/t"],"rules":[{"protocol":"icmp","ports":["0-255"]}],"expires":"2026-01-01T00:00:00+01:00"}]}}} {}`)
	f.Fuzz(func(t *testing.T, body string) {
		request := func() request {
			return request{Request: httptest.NewRequest("PUT", "/", strings.NewReader(body)), operator: access{actor: "fuzz"}}
		}
		try := func(err error) {
			var e *api.Error
			if err != nil && !errors.As(err, &e) {
				t.Fatalf("not a refusal: %v", err)
			}
		}
		// What a node sends is handed on: it must be readable again.
		fromNode := request()
		fromNode.operator = access{}
		status, err := decode[api.NodeStatus](fromNode)
		try(err)
		if err == nil {
			must.NoError(t, lasting(status))
		}
		_, err = decode[api.RollbackRequest](request())
		try(err)
		_, err = decode[api.DiffRequest](request())
		try(err)
		_, err = decode[api.ProbeRequest](request())
		try(err)
		admission, err := decode[api.AdmissionRequest](request())
		try(err)
		if w := admission.Attached; err == nil && w != nil && w.Check() == nil {
			said := attested{wanted: stanza{service: w.Service, originate: w.Originate, respond: w.Respond}}
			said.workload = (&registration{Services: []fabric.WorkloadService{{Name: w.ConsulService}}}).of(fabric.NodeID{Zone: "z", Name: "n"})
			graph := &fabric.Graph{Domains: domains(attachDomain("app")), Bindings: []fabric.Binding{attaches("app", fabric.AttachScope{Services: []string{"db"}, Node: "n"})}}
			var none *fabric.Compiled
			compiled, _, _ := none.Next(graph)
			service, roles, err := (&inForce{graph: graph, documents: compiled.Documents}).role(said)
			try(err)
			if err == nil {
				must.Eq(t, "db", w.ConsulService)
				must.Eq(t, "app/db", service.String())
				must.SliceEmpty(t, roles.Originate)
			}
		}
		_, err = decode[api.CertificateRequest](request())
		try(err)
		_, err = decode[api.NodeRequest](request())
		try(err)
		_, err = decode[api.NodeStatus](request())
		try(err)
		_, err = decode[api.TaskResult](request())
		try(err)
		change, err := decode[api.GraphRequest](request())
		try(err)
		if err != nil {
			return
		}
		try(access{}.mayChange(&fabric.Graph{}, change, true))
		var none *fabric.Compiled
		graph := &fabric.Graph{Domains: domains(testDomain("app"))}
		compiled, _, _ := none.Next(graph)
		p := &policy{fabric: testFabric, now: time.Now, bell: newBell()}
		p.use(&inForce{graph: graph, pointer: fabric.Pointer{Sequence: 1, Root: compiled.Root}, compiled: compiled})
		plan, _, err := p.plan(change)
		try(err)
		if err != nil {
			return
		}
		plan.Seal()
		data, err := json.Marshal(plan)
		must.NoError(t, err)
		var kept api.Plan
		must.NoError(t, json.Unmarshal(data, &kept))
		must.NoError(t, kept.Check())
	})
}
