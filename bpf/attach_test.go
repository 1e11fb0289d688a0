// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package bpf

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"github.com/shoenig/test/must"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"

	"github.com/sif-project/sif/internal/testhost"
)

// attach attaches the programs to an interface and checks what was missing.
func attach(t *testing.T, d *Datapath, name string, missing ...string) {
	t.Helper()
	got, err := d.Attach(name)
	must.NoError(t, err)
	must.Eq(t, missing, got)
}

const (
	fromMissing = "the from_workload program"
	toMissing   = "the to_workload program"
)

func TestGuarded(t *testing.T) {
	byMechanism(t, func(t *testing.T, by Mechanism) {
		f := newFixtureWith(t, by)
		must.Eq(t, by, f.Mechanism())
		must.ErrorIs(t, f.Guarded("me"), ErrNotGuarded)
		must.Error(t, f.Guarded("nothing"))
		attach(t, f.Datapath, "me", fromMissing, toMissing)
		must.NoError(t, f.Guarded("me"))
		attach(t, f.Datapath, "me")

		// Programs stay while what is pinned is gone.
		must.NoError(t, os.RemoveAll(f.dir))
		time.Sleep(50 * time.Millisecond) // the kernel removes programs asynchronously
		must.NoError(t, f.Guarded("me"))
		if by == TCX {
			attach(t, f.Datapath, "me", "the pin of the from_workload program", "the pin of the to_workload program")
		}
		attach(t, f.Datapath, "me")

		takeOff(t, f, by)
		must.ErrorIs(t, f.Guarded("me"), ErrNotGuarded)
		attach(t, f.Datapath, "me", toMissing)
		must.NoError(t, f.Guarded("me"))
		must.NoError(t, f.Detach("me"))
		for deadline := time.Now().Add(5 * time.Second); f.Guarded("me") == nil && time.Now().Before(deadline); {
			time.Sleep(10 * time.Millisecond)
		}
		must.ErrorContains(t, f.Guarded("me"), "has 0 ")
		must.Eq(t, 0, len(qdiscs(t, "me")))
	})
}

// Comparing one interface costs the same however many others there are: an agent compares each of
// its endpoints every few seconds.
func TestComparisonLooksAtOneInterface(t *testing.T) {
	byMechanism(t, func(t *testing.T, by Mechanism) {
		f := newFixtureWith(t, by)
		attach(t, f.Datapath, "me", fromMissing, toMissing)
		allocations := func() float64 {
			return testing.AllocsPerRun(10, func() {
				attach(t, f.Datapath, "me")
				must.NoError(t, f.Guarded("me"))
			})
		}
		alone := allocations()
		for i := range 50 {
			device(t, fmt.Sprint("other", i))
		}
		must.LessEq(t, alone+10, allocations())
	})
}

// takeOff removes the to_workload program, as somebody with the usual tools does.
func takeOff(t *testing.T, f *fixture, by Mechanism) {
	t.Helper()
	if by == Clsact {
		script(t, "tc filter del dev me egress prio 1")
		return
	}
	taken, err := link.LoadPinnedLink(filepath.Join(f.linkDirectory("me"), "to_workload"), nil)
	must.NoError(t, err)
	must.NoError(t, taken.Detach())
	must.NoError(t, taken.Close())
}

// qdiscs returns the kinds of the queueing disciplines of an interface that has none by itself.
func qdiscs(t *testing.T, name string) (kinds []string) {
	t.Helper()
	l, err := netlink.LinkByName(name)
	must.NoError(t, err)
	list, err := netlink.QdiscList(l)
	must.NoError(t, err)
	for _, q := range list {
		if q.Type() != "noqueue" {
			kinds = append(kinds, q.Type())
		}
	}
	return kinds
}

// A second program could decide before ours.
func TestOtherTCXPrograms(t *testing.T) {
	byMechanism(t, func(t *testing.T, by Mechanism) {
		requireTCX(t)
		f := newFixtureWith(t, by)
		attach(t, f.Datapath, "me", fromMissing, toMissing)
		other, err := link.AttachTCX(link.TCXOptions{Interface: int(f.me), Program: f.programs.SifToWorkload, Attach: ebpf.AttachTCXIngress})
		must.NoError(t, err)
		must.ErrorIs(t, f.Guarded("me"), ErrNotGuarded)
		must.NoError(t, other.Close())
		must.NoError(t, f.Guarded("me"))
	})
}

// The mechanism is the one that a probe finds, and the probe leaves nothing behind.
func TestProbe(t *testing.T) {
	enterNamespace(t)
	must.NoError(t, netlink.LinkSetUp(&netlink.GenericLink{LinkAttrs: netlink.LinkAttrs{Index: 1}}))
	m, missing, err := Probe()
	must.NoError(t, err)
	must.SliceEmpty(t, missing)
	d := open(t, pinDirectory(t), Options{})
	must.Eq(t, m, d.Mechanism())
	must.SliceEmpty(t, qdiscs(t, "lo"))

	p, err := ebpf.NewProgram(passing)
	must.NoError(t, err)
	defer p.Close()
	has, err := haveClsact(p)
	must.NoError(t, err)
	must.True(t, has)
	_, err = Open(d.dir, Options{Mechanism: "xdp"})
	must.ErrorContains(t, err, `attach by "xdp": there are "tcx" and "clsact"`)
}

// The trial of the programs leaves no map and no program, and no thread in another namespace.
func TestTrialsLeaveNothing(t *testing.T) {
	testhost.RequireRoot(t)
	held := func() (n int) {
		files, err := os.ReadDir("/proc/self/fd")
		must.NoError(t, err)
		for _, f := range files {
			if target, _ := os.Readlink("/proc/self/fd/" + f.Name()); strings.Contains(target, "bpf") {
				n++
			}
		}
		return n
	}
	spaces := func() (list []string) {
		threads, err := filepath.Glob("/proc/self/task/*/ns/net")
		must.NoError(t, err)
		for _, thread := range threads {
			if target, err := os.Readlink(thread); err == nil && !slices.Contains(list, target) {
				list = append(list, target)
			}
		}
		return list
	}
	before, in := held(), spaces()
	must.NoError(t, TryPrograms())
	for range 20 { // on whichever thread
		_, _, err := Probe()
		must.NoError(t, err)
		p, err := ebpf.NewProgram(passing)
		must.NoError(t, err)
		_, err = haveClsact(p)
		must.NoError(t, err)
		must.NoError(t, p.Close())
	}
	must.Eq(t, before, held())
	must.SliceContainsAll(t, in, spaces())
}

// What others do with filters is noticed and put right where they come before ours, and left alone
// where they come after.
func TestOtherFilters(t *testing.T) {
	f := newFixtureWith(t, Clsact)
	pass := filepath.Join(f.dir, "pass")
	p, err := ebpf.NewProgram(passing)
	must.NoError(t, err)
	defer p.Close()
	must.NoError(t, p.Pin(pass))
	const u32 = " protocol all u32 match u32 0 0 classid 1:1"
	first := "the first place of " + fromMissing
	for what, row := range map[string]struct {
		script  string // what the others do
		alter   func(f *fixture, ours *netlink.BpfFilter)
		missing []string
		refused string // Attach fails with it, and then remedy is what helps
		remedy  string
		stays   string // the kind of the filter of others that is there in the end
	}{
		"behind ours":          {script: "tc filter add dev me ingress prio 2" + u32, stays: "u32"},
		"without a priority":   {script: "tc filter add dev me ingress" + u32, stays: "u32"},
		"in another chain":     {script: "tc filter add dev me ingress chain 1 prio 1" + u32, stays: "u32"},
		"the filter is gone":   {script: "tc filter del dev me ingress prio 1", missing: []string{fromMissing}},
		"all filters are gone": {script: "tc filter del dev me ingress; tc filter del dev me egress", missing: []string{fromMissing, toMissing}},
		"clsact is gone":       {script: "tc qdisc del dev me clsact", missing: []string{fromMissing, toMissing}},
		"clsact is another": {script: "tc qdisc del dev me clsact; tc qdisc add dev me clsact; tc filter add dev me ingress prio 2" + u32,
			missing: []string{fromMissing, toMissing}, stays: "u32"},
		"before ours": {script: "tc filter add dev me ingress prio 1 protocol all bpf da object-pinned $PASS", missing: []string{first}, stays: "bpf"},
		"another program in our place": {script: "tc filter replace dev me ingress prio 1 handle 1 protocol all bpf da object-pinned $PASS",
			missing: []string{fromMissing}, stays: "bpf"},
		"another program under our name": {alter: func(f *fixture, ours *netlink.BpfFilter) { ours.Fd = f.programs.SifSweep.FD() }, missing: []string{fromMissing}},
		"ours, but it decides nothing": {alter: func(f *fixture, ours *netlink.BpfFilter) {
			ours.Fd, ours.DirectAction, ours.ClassId = f.programs.SifFromWorkload.FD(), false, 1
		}, missing: []string{fromMissing}},
		"another kind in our place": {script: "tc filter del dev me ingress prio 1; tc filter add dev me ingress prio 1" + u32,
			missing: []string{fromMissing}, refused: "of priority 1, is a u32 filter of others: give it a higher number", remedy: "tc filter del dev me ingress prio 1"},
		"another protocol in our place": {script: "tc filter del dev me ingress prio 1; tc filter add dev me ingress prio 1 protocol ip bpf da object-pinned $PASS",
			missing: []string{fromMissing}, refused: "of priority 1, is a bpf filter of others", remedy: "tc filter del dev me ingress prio 1"},
		"another queueing discipline": {script: "tc qdisc del dev me clsact; tc qdisc add dev me ingress",
			missing: []string{fromMissing, toMissing}, refused: `a queueing discipline of kind "ingress"`, remedy: "tc qdisc del dev me ingress"},
		"a shared block": {script: "tc qdisc del dev me clsact; tc qdisc add dev me ingress_block 7 clsact",
			missing: []string{fromMissing, toMissing}, refused: "attach from_workload program to me", remedy: "tc qdisc del dev me clsact"},
	} {
		t.Run(what, func(t *testing.T) {
			runtime.LockOSThread() // without an unlock, so that the thread ends with the goroutine
			must.NoError(t, netns.Set(f.namespace))
			attach(t, f.Datapath, "me", fromMissing, toMissing)
			script(t, row.script, "PASS="+pass)
			if row.alter != nil {
				ours := f.filters(FromWorkload)[0].(*netlink.BpfFilter)
				row.alter(f, ours)
				must.NoError(t, netlink.FilterReplace(ours))
			}
			if len(row.missing) > 0 {
				must.ErrorIs(t, f.Guarded("me"), ErrNotGuarded)
			} else {
				must.NoError(t, f.Guarded("me"))
			}
			if row.refused != "" {
				_, err := f.Attach("me")
				must.ErrorContains(t, err, row.refused)
				must.ErrorIs(t, f.Guarded("me"), ErrNotGuarded)
				script(t, row.remedy)
			}
			attach(t, f.Datapath, "me", row.missing...)
			must.NoError(t, f.Guarded("me"))
			attach(t, f.Datapath, "me")
			must.Eq(t, row.stays, f.others())
			must.NoError(t, f.Detach("me"))
			must.Eq(t, row.stays, f.others(), must.Sprint("filters of others stay"))
			must.Eq(t, row.stays != "", len(qdiscs(t, "me")) > 0)
			script(t, "tc qdisc del dev me clsact 2>/dev/null || true")
		})
	}
}

// passing lets every packet pass, and ends the chain.
var passing = &ebpf.ProgramSpec{Type: ebpf.SchedCLS, License: "MPL-2.0", Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 0), asm.Return()}}

// filters returns all filters of the interface me in a direction, in the order of the kernel.
func (f *fixture) filters(dir Direction) []netlink.Filter {
	f.t.Helper()
	l, err := netlink.LinkByName("me")
	must.NoError(f.t, err)
	all, err := netlink.FilterList(l, f.hooks[dir].clsact)
	must.NoError(f.t, err)
	return all
}

// others returns the kind of the filters of others that come in from the workload.
func (f *fixture) others() (kind string) {
	f.t.Helper()
	for _, have := range f.filters(FromWorkload) {
		if f.hooks[FromWorkload].own(have) == nil {
			kind = have.Type()
		}
	}
	return kind
}

// What is attached meets packets before the interface is up, and each of our programs is counted
// once.
func TestNothingPassesBeforePrograms(t *testing.T) {
	byMechanism(t, func(t *testing.T, by Mechanism) {
		f := newFixtureWith(t, by)
		attach(t, f.Datapath, "me", fromMissing, toMissing)
		script(t, "ip link set me-x up; ip link set me up; ip neigh add 192.0.2.9 lladdr 02:00:00:00:00:09 dev me; ip route add 192.0.2.9 dev me; ip addr add 192.0.2.1/32 dev me")
		before, err := f.Counters()
		must.NoError(t, err)
		c, err := net.Dial("udp", "192.0.2.9:9")
		must.NoError(t, err)
		defer c.Close()
		for range 10 {
			_, err := c.Write([]byte("x"))
			must.NoError(t, err)
		}
		after, err := f.Counters()
		must.NoError(t, err)
		must.Eq(t, before.Verdict(ToWorkload, UnknownDestination)+10, after.Verdict(ToWorkload, UnknownDestination))
	})
}

// TestTakeover closes the data path, as the end of the process does, and opens it again:
// enforcement continues in between, and the new programs replace the old ones without a gap, also
// if the new process attaches them by another mechanism.
func TestTakeover(t *testing.T) {
	for _, from := range []Mechanism{TCX, Clsact} {
		for _, to := range []Mechanism{TCX, Clsact} {
			t.Run(string(from)+" to "+string(to), func(t *testing.T) {
				if from == TCX || to == TCX {
					requireTCX(t)
				}
				testTakeover(t, from, to)
			})
		}
	}
}

func testTakeover(t *testing.T, from, to Mechanism) {
	n := newNode(t, from)
	n.allow()
	c, err := n.client.dial("100.64.0.11:8080")
	must.NoError(t, err)
	must.NoError(t, echo(c))
	programs := n.programIDs(from)
	must.MapLen(t, 4, programs)
	must.NoError(t, n.Close())

	must.NoError(t, echo(c), must.Sprint("established, no process"))
	_, err = n.client.dial("100.64.0.11:8080")
	must.NoError(t, err, must.Sprint("new flow, no process"))
	_, err = n.client.dial("100.64.0.11:8081")
	must.Error(t, err, must.Sprint("undeclared flow, no process"))

	again := open(t, n.dir, fixtureOptions(to))
	names, err := again.Attached()
	must.NoError(t, err)
	must.Eq(t, []string{"sifclient", "sifserver"}, names)
	stop, failed := make(chan struct{}), make(chan error, 1)
	go func() {
		defer close(failed)
		for {
			if err := echo(c); err != nil {
				failed <- err
				return
			}
			select {
			case <-stop:
				return
			default:
			}
		}
	}()
	for round := range 20 {
		for _, name := range names {
			var missing []string
			if from != to && round == 0 {
				missing = []string{fromMissing, toMissing}
			}
			attach(t, again, name, missing...)
			must.NoError(t, again.Guarded(name))
		}
	}
	close(stop)
	must.NoError(t, <-failed)
	now := n.programIDs(to)
	must.MapLen(t, 4, now)
	for at, id := range now {
		must.NotEq(t, programs[at], id, must.Sprintf("%s still runs the old program", at))
	}
	if from != to {
		must.MapEmpty(t, n.programIDs(from), must.Sprint("of the other mechanism nothing stays"))
		must.SliceEmpty(t, slices.DeleteFunc(qdiscs(t, "sifclient"), func(string) bool { return to == Clsact }))
	}
	pairs, err := again.Pairs()
	must.NoError(t, err)
	must.Eq(t, map[Pair][]Rule{{1, 2}: {rule(6, 8080, 8080, 1)}}, pairs)
	must.NoError(t, again.ReplacePair(Pair{1, 2}, nil))
	must.Error(t, echo(c), must.Sprint("the new process revoked it"))

	// A new interface with the name of a deleted one also gets the programs.
	attach(t, again, "sifclient")
	l, err := netlink.LinkByName("sifclient")
	must.NoError(t, err)
	must.NoError(t, netlink.LinkDel(l))
	device(t, "sifclient")
	attach(t, again, "sifclient", fromMissing, toMissing)
	for _, name := range names {
		must.NoError(t, again.Detach(name))
		must.NoError(t, again.Detach(name))
	}
	names, err = again.Attached()
	must.NoError(t, err)
	must.SliceEmpty(t, names)
	must.SliceEmpty(t, qdiscs(t, "sifserver"))
}

// programIDs reads from the kernel which programs a mechanism attached to the workloads'
// interfaces.
func (n *node) programIDs(by Mechanism) map[string]int {
	n.t.Helper()
	ids := map[string]int{}
	for _, name := range []string{"sifclient", "sifserver"} {
		l, err := netlink.LinkByName(name)
		must.NoError(n.t, err)
		for _, h := range n.hooks {
			if by == Clsact {
				list, err := netlink.FilterList(l, h.clsact)
				must.NoError(n.t, err)
				for _, f := range list {
					ids[name+" "+h.name] = f.(*netlink.BpfFilter).Id
				}
				continue
			}
			found, err := link.QueryPrograms(link.QueryOptions{Target: l.Attrs().Index, Attach: h.tcx})
			must.NoError(n.t, err)
			for _, p := range found.Programs {
				ids[name+" "+h.name] = int(p.ID)
			}
		}
	}
	return ids
}

// TestReplacementHasNoGap replaces the programs again and again while datagrams come: each that is
// allowed must arrive, and no other.
func TestReplacementHasNoGap(t *testing.T) {
	byMechanism(t, func(t *testing.T, by Mechanism) {
		n := newNode(t, by)
		must.NoError(t, n.ReplacePair(Pair{1, 2}, []Rule{rule(17, 9000, 9000, 1)}))
		// Port 9001 is not allowed: to the client by the one program, and to the node by the other.
		sinks, conns := map[int]*net.UDPConn{}, map[int]net.Conn{}
		received := map[int]chan int{}
		for _, port := range []int{9000, 9001} {
			n.server.inside(func() {
				sink, err := net.ListenUDP("udp", &net.UDPAddr{Port: port})
				must.NoError(t, err)
				must.NoError(t, sink.SetReadBuffer(8<<20))
				sinks[port] = sink
			})
			n.client.inside(func() {
				c, err := net.Dial("udp", fmt.Sprintf("100.64.0.11:%d", port))
				must.NoError(t, err)
				conns[port] = c
			})
			defer conns[port].Close()
			sink, all := sinks[port], make(chan int, 1)
			received[port] = all
			go func() {
				buffer, count := make([]byte, 64), 0
				for {
					if _, err := sink.Read(buffer); err != nil {
						all <- count
						return
					}
					count++
				}
			}()
		}
		fromNode, err := net.Dial("udp", "100.64.0.11:9001")
		must.NoError(t, err)
		defer fromNode.Close()
		stop, sent := make(chan struct{}), make(chan int)
		go func() {
			count := 0
			for {
				select {
				case <-stop:
					sent <- count
					return
				default:
				}
				if _, err := conns[9000].Write([]byte("datagram")); err == nil {
					count++
				}
				_, _ = conns[9001].Write([]byte("datagram"))
				_, _ = fromNode.Write([]byte("datagram"))
				time.Sleep(20 * time.Microsecond)
			}
		}()
		others := open(t, n.dir, fixtureOptions(by))
		replaced := 0
		for began := time.Now(); time.Since(began) < 2*time.Second || replaced < 20; replaced++ {
			next := n.Datapath
			if replaced%2 == 0 {
				next = others
			}
			for _, name := range []string{"sifclient", "sifserver"} {
				_, err := next.Attach(name)
				must.NoError(t, err)
				must.NoError(t, next.Guarded(name))
			}
		}
		close(stop)
		count := <-sent
		time.Sleep(200 * time.Millisecond)
		for _, sink := range sinks {
			must.NoError(t, sink.Close())
		}
		must.Eq(t, count, <-received[9000])
		must.Zero(t, <-received[9001], must.Sprint("what the node may not send"))
		counters, err := n.Counters()
		must.NoError(t, err)
		must.Positive(t, counters.Verdict(FromWorkload, NoContract))
		must.Zero(t, counters.Verdict(ToWorkload, NoContract), must.Sprint("what the client may not send"))
		t.Logf("%d datagrams while the programs were replaced %d times", count, replaced)
	})
}

// BenchmarkAttach measures how long it takes to attach both programs to a new interface.
func BenchmarkAttach(b *testing.B) {
	for _, by := range []Mechanism{TCX, Clsact} {
		b.Run(string(by), func(b *testing.B) {
			if by == TCX {
				requireTCX(b)
			}
			enterNamespace(b)
			d := open(b, pinDirectory(b), fixtureOptions(by))
			for b.Loop() {
				b.StopTimer()
				device(b, "me")
				b.StartTimer()
				_, err := d.Attach("me")
				must.NoError(b, err)
				b.StopTimer()
				l, err := netlink.LinkByName("me")
				must.NoError(b, err)
				must.NoError(b, netlink.LinkDel(l))
				must.NoError(b, d.Detach("me"))
				b.StartTimer()
			}
		})
		b.Run(string(by)+"/compared", func(b *testing.B) {
			if by == TCX {
				requireTCX(b)
			}
			enterNamespace(b)
			d := open(b, pinDirectory(b), fixtureOptions(by))
			device(b, "me")
			for b.Loop() {
				_, err := d.Attach("me")
				must.NoError(b, err)
				must.NoError(b, d.Guarded("me"))
			}
		})
	}
}
