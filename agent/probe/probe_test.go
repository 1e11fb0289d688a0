// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package probe

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os/exec"
	"sync"
	"testing"
	"time"

	"github.com/containernetworking/plugins/pkg/ns"
	"github.com/containernetworking/plugins/pkg/testutils"
	"github.com/shoenig/test/must"
	"golang.org/x/sys/unix"

	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/internal/testhost"
)

// site is a node with two workloads, a and b, in namespaces of their own.
type site struct {
	t          *testing.T
	node, a, b ns.NetNS
	observers  Observers
}

const (
	a4, b4 = "100.64.1.2", "100.64.1.3"
	a6, b6 = "fd5f::2", "fd5f::3"
)

func newSite(t *testing.T) *site {
	testhost.RequireRoot(t)
	s := &site{t: t, node: namespace(t), a: namespace(t), b: namespace(t)}
	t.Cleanup(s.observers.Close)
	s.run(s.node, "sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1")
	for _, w := range []struct {
		device, v4, v6 string
		space          ns.NetNS
	}{{"sifa", a4, a6, s.a}, {"sifb", b4, b6, s.b}} {
		s.run(s.node, "ip", "link", "add", w.device, "type", "veth", "peer", "name", "eth0", "netns", w.space.Path())
		s.run(s.node, "ip", "link", "set", w.device, "up")
		s.run(s.node, "ip", "addr", "add", "169.254.1.1/32", "dev", w.device)
		s.run(s.node, "ip", "addr", "add", "fe80::1/64", "dev", w.device, "nodad")
		s.run(w.space, "ip", "link", "set", "lo", "up")
		s.run(w.space, "ip", "addr", "add", w.v4+"/32", "dev", "eth0")
		s.run(w.space, "ip", "addr", "add", w.v6+"/128", "dev", "eth0", "nodad")
		s.run(w.space, "ip", "link", "set", "eth0", "up")
		s.run(w.space, "ip", "route", "add", "default", "via", "169.254.1.1", "dev", "eth0", "onlink", "src", w.v4)
		s.run(w.space, "ip", "route", "add", "default", "via", "fe80::1", "dev", "eth0", "src", w.v6)
		s.run(s.node, "ip", "route", "add", w.v4+"/32", "dev", w.device)
		s.run(s.node, "ip", "route", "add", w.v6+"/128", "dev", w.device)
	}
	return s
}

func namespace(t *testing.T) ns.NetNS {
	n, err := testutils.NewNS()
	must.NoError(t, err)
	t.Cleanup(func() {
		must.NoError(t, n.Close())
		must.NoError(t, testutils.UnmountNS(n))
	})
	return n
}

func (s *site) run(n ns.NetNS, args ...string) {
	s.t.Helper()
	out, err := exec.Command("nsenter", append([]string{"--net=" + n.Path()}, args...)...).CombinedOutput()
	if err != nil {
		s.t.Fatalf("%q: %v\n%s", args, err, out)
	}
}

// open returns how many observers there are.
func (s *site) open() int {
	s.observers.mu.Lock()
	defer s.observers.mu.Unlock()
	return len(s.observers.open)
}

// probe sends from a to an address of b and reports whether it was seen there.
func (s *site) probe(src, dst string, protocol fabric.Protocol, nonce uint64) bool {
	s.t.Helper()
	to := netip.MustParseAddrPort(dst)
	seen, cancel, err := s.observers.Expect("b", func() (ns.NetNS, error) { return ns.GetNS(s.b.Path()) }, "eth0", to, protocol, nonce)
	must.NoError(s.t, err)
	defer cancel()
	from := netip.AddrPortFrom(netip.MustParseAddr(src), 0)
	must.NoError(s.t, Way{}.Send(s.a, from, to, protocol, nonce))
	select {
	case o, ok := <-seen:
		must.True(s.t, ok)
		must.Eq(s.t, from.Addr(), o.Src.Addr())
		must.Eq(s.t, to, o.Dst)
		return true
	case <-time.After(300 * time.Millisecond):
		return false
	}
}

func TestSendAndObserve(t *testing.T) {
	s := newSite(t)
	s.run(s.node, "nft", "add table inet t; add chain inet t f { type filter hook forward priority 0; }; "+
		"add rule inet t f tcp dport 81 drop; add rule inet t f udp dport 81 drop; add rule inet t f ct state invalid drop")
	// With this setting connection tracking marks packets with a wrong checksum as invalid.
	s.run(s.node, "sysctl", "-qw", "net.netfilter.nf_conntrack_checksum=1")
	nonce := uint64(1)
	for _, protocol := range []fabric.Protocol{fabric.TCP, fabric.UDP} {
		for src, dst := range map[string]string{a4: b4, a6: "[" + b6 + "]"} {
			nonce++
			must.True(t, s.probe(src, dst+":80", protocol, nonce), must.Sprintf("%s to %s over %s", src, dst, protocol))
			nonce++
			must.False(t, s.probe(src, dst+":81", protocol, nonce), must.Sprintf("%s to %s over %s", src, dst, protocol))
		}
	}
	// A packet that the sender's own filter drops is not seen, and is not an error.
	s.run(s.a, "nft", "add table inet t; add chain inet t o { type filter hook output priority 0; policy drop; }")
	must.False(t, s.probe(a4, b4+":80", fabric.UDP, 100))
	must.Error(t, Way{}.Send(s.a, netip.MustParseAddrPort(a4+":1"), netip.MustParseAddrPort("["+b6+"]:1"), fabric.UDP, 1))
}

func TestManyProbesAtOnce(t *testing.T) {
	s := newSite(t)
	space := s.a
	const n = 300
	var wg sync.WaitGroup
	missed := make(chan string, n)
	for i := range n {
		wg.Go(func() {
			to := netip.AddrPortFrom(netip.MustParseAddr(b4), uint16(1000+i))
			seen, cancel, err := s.observers.Expect("b", func() (ns.NetNS, error) { return ns.GetNS(s.b.Path()) }, "eth0", to, fabric.TCP, uint64(i))
			if err == nil {
				defer cancel()
				err = Way{}.Send(space, netip.AddrPortFrom(netip.MustParseAddr(a4), 0), to, fabric.TCP, uint64(i))
			}
			select {
			case <-seen:
			case <-time.After(5 * time.Second):
				missed <- fmt.Sprint(i, err)
			}
		})
	}
	wg.Wait()
	close(missed)
	for m := range missed {
		t.Error("missed", m)
	}
	must.Eq(t, 1, s.open())
	// An unused observer is closed.
	deadline := time.Now().Add(idle + 5*time.Second)
	for s.open() > 0 {
		must.True(t, time.Now().Before(deadline))
		time.Sleep(50 * time.Millisecond)
	}
}

func TestObserverEndsWithInterface(t *testing.T) {
	s := newSite(t)
	to := netip.MustParseAddrPort(b4 + ":1")
	namespace := func() (ns.NetNS, error) { return ns.GetNS(s.b.Path()) }
	seen, cancel, err := s.observers.Expect("b", namespace, "eth0", to, fabric.TCP, 1)
	must.NoError(t, err)
	defer cancel()
	_, _, err = s.observers.Expect("b", namespace, "eth0", to, fabric.TCP, 1)
	must.ErrorContains(t, err, "expected already")
	s.run(s.node, "ip", "link", "del", "sifb")
	select {
	case _, ok := <-seen:
		must.False(t, ok)
	case <-time.After(5 * time.Second):
		t.Fatal("the observer did not end with its interface")
	}
	_, _, err = s.observers.Expect("b", namespace, "eth0", to, fabric.TCP, 2)
	must.ErrorContains(t, err, "eth0")
}

func TestFinder(t *testing.T) {
	s := newSite(t)
	var finder Finder
	inode := func(path string) uint64 {
		var st unix.Stat_t
		must.NoError(t, unix.Stat(path, &st))
		return st.Ino
	}
	find := func(device string) (ino uint64, err error) {
		err2 := s.node.Do(func(ns.NetNS) error {
			f, e := finder.Find(device)
			if e == nil {
				ino = inode(fmt.Sprintf("/proc/self/fd/%d", f.Fd()))
				e = f.Close()
			}
			err = e
			return nil
		})
		must.NoError(t, err2)
		return ino, err
	}
	for range 2 { // first by search, then from the cache
		got, err := find("sifb")
		must.NoError(t, err)
		must.Eq(t, inode(s.b.Path()), got)
		got, err = find("sifa")
		must.NoError(t, err)
		must.Eq(t, inode(s.a.Path()), got)
	}
	_, err := find("sifc")
	must.ErrorContains(t, err, "sifc")

	// A namespace that is not mounted.
	sleeper := exec.Command("unshare", "--net", "sleep", "60")
	must.NoError(t, sleeper.Start())
	defer func() { sleeper.Process.Kill(); sleeper.Wait() }()
	space := fmt.Sprintf("/proc/%d/ns/net", sleeper.Process.Pid)
	own := inode("/proc/self/ns/net")
	for inode(space) == own {
		time.Sleep(10 * time.Millisecond)
	}
	s.run(s.node, "ip", "link", "add", "sifd", "type", "veth", "peer", "name", "eth0", "netns", space)
	got, err := find("sifd")
	must.NoError(t, err)
	must.Eq(t, inode(space), got)
	_, err = find("lo")
	must.ErrorContains(t, err, "same namespace")
}

func TestRequestAndListening(t *testing.T) {
	s := newSite(t)
	must.NoError(t, s.b.Do(func(ns.NetNS) error {
		web, err := net.Listen("tcp", ":80")
		must.NoError(t, err)
		t.Cleanup(func() { web.Close() })
		go http.Serve(web, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "ok") }))
		silent, err := net.Listen("tcp4", b4+":81")
		must.NoError(t, err)
		t.Cleanup(func() { silent.Close() })
		echo, err := net.ListenPacket("udp", ":53")
		must.NoError(t, err)
		t.Cleanup(func() { echo.Close() })
		go func() {
			b := make([]byte, 100)
			for {
				n, from, err := echo.ReadFrom(b)
				if err != nil {
					return
				}
				echo.WriteTo(b[:n], from)
			}
		}()
		return nil
	}))
	from, at := s.a, s.b
	for _, tc := range []struct {
		dst       string
		protocol  fabric.Protocol
		listening bool
		answered  bool
		failed    bool
	}{
		{b4 + ":80", fabric.TCP, true, true, false},
		{"[" + b6 + "]:80", fabric.TCP, true, true, false},
		{b4 + ":81", fabric.TCP, true, false, false},
		{"[" + b6 + "]:81", fabric.TCP, false, false, true},
		{b4 + ":82", fabric.TCP, false, false, true},
		{b4 + ":53", fabric.UDP, true, true, false},
		{"[" + b6 + "]:53", fabric.UDP, true, true, false},
		{b4 + ":54", fabric.UDP, false, false, true},
	} {
		t.Run(tc.protocol.String()+" "+tc.dst, func(t *testing.T) {
			dst := netip.MustParseAddrPort(tc.dst)
			listening, err := Listening(at, dst, tc.protocol)
			must.NoError(t, err)
			must.Eq(t, tc.listening, listening)
			ctx, cancel := context.WithTimeout(context.Background(), 300*time.Millisecond)
			defer cancel()
			answered, err := Request(ctx, from, dst, tc.protocol, 7)
			must.Eq(t, tc.answered, answered)
			must.Eq(t, tc.failed, err != nil, must.Sprint(err))
		})
	}
	s.run(s.node, "nft", "add table inet t; add chain inet t f { type filter hook forward priority 0; policy drop; }")
	ctx, cancel := context.WithTimeout(context.Background(), 200*time.Millisecond)
	defer cancel()
	_, err := Request(ctx, from, netip.MustParseAddrPort(b4+":53"), fabric.UDP, 7)
	must.True(t, errors.Is(err, context.DeadlineExceeded))
}
