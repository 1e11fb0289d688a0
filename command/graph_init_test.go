// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package command

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/cli"
	nomad "github.com/hashicorp/nomad/api"
	"github.com/shoenig/test/must"

	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/hcl"
	"github.com/sif-project/sif/internal/nomadjob"
)

// draftedJobs are jobs as people write them.
var draftedJobs = []string{`
job "Web_Frontend" {
  datacenters = ["dc1"]
  group "web" {
    network {
      port "http" {
        static = 18099
        to     = 8080
      }
    }
    service {
      provider = "nomad"
      name     = "web"
      port     = "http"
    }
    task "main" {
      driver = "raw_exec"
      config {
        command = "sleep"
        args    = ["600"]
      }
      template {
        destination = "local/api"
        change_mode = "noop"
        data        = <<-EOT
          {{ range nomadService "shop-api" }}{{ .Address }}:{{ .Port }}{{ end }}
        EOT
      }
    }
  }
}`, `
job "shop" {
  datacenters = ["dc1"]
  group "api" {
    network {
      port "http" {
        to = 9001
      }
    }
    service {
      provider = "nomad"
      port     = "http"
    }
    task "main" {
      driver = "raw_exec"
      config {
        command = "sleep"
        args    = ["600"]
      }
    }
  }
  group "worker" {
    task "main" {
      driver = "raw_exec"
      config {
        command = "sleep"
        args    = ["600"]
      }
    }
  }
}`, `
job "mesh" {
  namespace   = "prod"
  datacenters = ["dc1"]
  group "dashboard" {
    network {
      mode = "bridge"
    }
    service {
      name = "dashboard"
      port = "9002"
      connect {
        sidecar_service {
          proxy {
            upstreams {
              destination_name = "counter"
              local_bind_port  = 8080
            }
          }
        }
      }
    }
    task "main" {
      driver = "raw_exec"
      config {
        command = "sleep"
        args    = ["600"]
      }
    }
  }
  group "counter" {
    network {
      mode = "bridge"
    }
    service {
      name = "counter"
      port = "9003"
      connect {
        sidecar_service {}
      }
    }
    task "main" {
      driver = "raw_exec"
      config {
        command = "sleep"
        args    = ["600"]
      }
    }
  }
}`, `
job "nightly" {
  datacenters = ["dc1"]
  type        = "batch"
  periodic {
    crons = ["0 3 * * *"]
  }
  group "nightly" {
    task "main" {
      driver = "raw_exec"
      config {
        command = "true"
      }
    }
  }
}`}

// TestGraphInit drafts a graph from a real Nomad, and compares it with what runs there.
func TestGraphInit(t *testing.T) {
	address := startNomad(t)
	t.Setenv("NOMAD_ADDR", address)
	client, err := nomad.NewClient(nomad.DefaultConfig())
	must.NoError(t, err)
	sif := func(code int, args ...string) string {
		t.Helper()
		ui := cli.NewMockUi()
		must.Eq(t, code, run(ui, args[0], args[1:]...), must.Sprint(args, ui.OutputWriter.String(), ui.ErrorWriter.String()))
		return ui.OutputWriter.String() + ui.ErrorWriter.String()
	}
	must.StrContains(t, sif(1, "graph init", "-from=nomad"), "Nomad runs no job in any namespace that the token may read")

	_, err = client.Namespaces().Register(&nomad.Namespace{Name: "prod"}, nil)
	must.NoError(t, err)
	for _, text := range draftedJobs {
		job, err := client.Jobs().ParseHCL(text, true)
		must.NoError(t, err)
		_, _, err = client.Jobs().Register(job, (&nomad.WriteOptions{Namespace: *job.Namespace}))
		must.NoError(t, err)
	}
	var running []*nomad.Allocation
	eventually(t, func() error {
		running = nil
		stubs, _, err := client.Allocations().List(&nomad.QueryOptions{Namespace: "*"})
		if err != nil {
			return err
		}
		for _, s := range stubs {
			if s.ClientStatus == nomad.AllocClientStatusRunning {
				alloc, _, err := client.Allocations().Info(s.ID, nil)
				if err != nil {
					return err
				}
				running = append(running, alloc)
			}
		}
		if len(running) < 3 {
			return errors.New("not all allocations run")
		}
		return nil
	})

	file := filepath.Join(t.TempDir(), "draft.sif.hcl")
	must.StrContains(t, sif(0, "graph init", "-from=nomad", "-o", file), "Drafted 2 domains, 6 services, 2 contracts, 2 bindings in "+file)
	must.StrContains(t, sif(1, "graph init", "-from=nomad", "-o", file), file+" exists already")
	must.StrContains(t, sif(0, "graph validate", file), "The graph is valid: 2 domains, 6 services, 2 contracts, 2 bindings.")
	sif(0, "graph fmt", "-check", file)
	text, err := os.ReadFile(file)
	must.NoError(t, err)
	must.Eq(t, string(text), sif(0, "graph init", "-from=nomad"))

	g, diags := hcl.DecodeGraph(hcl.Options{}, hcl.Source{Name: file, Data: text})
	must.False(t, diags.HasErrors())
	must.SliceEmpty(t, g.Check(time.Now()))
	for _, alloc := range running {
		node, _, err := client.Nodes().Info(alloc.NodeID, nil)
		must.NoError(t, err)
		described := nomadjob.Describe(alloc.Job, alloc.Job.LookupTaskGroup(alloc.TaskGroup), &nomadjob.Instance{Allocation: alloc, Node: node})
		services, barred := g.Select(described.Workload)
		must.SliceEmpty(t, barred)
		must.Len(t, 1, services, must.Sprint(described.Workload))
		must.SliceEmpty(t, g.RefusedPorts(services[0].Domain, described.Workload.StaticPorts))
	}
	web := ""
	for _, s := range g.Domains["default"].Services {
		if s.Selectors[0].Job == "Web_Frontend" {
			web = s.Name
		}
	}
	must.StrHasPrefix(t, "web-frontend-", web)
	for domain, want := range map[string]fabric.Contract{
		"default": {Originators: []fabric.Ref{{Domain: "default", Name: web}}, Responders: []fabric.Ref{{Domain: "default", Name: "shop-api"}}, Rules: []fabric.Rule{{Protocol: fabric.TCP, Ports: []fabric.PortRange{{From: 9001, To: 9001}}}}},
		"prod":    {Originators: []fabric.Ref{{Domain: "prod", Name: "mesh-dashboard"}}, Responders: []fabric.Ref{{Domain: "prod", Name: "mesh-counter"}}, Rules: []fabric.Rule{{Protocol: fabric.TCP, Ports: []fabric.PortRange{{From: 9003, To: 9003}}}}},
	} {
		must.Len(t, 1, g.Domains[domain].Contracts)
		got := g.Domains[domain].Contracts[0]
		must.Eq(t, want.Originators, got.Originators)
		must.Eq(t, want.Responders, got.Responders)
		must.Eq(t, want.Rules, got.Rules)
	}

	// One namespace, one domain; a namespace without jobs; an address where Nomad is not.
	must.StrContains(t, sif(0, "graph init", "-from=nomad", "-namespace=prod", "-domain=mesh"), `domain "mesh" {`)
	must.StrContains(t, sif(1, "graph init", "-from=nomad", "-namespace=none"), "Nomad runs no job in the namespaces none")
	must.StrContains(t, sif(1, "graph init", "-from=nomad", "-nomad-address=http://127.0.0.1:1"), "Error reading the jobs: list the jobs of Nomad's namespace")
	for args, want := range map[string]string{
		"-from=consul": `-from: "consul" is not a source`, "": `-from: "" is not a source`, "-from=nomad -domain=A": `-domain: name "A" contains`, "-from=nomad -domain=node": `-domain: "node" is the fabric's own`,
	} {
		must.StrContains(t, sif(1, append([]string{"graph init"}, strings.Fields(args)...)...), want)
	}
}
