// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package command

import (
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/hcl"
)

// A plan says in words what workloads gain and lose outside the fabric.
func TestDeltaTextOfTheOutside(t *testing.T) {
	now := time.Date(2026, 11, 23, 8, 0, 0, 0, time.UTC)
	graph := func(text string) *fabric.Graph {
		g, diags := hcl.DecodeGraph(hcl.Options{Now: now}, hcl.Source{Name: "a.sif.hcl", Data: []byte(text)})
		must.NoError(t, diags.Err())
		return g
	}
	before := graph(`
domain "shop" {
  service "web" {
    selector "nomad" { job = "web" }
  }
  external "payments" {
    names = ["api.example.com", "old.example.com"]
  }
}
`)
	after := graph(`
domain "shop" {
  reject = false
  service "web" {
    selector "nomad" { job = "web" }
  }
  external "payments" {
    names    = ["api.example.com", "*.cdn.example.com"]
    prefixes = ["192.0.2.7"]
    exit     = "node"
  }
  external "host" {
    node {}
  }
  contract "pay" {
    originators = ["web"]
    responders  = ["payments", "host"]
    rule {
      protocol = "tcp"
      ports    = [443]
    }
  }
}
`)
	must.Eq(t, `
  + shop/web gains external shop/host (the workload's node) on tcp/443 (contract pay, a.sif.hcl:15:12)
  + shop/web gains external shop/payments (api.example.com, *.cdn.example.com, 192.0.2.7) on tcp/443 (contract pay, a.sif.hcl:15:12)

Services and externals:
  + external shop/host is added at a.sif.hcl:12:12
  ~ external shop/payments is altered (prefixes, names, exit) at a.sif.hcl:7:12
    + shop/payments is 192.0.2.7 too
    + shop/payments is *.cdn.example.com too
    - shop/payments is no longer old.example.com

Modes and guardrails:
  ! workloads of domain shop are no longer told that a flow is refused
`, deltaText(fabric.Compare(before, after, now)))
	after.Bindings = []fabric.Binding{{Domain: "shop"}}
	narrowed := fabric.Compare(&fabric.Graph{Domains: after.Domains}, after, now)
	must.StrContains(t, deltaText(narrowed), "- shop/web loses external shop/host (the workload's node) on tcp/443")
	must.StrContains(t, deltaText(narrowed), `name "api.example.com" of external "payments" of domain "shop" lies beyond binding "shop"`)
}
