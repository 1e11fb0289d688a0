// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

// Package jobs_test checks that the graphs and jobs of the demo applications agree: each group
// requests exactly the contracts of its service in the graph.
package jobs_test

import (
	"os"
	"path/filepath"
	"regexp"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/hcl"
)

var jobName = regexp.MustCompile(`(?m)^job "([^"]+)"`)

func TestJobsAgreeWithGraphs(t *testing.T) {
	agree(t, []string{"getaway", "voting", "bindings.sif.hcl"}, []string{"getaway/*.nomad.hcl", "voting/*.nomad.hcl", "voting/vm/*.nomad.hcl"}, map[string]int{
		"getaway-app/news-gw": 2, "getaway-app/places-gw": 2, "getaway-app/weather-gw": 2, // one in each cloud
		"voting-app/result-svc": 2, // one is a virtual machine
	})
}

func TestMixedJobsAgreeWithTheirGraph(t *testing.T) {
	agree(t, []string{"mixed"}, []string{"mixed/*.nomad.hcl"}, map[string]int{"mixed-app/places": 0}) // which systemd runs
}

func TestIdentityJobAgreesWithItsGraph(t *testing.T) {
	agree(t, []string{"identity"}, []string{"identity/*.nomad.hcl"}, nil)
}

// agree checks that the jobs request what the graphs have, and that each service has one group, or
// as many as counts says.
func agree(t *testing.T, graphs, jobs []string, counts map[string]int) {
	t.Helper()
	sources, err := hcl.ReadSources(graphs...)
	must.NoError(t, err)
	graph, diags := hcl.DecodeGraph(hcl.Options{}, sources...)
	must.SliceEmpty(t, diags)
	var files []string
	for _, pattern := range jobs {
		found, err := filepath.Glob(pattern)
		must.NoError(t, err)
		must.SliceNotEmpty(t, found)
		files = append(files, found...)
	}
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
			want, other := counts[domain+"/"+s.Name]
			if !other {
				want = 1
			}
			must.Eq(t, want, groups[domain+"/"+s.Name], must.Sprintf("groups of %s/%s", domain, s.Name))
		}
	}
}
