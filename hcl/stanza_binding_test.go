// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package hcl

import (
	"testing"

	"github.com/shoenig/test/must"

	"github.com/sif-project/sif/fabric"
)

// What bindings do not let in is told before the job runs.
func TestStanzaCheckKnowsBindings(t *testing.T) {
	g, diags := DecodeGraph(at, Source{Name: "g.sif.hcl", Data: []byte(`
domain "shop" {
  service "web" {
    selector "nomad" {
      job = "web"
    }
  }
}
`)})
	must.NoError(t, diags.Err())
	for _, tt := range []struct {
		name, stanza, bindings string
		ports                  []uint16
		want                   string // of the only diagnostic; empty: there is none
	}{
		{"none", "", "", []uint16{22}, ""},
		{"elsewhere", "", `binding "other" {
  nomad {
  }
}`, nil, `no domain may select group "g" of job "web" in namespace "default": service "shop/web" selects it, but no binding covers domain "shop"`},
		{"named", `service = "shop/web"`, `binding "shop" {
  nomad {
    jobs = ["api"]
  }
}`, nil, `binding "shop" does not let domain "shop" select it`},
		{"bound to another", "", `binding "*" {
}
binding "other" {
  nomad {
  }
}`, nil, `it is bound to domain other`},
		{"port", "", `binding "shop" {
  nomad {
  }
}`, []uint16{8080, 9090}, `no binding lets domain "shop" publish port 8080, 9090 of a node`},
		{"its node", `service = "shop/web"`, `binding "shop" {
  node {
    zone = "aws1"
  }
}`, nil, `whether service "shop/web" selects group "g" of job "web" in namespace "default" depends on its placement`},
		{"all", "", `binding "*" {
}`, []uint16{8080}, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			bound, diags := DecodeGraph(at, Source{Name: "b.sif.hcl", Data: []byte(tt.bindings)})
			must.NoError(t, diags.Err())
			job, diags := ExtractConnectivity(Source{Name: "j.nomad.hcl", Data: []byte("job \"web\" {\n  group \"g\" {\n    connectivity {\n      " + tt.stanza + "\n    }\n  }\n}\n")})
			must.NoError(t, diags.Err())
			applied := Applied{Graph: &fabric.Graph{Domains: g.Domains, Bindings: bound.Bindings}}
			said := job.Stanzas["g"].Check(applied, fabric.Workload{Namespace: "default", Job: "web", Group: "g", StaticPorts: tt.ports}, nil, at.Now)
			if tt.want == "" {
				must.SliceEmpty(t, said)
				return
			}
			must.Len(t, 1, said)
			must.StrContains(t, said[0].String(), tt.want)
			if said[0].Severity == Error {
				must.StrContains(t, said[0].Detail, "Ask the operators of the fabric")
			}
		})
	}
}
