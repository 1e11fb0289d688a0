// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

//go:build e2e

package e2e

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/shoenig/test/must"
)

// linkBlock is a link block of a graph.
func linkBlock(name, a, b string, cost int, labels string) string {
	return fmt.Sprintf("link %q {\n  between = [%q, %q]\n  cost    = %d\n  labels  = [%s]\n}\n", name, a, b, cost, labels)
}

// TestWays declares links among three zones. Packets between two of them take the cheapest way that
// fits the contract, also through the third one, whose switch judges them; connections go on when
// the way changes, and nothing passes when none fits. `make test-ways`.
func TestWays(t *testing.T) {
	if world.Topology.Node("dc1-p1") == nil {
		t.Skipf("the lab has no third zone; set %s to a topology of three zones", topologyVariable)
	}
	t.Cleanup(func() {
		// Before the first link, and after the last one, every two zones are linked.
		r := world.sif(t, "graph", "apply", "-remove-link=left", "-remove-link=right", "-remove-link=direct")
		must.Zero(t, r.code, must.Sprint(r.stderr))
		world.allWell(t, time.Minute)
	})
	world.withTestPorts(t)
	from, to := world.workload(t, "getaway-app/getaway-svc", "aws1"), world.workload(t, "getaway-app/news-gw", "gcp1")
	reaches(t, from, to, newsPort, true, 30*time.Second)
	passing := []traffic{{from, to, openPulses(t, from, to, newsPort), openPacedStream(t, from, to, newsPort, "large", 4096)}}

	graph := world.testPorts(t)
	requires := func(path string) string {
		const contract = "  contract \"news-api\" {\n"
		must.StrContains(t, graph, contract)
		return strings.Replace(graph, contract, contract+"    path {\n"+path+"    }\n", 1)
	}
	left, right := linkBlock("left", "aws1", "dc1", 10, `"encrypted", "private"`), linkBlock("right", "dc1", "gcp1", 10, `"encrypted", "private"`)
	direct := func(cost int) string { return linkBlock("direct", "aws1", "gcp1", cost, `"encrypted", "metered"`) }
	const straight, around = "aws1/aws1-p1 gcp1/gcp1-p1", "aws1/aws1-p1 dc1/dc1-p1 gcp1/gcp1-p1"
	for _, c := range []struct {
		name, graph string
		way         string // the processors in order
	}{
		{"no direct link", graph + left + right, around},
		{"a dear direct link", graph + left + right + direct(50), around},
		{"a cheap direct link", graph + left + right + direct(5), straight},
		{"a contract that avoids it", requires("      avoid = [\"metered\"]\n") + left + right + direct(5), around},
		{"a contract that prefers it", requires("      prefer = [\"metered\"]\n") + left + right + direct(50), straight},
		{"a contract that requires what only the others have", requires("      require = [\"private\"]\n") + left + right + direct(5), around},
	} {
		t.Run(c.name, func(t *testing.T) {
			world.apply(t, c.graph)
			began := time.Now()
			eventually(t, 30*time.Second, func() error {
				r := world.sif(t, "explain", from.alloc, to.alloc, fmt.Sprintf("%d/tcp", newsPort))
				var way []string
				for line := range strings.Lines(r.stdout) {
					for _, word := range strings.Fields(line) {
						if strings.Contains(line, "switch") && strings.Contains(word, "-p1") {
							way = append(way, strings.Trim(word, ":,"))
						}
					}
				}
				if r.code != 0 || strings.Join(way, " ") != c.way {
					return fmt.Errorf("the way is %q, not %q:\n%s%s", strings.Join(way, " "), c.way, r.stdout, r.stderr)
				}
				return nil
			})
			goesOn(t, passing, 20*time.Second)
			world.allWell(t, time.Minute)
			goesOn(t, passing, 20*time.Second)
			time.Sleep(time.Second + pulseTick)
			gap, lost := gapOf(passing, began)
			t.Logf("%-52s longest gap %4d ms, %d lost", c.name, gap.Milliseconds(), lost)
			r := world.sif(t, "verify")
			must.Zero(t, r.code, must.Sprint(r.stdout, r.stderr))
		})
	}
	t.Run("a contract that requires what no way has", func(t *testing.T) {
		graph := requires("      require = [\"gold\"]\n") + left + right
		r := world.sif(t, "graph", "plan", write(t, "graph.sif.hcl", graph))
		must.StrContains(t, r.stdout, `requires label "gold", which no link has`)
		world.apply(t, graph)
		reaches(t, from, to, newsPort, false, 30*time.Second)
		r = world.sif(t, "explain", from.alloc, to.alloc, fmt.Sprintf("%d/tcp", newsPort))
		must.NotEq(t, 0, r.code)
		must.StrContains(t, r.stdout, "no way from aws1 to gcp1")
		world.apply(t, world.testPorts(t)+left+right)
		reaches(t, from, to, newsPort, true, 30*time.Second)
	})
}
