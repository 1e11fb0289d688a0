// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package bpf

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/shoenig/test/must"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/sif-project/sif/internal/testhost"
)

// These tests run real workloads: network namespaces connected by veth pairs to a node that
// forwards.

// workload is one of these network namespaces.
type workload struct {
	t      *testing.T
	host   string // name of the host side
	index  uint32
	v4, v6 string
	ns     netns.NsHandle
}

// newWorkload creates a workload on the node whose namespace is that of the calling thread.
func newWorkload(t *testing.T, d *Datapath, name, v4, v6 string, identity uint32) *workload {
	t.Helper()
	w := &workload{t: t, host: "sif" + name, v4: v4, v6: v6}
	node, err := netns.Get()
	must.NoError(t, err)
	defer node.Close()
	w.ns, err = netns.New() // moves the thread into it
	must.NoError(t, err)
	must.NoError(t, netns.Set(node))
	t.Cleanup(func() { _ = w.ns.Close() })

	hostMAC, mac := net.HardwareAddr{2, 0, 0, 0, 0, 1}, net.HardwareAddr{2, 0, 0, 0, 1, 1}
	must.NoError(t, netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: w.host, HardwareAddr: hostMAC},
		PeerName: "eth0", PeerHardwareAddr: mac, PeerNamespace: netlink.NsFd(w.ns)}))
	l, err := netlink.LinkByName(w.host)
	must.NoError(t, err)
	w.index = uint32(l.Attrs().Index)
	_, err = d.Attach(w.host)
	must.NoError(t, err)
	must.NoError(t, netlink.LinkSetUp(l))
	script(t, `
		sysctl -qw net.ipv4.conf.$DEV.proxy_arp=0 net.ipv6.conf.$DEV.accept_ra=0
		ip neigh add $V4 lladdr 02:00:00:00:01:01 dev $DEV nud permanent
		ip neigh add $V6 lladdr 02:00:00:00:01:01 dev $DEV nud permanent
		ip route add $V4/32 dev $DEV
		ip -6 route add $V6/128 dev $DEV
		ip addr add 169.254.1.1/32 dev $DEV`, "DEV="+w.host, "V4="+v4, "V6="+v6)
	w.inside(func() {
		script(t, `
			ip link set lo up
			ip link set eth0 up
			ip addr add $V4/32 dev eth0
			ip addr add $V6/128 dev eth0 nodad
			ip neigh add 169.254.1.1 lladdr 02:00:00:00:00:01 dev eth0 nud permanent
			ip neigh add fe80::1 lladdr 02:00:00:00:00:01 dev eth0 nud permanent
			ip route add default via 169.254.1.1 dev eth0 onlink src $V4
			ip -6 route add default via fe80::1 dev eth0 onlink src $V6`, "V4="+v4, "V6="+v6)
	})
	must.NoError(t, d.PutEndpoint(endpoint(w.index, identity, v4, v6)))
	for _, a := range []string{v4, v6} {
		must.NoError(t, d.PutPeer(peer(a, identity, w.index)))
	}
	return w
}

// inside runs f on a thread in the workload's network namespace.
func (w *workload) inside(f func()) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // without an unlock, so that the thread ends with the goroutine
		if err := netns.Set(w.ns); err != nil {
			w.t.Errorf("enter the workload's namespace: %v", err)
			return
		}
		f()
	}()
	<-done
}

// serve echoes every connection.
func (w *workload) serve(address string) {
	w.t.Helper()
	w.inside(func() {
		l, err := net.Listen("tcp", address)
		if err != nil {
			w.t.Errorf("listen in the workload: %v", err)
			return
		}
		w.t.Cleanup(func() { _ = l.Close() })
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				go func() { defer c.Close(); _, _ = io.Copy(c, c) }()
			}
		}()
	})
}

func (w *workload) dial(address string) (c net.Conn, err error) {
	w.inside(func() { c, err = net.DialTimeout("tcp", testhost.Zoned(address), 400*time.Millisecond) })
	if err == nil {
		w.t.Cleanup(func() { _ = c.Close() })
	}
	return c, err
}

// echo sends a line and waits for its echo.
func echo(c net.Conn) error {
	if err := c.SetDeadline(time.Now().Add(600 * time.Millisecond)); err != nil {
		return err
	}
	if _, err := fmt.Fprintln(c, "hello"); err != nil {
		return err
	}
	_, err := bufio.NewReader(c).ReadString('\n')
	return err
}

// transfer sends a number of bytes and reads their echo.
func transfer(c net.Conn, size int64) error {
	if err := c.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		return err
	}
	sent := make(chan error, 1)
	go func() {
		_, err := c.Write(make([]byte, size))
		sent <- err
	}()
	_, err := io.CopyN(io.Discard, c, size)
	return errors.Join(err, <-sent)
}

func script(t *testing.T, text string, env ...string) {
	t.Helper()
	cmd := exec.Command("sh", "-euc", text)
	cmd.Env = append(os.Environ(), env...)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", strings.TrimSpace(text), err, out)
	}
}

type node struct {
	*Datapath
	t      *testing.T
	by     Mechanism
	dir    string
	client *workload
	server *workload
}

func newNode(t *testing.T, by Mechanism) *node {
	enterNamespace(t)
	script(t, "ip link set lo up; sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1")
	n := &node{t: t, by: by, dir: pinDirectory(t)}
	n.Datapath = open(t, n.dir, fixtureOptions(by))
	n.client = newWorkload(t, n.Datapath, "client", "100.64.0.10", "fd5f::10", 1)
	n.server = newWorkload(t, n.Datapath, "server", "100.64.0.11", "fd5f::11", 2)
	for _, port := range []string{":8080", ":8081"} {
		n.server.serve(port)
	}
	n.client.serve(":8080")
	return n
}

func (n *node) allow() {
	n.t.Helper()
	must.NoError(n.t, n.ReplacePair(Pair{1, 2}, []Rule{rule(6, 8080, 8080, 1)}))
}

func TestRealFlows(t *testing.T) { byMechanism(t, testRealFlows) }

func testRealFlows(t *testing.T, by Mechanism) {
	n := newNode(t, by)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	events, err := n.Events(ctx)
	must.NoError(t, err)

	_, err = n.client.dial("100.64.0.11:8080")
	must.Error(t, err, must.Sprint("before any rule"))
	n.allow()
	old, err := n.client.dial("100.64.0.11:8080")
	must.NoError(t, err)
	must.NoError(t, echo(old))
	bulk, err := n.client.dial("100.64.0.11:8080")
	must.NoError(t, err)
	must.NoError(t, transfer(bulk, 16<<20), must.Sprint("in large segments"))
	v6, err := n.client.dial("[fd5f::11]:8080")
	must.NoError(t, err)
	must.NoError(t, echo(v6))
	_, err = n.client.dial("100.64.0.11:8081")
	must.Error(t, err, must.Sprint("another port"))
	_, err = n.server.dial("100.64.0.10:8080")
	must.Error(t, err, must.Sprint("a responder opens no flow"))

	// The node may call only the port of a check.
	_, err = net.DialTimeout("tcp", "100.64.0.11:8080", 300*time.Millisecond)
	must.Error(t, err, must.Sprint("the node without a check"))
	must.NoError(t, n.PutCheck(Check{n.server.index, 6, 8080}))
	check, err := net.DialTimeout("tcp", "100.64.0.11:8080", 300*time.Millisecond)
	must.NoError(t, err)
	must.NoError(t, echo(check))
	_ = check.Close()
	_, err = net.DialTimeout("tcp", "100.64.0.11:8081", 300*time.Millisecond)
	must.Error(t, err, must.Sprint("the node on another port"))

	// A spoofed source address.
	n.server.inside(func() { script(t, "ip addr add 100.64.0.99/32 dev eth0") })
	n.server.inside(func() {
		d := net.Dialer{Timeout: 200 * time.Millisecond, LocalAddr: &net.TCPAddr{IP: net.ParseIP("100.64.0.99")}}
		_, err = d.Dial("tcp", "100.64.0.10:8080")
	})
	must.Error(t, err, must.Sprint("spoofed source"))

	// Revocation ends established flows.
	must.NoError(t, echo(old))
	must.NoError(t, n.ReplacePair(Pair{1, 2}, nil))
	must.Error(t, echo(old), must.Sprint("established flow after revocation"))
	must.Error(t, echo(v6), must.Sprint("established flow after revocation, v6"))

	seen := map[Reason]Event{}
	for deadline := time.After(2 * time.Second); len(seen) < 4; {
		select {
		case e := <-events:
			seen[e.Reason] = e
		case <-deadline:
			t.Fatalf("events seen: %v", seen)
		}
		for why := range seen {
			if why != NoContract && why != SpoofedSource && why != NoCheck && why != StaleConnection {
				delete(seen, why)
			}
		}
	}
	e := seen[SpoofedSource]
	if e.Source.Addr() != addr("100.64.0.99") || e.Destination.String() != "100.64.0.10:8080" || e.Interface != n.server.index ||
		e.Direction != FromWorkload || e.SourceIdentity != 2 || time.Since(e.Time).Abs() > time.Minute {
		t.Errorf("event of the spoofed packet: %+v", e)
	}
	counters, err := n.Counters()
	must.NoError(t, err)
	var drops uint64
	for _, c := range counters.Drops {
		if c.Interface == n.server.index && c.Reason == SpoofedSource {
			drops += c.Packets
		}
	}
	must.Positive(t, drops)
	must.Zero(t, counters.LostEvents)
}

func TestPassAllIsCounted(t *testing.T) {
	n := newNode(t, "")
	looker, err := OpenPinned(n.dir)
	must.NoError(t, err)
	defer looker.Close()
	_, err = looker.Attach("sifclient")
	must.Error(t, err)
	must.NoError(t, looker.SetPassAll(true))
	must.True(t, n.PassAll())
	c, err := n.client.dial("100.64.0.11:8081")
	must.NoError(t, err)
	must.NoError(t, echo(c))
	counters, err := looker.Counters()
	must.NoError(t, err)
	for _, dir := range []Direction{FromWorkload, ToWorkload} {
		must.Positive(t, counters.Verdict(dir, NoContract))
	}
	for _, c := range counters.Verdicts {
		if c.Reason == NoContract && c.Overridden != c.Packets {
			t.Errorf("of %d packets %d count as overridden", c.Packets, c.Overridden)
		}
	}
	must.NoError(t, looker.SetPassAll(false))
	must.Error(t, echo(c))
}

func TestAttachToNothing(t *testing.T) { byMechanism(t, testAttachToNothing) }

func testAttachToNothing(t *testing.T, by Mechanism) {
	enterNamespace(t)
	d := open(t, pinDirectory(t), Options{Mechanism: by})
	_, err := d.Attach("sifnone")
	must.ErrorContains(t, err, "attach to sifnone: find interface sifnone")
	must.ErrorIs(t, err, unix.ENODEV)
	names, err := d.Attached()
	must.NoError(t, err)
	must.SliceEmpty(t, names)
}

func TestMountBPFFS(t *testing.T) {
	dir := pinDirectory(t) // below a BPF filesystem
	mounted, err := MountBPFFS(dir)
	must.NoError(t, err)
	must.False(t, mounted)
	must.Error(t, unmountBPFFS(dir))
	_, err = Open(t.TempDir(), Options{})
	must.Error(t, err, must.Sprint("not a BPF filesystem"))
	_, err = OpenPinned(dir)
	must.ErrorContains(t, err, "open pinned map", must.Sprint("nothing is pinned there"))
}
