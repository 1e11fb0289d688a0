// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

//go:build e2e

package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"github.com/sif-project/sif/api"
	"github.com/sif-project/sif/bpf"
	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/internal/inspect/verify"
)

// Exit codes of the commands, in addition to 0 and 1.
const (
	exitChanges  = 2 // sif graph plan -detailed-exitcode: apply would make another revision
	exitDiffers  = 2 // sif verify: a node does not enforce what it must
	exitDropped  = 3 // sif explain: the flow is not allowed
	exitNegative = 1
)

// verify runs `sif verify -json`.
func (f *fabricUnderTest) verify(t *testing.T) (verify.Report, int) {
	t.Helper()
	r := f.sif(t, "verify", "-json")
	var report verify.Report
	must.NoError(t, json.Unmarshal([]byte(r.stdout), &report), must.Sprintf("sif verify -json: %s\n%s", r.stdout, r.stderr))
	return report, r.code
}

// verified waits until every node enforces what it must.
func (f *fabricUnderTest) verified(t *testing.T, within time.Duration) {
	t.Helper()
	eventually(t, within, func() error {
		report, code := f.verify(t)
		if code != 0 {
			return fmt.Errorf("sif verify exited with %d: %v", code, report.Differences)
		}
		must.Eq(t, len(verify.Enforcing(f.status(t))), report.Nodes)
		must.Positive(t, report.Entries)
		must.SliceEmpty(t, report.Differences)
		return nil
	})
}

// explain runs `sif explain -json` and checks its exit code.
func (f *fabricUnderTest) explain(t *testing.T, code int, from, to, port string) api.Explanation {
	t.Helper()
	r := f.sif(t, "explain", "-json", from, to, port)
	must.Eq(t, code, r.code, must.Sprintf("sif explain %s %s %s: %s\n%s", from, to, port, r.stdout, r.stderr))
	var answer api.Explanation
	must.NoError(t, json.Unmarshal([]byte(r.stdout), &answer))
	must.True(t, answer.Agree, must.Sprint(r.stdout))
	return answer
}

// altered replaces texts in a graph, given as old, new, old, new... Each old text must be there.
func altered(t *testing.T, text string, pairs ...string) string {
	t.Helper()
	for pair := range slices.Chunk(pairs, 2) {
		must.StrContains(t, text, pair[0])
		text = strings.Replace(text, pair[0], pair[1], 1)
	}
	return text
}

// TestPolicyVerifyReportsWhatWasChangedByHand removes an entry from the data path of each layer
// without the daemons' knowledge. They restore it within seconds, so the test removes it again
// until `sif verify` has read it in time.
func TestPolicyVerifyReportsWhatWasChangedByHand(t *testing.T) {
	world.withTestPorts(t)
	world.verified(t, 20*time.Second)
	svc, news := world.workload(t, "getaway-app/getaway-svc", "aws1"), world.workload(t, "getaway-app/news-gw", "gcp1")

	for name, tc := range map[string]struct {
		node   string
		layer  api.Layer
		says   []string // must be in the description of the missing entry
		damage func(t *testing.T)
	}{
		"eBPF": {
			node: svc.zone + "/" + svc.node, layer: api.LayerEBPF, says: []string{"address " + news.v4.String()},
			damage: func(t *testing.T) {
				d, err := bpf.OpenPinned(filepath.Join(world.BPFDir(svc.node), "sif"))
				must.NoError(t, err)
				defer d.Close()
				must.NoError(t, d.DeletePeer(news.v4))
			},
		},
		"Open vSwitch": {
			node: "gcp1/gcp1-p1", layer: api.LayerSwitch, says: []string{"rule", svc.service.String(), news.service.String(), fmt.Sprintf("tcp/%d", newsPort)},
			damage: func(t *testing.T) {
				for _, protocol := range []string{"tcp", "tcp6"} { // one for IPv4 and one for IPv6
					world.deleteFlows(t, "gcp1-p1", fmt.Sprintf("%s,tp_dst=%d", protocol, newsPort))
				}
			},
		},
	} {
		t.Run(name, func(t *testing.T) {
			eventually(t, time.Minute, func() error {
				tc.damage(t)
				report, code := world.verify(t)
				if code == 0 {
					return errors.New("sif verify reported no difference")
				}
				must.Eq(t, exitDiffers, code)
				for _, d := range report.Differences {
					must.Eq(t, tc.node, d.Node, must.Sprint("nothing else was touched: ", d))
				}
				if !slices.ContainsFunc(report.Differences, func(d verify.Difference) bool {
					return d.Layer == tc.layer && d.Kind == verify.Missing &&
						!slices.ContainsFunc(tc.says, func(part string) bool { return !strings.Contains(d.Entry, part) })
				}) {
					return fmt.Errorf("no missing %q among %v", tc.says, report.Differences)
				}
				return nil
			})
			world.verified(t, 20*time.Second)
			reaches(t, svc, news, newsPort, true, 5*time.Second)
		})
	}
}

// deleteFlows deletes the matching flows of a processor's switch.
func (f *fabricUnderTest) deleteFlows(t *testing.T, node, match string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	bridge := "unix:" + filepath.Join(f.OVSRunDir(node), "sif0.mgmt")
	out, err := exec.CommandContext(ctx, "ovs-ofctl", "-O", "OpenFlow14", "del-flows", bridge, match).CombinedOutput()
	must.NoError(t, err, must.Sprintf("%s", out))
}

// TestPolicyExplainNamesContractAndLayers explains a flow between clouds on an open port and on a
// closed one.
func TestPolicyExplainNamesContractAndLayers(t *testing.T) {
	world.withTestPorts(t) // makes the graph come from a file whose lines are known
	line := place(t, world.testPorts(t), `"news-api"`)
	svc, news := world.workload(t, "getaway-app/getaway-svc", "aws1"), world.workload(t, "getaway-app/news-gw", "gcp1")
	contract := fabric.Ref{Domain: "getaway-app", Name: "news-api"}
	layers := func(t *testing.T, flow api.ExplainedFlow, allowed bool) {
		t.Helper()
		var way []string
		for _, l := range flow.Layers {
			way = append(way, fmt.Sprintf("%s %s %s", l.Node, l.Layer, l.Place))
			must.Eq(t, allowed, l.Allowed, must.Sprint(l))
			must.False(t, l.Unread || l.Broken, must.Sprint(l))
			if allowed {
				must.Eq(t, contract.String(), l.Contract, must.Sprint(l))
			}
		}
		must.Eq(t, []string{
			fmt.Sprintf("aws1/%s ebpf sender", svc.node), "aws1/aws1-p1 switch boundary",
			"gcp1/gcp1-p1 switch boundary", fmt.Sprintf("gcp1/%s ebpf receiver", news.node),
		}, way)
	}

	answer := world.explain(t, 0, svc.alloc, news.alloc, "9001")
	must.True(t, answer.Allowed)
	must.Len(t, 1, answer.Flows)
	must.Eq(t, contract, answer.Flows[0].Declared.Contract)
	layers(t, answer.Flows[0], true)
	r := world.sif(t, "explain", svc.alloc, news.alloc, "9001/tcp")
	must.Zero(t, r.code, must.Sprint(r.stderr))
	must.StrContains(t, r.stdout, "tcp/9001: allowed\n")
	must.StrContains(t, r.stdout, "contract getaway-app/news-api (")
	must.StrContains(t, r.stdout, "graph.sif.hcl:"+line+"): allows it")
	// A service stands for all its endpoints.
	answer = world.explain(t, 0, "getaway-app/getaway-svc", "getaway-app/news-gw", "9001")
	must.Greater(t, 1, len(answer.Flows))

	answer = world.explain(t, exitDropped, svc.alloc, news.v4.String(), "9002")
	must.False(t, answer.Allowed)
	must.Len(t, 1, answer.Flows)
	layers(t, answer.Flows[0], false)
	r = world.sif(t, "explain", svc.alloc, news.alloc, "9002")
	must.Eq(t, exitDropped, r.code, must.Sprint(r.stderr))
	must.StrContains(t, r.stdout, "tcp/9002: dropped\n")
	must.StrContains(t, r.stdout, "graph.sif.hcl:"+line+"): it allows ")
	r = world.sif(t, "explain", news.alloc, svc.alloc, "9001")
	must.Eq(t, exitDropped, r.code, must.Sprint(r.stderr))
	must.StrContains(t, r.stdout, "it allows the opposite direction only")
}

// TestPolicyPlanApplyHistoryRollback plans a change, applies another one in between, then applies
// the planned change anyway and rolls back, while a connection is open that the change cuts.
func TestPolicyPlanApplyHistoryRollback(t *testing.T) {
	world.withTestPorts(t)
	svc := world.workload(t, "getaway-app/getaway-svc", "aws1")
	news, weather := world.workload(t, "getaway-app/news-gw", "gcp1"), world.workload(t, "getaway-app/weather-gw", "gcp1")
	base := world.status(t).Pointer
	text := altered(t, world.testPorts(t), fmt.Sprintf("[9003, %d]", weatherPort), "[9003]", "[9002]", "[9002, 9102]")
	file, plan := write(t, "graph.sif.hcl", text), filepath.Join(t.TempDir(), "change.plan")
	gains := fmt.Sprintf("+ getaway-app/getaway-svc gains getaway-app/places-gw on tcp/9102 (contract places-api, %s:%s)", file, place(t, text, `"places-api"`))
	loses := fmt.Sprintf("- getaway-app/getaway-svc loses getaway-app/weather-gw on tcp/%d", weatherPort)
	victim := openStream(t, svc, weather, weatherPort, "weather")
	other := openStream(t, svc, news, newsPort, "news")

	// Nodes may still report connections of earlier tests on the port, so the number is not
	// checked.
	cuts := regexp.MustCompile(fmt.Sprintf(`getaway-app/getaway-svc to getaway-app/weather-gw on tcp/%d: \d+ connections?, on %s/%s\b`, weatherPort, svc.zone, svc.node))
	eventually(t, 10*time.Second, func() error { // nodes report their connections every few seconds
		r := world.sif(t, "graph", "plan", "-detailed-exitcode", "-out="+plan, "-message=planned", file)
		must.Eq(t, exitChanges, r.code, must.Sprint(r.stderr))
		for _, want := range []string{gains, loses, "live endpoint", svc.alloc, weather.alloc} {
			must.StrContains(t, r.stdout, want)
		}
		if !cuts.MatchString(r.stdout) {
			return fmt.Errorf("%s is not in %s", cuts, r.stdout)
		}
		return nil
	})
	must.Eq(t, base, world.status(t).Pointer, must.Sprint("a plan changes nothing"))

	// Another apply changes the state on which the plan is based.
	between := world.apply(t, altered(t, world.testPorts(t), "[9002]", "[9002, 9105]"))
	must.Greater(t, base.Sequence, between)
	r := world.sif(t, "graph", "apply", plan)
	must.Eq(t, exitNegative, r.code, must.Sprint(r.stdout))
	must.StrContains(t, r.stderr, fmt.Sprintf("the graph is at sequence %d, not %d", between, base.Sequence))
	must.Eq(t, between, world.sequence(t))
	victim.mustFlow(t, 5*time.Second)

	r = world.sif(t, "graph", "plan", "-detailed-exitcode", "-out="+plan, "-message=planned", file)
	must.Eq(t, exitChanges, r.code, must.Sprint(r.stderr))
	must.StrContains(t, r.stdout, "- getaway-app/getaway-svc loses getaway-app/places-gw on tcp/9105")
	r = world.sif(t, "graph", "apply", "-json", plan)
	must.Zero(t, r.code, must.Sprint(r.stderr))
	victim.mustBeCut(t, other, 2*time.Second, 15*time.Second)
	victim.stop()
	world.allWell(t, 30*time.Second)
	planned := world.status(t).Pointer
	must.Eq(t, between+1, planned.Sequence)
	r = world.sif(t, "graph", "plan", "-detailed-exitcode", file)
	must.Zero(t, r.code, must.Sprint("the plan is in force: ", r.stdout))

	newest := func(t *testing.T) fabric.Change {
		t.Helper()
		r := world.sif(t, "graph", "history", "-json")
		must.Zero(t, r.code, must.Sprint(r.stderr))
		var history api.History
		must.NoError(t, json.Unmarshal([]byte(r.stdout), &history))
		must.Greater(t, 2, len(history.Changes))
		return history.Changes[0]
	}
	change := newest(t)
	must.Eq(t, planned.Sequence, change.Sequence)
	must.Eq(t, planned.Root, change.Root)
	must.Eq(t, "planned", change.Message)
	must.NotEq(t, "", change.Author)

	r = world.sif(t, "graph", "diff", fmt.Sprint(base.Sequence), fmt.Sprint(planned.Sequence))
	must.Zero(t, r.code, must.Sprint(r.stderr))
	must.StrContains(t, r.stdout, gains)
	must.StrContains(t, r.stdout, loses)
	must.StrNotContains(t, r.stdout, "9105")

	must.False(t, arrives(t, svc, weather, weatherPort, 700*time.Millisecond))
	r = world.sif(t, "graph", "rollback", "-message=back", fmt.Sprint(base.Sequence))
	must.Zero(t, r.code, must.Sprint(r.stderr))
	world.allWell(t, 30*time.Second)
	back := world.status(t).Pointer
	must.Eq(t, base.Root, back.Root)
	must.Eq(t, planned.Sequence+1, back.Sequence)
	change = newest(t)
	must.Eq(t, base.Sequence, change.Rollback)
	must.Eq(t, "back", change.Message)
	reaches(t, svc, weather, weatherPort, true, 10*time.Second)
	other.mustFlow(t, 5*time.Second)
	world.verified(t, 20*time.Second)
}

// TestPolicyExpiredContractCutsItsConnections lets a contract expire that has an established
// connection between the zones, once for each layer, while the other layer lets everything pass.
// Nobody applies a graph meanwhile.
func TestPolicyExpiredContractCutsItsConnections(t *testing.T) {
	const quiet = 2 * time.Second
	world.withTestPorts(t)
	svc := world.workload(t, "getaway-app/getaway-svc", "aws1")
	news, weather := world.workload(t, "getaway-app/news-gw", "gcp1"), world.workload(t, "getaway-app/weather-gw", "gcp1")

	// expire lets the contract expire; layer prepares the layer that must cut the connection alone.
	expire := func(t *testing.T, layer func()) {
		t.Helper()
		expires := time.Now().Add(20 * time.Second).Truncate(time.Second)
		const name = `contract "news-api" {`
		sequence := world.apply(t, altered(t, world.testPorts(t), name, fmt.Sprintf("%s\n    expires = %q", name, expires.UTC().Format(time.RFC3339))))
		world.allWell(t, 12*time.Second)
		layer()
		victim := openStream(t, svc, news, newsPort, "news")
		other := openStream(t, svc, weather, weatherPort, "weather")
		time.Sleep(time.Until(expires.Add(-2 * time.Second)))
		victim.mustFlow(t, 1500*time.Millisecond)
		must.True(t, time.Now().Before(expires), must.Sprint("the contract expired before the test saw payload pass"))
		time.Sleep(time.Until(expires))
		victim.mustBeCut(t, other, quiet, 5*time.Second)
		must.False(t, arrives(t, svc, news, newsPort, 700*time.Millisecond), must.Sprint("a new connection"))
		victim.stop()
		other.mustFlow(t, 5*time.Second)
		other.stop()
		must.Eq(t, sequence, world.sequence(t), must.Sprint("nobody applied anything"))
	}
	expired := func(t *testing.T) {
		t.Helper()
		world.allWell(t, 20*time.Second)
		world.verified(t, 20*time.Second)
		r := world.sif(t, "explain", svc.alloc, news.alloc, fmt.Sprint(newsPort))
		must.Eq(t, exitDropped, r.code, must.Sprint(r.stderr))
		must.StrContains(t, r.stdout, "it expired at ")
	}
	t.Run("Open vSwitch", func(t *testing.T) {
		expire(t, func() { world.kernelPasses(t) })
	})
	expired(t)
	t.Run("eBPF", func(t *testing.T) {
		expire(t, func() {
			// The engines would revert the override of the switch, so they are stopped.
			t.Cleanup(func() { world.signalEngines(t, syscall.SIGCONT) })
			world.signalEngines(t, syscall.SIGSTOP)
			world.boundaryPasses(t)
		})
	})
	expired(t)
}

// TestPolicyAuditModeLetsPassAndReports opens a flow that only a contract in audit mode allows.
func TestPolicyAuditModeLetsPassAndReports(t *testing.T) {
	world.withTestPorts(t)
	const name = `contract "news-api" {`
	world.apply(t, altered(t, world.testPorts(t), name, name+"\n    mode = \"audit\""))
	world.allWell(t, 30*time.Second)
	svc, news := world.workload(t, "getaway-app/getaway-svc", "aws1"), world.workload(t, "getaway-app/news-gw", "gcp1")
	contract := fabric.Ref{Domain: "getaway-app", Name: "news-api"}
	audited := func() (opened uint64) {
		for _, n := range world.status(t).Nodes {
			for _, f := range n.Audited {
				if n.Node == svc.node && f.From == svc.service && f.To == news.service && f.Contract == contract && f.Protocol == fabric.TCP && f.Port == newsPort {
					opened += f.Count
				}
			}
		}
		return opened
	}

	before := audited()
	for range 3 {
		reaches(t, svc, news, newsPort, true, 5*time.Second)
	}
	eventually(t, 10*time.Second, func() error {
		if now := audited(); now < before+3 {
			return fmt.Errorf("%d audited flows before, %d now", before, now)
		}
		return nil
	})
	r := world.sif(t, "explain", svc.alloc, news.alloc, fmt.Sprint(newsPort))
	must.Zero(t, r.code, must.Sprint(r.stderr))
	must.StrContains(t, r.stdout, "allowed by audit mode")
	world.verified(t, 20*time.Second)
}

// TestPolicyGuardrailRefusesApply puts a guardrail in force and applies a graph that breaks it.
func TestPolicyGuardrailRefusesApply(t *testing.T) {
	t.Cleanup(func() {
		r := world.sif(t, "graph", "apply", "-remove-guardrail=no-tests", write(t, "graph.sif.hcl", world.getaway(t)))
		must.Zero(t, r.code, must.Sprint(r.stderr))
		world.allWell(t, 30*time.Second)
	})
	world.apply(t, world.getaway(t)+fmt.Sprintf(`
guardrail "no-tests" {
  deny {
    from = { domain = "getaway-app", name = "getaway-svc" }
    to   = { name = "news-gw" }
    rule {
      protocol = "tcp"
      ports    = [%d]
    }
  }
}
`, newsPort))
	before := world.status(t).Pointer

	text := world.testPorts(t)
	file := write(t, "breaks.sif.hcl", text)
	for _, command := range []string{"plan", "apply"} {
		r := world.sif(t, "graph", command, file)
		must.Eq(t, exitNegative, r.code, must.Sprint(r.stdout))
		must.StrContains(t, r.stderr, "breaks.sif.hcl:"+place(t, text, `"news-api"`)+": error: contract getaway-app/news-api")
		must.StrContains(t, r.stderr, fmt.Sprintf(`reach getaway-app/news-gw on tcp/%d, which guardrail "no-tests" denies`, newsPort))
	}
	must.Eq(t, before, world.status(t).Pointer, must.Sprint("a refused apply changes nothing"))
	world.allWell(t, 30*time.Second)
}
