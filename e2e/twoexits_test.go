// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

//go:build e2e

package e2e

import (
	"fmt"
	"net/netip"
	"os/exec"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"github.com/sif-project/sif/e2e/lab"
)

// longestGap is the longest time in which new flows may fail after the exit of their workload died.
const longestGap = time.Second

// TestTwoExits lets the exit of a workload die in several ways. New flows go by the other exit of
// the zone within a second, and flows that are there already notice nothing.
func TestTwoExits(t *testing.T) {
	const service, job, zone = "getaway-app/news-gw", "news-gw", "aws1"
	exits := slices.DeleteFunc(world.Topology.Nodes(lab.Processor), func(n *lab.Node) bool { return n.Zone != zone || !n.HasSwitch() })
	if len(exits) != 2 {
		t.Skipf("zone %s has %d processors; set %s to a topology in which it has two", zone, len(exits), topologyVariable)
	}
	provider := world.outside(t, "provider").Address(4)
	to := netip.AddrPortFrom(provider, 443)
	world.withGraph(t, sourceContract(t, external(t, world.getaway(t), "news-provider", fmt.Sprintf("    prefixes = [\"%s/32\"]", provider)), "news", ""))
	const count = 8
	world.scale(t, job, zone, count)
	t.Cleanup(func() { world.scale(t, job, zone, 1) })
	instances := world.instances(t, service, zone, count)
	// One workload of each exit. An endpoint's exit is the same whenever both live.
	of := map[*lab.Node]workload{}
	for _, w := range instances {
		var by netip.Addr
		eventually(t, 15*time.Second, func() (err error) {
			by, err = seen(w, to, time.Second)
			return err
		})
		i := slices.IndexFunc(exits, func(n *lab.Node) bool { return n.Address == by.String() })
		must.GreaterEq(t, 0, i, must.Sprintf("%s is seen at %s, which is no exit", w, by))
		of[exits[i]] = w
	}
	must.MapLen(t, 2, of, must.Sprintf("%d workloads share the exits", count))
	dies, other := exits[0], exits[1]
	daemons := []string{"engine", "link", "ovs-vswitchd"}
	all := func(do func(daemon string) error) {
		t.Helper()
		for _, d := range daemons {
			must.NoError(t, do(d), must.Sprint(d))
		}
	}
	// What a signal does to the daemons must be at once, whatever their order.
	signal := func(s syscall.Signal) {
		t.Helper()
		all(func(d string) error { return world.Signal(dies.Name, d, s) })
	}
	port := func(state string) {
		t.Helper()
		out, err := exec.Command("ip", "-n", world.Namespace("internet"), "link", "set", dies.Name, state).CombinedOutput()
		must.NoError(t, err, must.Sprint(string(out)))
	}
	for _, how := range []struct {
		name      string
		die, live func()
	}{
		{"killed", func() { signal(syscall.SIGKILL) }, func() {
			slices.Reverse(daemons)
			defer slices.Reverse(daemons)
			all(func(d string) error { return world.Start(dies.Name, d) })
		}},
		{"hung", func() { signal(syscall.SIGSTOP) }, func() { signal(syscall.SIGCONT) }},
		{"cut off", func() { port("down") }, func() { port("up") }},
	} {
		t.Run(how.name, func(t *testing.T) {
			back := sync.OnceFunc(how.live)
			t.Cleanup(back)
			stream := openOutsideStream(t, of[other], to)
			flows := openFlows(of[dies], to)
			time.Sleep(500 * time.Millisecond)
			died := time.Now()
			how.die()
			time.Sleep(3 * longestGap)
			flows.stop()
			gap, by := flows.since(died)
			t.Logf("the last new flow that failed began %s after %s died", gap.Round(time.Millisecond), dies.Name)
			must.Eq(t, other.Address, by.String())
			must.Less(t, longestGap, gap)
			stream.mustFlow(t, longestGap)
			stream.stop()

			back()
			world.allWell(t, time.Minute)
			eventually(t, 30*time.Second, func() error {
				by, err := seen(of[dies], to, time.Second)
				if err == nil && by.String() != dies.Address {
					err = fmt.Errorf("%s leaves by %s", of[dies], by)
				}
				return err
			})
		})
	}
}

// flows are TCP connections of a workload to the outside, a new one every so often.
type flows struct {
	stop func()

	mu    sync.Mutex
	tried []attempt
}

// attempt is a connection: when it began, and at which address the outside saw it.
type attempt struct {
	began time.Time
	by    netip.Addr
	err   error
}

const (
	everySoOften = 50 * time.Millisecond
	// soon is how long an attempt may take: less than until TCP sends its first segment again,
	// because that would belong to the same flow, which keeps its exit.
	soon = 700 * time.Millisecond
)

func openFlows(w workload, to netip.AddrPort) *flows {
	f := &flows{}
	done := make(chan struct{})
	var running sync.WaitGroup
	running.Go(func() {
		tick := time.NewTicker(everySoOften)
		defer tick.Stop()
		for {
			select {
			case <-done:
				return
			case <-tick.C:
			}
			running.Go(func() {
				a := attempt{began: time.Now()}
				a.by, a.err = seen(w, to, soon)
				f.mu.Lock()
				f.tried = append(f.tried, a)
				f.mu.Unlock()
			})
		}
	})
	f.stop = sync.OnceFunc(func() {
		close(done)
		running.Wait()
	})
	return f
}

// since returns how long after a moment the last flow began that failed, and by which exit the last
// one of all left.
func (f *flows) since(moment time.Time) (gap time.Duration, by netip.Addr) {
	f.mu.Lock()
	defer f.mu.Unlock()
	slices.SortFunc(f.tried, func(a, b attempt) int { return a.began.Compare(b.began) })
	for _, a := range f.tried {
		if a.err != nil && a.began.After(moment) {
			gap = a.began.Sub(moment)
		}
		by = a.by
	}
	return gap, by
}
