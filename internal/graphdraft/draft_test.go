// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package graphdraft

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	nomadapi "github.com/hashicorp/nomad/api"
	"github.com/shoenig/test/must"
	"pgregory.net/rapid"

	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/hcl"
)

func pointer[T any](v T) *T { return &v }

// job returns a job with groups.
func job(namespace, id string, groups ...*nomadapi.TaskGroup) *nomadapi.Job {
	return &nomadapi.Job{ID: &id, Name: &id, Namespace: &namespace, Status: pointer("running"), TaskGroups: groups}
}

// group returns a group with one task and a service on a port.
func group(name, service string, port nomadapi.Port, change ...func(*nomadapi.TaskGroup)) *nomadapi.TaskGroup {
	g := nomadapi.NewTaskGroup(name, 1)
	network := &nomadapi.NetworkResource{Mode: "bridge"}
	if port.Value > 0 {
		network.ReservedPorts = []nomadapi.Port{port}
	} else {
		network.DynamicPorts = []nomadapi.Port{port}
	}
	g.Networks = []*nomadapi.NetworkResource{network}
	if service != "" {
		g.Services = []*nomadapi.Service{{Name: service, PortLabel: port.Label}}
	}
	g.AddTask(nomadapi.NewTask("main", "docker"))
	for _, f := range change {
		f(g)
	}
	return g
}

func upstream(name string) func(*nomadapi.TaskGroup) {
	return func(g *nomadapi.TaskGroup) {
		g.Services[0].Connect = &nomadapi.ConsulConnect{SidecarService: &nomadapi.ConsulSidecarService{Proxy: &nomadapi.ConsulProxy{
			Upstreams: []*nomadapi.ConsulUpstream{{DestinationName: name, LocalBindPort: 9000}},
		}}}
	}
}

func template(text string) func(*nomadapi.TaskGroup) {
	return func(g *nomadapi.TaskGroup) {
		g.Tasks[0].Templates = append(g.Tasks[0].Templates, &nomadapi.Template{EmbeddedTmpl: &text})
	}
}

// write writes a draft, reads it again and checks it.
func write(t must.T, d Draft) (string, *fabric.Graph) {
	t.Helper()
	text := hcl.EncodeCommented(d.Graph, hcl.Comments{Domains: d.Domains, Bindings: d.Bindings, Services: d.Services, Contracts: d.Contracts})
	g, diags := hcl.DecodeGraph(hcl.Options{}, hcl.Source{Name: "draft.sif.hcl", Data: text})
	must.False(t, diags.HasErrors(), must.Sprint(diags), must.Sprint(string(text)))
	must.SliceEmpty(t, g.Check(time.Now()), must.Sprint(string(text)))
	again, diags := hcl.Format(hcl.Source{Name: "draft.sif.hcl", Data: text})
	must.False(t, diags.HasErrors())
	must.Eq(t, string(again), string(text))
	return string(text), g
}

func contracts(g *fabric.Graph) (list []string) {
	for _, d := range g.Domains {
		for _, c := range d.Contracts {
			list = append(list, fmt.Sprintf("%s > %s %s", c.Originators[0], c.Responders[0], c.Rules[0]))
		}
	}
	slices.Sort(list)
	return list
}

func TestContracts(t *testing.T) {
	api := func(change ...func(*nomadapi.TaskGroup)) *nomadapi.Job {
		return job("default", "api", group("api", "shop-api", nomadapi.Port{Label: "http", To: 9001}, change...))
	}
	web := func(change ...func(*nomadapi.TaskGroup)) *nomadapi.Job {
		return job("default", "web", group("web", "web", nomadapi.Port{Label: "http", Value: 8080}, change...))
	}
	native := func(g *nomadapi.TaskGroup) { g.Services[0].Provider = "nomad" }
	for what, c := range map[string]struct {
		jobs    []*nomadapi.Job
		want    []string
		comment string
	}{
		"nothing":                 {jobs: []*nomadapi.Job{web(), api()}},
		"upstream":                {jobs: []*nomadapi.Job{web(upstream("shop-api")), api()}, want: []string{"default/web > default/api tcp/9001"}, comment: `calls the service "shop-api" by an upstream of its service "web"`},
		"range":                   {jobs: []*nomadapi.Job{web(template(`{{ range service "shop-api" }}{{ .Address }}{{ end }}`)), api()}, want: []string{"default/web > default/api tcp/9001"}, comment: `a template of task "main"`},
		"tag, datacenter, filter": {jobs: []*nomadapi.Job{web(template(`{{- with service "v2.shop-api@dc1~_agent|passing,warning" }}{{ end -}}`)), api()}, want: []string{"default/web > default/api tcp/9001"}},
		"nomadService":            {jobs: []*nomadapi.Job{web(template(`{{ range nomadService 1 (env "NOMAD_ALLOC_ID") "shop-api" }}{{ .Port }}{{ end }}`)), api(native)}, want: []string{"default/web > default/api tcp/9001"}},
		"the other catalog":       {jobs: []*nomadapi.Job{web(template(`{{ range nomadService "shop-api" }}{{ end }}`)), api()}, comment: `It also calls "shop-api" (a template of task "main"), which no job here offers`},
		"piped and nested":        {jobs: []*nomadapi.Job{web(template(`{{ define "x" }}{{ if true }}{{ else }}{{ "shop-api" | printf "%s" }}{{ range $i, $s := service "shop-api" "any" }}{{ end }}{{ end }}{{ end }}{{ template "x" }}`)), api()}, want: []string{"default/web > default/api tcp/9001"}},
		"not a template":          {jobs: []*nomadapi.Job{web(template(`{{ range service "shop-api" `)), api()}},
		"by Consul's DNS": {jobs: []*nomadapi.Job{web(func(g *nomadapi.TaskGroup) {
			g.Tasks[0].Env = map[string]string{"API": "http://v2.shop-api.service.dc1.consul:9001/"}
		}), api()}, want: []string{"default/web > default/api tcp/9001"}, comment: `the variable API of task "main"`},
		"dynamic port": {jobs: []*nomadapi.Job{web(upstream("db")), job("default", "db", group("db", "db", nomadapi.Port{Label: "sql"}))},
			want: []string{"default/web > default/db tcp/20000-32000"}, comment: `Its port "sql" has no number inside`},
		"numeric port":        {jobs: []*nomadapi.Job{web(upstream("db")), job("default", "db", group("db", "db", nomadapi.Port{Label: "sql"}, func(g *nomadapi.TaskGroup) { g.Services[0].PortLabel = "5432" }))}, want: []string{"default/web > default/db tcp/5432"}},
		"no port":             {jobs: []*nomadapi.Job{web(upstream("db")), job("default", "db", group("db", "db", nomadapi.Port{Label: "sql"}, func(g *nomadapi.TaskGroup) { g.Services[0].PortLabel = "" }))}, comment: "That service has no port, so there is no contract."},
		"a task's service":    {jobs: []*nomadapi.Job{web(upstream("db")), job("default", "db", group("db", "", nomadapi.Port{Label: "sql", To: 5432}, func(g *nomadapi.TaskGroup) { g.Tasks[0].Services = []*nomadapi.Service{{Name: "db", PortLabel: "sql"}} }))}, want: []string{"default/web > default/db tcp/5432"}},
		"two that offer it":   {jobs: []*nomadapi.Job{web(upstream("shop-api")), api(), job("default", "api2", group("x", "shop-api", nomadapi.Port{Label: "http", To: 9002}))}, want: []string{"default/web > default/api tcp/9001", "default/web > default/api2 tcp/9002"}},
		"one of two groups":   {jobs: []*nomadapi.Job{job("default", "all", group("web", "web", nomadapi.Port{Label: "http", To: 80}, upstream("api")), group("api", "api", nomadapi.Port{Label: "http", To: 81}))}, want: []string{"default/all-web > default/all-api tcp/81"}},
		"another namespace":   {jobs: []*nomadapi.Job{web(upstream("db")), job("data", "db", group("db", "db", nomadapi.Port{Label: "sql", To: 5432}))}, want: []string{"default/web > data/db tcp/5432"}},
		"itself":              {jobs: []*nomadapi.Job{web(template(`{{ range service "web" }}{{ end }}`))}, want: []string{"default/web > default/web tcp/8080"}},
		"stopped":             {jobs: []*nomadapi.Job{web(upstream("shop-api")), func() *nomadapi.Job { j := api(); j.Stop = pointer(true); return j }()}, comment: `"shop-api" (an upstream of its service "web"), which no job here offers`},
		"child":               {jobs: []*nomadapi.Job{web(), func() *nomadapi.Job { j := api(); j.ParentID = pointer("web"); return j }()}},
		"a name with a value": {jobs: []*nomadapi.Job{web(upstream("shop-api")), func() *nomadapi.Job { j := api(); j.TaskGroups[0].Services[0].Name = "${JOB}-x"; return j }(), job("default", "shop", group("api", "", nomadapi.Port{Label: "http", To: 9001}, func(g *nomadapi.TaskGroup) { g.Services = []*nomadapi.Service{{PortLabel: "http"}} }))}, want: []string{"default/web > default/shop tcp/9001"}},
	} {
		t.Run(what, func(t *testing.T) {
			d := Make(c.jobs, "")
			text, g := write(t, d)
			must.Eq(t, c.want, contracts(g), must.Sprint(text))
			must.StrContains(t, text, c.comment)
			must.StrContains(t, text, `mode = "audit"`)
			// In one domain there are as many.
			one, g := write(t, Make(c.jobs, "one"))
			must.Len(t, len(c.want), contracts(g), must.Sprint(one))
			must.MapLen(t, 1, g.Domains)
		})
	}
}

func TestBindingsAndRemarks(t *testing.T) {
	host := group("agent", "agent", nomadapi.Port{Label: "http", Value: 9100}, func(g *nomadapi.TaskGroup) {
		g.Networks[0].Mode = "host"
		g.Tasks[0].Config = map[string]any{"network_mode": "host"}
	})
	text, g := write(t, Make([]*nomadapi.Job{
		job("default", "agent", host), job("prod", "shop", group("web", "web", nomadapi.Port{Label: "http", Value: 80, To: 8080}), group("api", "", nomadapi.Port{Label: "x"})),
	}, ""))
	must.Len(t, 2, g.Bindings)
	must.Eq(t, []fabric.NomadScope{{Namespace: "default", Jobs: []string{"agent"}}}, g.Bindings[0].Nomad)
	must.Eq(t, []fabric.NomadScope{{Namespace: "prod", Jobs: []string{"shop"}}}, g.Bindings[1].Nomad)
	must.Eq(t, []fabric.PortRange{{From: 80, To: 80}}, g.Bindings[1].Outside[0].Ports)
	for _, want := range []string{
		`# job "agent", group "agent", namespace "default"`, "# Network mode today: host.", "# Before it moves: task \"main\" has a network of its own beside its group's",
		"# It publishes the ports 80 of its node: clients outside need an external and a contract.", "# For the operators: what the domain may select.",
	} {
		must.StrContains(t, text, want)
	}
}

func TestNames(t *testing.T) {
	got := names([]string{"web", "Web", "web_1", "web" + separator + "1", "web-1", "a" + separator + "b", strings.Repeat("x", 40), strings.Repeat("x", 41), "ünï", "node"}, "node")
	must.Eq(t, "web", got["web"])
	must.Eq(t, "a-b", got["a"+separator+"b"])
	must.StrHasPrefix(t, "web-", got["Web"])
	must.NotEq(t, got["web-1"], got["web"+separator+"1"])
	must.NotEq(t, "node", got["node"])
	must.Len(t, 28, []byte(got[strings.Repeat("x", 40)]))
}

// TestNamesAreAllowedAndDistinct holds for any IDs, and does not depend on their order.
func TestNamesAreAllowedAndDistinct(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		wanted := rapid.SliceOfNDistinct(rapid.StringMatching(`[a-cA-C_./-]{1,6}`), 1, 40, rapid.ID).Draw(t, "wanted")
		got := names(wanted, "a-b")
		seen := map[string]bool{"a-b": true}
		for _, w := range wanted {
			must.NoError(t, fabric.CheckName(got[w]))
			must.False(t, seen[got[w]], must.Sprint(w))
			seen[got[w]] = true
		}
		rand.Shuffle(len(wanted), func(i, j int) { wanted[i], wanted[j] = wanted[j], wanted[i] })
		must.Eq(t, got, names(wanted, "a-b"))
	})
}

// TestAnyJobsMakeAValidGraph drafts generated jobs.
func TestAnyJobsMakeAValidGraph(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		name := rapid.SampledFrom([]string{"a", "A", "a-b", "a_b", "b", "node", "sif-audit", "a.b/c", strings.Repeat("long", 9), "a--b", "prod"})
		jobs := map[string]*nomadapi.Job{}
		for range rapid.IntRange(1, 8).Draw(t, "jobs") {
			j := job(rapid.SampledFrom([]string{"default", "prod", "node", "A"}).Draw(t, "namespace"), name.Draw(t, "job"))
			groups := map[string]bool{}
			for range rapid.IntRange(1, 3).Draw(t, "groups") {
				n := name.Draw(t, "group")
				if groups[n] {
					continue
				}
				groups[n] = true
				g := group(n, name.Draw(t, "service"), nomadapi.Port{Label: "p", Value: rapid.IntRange(0, 2).Draw(t, "static"), To: rapid.IntRange(0, 3).Draw(t, "to")}, upstream(name.Draw(t, "upstream")))
				template(fmt.Sprintf("{{ range service %q }}{{ end }}", name.Draw(t, "template")))(g)
				j.TaskGroups = append(j.TaskGroups, g)
			}
			jobs[*j.Namespace+"/"+*j.ID] = j
		}
		var list []*nomadapi.Job
		for _, j := range jobs { // in any order
			list = append(list, j)
		}
		for _, domain := range []string{"", "one"} {
			text, _ := write(t, Make(list, domain))
			slices.Reverse(list)
			again, _ := write(t, Make(list, domain))
			must.Eq(t, text, again)
		}
	})
}

// FuzzTemplate parses anything.
func FuzzTemplate(f *testing.F) {
	f.Add(`{{ range service "x" }}{{ end }}`, "")
	f.Add(`[[ nomadService 1 "k" "x" ]]`, "[[")
	f.Fuzz(func(t *testing.T, text, left string) {
		for _, n := range named(text, left, "") {
			if n.name == "" || n.provider == "" {
				t.Fatalf("%+v", n)
			}
		}
		consulNames(text)
	})
}
