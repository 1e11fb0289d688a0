// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

// Package jobs_test checks that the graphs and jobs of the demo applications agree: each group
// requests exactly the contracts of its service in the graph.
package jobs_test

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/hcl"
)

var jobName = regexp.MustCompile(`(?m)^job "([^"]+)"`)

func TestJobsAgreeWithGraphs(t *testing.T) {
	sources, err := hcl.ReadSources("getaway", "voting", "bindings.sif.hcl")
	must.NoError(t, err)
	graph, diags := hcl.DecodeGraph(hcl.Options{}, sources...)
	must.SliceEmpty(t, diags)
	must.MapLen(t, 2, graph.Domains)

	files, err := filepath.Glob("*/*.nomad.hcl")
	must.NoError(t, err)
	files = slices.DeleteFunc(files, func(name string) bool { return filepath.Dir(name) == "fabric" }) // runs outside the fabric
	machines, err := filepath.Glob("*/vm/*.nomad.hcl")
	must.NoError(t, err)
	files = append(files, machines...)
	groups := map[string]int{} // by service
	for _, name := range files {
		t.Run(name, func(t *testing.T) {
			source, err := os.ReadFile(name)
			must.NoError(t, err)
			match := jobName.FindSubmatch(source)
			must.NotNil(t, match)
			job, diags := hcl.ExtractConnectivity(hcl.Source{Name: name, Data: source})
			must.SliceEmpty(t, diags)
			must.MapNotEmpty(t, job.Stanzas)
			must.StrNotContains(t, string(job.Plain), "connectivity {")
			for group, stanza := range job.Stanzas {
				diags := stanza.Check(hcl.Applied{Graph: graph, Waiting: graph.Waiting()}, fabric.Workload{Namespace: "default", Job: string(match[1]), Group: group}, nil, time.Now())
				must.SliceEmpty(t, diags)
				groups[stanza.Service]++
			}
		})
	}
	for domain, d := range graph.Domains {
		for _, s := range d.Services {
			want := 1
			switch s.Name {
			case "news-gw", "places-gw", "weather-gw":
				want = 2 // one in each cloud
			case "result-svc":
				want = 2 // one is a virtual machine
			}
			must.Eq(t, want, groups[domain+"/"+s.Name], must.Sprintf("groups of %s/%s", domain, s.Name))
		}
	}
}
