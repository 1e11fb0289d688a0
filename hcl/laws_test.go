// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package hcl

import (
	"bytes"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/hashicorp/hcl/v2"
	"github.com/hashicorp/hcl/v2/hclsyntax"
	"github.com/zclconf/go-cty/cty"
	"pgregory.net/rapid"

	"github.com/sif-project/sif/fabric"
)

var netipPrefix = []any{netip.Prefix{}}

var genName = rapid.StringMatching(`[a-z][a-z0-9]{0,8}(-[a-z0-9]{1,8})?`).Filter(func(s string) bool {
	return fabric.CheckName(s) == nil && s != fabric.ReservedDomain
})

func genGraph(t *rapid.T) *fabric.Graph {
	g := &fabric.Graph{Domains: map[string]*fabric.Domain{}}
	for _, domain := range rapid.SliceOfNDistinct(genName, 1, 3, rapid.ID).Draw(t, "domains") {
		g.Domains[domain] = genDomain(t, domain)
	}
	return g
}

func genDomain(t *rapid.T, domain string) *fabric.Domain {
	d := &fabric.Domain{Name: domain}
	// HCL's strings are Unicode in normal form.
	normal := rapid.Map(rapid.String(), func(s string) string { return cty.StringVal(s).AsString() })
	anyText := normal.Filter(func(s string) bool { return s != "" })
	var services, nodes []string
	for i, name := range rapid.SliceOfNDistinct(genName, 1, 6, rapid.ID).Draw(t, "nodes") {
		nodes = append(nodes, name)
		if i > 0 && rapid.Bool().Draw(t, "external") {
			addr := netip.AddrFrom4([4]byte(rapid.SliceOfN(rapid.Byte(), 4, 4).Draw(t, "address")))
			p := netip.PrefixFrom(addr, rapid.IntRange(0, 32).Draw(t, "length")).Masked()
			d.Externals = append(d.Externals, fabric.External{Name: name, Prefixes: []netip.Prefix{p}})
			continue
		}
		services = append(services, name)
		s := fabric.Service{Name: name}
		for range rapid.IntRange(0, 3).Draw(t, "selectors") {
			if rapid.Bool().Draw(t, "nomad") {
				s.Selectors = append(s.Selectors, fabric.Selector{Kind: fabric.SelectNomad,
					Namespace: rapid.SampledFrom([]string{"default", "prod"}).Draw(t, "namespace"),
					Job:       anyText.Draw(t, "job"), Group: normal.Draw(t, "group")})
			} else {
				s.Selectors = append(s.Selectors, fabric.Selector{Kind: fabric.SelectConsul, Service: anyText.Draw(t, "service")})
			}
		}
		d.Services = append(d.Services, s)
	}
	refs := func(label string, names []string) []fabric.Ref {
		var list []fabric.Ref
		for _, n := range rapid.SliceOfNDistinct(rapid.SampledFrom(names), 1, len(names), rapid.ID).Draw(t, label) {
			list = append(list, fabric.Ref{Domain: domain, Name: n})
		}
		return list
	}
	port := rapid.Custom(func(t *rapid.T) fabric.PortRange {
		from := rapid.Uint16Min(1).Draw(t, "from")
		return fabric.PortRange{From: from, To: rapid.SampledFrom([]uint16{from, 65535}).Draw(t, "to")}
	})
	for _, name := range rapid.SliceOfNDistinct(genName, 0, 4, rapid.ID).Draw(t, "contracts") {
		c := fabric.Contract{Name: name, Disabled: rapid.Bool().Draw(t, "disabled"),
			Originators: refs("originators", nodes), Responders: refs("responders", services)}
		for range rapid.IntRange(1, 2).Draw(t, "rules") {
			c.Rules = append(c.Rules, fabric.Rule{
				Protocol: rapid.SampledFrom([]fabric.Protocol{fabric.TCP, fabric.UDP}).Draw(t, "protocol"),
				Ports:    rapid.SliceOfNDistinct(port, 1, 3, rapid.ID).Draw(t, "ports")})
		}
		c.Path.Require = rapid.SliceOfNDistinct(anyText, 0, 2, rapid.ID).Draw(t, "require")
		c.Path.Prefer = rapid.SliceOfNDistinct(anyText, 0, 2, rapid.ID).Draw(t, "prefer")
		d.Contracts = append(d.Contracts, c)
	}
	return d
}

func TestDecodeInvertsEncode(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		g := genGraph(t)
		src := EncodeGraph(g)
		back, diags := DecodeGraph(Source{Name: "g.sif.hcl", Data: src})
		if diags.HasErrors() {
			t.Fatalf("%s\n%s", diags.Error(), src)
		}
		if diff := cmp.Diff(g, back, ignorePositions); diff != "" {
			t.Fatalf("(-encoded +decoded)\n%s\n%s", diff, src)
		}
		formatted, diags := Format(Source{Name: "g.sif.hcl", Data: src})
		if diags.HasErrors() || !bytes.Equal(formatted, src) {
			t.Fatalf("encoded graphs are not in canonical layout:\n%s\nbut:\n%s", src, formatted)
		}
	})
}

// unformat disturbs the layout of HCL without changing what it says.
func unformat(t *rapid.T, src []byte) []byte {
	var b strings.Builder
	for _, line := range strings.Split(string(src), "\n") {
		line = strings.TrimSpace(line)
		b.WriteString(strings.Repeat(" ", rapid.IntRange(0, 5).Draw(t, "indent")))
		b.WriteString(line)
		if rapid.IntRange(0, 4).Draw(t, "comment") == 0 {
			b.WriteString(fmt.Sprintf(" # %d", rapid.Uint8().Draw(t, "text")))
		}
		b.WriteString(strings.Repeat("\n", rapid.IntRange(1, 3).Draw(t, "newlines")))
	}
	return []byte(b.String())
}

func TestFormatIsIdempotent(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		src := unformat(t, EncodeGraph(genGraph(t)))
		once, diags := Format(Source{Name: "g.sif.hcl", Data: src})
		if diags.HasErrors() {
			t.Fatal(diags.Error())
		}
		twice, _ := Format(Source{Name: "g.sif.hcl", Data: once})
		if !bytes.Equal(once, twice) {
			t.Fatalf("once:\n%s\ntwice:\n%s", once, twice)
		}
		if a, b := bytes.Count(src, []byte("#")), bytes.Count(once, []byte("#")); a != b {
			t.Fatalf("%d of %d comments are left:\n%s", b, a, once)
		}
	})
}

func FuzzDecodeGraph(f *testing.F) {
	for _, pattern := range []string{"testdata/valid/*.sif.*", "testdata/invalid/*.sif.*"} {
		for _, s := range seeds(f, pattern) {
			f.Add(s.Data, strings.HasSuffix(s.Name, ".json"))
		}
	}
	f.Fuzz(func(t *testing.T, data []byte, json bool) {
		name := "g.sif.hcl"
		if json {
			name = "g.sif.json"
		}
		g, diags := DecodeGraph(Source{Name: name, Data: data})
		_ = diags.WriteText(&bytes.Buffer{})
		if g == nil {
			if !diags.HasErrors() {
				t.Fatal("no graph and no error")
			}
			return
		}
		if problems := g.Check(); len(problems) > 0 {
			t.Fatalf("decoded, but: %v", problems)
		}
		back, diags := DecodeGraph(Source{Name: "g.sif.hcl", Data: EncodeGraph(g)})
		if diags.HasErrors() {
			t.Fatalf("%s\n%s", diags.Error(), EncodeGraph(g))
		}
		if diff := cmp.Diff(g, back, ignorePositions); diff != "" {
			t.Fatal(diff)
		}
		if !json {
			Format(Source{Name: name, Data: data})
		}
	})
}

func FuzzExtractConnectivity(f *testing.F) {
	for _, pattern := range []string{"testdata/stanza/*.nomad.hcl", "testdata/invalid/*.nomad.hcl"} {
		for _, s := range seeds(f, pattern) {
			f.Add(s.Data)
		}
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		job, diags := ExtractConnectivity(Source{Name: "j.nomad.hcl", Data: data})
		_ = diags.WriteText(&bytes.Buffer{})
		if job == nil {
			return
		}
		if len(job.Stanzas) == 0 && !bytes.Equal(job.Plain, data) {
			t.Fatal("a job without stanzas was changed")
		}
		if _, diags := hclsyntax.ParseConfig(job.Plain, "plain.hcl", hcl.InitialPos); diags.HasErrors() {
			t.Fatalf("the plain job does not parse: %s\n%s", diags.Error(), job.Plain)
		}
		again, diags := ExtractConnectivity(Source{Name: "plain.hcl", Data: job.Plain})
		if diags.HasErrors() || len(again.Stanzas) > 0 {
			t.Fatalf("the plain job has stanzas: %v\n%s", diags, job.Plain)
		}
		for line := range bytes.Count(job.Plain, []byte("\n")) + 2 {
			job.Line(line)
		}
	})
}
