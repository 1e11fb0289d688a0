// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

//go:build e2e

package e2e

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/netip"
	"testing"
	"time"

	consul "github.com/hashicorp/consul/api"
	"github.com/shoenig/test/must"

	"github.com/sif-project/sif/api"
	"github.com/sif-project/sif/e2e/lab"
	"github.com/sif-project/sif/fabric"
)

// attacher is a node that asks for the admission of workloads outside Nomad, and its Consul agent.
type attacher struct {
	*hostile
	agent  *consul.Client
	consul string // the agent's name
	record fabric.Node
}

func (f *fabricUnderTest) attacher(t *testing.T, n *lab.Node) *attacher {
	t.Helper()
	a := &attacher{hostile: f.as(t, n)}
	var err error
	a.agent, err = f.ConsulAgent(n.Name, f.Secrets.ConsulManagement)
	must.NoError(t, err)
	a.consul, err = a.agent.Agent().NodeName()
	must.NoError(t, err)
	record, _ := f.record(t, a.id)
	must.NoError(t, json.Unmarshal(record.Node.Payload, &a.record))
	return a
}

// register registers a service with the node's Consul agent until the test ends.
func (a *attacher) register(t *testing.T, service string) {
	t.Helper()
	must.NoError(t, a.agent.Agent().ServiceRegister(&consul.AgentServiceRegistration{Name: service, Port: 5432}))
	t.Cleanup(func() { must.NoError(t, a.agent.Agent().ServiceDeregister(service)) })
	eventually(t, 20*time.Second, func() error {
		list, _, err := world.consul.Catalog().NodeServiceList(a.consul, &consul.QueryOptions{Filter: fmt.Sprintf("Service == %q", service)})
		if err == nil && len(list.Services) == 0 {
			err = fmt.Errorf("the catalog does not have service %s on %s yet", service, a.consul)
		}
		return err
	})
}

// ask asks for an admission at an address that no endpoint of the node has. alter changes the
// request first.
func (a *attacher) ask(t *testing.T, service string, alter func(*api.AdmissionRequest)) (status int, code string) {
	t.Helper()
	v4, v6 := a.record.Pool4.Addr().As4(), a.record.Pool6.Addr().As16()
	v4[3], v6[15] = 250, 250
	req := api.AdmissionRequest{
		Allocation: "5f1c0de5-0000-4000-8000-0000000000aa", IPv4: netip.AddrFrom4(v4), IPv6: netip.AddrFrom16(v6),
		Attached: &fabric.Attached{Name: service, ConsulService: service, ConsulNode: a.consul},
	}
	if alter != nil {
		alter(&req)
	}
	body, err := json.Marshal(req)
	must.NoError(t, err)
	status, text := a.call(t, http.MethodPost, "/v1/node/admission", string(body))
	var e api.Error
	must.NoError(t, json.Unmarshal([]byte(text), &e))
	t.Logf("node %s asks for %s: %d %s", a.id, req.Attached.ConsulService, status, e.Message)
	return status, e.Code
}

// TestStolenNodeAttachesNothing has the certificate of a node ask for a service that a binding lets
// another node of its zone attach, in every way, with both registered in Consul or one of them.
func TestStolenNodeAttachesNothing(t *testing.T) {
	world.allWell(t, 30*time.Second)
	var nodes []*lab.Node
	for _, n := range world.Topology.Nodes(lab.Workload) {
		if n.Zone == "aws1" {
			nodes = append(nodes, n)
		}
	}
	must.GreaterEq(t, 2, len(nodes))
	thief, owner := world.attacher(t, nodes[0]), world.attacher(t, nodes[1])
	t.Cleanup(func() {
		r := world.sif(t, "graph", "apply", "-remove-domain=store", "-remove-binding=store", "-remove-binding=getaway-app", "-remove-binding=voting-app")
		must.Zero(t, r.code, must.Sprint(r.stderr))
		world.allWell(t, 30*time.Second)
	})
	world.apply(t, world.file(t, "jobs/bindings.sif.hcl")+fmt.Sprintf(`
domain "store" {
  service "ledger" {
    selector "consul" {
      service = "ledger"
    }
  }
}
binding "store" {
  attach {
    services = ["ledger"]
    zone     = "aws1"
    node     = %q
  }
}
`, owner.id.Name))
	refused := func(a *attacher, want string, alter func(*api.AdmissionRequest)) {
		t.Helper()
		status, code := a.ask(t, "ledger", alter)
		must.Between(t, 400, status, 499)
		must.Eq(t, want, code)
	}
	onTheirs := func(r *api.AdmissionRequest) { r.Attached.ConsulNode = owner.consul }
	refused(owner, api.CodeUnregistered, nil)
	refused(thief, api.CodeUnregistered, nil)
	owner.register(t, "ledger")
	refused(thief, api.CodeUnregistered, nil)
	refused(thief, api.CodeElsewhere, onTheirs)
	thief.register(t, "ledger")
	refused(thief, api.CodeBeyond, nil)
	refused(thief, api.CodeElsewhere, onTheirs)
	refused(thief, api.CodeInvalid, func(r *api.AdmissionRequest) { r.Attached.ConsulService = "sif-store--ledger" })
	refused(thief, api.CodeNoSelector, func(r *api.AdmissionRequest) { r.Attached.Service = "getaway-app/news-gw" })
	victim := world.workload(t, "getaway-app/news-gw", "gcp1")
	refused(thief, api.CodeTaken, func(r *api.AdmissionRequest) { r.Allocation = victim.alloc })
	refused(owner, api.CodeTaken, func(r *api.AdmissionRequest) { r.Allocation = victim.alloc })
	refused(thief, api.CodeAddress, func(r *api.AdmissionRequest) { r.IPv4, r.IPv6 = victim.v4, victim.v6 })

	// The node that the binding names has it, and keeps it from the other one by its ID.
	status, _ := owner.ask(t, "ledger", nil)
	must.Eq(t, http.StatusOK, status)
	refused(thief, api.CodeTaken, nil)
	status, _ = owner.call(t, http.MethodDelete, "/v1/node/admission/5f1c0de5-0000-4000-8000-0000000000aa", "")
	must.Eq(t, http.StatusNoContent, status)
	world.allWell(t, 30*time.Second)
}
