// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package hcl

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/shoenig/test/must"

	"github.com/sif-project/sif/fabric"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// golden compares got with the golden file of an input.
func golden(t *testing.T, input string, got []byte) {
	t.Helper()
	name := input + ".golden"
	if *update {
		must.NoError(t, os.WriteFile(name, got, 0o644))
		return
	}
	want, err := os.ReadFile(name)
	must.NoError(t, err, must.Sprint("go test ./hcl -update writes golden files"))
	if diff := cmp.Diff(string(want), string(got)); diff != "" {
		t.Errorf("%s: (-want +got)\n%s", name, diff)
	}
}

func read(t *testing.T, path string) Source {
	t.Helper()
	data, err := os.ReadFile(path)
	must.NoError(t, err)
	return Source{Name: filepath.Base(path), Data: data}
}

func inputs(t *testing.T, pattern string) []string {
	t.Helper()
	paths, err := filepath.Glob(pattern)
	must.NoError(t, err)
	must.SliceNotEmpty(t, paths)
	return paths
}

// at is the time at which the graphs of these tests are read.
var at = Options{Now: time.Date(2026, 11, 23, 8, 0, 0, 0, time.UTC)}

// loadGraph decodes the graph in the given files and directories.
func loadGraph(o Options, paths ...string) (*fabric.Graph, Diagnostics) {
	sources, err := ReadSources(paths...)
	if err != nil {
		return nil, Diagnostics{{Severity: Error, Summary: err.Error()}}
	}
	return DecodeGraph(o, sources...)
}

func TestDiagnostics(t *testing.T) {
	for _, path := range append(inputs(t, "testdata/invalid/*.sif.hcl"), inputs(t, "testdata/invalid/*.sif.json")...) {
		t.Run(filepath.Base(path), func(t *testing.T) {
			g, diags := DecodeGraph(at, read(t, path))
			must.Nil(t, g)
			must.True(t, diags.HasErrors())
			for _, d := range diags {
				must.Positive(t, d.Pos.Line, must.Sprint(d))
				must.Positive(t, d.Pos.Column, must.Sprint(d))
				must.NotEq(t, "", d.Detail, must.Sprint(d))
			}
			var b bytes.Buffer
			must.NoError(t, diags.WriteText(&b))
			golden(t, path, b.Bytes())
		})
	}
}

var ignorePositions = cmp.Options{
	cmpopts.IgnoreTypes(fabric.Position{}),
	cmpopts.EquateEmpty(),
	cmpopts.EquateComparable(netipPrefix...),
}

func TestDecode(t *testing.T) {
	native, diags := loadGraph(Options{}, "testdata/valid/getaway.sif.hcl")
	must.NoError(t, diags.Err())
	must.Len(t, 0, diags)
	d := native.Domains["getaway-app"]
	must.Eq(t, "testdata/valid/getaway.sif.hcl:3:11", d.Services[0].Pos.String())
	must.Eq(t, "nomad(namespace=default, job=getaway-web, group=proxy)", d.Services[0].Selectors[0].String())
	must.Eq(t, fabric.Ref{Domain: "getaway-app", Name: "getaway-svc"}, d.Contracts[1].Responders[0])
	must.Eq(t, []fabric.PortRange{{From: 8080, To: 8080}, {From: 8443, To: 8443}}, d.Contracts[1].Rules[0].Ports)
	must.True(t, d.Contracts[2].Disabled)
	must.Eq(t, fabric.Path{Require: []string{"encrypted"}, Prefer: []string{"low-cost"}}, d.Contracts[2].Path)

	json, diags := loadGraph(Options{}, "testdata/valid/getaway.sif.json")
	must.NoError(t, diags.Err())
	if diff := cmp.Diff(native, json, ignorePositions); diff != "" {
		t.Errorf("HCL and JSON differ (-hcl +json)\n%s", diff)
	}
}

// TestWholeLanguage decodes a graph that uses the whole language, in HCL and in JSON, and compares
// the result with a golden file.
func TestWholeLanguage(t *testing.T) {
	native, diags := loadGraph(at, "testdata/valid/organisation.sif.hcl")
	must.NoError(t, diags.Err())
	must.SliceEmpty(t, diags)
	golden(t, "testdata/valid/organisation.sif.hcl", EncodeGraph(native))

	json, diags := loadGraph(at, "testdata/valid/organisation.sif.json")
	must.NoError(t, diags.Err())
	if diff := cmp.Diff(native, json, ignorePositions); diff != "" {
		t.Errorf("HCL and JSON differ (-hcl +json)\n%s", diff)
	}
}

func TestWarnings(t *testing.T) {
	g, diags := DecodeGraph(at, read(t, "testdata/valid/warnings.sif.hcl"))
	must.NotNil(t, g)
	must.NoError(t, diags.Err())
	var b bytes.Buffer
	must.NoError(t, diags.WriteText(&b))
	golden(t, "testdata/valid/warnings.sif.hcl", b.Bytes())
}

func TestDomainInSeveralFiles(t *testing.T) {
	a := Source{Name: "a.sif.hcl", Data: []byte(`domain "d" {
  service "web" {
    selector "nomad" {
      job = "web"
    }
  }
}
`)}
	b := Source{Name: "b.sif.hcl", Data: []byte(`domain "d" {
  contract "self" {
    originators = ["web"]
    responders  = ["web"]
    rule {
      protocol = "udp"
      ports    = [53]
    }
  }
}
`)}
	for _, order := range [][]Source{{a, b}, {b, a}} {
		g, diags := DecodeGraph(at, order...)
		must.NoError(t, diags.Err())
		must.Len(t, 1, g.Domains["d"].Services)
		must.Len(t, 1, g.Domains["d"].Contracts)
	}

	again := Source{Name: "c.sif.hcl", Data: a.Data}
	_, diags := DecodeGraph(at, a, again)
	must.Len(t, 1, diags)
	must.Eq(t, "c.sif.hcl:2:11", diags[0].Pos.String())
	must.StrContains(t, diags[0].Summary, "a.sif.hcl:2:11")
}

// TestTwiceInSeveralFiles declares everything in two files. The first file counts, and problems
// inside a duplicate of the second are not reported.
func TestTwiceInSeveralFiles(t *testing.T) {
	a := Source{Name: "a.sif.hcl", Data: []byte(`domain "d" {
  description = "first"
  service "web" {
    selector "node" { zone = "z" }
  }
  contract "c" {
    originators = ["web"]
    responders  = ["web"]
    rule {
      protocol = "udp"
      ports    = [53]
    }
  }
  accept "other/c" {}
}
guardrail "g" {
  deny { from = { a = "b" } }
}
`)}
	b := Source{Name: "b.sif.hcl", Data: []byte(`domain "d" {
  description = 1
  service "web" {
    selector "moon" {}
  }
  contract "c" {
    originators = [1]
  }
  accept "other/c" {
    services = [2]
    serves   = []
  }
  service "api" {
    colour = "red"
    selector "node" { zone = "z" }
  }
}
guardrail "g" {}
`)}
	g, diags := DecodeGraph(at, a, b)
	must.Nil(t, g)
	var got []string
	for _, d := range diags {
		got = append(got, fmt.Sprintf("%s %s", d.Pos, d.Summary))
	}
	must.Eq(t, []string{
		`b.sif.hcl:2:3 argument "description" of domain "d" is already set at a.sif.hcl:2:3`,
		`b.sif.hcl:3:11 service "web": the name is already taken at a.sif.hcl:3:11`,
		`b.sif.hcl:6:12 contract "c": the name is already taken at a.sif.hcl:6:12`,
		`b.sif.hcl:9:10 contract "other/c" is already accepted at a.sif.hcl:14:10`,
		`b.sif.hcl:11:5 unknown argument "serves"`,
		`b.sif.hcl:14:5 unknown argument "colour"`,
		`b.sif.hcl:18:11 guardrail "g": the name is already taken at a.sif.hcl:16:11`,
	}, got)
}

func TestGraphFiles(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"b.sif.hcl", "a.sif.json", "c.hcl", ".hidden.sif.hcl", "d.sif.hcl.json"} {
		must.NoError(t, os.WriteFile(filepath.Join(dir, name), nil, 0o644))
	}
	files, err := GraphFiles(dir, filepath.Join(dir, "c.hcl"), filepath.Join(dir, "b.sif.hcl"))
	must.NoError(t, err)
	for i := range files {
		files[i] = filepath.Base(files[i])
	}
	must.Eq(t, []string{"a.sif.json", "b.sif.hcl", "c.hcl", "d.sif.hcl.json"}, files)

	_, err = GraphFiles(t.TempDir())
	must.ErrorContains(t, err, "contains no graph file")
	_, diags := loadGraph(Options{}, filepath.Join(dir, "absent"))
	must.ErrorContains(t, diags.Err(), "no such file")
}

func TestFormat(t *testing.T) {
	src := Source{Name: "x.sif.hcl", Data: []byte("\n\n# why\ndomain \"a\" {\n service \"b\" {   // who\n}\n  }  ")}
	out, diags := Format(src)
	must.NoError(t, diags.Err())
	must.Eq(t, "# why\ndomain \"a\" {\n  service \"b\" { // who\n  }\n}\n", string(out))

	_, diags = Format(Source{Name: "x.sif.hcl", Data: []byte("domain \"a\" {")})
	must.Eq(t, "x.sif.hcl:1:12", diags[0].Pos.String())
	_, diags = Format(Source{Name: "x.sif.json", Data: []byte("{}")})
	must.ErrorContains(t, diags.Err(), "JSON")
}

func TestExtractConnectivity(t *testing.T) {
	for _, path := range inputs(t, "testdata/stanza/*.nomad.hcl") {
		t.Run(filepath.Base(path), func(t *testing.T) {
			job, diags := ExtractConnectivity(read(t, path))
			must.NoError(t, diags.Err())
			golden(t, path, job.Plain)
			again, diags := ExtractConnectivity(Source{Name: "plain.hcl", Data: job.Plain})
			must.NoError(t, diags.Err())
			must.MapEmpty(t, again.Stanzas)
			must.Eq(t, string(job.Plain), string(again.Plain))
		})
	}
	for _, path := range inputs(t, "testdata/invalid/*.nomad.hcl") {
		_, diags := ExtractConnectivity(read(t, path))
		var b bytes.Buffer
		must.NoError(t, diags.WriteText(&b))
		golden(t, path, b.Bytes())
	}
}

// A JSON job file is refused with what to do instead, whatever its name.
func TestJSONJobIsRefused(t *testing.T) {
	for _, name := range []string{"job.json", "job.nomad.hcl", "<stdin>"} {
		job, diags := ExtractConnectivity(Source{Name: name, Data: []byte("\n {\"Job\": {}}\n")})
		must.Nil(t, job)
		must.ErrorContains(t, diags.Err(), name+" is a JSON job file, which cannot have a connectivity stanza")
		must.ErrorContains(t, diags.Err(), "nomad job run -json")
	}
}

func TestStanza(t *testing.T) {
	job, diags := ExtractConnectivity(read(t, "testdata/stanza/full.nomad.hcl"))
	must.NoError(t, diags.Err())
	must.MapLen(t, 1, job.Stanzas)
	s := job.Stanzas["proxy"]
	must.Eq(t, "getaway-app/http-proxy", s.Service)
	must.Eq(t, []string{"frontend", "other/api"}, s.Originate)
	must.Eq(t, []string{"public"}, s.Respond)
	must.Eq(t, "full.nomad.hcl:14:5", s.Pos.String())
}

// TestLine checks every line that the job file and its rewritten form have in common.
func TestLine(t *testing.T) {
	for _, path := range inputs(t, "testdata/stanza/*.nomad.hcl") {
		src := read(t, path)
		job, diags := ExtractConnectivity(src)
		must.NoError(t, diags.Err())
		was := strings.Split(string(src.Data), "\n")
		for i, line := range strings.Split(string(job.Plain), "\n") {
			n := job.Line(i + 1)
			must.Between(t, 1, n, len(was))
			for _, keep := range []string{"group ", "task ", "port ", "count "} {
				if strings.HasPrefix(strings.TrimSpace(line), keep) {
					must.Eq(t, line, was[n-1], must.Sprintf("%s: line %d of the plain job", path, i+1))
				}
			}
		}
	}
}

func TestStanzaCheck(t *testing.T) {
	g, diags := loadGraph(Options{}, "testdata/valid/getaway.sif.hcl")
	must.NoError(t, diags.Err())
	web := fabric.Workload{Namespace: "default", Job: "getaway-web", Group: "proxy"}
	tests := []struct {
		name     string
		stanza   string
		workload fabric.Workload
		want     []string
	}{
		{"all roles", `service = "getaway-app/http-proxy"`, web, nil},
		{"roles", "originate = [\"frontend\"]\nrespond = [\"getaway-app/public\"]", web, nil},
		{"unknown contract", `originate = ["frontent"]`, web,
			[]string{`j.hcl:4:14: error: the applied graph has no contract "getaway-app/frontent"; Did you mean "frontend"?`}},
		{"wrong role", `respond = ["frontend"]`, web,
			[]string{`j.hcl:4:12: error: service "getaway-app/http-proxy" is not among the responders of contract "getaway-app/frontend"; Its responders are getaway-app/getaway-svc.`}},
		{"disabled", `originate = ["news-api"]`, fabric.Workload{Namespace: "prod", Job: "getaway", Group: "g"},
			[]string{`j.hcl:4:14: error: contract "getaway-app/news-api" is disabled; Enable it in the graph, or remove it from the stanza.`}},
		{"unknown service", `service = "getaway-app/http-proxi"`, web,
			[]string{`j.hcl:4:11: error: the applied graph has no service "getaway-app/http-proxi"; Did you mean "getaway-app/http-proxy"?`}},
		{"other namespace", `service = "getaway-app/http-proxy"`, fabric.Workload{Namespace: "evil", Job: "getaway-web", Group: "proxy"},
			[]string{`j.hcl:4:11: error: service "getaway-app/http-proxy" does not select group "proxy" of job "getaway-web" in namespace "evil"; ` +
				`Its selectors are nomad(namespace=default, job=getaway-web, group=proxy). Correct the graph or the job.`}},
		{"no service", "", fabric.Workload{Namespace: "default", Job: "x", Group: "y"},
			[]string{`j.hcl:3:5: error: no service of the applied graph selects group "y" of job "x" in namespace "default"; Add a selector to the service in the graph, and apply it.`}},
		{"several", "", fabric.Workload{Namespace: "default", Job: "getaway-web", Group: "proxy", Services: []fabric.WorkloadService{{Name: "news-gw"}}},
			[]string{`j.hcl:3:5: error: several services select group "proxy" of job "getaway-web" in namespace "default": getaway-app/http-proxy, getaway-app/news-gw; Name one of them: service = "domain/service".`}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			src := "job \"j\" {\n  group \"g\" {\n    connectivity {\n" + tt.stanza + "\n    }\n  }\n}\n"
			job, diags := ExtractConnectivity(Source{Name: "j.hcl", Data: []byte(src)})
			must.NoError(t, diags.Err())
			var got []string
			for _, d := range job.Stanzas["g"].Check(Applied{Graph: g, Waiting: g.Waiting()}, tt.workload, nil, at.Now) {
				got = append(got, d.String())
			}
			must.Eq(t, tt.want, got)
		})
	}
}

// What depends on the placement is a warning, and never hides what is certain.
func TestStanzaCheckBeforePlacement(t *testing.T) {
	select1 := func(name string, s ...fabric.Selector) fabric.Service {
		return fabric.Service{Name: name, Selectors: s}
	}
	consul := func(name string, tags ...string) fabric.Selector {
		return fabric.Selector{Kind: fabric.SelectConsul, Namespace: "default", Service: name, Tags: tags}
	}
	nomad := func(s fabric.Selector) fabric.Selector { s.Kind, s.Namespace = fabric.SelectNomad, "default"; return s }
	g := &fabric.Graph{Domains: map[string]*fabric.Domain{"a": {Name: "a", Services: []fabric.Service{
		select1("api", consul("api")), select1("tagged", consul("tagged", "blue")),
		select1("here", nomad(fabric.Selector{Job: "there", Datacenter: "aws1"})),
		select1("rack", fabric.Selector{Kind: fabric.SelectNode, NodePool: "racks"}),
	}}}}
	service := func(name string, tags ...string) fabric.Workload {
		return fabric.Workload{Namespace: "default", Job: "j", Group: "g", NodePool: "default", Services: []fabric.WorkloadService{{Name: name, Tags: tags}}}
	}
	for _, tt := range []struct {
		stanza string
		w      fabric.Workload
		later  string
		want   string // the beginning of the only diagnostic
	}{
		{``, service("api"), "", ""},
		{``, service("${x}"), "", "error: no service"},
		{``, service("${x}"), "${x}", `warning: whether a service selects group "g" of job "j" in namespace "default" depends on its placement: a/api`},
		{``, service("tagged", "${x}"), "${x}", `warning: whether a service selects group "g" of job "j" in namespace "default" depends on its placement: a/tagged`},
		{``, service("tagged", "red"), "${x}", "error: no service"},
		{`service = "a/tagged"`, service("tagged", "red", "${x}"), "${x}", `warning: whether service "a/tagged" selects`},
		{`service = "a/api"`, service("tagged", "${x}"), "${x}", `error: service "a/api" does not select`},
		{``, fabric.Workload{Namespace: "default", Job: "there", NodePool: "default"}, "", "warning: whether a service selects"},
		{``, fabric.Workload{Namespace: "default", Job: "there", Datacenter: "gcp1", NodePool: "default"}, "", "error: no service"},
		{``, fabric.Workload{Namespace: "default", Job: "there", Datacenter: "aws1", NodePool: "default"}, "", ""},
		{``, fabric.Workload{Namespace: "default", Job: "there", Datacenter: "aws1"}, "", "warning: when it is placed, several services may select"},
		{``, fabric.Workload{Namespace: "default", Job: "j", NodePool: "racks"}, "", ""},
	} {
		src := "job \"j\" {\n  group \"g\" {\n    connectivity {\n" + tt.stanza + "\n    }\n  }\n}\n"
		job, diags := ExtractConnectivity(Source{Name: "j.hcl", Data: []byte(src)})
		must.NoError(t, diags.Err())
		got := job.Stanzas["g"].Check(Applied{Graph: g}, tt.w, map[string]bool{tt.later: tt.later != ""}, at.Now)
		if tt.want == "" {
			must.SliceEmpty(t, got)
			continue
		}
		must.Len(t, 1, got, must.Sprint(tt.w))
		_, text, _ := strings.Cut(got[0].String(), " ")
		must.StrHasPrefix(t, tt.want, text)
	}
}

// Contracts that allow nothing at the moment are not an error of the job.
func TestStanzaCheckWarns(t *testing.T) {
	g, diags := DecodeGraph(at, Source{Name: "g.sif.hcl", Data: []byte(`
domain "a" {
  service "web" {
    selector "nomad" {
      job = "web"
    }
  }
  contract "past" {
    originators = ["web"]
    responders  = ["web"]
    expires     = "2001-02-03T04:05:06Z"
    rule {
      protocol = "tcp"
      ports    = [1]
    }
  }
  contract "future" {
    originators = ["web"]
    responders  = ["web"]
    expires     = "2101-02-03T04:05:06Z"
    rule {
      protocol = "tcp"
      ports    = [2]
    }
  }
  contract "feed" {
    originators = ["web"]
    responders  = ["b/x", "b/y", "b/z", "c/z"]
    rule {
      protocol = "tcp"
      ports    = [3]
    }
  }
  contract "consented" {
    originators = ["web"]
    responders  = ["b/z"]
    rule {
      protocol = "tcp"
      ports    = [4]
    }
  }
}
domain "b" {
  service "x" {
  }
  service "y" {
  }
  service "z" {
  }
  accept "a/consented" {
  }
  accept "a/feed" {
    services = ["z"]
  }
}
domain "c" {
  service "z" {
  }
}
`)})
	must.NoError(t, diags.Err())
	past := `warning: contract "a/past" expired at 2001-02-03T04:05:06Z; It no longer allows anything. Set a later time in the graph, or remove it from the stanza.`
	tests := []struct {
		stanza string
		want   []string
	}{
		{``, nil}, // it requests all roles
		{`originate = ["future", "consented"]`, nil},
		{"originate = [\"past\"]\n      respond = [\"past\"]", []string{"j.hcl:4:14: " + past, "j.hcl:5:18: " + past}},
		{`originate = ["a/feed"]`, []string{
			`j.hcl:4:14: warning: contract "a/feed" waits until domain "b" accepts it for b/x, b/y; ` +
				`Workloads that request it are refused until then. In domain "b", write: accept "a/feed" { services = ["x", "y"] }.`,
			`j.hcl:4:14: warning: contract "a/feed" waits until domain "c" accepts it for c/z; ` +
				`Workloads that request it are refused until then. In domain "c", write: accept "a/feed" { services = ["z"] }.`,
		}},
		{`respond = ["feed"]`, []string{`j.hcl:4:12: error: service "a/web" is not among the responders of contract "a/feed"; Its responders are b/x, b/y, b/z, c/z.`}},
	}
	for _, tt := range tests {
		src := "job \"web\" {\n  group \"g\" {\n    connectivity {\n" + tt.stanza + "\n    }\n  }\n}\n"
		job, diags := ExtractConnectivity(Source{Name: "j.hcl", Data: []byte(src)})
		must.NoError(t, diags.Err())
		var got []string
		for _, d := range job.Stanzas["g"].Check(Applied{Graph: g, Waiting: g.Waiting()}, fabric.Workload{Namespace: "default", Job: "web", Group: "g"}, nil, at.Now) {
			got = append(got, d.String())
		}
		must.Eq(t, tt.want, got, must.Sprint(tt.stanza))
	}
}

// A user who may read only one domain gets no false errors about the others.
func TestStanzaCheckOfPartOfTheGraph(t *testing.T) {
	rule := []fabric.Rule{{Protocol: fabric.TCP, Ports: []fabric.PortRange{{From: 1, To: 1}}}}
	refs := func(domain, name string) []fabric.Ref { return []fabric.Ref{{Domain: domain, Name: name}} }
	g := &fabric.Graph{Domains: map[string]*fabric.Domain{"a": {
		Name:     "a",
		Services: []fabric.Service{{Name: "web", Selectors: []fabric.Selector{{Kind: fabric.SelectNomad, Job: "web"}}}},
		Contracts: []fabric.Contract{
			{Name: "consented", Originators: refs("a", "web"), Responders: refs("b", "x"), Rules: rule},
			{Name: "feed", Originators: refs("a", "web"), Responders: refs("b", "x"), Rules: rule},
		},
	}}}
	applied := Applied{Graph: g, Partial: true, Waiting: []fabric.Waiting{{Contract: fabric.Ref{Domain: "a", Name: "feed"}, For: refs("b", "x")}}}
	for _, tt := range []struct {
		stanza, job string
		want        []string // beginnings
	}{
		{`originate = ["consented"]`, "web", nil},
		{`originate = ["feed"]`, "web", []string{`j.hcl:4:14: warning: contract "a/feed" waits until domain "b" accepts it for b/x`}},
		{`originate = ["b/c"]`, "web", []string{`j.hcl:4:14: warning: contract "b/c" is not checked: the token may not read domain "b", if there is one`}},
		{`originate = ["fed"]`, "web", []string{`j.hcl:4:14: error: the applied graph has no contract "a/fed"`}},
		{`service = "b/x"`, "web", []string{`j.hcl:4:11: warning: service "b/x" is not checked`}},
		{`service = "a/x"`, "web", []string{`j.hcl:4:11: error: the applied graph has no service "a/x"`}},
		{``, "other", []string{`j.hcl:3:5: warning: no service that the token may read selects group "g" of job "other"`}},
	} {
		src := "job \"" + tt.job + "\" {\n  group \"g\" {\n    connectivity {\n" + tt.stanza + "\n    }\n  }\n}\n"
		job, diags := ExtractConnectivity(Source{Name: "j.hcl", Data: []byte(src)})
		must.NoError(t, diags.Err())
		got := job.Stanzas["g"].Check(applied, fabric.Workload{Namespace: "default", Job: tt.job, Group: "g"}, nil, at.Now)
		must.Len(t, len(tt.want), got, must.Sprint(tt.stanza))
		for i, d := range got {
			must.StrHasPrefix(t, tt.want[i], d.String())
		}
	}
}

func TestJobVariables(t *testing.T) {
	job := Source{Name: "j.hcl", Data: []byte(`
variable "s" {
  type = string
}
variable "n" {
  type = number
}
variable "l" {
  type = list(string)
}
variable "any" {
}
`)}
	files := []Source{
		{Name: "a.hcl", Data: []byte("s = \"file\"\nonly = { a = [1] }\ntext = <<EOT\nx\nEOT\n")},
		{Name: "b.json", Data: []byte(`{"only": ["b"], "n": 1}`)},
	}
	got, diags := JobVariables(job, files, []string{"s=a \"b\" ${c}", "n=3", `l=["x"]`, "any=true"})
	must.NoError(t, diags.Err())
	must.Eq(t, "any = \"true\"\nl = [\"x\"]\nn = \"3\"\nonly = [\"b\"]\ns = \"a \\\"b\\\" $${c}\"\ntext = <<EOT\nx\nEOT\n", got)

	for _, bad := range []string{"s", "=1", "a b=1", "l=[", "l="} {
		_, diags := JobVariables(job, nil, []string{bad})
		must.True(t, diags.HasErrors(), must.Sprint(bad))
	}
	_, diags = JobVariables(job, []Source{{Name: "v.hcl", Data: []byte("a = \n")}}, nil)
	must.Eq(t, "v.hcl", diags[0].Pos.File)
}

func seeds(f *testing.F, pattern string) []Source {
	f.Helper()
	paths, err := filepath.Glob(pattern)
	must.NoError(f, err)
	var sources []Source
	for _, p := range paths {
		data, err := os.ReadFile(p)
		must.NoError(f, err)
		if !strings.HasSuffix(p, ".golden") {
			sources = append(sources, Source{Name: p, Data: data})
		}
	}
	return sources
}
