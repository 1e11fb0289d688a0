// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package bpf

import (
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/shoenig/test/must"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/sif-project/sif/internal/testhost"
)

// unmountBPFFS unmounts the BPF filesystem at dir and removes the directory.
func unmountBPFFS(dir string) error {
	if err := unix.Unmount(dir, 0); err != nil {
		return err
	}
	return os.Remove(dir)
}

// enterNamespace moves the test's goroutine into a new network namespace, which ends with the test.
func enterNamespace(t testing.TB) netns.NsHandle {
	t.Helper()
	testhost.RequireRoot(t)
	runtime.LockOSThread()
	before, err := netns.Get()
	must.NoError(t, err)
	inside, err := netns.New()
	must.NoError(t, err)
	t.Cleanup(func() {
		must.NoError(t, netns.Set(before))
		_ = before.Close()
		_ = inside.Close()
		runtime.UnlockOSThread()
	})
	return inside
}

// pinDirectory returns a directory on a BPF filesystem that is mounted for the test.
func pinDirectory(t testing.TB) string {
	t.Helper()
	testhost.RequireRoot(t)
	dir := filepath.Join(t.TempDir(), "bpf")
	mounted, err := MountBPFFS(dir)
	must.NoError(t, err)
	must.True(t, mounted)
	t.Cleanup(func() { must.NoError(t, unmountBPFFS(dir)) })
	return filepath.Join(dir, "sif")
}

func open(t testing.TB, dir string, opts Options) *Datapath {
	t.Helper()
	d, err := Open(dir, opts)
	must.NoError(t, err)
	t.Cleanup(func() { _ = d.Close() })
	return d
}

// byMechanism runs a test with each way to attach programs that the kernel has.
func byMechanism(t *testing.T, test func(*testing.T, Mechanism)) {
	for _, m := range []Mechanism{TCX, Clsact} {
		t.Run(string(m), func(t *testing.T) {
			if m == TCX {
				requireTCX(t)
			}
			test(t, m)
		})
	}
}

// requireTCX skips a test on a kernel without TCX, on which the others show what it does instead.
func requireTCX(t testing.TB) {
	t.Helper()
	testhost.RequireRoot(t)
	p, err := ebpf.NewProgram(&ebpf.ProgramSpec{Type: ebpf.SchedCLS, License: "MPL-2.0", Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 0), asm.Return()}})
	must.NoError(t, err)
	defer p.Close()
	if err := haveTCX(p); err != nil {
		t.Skip(err)
	}
}

// device creates a dummy interface with that name.
func device(t testing.TB, name string) uint32 {
	t.Helper()
	must.NoError(t, netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: name}, PeerName: name + "-x"}))
	l, err := netlink.LinkByName(name)
	must.NoError(t, err)
	return uint32(l.Attrs().Index)
}

// The addresses of the fixture. me is the endpoint whose hooks are tested.
const (
	me4, me6           = "100.64.0.2", "fd5f::2"
	friend4, friend6   = "100.64.1.2", "fd5f:1::2"    // me may call it, and it may call me
	stranger4          = "100.64.1.3"                 // a peer without a contract
	neighbour4         = "100.64.0.3"                 // on this node, me may call it
	nobody4, nobody6   = "100.64.9.9", "fd5f:9::9"    // in the fabric's prefixes, not a peer
	user4, user6       = "203.0.113.7", "2001:db8::7" // external, may call me
	bank4              = "198.51.100.7"               // external, me may call it
	elsewhere4         = "192.0.2.77"
	host4, host6       = "192.0.2.1", "fe80::1"
	resolver4          = "169.254.1.1"
	resolver6          = "fd5f:ffff::53"
	idMe, idFriend     = 1, 2
	idStranger         = 3
	idNeighbour        = 4
	idUsers, idBank    = 5, 6
	contractOut        = 10
	contractDatagrams  = 11
	contractEcho       = 12
	contractIn         = 13
	contractUsers      = 14
	contractBank       = 15
	contractNeighbours = 16
	contractStreams    = 17

	exitOne, exitTwo, exitNode = 0x100, 0x101, 0x1 // marks
)

// fixture is a node with an endpoint, whose programs get packets by program test run.
type fixture struct {
	*Datapath
	namespace                           netns.NsHandle
	t                                   testing.TB
	me, neighbour, wire, underlay, bare uint32 // interfaces
	last                                outcome
}

func newFixture(t testing.TB) *fixture { return newFixtureWith(t, "") }

func newFixtureWith(t testing.TB, m Mechanism) *fixture {
	f := &fixture{t: t, namespace: enterNamespace(t)}
	f.Datapath = open(t, pinDirectory(t), fixtureOptions(m))
	f.me, f.neighbour = device(t, "me"), device(t, "neighbour")
	f.wire, f.underlay, f.bare = device(t, "wire"), device(t, "underlay"), device(t, "bare")

	f.endpoint(nil)
	must.NoError(t, f.PutEndpoint(endpoint(f.neighbour, idNeighbour, neighbour4, "")))
	for address, p := range map[string]Peer{
		me4: {Identity: idMe, Interface: f.me}, me6: {Identity: idMe, Interface: f.me},
		friend4: {Identity: idFriend, Interface: f.wire}, friend6: {Identity: idFriend, Interface: f.wire},
		stranger4:  {Identity: idStranger, Interface: f.wire},
		neighbour4: {Identity: idNeighbour, Interface: f.neighbour},
	} {
		p.Address = addr(address)
		must.NoError(t, f.PutPeer(p))
	}
	for _, e := range []External{
		{netip.MustParsePrefix("203.0.113.0/24"), idUsers, f.underlay},
		{netip.MustParsePrefix("2001:db8::/32"), idUsers, f.underlay},
		{netip.MustParsePrefix("100.64.0.0/10"), idUsers, f.underlay}, // must never be used
		{netip.MustParsePrefix("198.51.100.0/24"), idBank, 0},
		{netip.MustParsePrefix("198.51.100.0/24"), idBank, f.underlay},
	} {
		must.NoError(t, f.PutExternal(e))
	}
	must.NoError(t, f.PutCheck(Check{f.me, 6, 80}))
	f.policy()
	return f
}

func fixtureOptions(m Mechanism) Options {
	return Options{
		Mechanism: m,
		Resolver4: addr(resolver4),
		Resolver6: addr(resolver6),
		Node4:     addr(resolver4),
		Node6:     addr(host6),
		NodeExit:  exitNode,
		Fabric:    []netip.Prefix{netip.MustParsePrefix("100.64.0.0/10"), netip.MustParsePrefix("fd5f::/16")},
		Sizes:     map[string]uint32{"sif_conns": 4096},
	}
}

// endpoint writes the endpoint that is tested.
func (f *fixture) endpoint(change func(*Endpoint)) {
	f.t.Helper()
	e := endpoint(f.me, idMe, me4, me6)
	e.Exit = exitOne
	if change != nil {
		change(&e)
	}
	must.NoError(f.t, f.PutEndpoint(e))
}

func (f *fixture) policy() {
	f.rules(idMe, idFriend, rule(6, 8080, 8080, contractOut), rule(17, 9000, 9010, contractDatagrams),
		rule(1, 8, 8, contractEcho), rule(58, 128, 128, contractEcho), rule(132, 7000, 7000, contractStreams))
	f.rules(idFriend, idMe, rule(6, 80, 80, contractIn), rule(58, 128, 128, contractEcho))
	f.rules(idUsers, idMe, rule(6, 443, 443, contractUsers))
	f.rules(idMe, idBank, rule(6, 443, 443, contractBank))
	f.rules(idMe, idNeighbour, rule(6, 0, 65535, contractNeighbours))
}

func (f *fixture) rules(source, destination uint32, rules ...Rule) {
	f.t.Helper()
	must.NoError(f.t, f.ReplacePair(Pair{source, destination}, rules))
}

// forget deletes all connections and fragments.
func (f *fixture) forget() {
	f.t.Helper()
	fragments, err := dump[endpointFragmentKey, endpointFragment](f.objects.SifFragments, "sif_fragments")
	must.NoError(f.t, err)
	for _, e := range fragments {
		must.NoError(f.t, f.objects.SifFragments.Delete(e.key))
	}
	must.NoError(f.t, f.forgetConnections(f.me))
	must.NoError(f.t, f.forgetConnections(f.neighbour))
}

// age makes all connections and fragments older.
func (f *fixture) age(by time.Duration) {
	f.t.Helper()
	entries, err := dump[endpointConnKey, endpointConn](f.objects.SifConns, "sif_conns")
	must.NoError(f.t, err)
	for _, e := range entries {
		e.value.Seen -= uint64(by)
		must.NoError(f.t, f.objects.SifConns.Put(e.key, e.value))
	}
	fragments, err := dump[endpointFragmentKey, endpointFragment](f.objects.SifFragments, "sif_fragments")
	must.NoError(f.t, err)
	for _, e := range fragments {
		e.value.Seen -= uint64(by)
		must.NoError(f.t, f.objects.SifFragments.Put(e.key, e.value))
	}
}

// skb is the part of struct __sk_buff that a test run can set.
type skb struct {
	Before  [2]uint32
	Mark    uint32
	Between [6]uint32
	Ingress uint32
	Ifindex uint32
	After   [37]uint32
}

// outcome is what a program made of a packet.
type outcome struct {
	verdict int32
	mark    uint32
	frame   []byte
}

// run runs a program on a frame and returns the reason that it counted. It checks that the
// program's verdict agrees with the reason.
func (f *fixture) run(dir Direction, endpoint, ingress uint32, data []byte) Reason {
	f.t.Helper()
	before, err := f.Counters()
	must.NoError(f.t, err)
	f.last = f.outcome(dir, endpoint, ingress, data)
	after, err := f.Counters()
	must.NoError(f.t, err)
	for why := AllowedContract; why < reasonCount; why++ {
		if after.Verdict(dir, why) == before.Verdict(dir, why) {
			continue
		}
		if pass := f.last.verdict == -1; pass != (why.Allowed() || f.PassAll()) && after.Refusals == before.Refusals {
			f.t.Errorf("the program counted %s and returned %d", why, f.last.verdict)
		}
		return why
	}
	f.t.Errorf("no verdict was counted")
	return 0
}

// outcome runs a program on a frame that has a mark already.
func (f *fixture) outcome(dir Direction, endpoint, ingress uint32, data []byte) outcome {
	f.t.Helper()
	var after skb
	o := &ebpf.RunOptions{Data: data, DataOut: make([]byte, len(data)+256),
		Context: skb{Mark: 0xbad, Ingress: ingress, Ifindex: endpoint}, ContextOut: &after}
	verdict, err := f.program(dir).Run(o)
	must.NoError(f.t, err)
	return outcome{int32(verdict), after.Mark, o.DataOut}
}

func (f *fixture) program(dir Direction) *ebpf.Program {
	if dir == FromWorkload {
		return f.programs.SifFromWorkload
	}
	return f.programs.SifToWorkload
}

func rule(protocol uint8, from, to uint16, contract uint32) Rule {
	return Rule{Protocol: protocol, From: from, To: to, Contract: contract}
}

func endpoint(ifindex, identity uint32, v4, v6 string) Endpoint {
	e := Endpoint{Interface: ifindex, Identity: identity, IPv4: addr(v4)}
	if v6 != "" {
		e.IPv6 = addr(v6)
	}
	return e
}

func peer(address string, identity, ifindex uint32) Peer {
	return Peer{Address: addr(address), Identity: identity, Interface: ifindex}
}

func addr(s string) netip.Addr { return netip.MustParseAddr(s) }
