// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package hcl

import (
	"testing"

	"github.com/shoenig/test/must"

	"github.com/sif-project/sif/fabric"
)

// TestComments has comments on all blocks that may have one. A comment cannot end before its line.
func TestComments(t *testing.T) {
	web := fabric.Ref{Domain: "shop", Name: "web"}
	g := &fabric.Graph{
		Domains: map[string]*fabric.Domain{"shop": {
			Name: "shop", Services: []fabric.Service{{Name: "web", Selectors: []fabric.Selector{{Kind: fabric.SelectNomad, Namespace: "default", Job: "web"}}}, {Name: "api"}},
			Contracts: []fabric.Contract{{
				Name: "c", Originators: []fabric.Ref{web}, Responders: []fabric.Ref{web}, Rules: []fabric.Rule{{Protocol: fabric.TCP, Ports: []fabric.PortRange{{From: 80, To: 80}}}},
			}},
		}},
		Bindings: []fabric.Binding{{Domain: "shop", Nomad: []fabric.NomadScope{{Namespace: "default"}}}},
	}
	text := string(EncodeCommented(g, Comments{
		Domains: map[string][]string{"shop": {"one", "two\n}"}}, Bindings: map[string][]string{"shop": {"three"}},
		Services: map[fabric.Ref][]string{web: {"four */ ${x}"}}, Contracts: map[fabric.Ref][]string{{Domain: "shop", Name: "c"}: {"five"}},
	}))
	must.StrHasPrefix(t, "# one\n# two }\ndomain \"shop\" {\n  # four */ ${x}\n  service \"web\" {\n", text)
	must.StrContains(t, text, "  }\n\n  # five\n  contract \"c\" {\n")
	must.StrContains(t, text, "}\n\n# three\nbinding \"shop\" {\n")
	got, diags := DecodeGraph(Options{}, Source{Name: "x.sif.hcl", Data: []byte(text)})
	must.False(t, diags.HasErrors(), must.Sprint(diags))
	must.Eq(t, string(EncodeGraph(g)), string(EncodeGraph(got)))
}
