// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

//go:build e2e

package e2e

import (
	"fmt"
	"strings"
	"testing"
	"time"

	consul "github.com/hashicorp/consul/api"
	nomad "github.com/hashicorp/nomad/api"
	"github.com/shoenig/test/must"
)

// ownerOf returns a token that may apply the graph of a domain, until the test ends.
func (f *fabricUnderTest) ownerOf(t *testing.T, domain string) string {
	t.Helper()
	policy, _, err := f.consul.ACL().PolicyCreate(&consul.ACLPolicy{Name: "sif-apply-" + domain}, nil)
	must.NoError(t, err)
	t.Cleanup(func() {
		_, err := f.consul.ACL().PolicyDelete(policy.ID, nil)
		must.NoError(t, err)
	})
	token, _, err := f.consul.ACL().TokenCreate(&consul.ACLToken{Description: t.Name(), Policies: []*consul.ACLTokenPolicyLink{{ID: policy.ID}}}, nil)
	must.NoError(t, err)
	t.Cleanup(func() {
		_, err := f.consul.ACL().TokenDelete(token.AccessorID, nil)
		must.NoError(t, err)
	})
	return token.SecretID
}

// admitted starts a job and waits until its allocation runs, or failed; then it returns what the
// allocation's events say.
func (f *fabricUnderTest) admitted(t *testing.T, job *nomad.Job) (said string, runs bool) {
	t.Helper()
	_, _, err := f.nomad.Jobs().Register(job, nil)
	must.NoError(t, err)
	f.purgeAtEnd(t, "default", *job.ID)
	eventually(t, time.Minute, func() error {
		allocs, _, err := f.nomad.Jobs().Allocations(*job.ID, true, nil)
		if err != nil {
			return err
		}
		if len(allocs) == 0 {
			return fmt.Errorf("job %s was not placed", *job.ID)
		}
		alloc := allocs[0]
		said = alloc.ClientDescription
		for _, state := range alloc.TaskStates {
			for _, e := range state.Events {
				said += "\n" + e.DisplayMessage
			}
		}
		runs = alloc.ClientStatus == nomad.AllocClientStatusRunning
		if !runs && alloc.ClientStatus != nomad.AllocClientStatusFailed {
			return fmt.Errorf("the allocation of %s is %s", *job.ID, alloc.ClientStatus)
		}
		return nil
	})
	return said, runs
}

// TestBindingHoldsAgainstOwner has the owner of a domain select every workload of a zone, in HCL
// and in JSON: first with no binding of his, then with one elsewhere. Then an operator grants him
// what is left: he takes what nobody claims, but not what is bound to getaway.
func TestBindingHoldsAgainstOwner(t *testing.T) {
	owner := world.ownerOf(t, "evil")
	must.StrContains(t, world.sif(t, "status").stdout, "the graph has no binding")
	t.Cleanup(func() {
		args := []string{"graph", "apply"}
		for _, b := range []string{"evil", "getaway-app", "voting-app", "*"} {
			if strings.Contains(world.sif(t, "graph", "show").stdout, fmt.Sprintf("binding %q", b)) {
				args = append(args, "-remove-binding="+b)
			}
		}
		if strings.Contains(world.sif(t, "graph", "show").stdout, `domain "evil"`) {
			args = append(args, "-remove-domain=evil")
		}
		r := world.sif(t, args...)
		must.Zero(t, r.code, must.Sprint(r.stderr))
		world.allWell(t, 30*time.Second)
	})
	const graph = `domain "evil" {
  service "grab" {
    selector "node" {
      zone = "gcp1"
    }
  }
}
`
	const inJSON = `{"domain": {"evil": {"service": {"grab": {
  "selector": {"node": {"zone": "gcp1"}}
}}}}}
`
	world.apply(t, world.file(t, "jobs/bindings.sif.hcl"))
	must.StrNotContains(t, world.sif(t, "status").stdout, "Warnings")
	refused := func(sources map[string]string, why string) {
		t.Helper()
		before := world.sequence(t)
		for name, text := range sources {
			for _, command := range []string{"plan", "apply"} {
				r := world.sif(t, "graph", command, "-token="+owner, write(t, name, text))
				must.Eq(t, exitNegative, r.code, must.Sprint(r.stdout))
				what := `selector "node"`
				if strings.HasSuffix(name, ".json") {
					what = `node`
				}
				line, _, _ := strings.Cut(place(t, text, what), ":")
				if strings.HasPrefix(why, "no binding") {
					line = "1"
				}
				must.StrContains(t, r.stderr, name+":"+line+":")
				must.StrContains(t, r.stderr, why)
			}
		}
		must.Eq(t, before, world.sequence(t))
	}
	both := map[string]string{"evil.sif.hcl": graph, "evil.sif.json": inJSON}
	refused(both, `no binding covers domain "evil"`)
	world.apply(t, `binding "evil" {
  nomad {
    namespace = "evil"
  }
}
`)
	refused(both, `a selector of service "grab" of domain "evil", node(zone=gcp1), selects beyond binding "evil"`)
	r := world.sif(t, "graph", "apply", "-token="+owner, write(t, "own.sif.hcl", `binding "evil" {
  node {
    zone = "*"
  }
}
`))
	must.Eq(t, exitNegative, r.code)
	must.StrContains(t, r.stderr, "may not apply changes of guardrails, bindings and links")

	// What is left, for everybody without a binding of his own.
	r = world.sif(t, "graph", "apply", "-remove-binding=evil", write(t, "all.sif.hcl", "binding \"*\" {}\n"))
	must.Zero(t, r.code, must.Sprint(r.stderr))
	r = world.sif(t, "graph", "apply", "-token="+owner, write(t, "evil.sif.hcl", graph))
	must.Zero(t, r.code, must.Sprint(r.stderr))
	said, runs := world.admitted(t, intruder("getaway-unclaimed", "default", nil, nil))
	must.False(t, runs, must.Sprint("getaway's job became an instance of evil/grab"))
	must.StrContains(t, said, "service evil/grab selects it, but it is bound to domain getaway-app")
	_, runs = world.admitted(t, intruder("e2e-unclaimed", "default", nil, nil))
	must.True(t, runs, must.Sprint("what is bound to nobody"))

	// Getaway's workloads stay its own: a new instance is admitted, and nothing is ambiguous.
	news := world.workload(t, "getaway-app/news-gw", "gcp1")
	alloc, _, err := world.nomad.Allocations().Info(news.alloc, nil)
	must.NoError(t, err)
	_, err = world.nomad.Allocations().Stop(alloc, nil)
	must.NoError(t, err)
	eventually(t, time.Minute, func() error {
		for _, w := range world.workloads(t, "getaway-app/news-gw", "gcp1") {
			if w.alloc != news.alloc {
				return nil
			}
		}
		return fmt.Errorf("no new instance of news-gw")
	})
	world.allWell(t, 30*time.Second)
	world.verified(t, 30*time.Second)

	// A port that the binding does not list.
	job := intruder("getaway-port", "default", nil, nil)
	job.TaskGroups[0].Networks[0].ReservedPorts = []nomad.Port{{Label: "http", Value: 19999, To: 8080}}
	r = world.sif(t, "graph", "apply", write(t, "port.sif.hcl", strings.Replace(world.getaway(t), `job   = "getaway"`, `job   = "getaway"
    }
    selector "nomad" {
      job   = "getaway-port"
    }
    selector "nomad" {
      job   = "getaway"`, 1)))
	must.Zero(t, r.code, must.Sprint(r.stderr))
	t.Cleanup(func() { world.apply(t, world.getaway(t)) })
	said, runs = world.admitted(t, job)
	must.False(t, runs)
	must.StrContains(t, said, `no binding lets domain "getaway-app" publish port 19999 of a node`)
}
