// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

//go:build e2e

package e2e

import (
	"fmt"
	"net"
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

// traffic is what passes between two endpoints of two zones: numbered datagrams, and a TCP
// connection whose segments are large.
type traffic struct {
	from, to workload
	pulses   *pulses
	stream   *stream
}

// TestFailover lets a processor, its links and its switch fail in several ways, in zones that have
// two, under the traffic of several pairs. The pairs go on by the other processor: no TCP
// connection breaks, and it prints for how long datagrams were lost. `make test-failover`.
func TestFailover(t *testing.T) {
	for _, zone := range []string{"aws1", "gcp1"} {
		have := slices.DeleteFunc(world.Topology.Nodes(lab.Processor), func(n *lab.Node) bool { return n.Zone != zone || !n.HasSwitch() })
		if len(have) != 2 {
			t.Skipf("zone %s has %d processors with a switch; set %s to a topology in which it has two", zone, len(have), topologyVariable)
		}
	}
	world.withTestPorts(t)
	const count = 6
	world.scale(t, "news-gw", "gcp1", count)
	t.Cleanup(func() { world.scale(t, "news-gw", "gcp1", 1) })
	from := world.workload(t, "getaway-app/getaway-svc", "aws1")
	var pairs []traffic
	for _, to := range world.instances(t, "getaway-app/news-gw", "gcp1", count) {
		reaches(t, from, to, newsPort, true, 30*time.Second)
		pairs = append(pairs, traffic{from, to, openPulses(t, from, to, newsPort), openPacedStream(t, from, to, newsPort, "large", 4096)})
	}
	const dies = "aws1-p1"
	daemons := []string{"engine", "link", "ovs-vswitchd"}
	signal := func(s syscall.Signal, daemons ...string) func() {
		return func() {
			t.Helper()
			for _, d := range daemons {
				must.NoError(t, world.Signal(dies, d, s), must.Sprint(d))
			}
		}
	}
	// An engine ends while the switch does not answer yet, and is started again, as systemd does.
	start := func(daemons ...string) func() {
		return func() {
			for _, d := range slices.Backward(daemons) {
				eventually(t, 20*time.Second, func() error {
					if err := world.Start(dies, d); err != nil {
						return err
					}
					if time.Sleep(time.Second); !world.Alive(dies, d) {
						return fmt.Errorf("%s has ended", d)
					}
					return nil
				})
			}
		}
	}
	port := func(state string) func() {
		return func() {
			out, err := exec.Command("ip", "-n", world.Namespace("internet"), "link", "set", dies, state).CombinedOutput()
			must.NoError(t, err, must.Sprint(string(out)))
		}
	}
	drain := func(option string) func() {
		return func() { must.Eq(t, 0, world.sif(t, "node", "drain", option, "aws1/"+dies).code) }
	}
	cut := func(what string) (do, undo func()) {
		var back func()
		return func() { back = world.cut(t, dies, "gcp1-p1", what) }, func() { back() }
	}
	address := func(node string) string { return world.Topology.Node(node).Address }
	cutAll, joinAll := cut("")
	cutOut, joinOut := cut("ip saddr " + address(dies))
	cutLarge, joinLarge := cut("udp length > 1000")
	for _, c := range []struct {
		name      string
		die, live func()
		lossless  bool
	}{
		{"processor killed", signal(syscall.SIGKILL, daemons...), start(daemons...), false},
		{"processor hung", signal(syscall.SIGSTOP, daemons...), signal(syscall.SIGCONT, daemons...), false},
		{"processor unplugged", port("down"), port("up"), false},
		{"engine killed", signal(syscall.SIGKILL, "engine"), start("engine"), false},
		{"link process killed", signal(syscall.SIGKILL, "link"), start("link"), false},
		{"switch killed", signal(syscall.SIGKILL, "ovs-vswitchd"), start("ovs-vswitchd"), false},
		{"switch hung", signal(syscall.SIGSTOP, "ovs-vswitchd"), signal(syscall.SIGCONT, "ovs-vswitchd"), false},
		{"tunnel cut", cutAll, joinAll, false},
		{"tunnel cut in one direction", cutOut, joinOut, false},
		{"tunnel that loses large packets", cutLarge, joinLarge, false},
		{"drained", drain("-enable"), drain("-disable"), true},
	} {
		t.Run(c.name, func(t *testing.T) {
			back := sync.OnceFunc(c.live)
			t.Cleanup(back)
			goesOn(t, pairs, 30*time.Second)
			began := time.Now()
			c.die()
			time.Sleep(4 * time.Second)
			goesOn(t, pairs, 10*time.Second)
			away, lostAway := gapOf(pairs, began)
			nothingOpens(t, pairs)
			again := time.Now()
			back()
			goesOn(t, pairs, 30*time.Second)
			world.allWell(t, time.Minute)
			goesOn(t, pairs, 10*time.Second)
			time.Sleep(time.Second + pulseTick) // the echo of the last one counts as lost only then
			home, lostHome := gapOf(pairs, again)
			t.Logf("%-32s longest gap %4d ms (%d lost); when it came back %4d ms (%d lost)", c.name, away.Milliseconds(), lostAway, home.Milliseconds(), lostHome)
			if c.lossless && lostAway+lostHome > 0 {
				t.Errorf("%d datagrams were lost", lostAway+lostHome)
			}
		})
	}
}

// goesOn waits until all traffic passes. It fails if a TCP connection broke.
func goesOn(t *testing.T, pairs []traffic, within time.Duration) {
	t.Helper()
	for _, p := range pairs {
		p.pulses.passes(t, within)
		p.stream.mustFlow(t, within)
	}
}

// gapOf returns the longest time for which the datagrams of any pair were lost that were sent from
// a moment on, and how many all pairs lost.
func gapOf(pairs []traffic, from time.Time) (longest time.Duration, lost int) {
	for _, p := range pairs {
		gap, n := p.pulses.longestGap(from)
		longest, lost = max(longest, gap), lost+n
	}
	return longest, lost
}

// nothingOpens has the responders open connections to their originator, from the port at which they
// answer. None may arrive, though their pairs came to another processor moments ago.
func nothingOpens(t *testing.T, pairs []traffic) {
	t.Helper()
	const victim = 40000
	l, err := listen(pairs[0].from.netns, netip.AddrPortFrom(pairs[0].from.v4, victim))
	must.NoError(t, err)
	defer l.Close()
	var trying sync.WaitGroup
	for _, p := range pairs {
		trying.Go(func() {
			conn, err := within(p.to.netns, func() (net.Conn, error) {
				d := net.Dialer{Timeout: 1500 * time.Millisecond, LocalAddr: &net.TCPAddr{IP: p.to.v4.AsSlice(), Port: newsPort}}
				d.Control = func(_, _ string, raw syscall.RawConn) (err error) {
					if e := raw.Control(func(fd uintptr) { err = syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_REUSEADDR, 1) }); e != nil {
						return e
					}
					return err
				}
				d.SetMultipathTCP(false)
				return d.Dial("tcp", l.Addr().String())
			})
			if err == nil {
				conn.Close()
				t.Errorf("the responder %s opened a connection to %s", p.to, p.from)
			} else if !unreached(err) {
				t.Errorf("the responder %s could not try: %v", p.to, err)
			}
		})
	}
	trying.Wait()
}
