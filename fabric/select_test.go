// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package fabric

import (
	"testing"

	"github.com/shoenig/test/must"
)

func TestSelectorMatches(t *testing.T) {
	nomad := Selector{Kind: SelectNomad, Namespace: "default", Job: "web"}
	group := Selector{Kind: SelectNomad, Namespace: "default", Job: "web", Group: "proxy"}
	consul := Selector{Kind: SelectConsul, Service: "news"}
	for _, c := range []struct {
		name     string
		selector Selector
		workload Workload
		want     bool
	}{
		{"job", nomad, Workload{Namespace: "default", Job: "web", Group: "any"}, true},
		{"job of the same name in another namespace", nomad, Workload{Namespace: "other", Job: "web", Group: "any"}, false},
		{"another job", nomad, Workload{Namespace: "default", Job: "web2"}, false},
		{"group", group, Workload{Namespace: "default", Job: "web", Group: "proxy"}, true},
		{"another group", group, Workload{Namespace: "default", Job: "web", Group: "api"}, false},
		{"service block", consul, Workload{Namespace: "default", Job: "x", Services: []WorkloadService{{Name: "a"}, {Name: "news"}}}, true},
		{"no such service block", consul, Workload{Namespace: "default", Job: "news", Services: []WorkloadService{{Name: "a"}}}, false},
		{"service block of the same name in another namespace", consul, Workload{Namespace: "other", Services: []WorkloadService{{Name: "news"}}}, false},
		{"unknown kind", Selector{Kind: "x"}, Workload{}, false},
	} {
		t.Run(c.name, func(t *testing.T) { must.Eq(t, c.want, c.selector.Matches(c.workload)) })
	}
}
