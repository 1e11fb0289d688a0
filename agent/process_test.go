// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/containernetworking/plugins/pkg/ns"
	"github.com/shoenig/test/must"
	"golang.org/x/sys/unix"
	"pgregory.net/rapid"

	"github.com/sif-project/sif/api"
	"github.com/sif-project/sif/bpf"
	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/fabric/desired"
	"github.com/sif-project/sif/internal/node/cnicall"
	"github.com/sif-project/sif/internal/node/firewall"
	"github.com/sif-project/sif/internal/node/host"
	"github.com/sif-project/sif/internal/node/hostport"
	"github.com/sif-project/sif/internal/node/kernel"
	"github.com/sif-project/sif/internal/testhost"
	"github.com/sif-project/sif/internal/wellknown"
)

// listenOn serves an echo at an address until the test ends.
func listenOn(t *testing.T, n ns.NetNS, address string) {
	t.Helper()
	must.NoError(t, n.Do(func(ns.NetNS) error {
		l, err := net.Listen("tcp", address)
		must.NoError(t, err)
		t.Cleanup(func() { l.Close() })
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				go func() { io.Copy(c, c); c.Close() }()
			}
		}()
		return nil
	}))
}

// echoes reports whether an echo comes back.
func echoes(n ns.NetNS, address string, patience time.Duration) bool {
	var conn net.Conn
	err := n.Do(func(ns.NetNS) (err error) {
		conn, err = net.DialTimeout("tcp", address, patience)
		return err
	})
	if err != nil {
		return false
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(time.Minute))
	_, err = conn.Write([]byte("x"))
	_, failed := io.ReadFull(conn, make([]byte, 1))
	return errors.Join(err, failed) == nil
}

// routes makes a node of the namespace, with addresses of its own.
func routes(t *testing.T) {
	t.Helper()
	state := kernel.State{Sysctls: host.Forwarding, Interfaces: router(fabric.Node{}).Interfaces}
	for _, a := range []string{"192.0.2.1/32", "2001:db8::1/128"} {
		state.Interfaces[0].Addresses = append(state.Interfaces[0].Addresses, kernel.Address{Prefix: netip.MustParsePrefix(a)})
	}
	must.NoError(t, kernel.Set(state))
}

// TestAttachedProcess follows endpoints of processes of the node from attaching them to detaching.
func TestAttachedProcess(t *testing.T) {
	x := newAttachingAgent(t)
	x.inNode(func() { routes(t) })
	x.register("web-1", "web")
	listenOn(t, x.node, "127.0.0.1:5432")
	listenOn(t, x.node, ":9000")
	ask := func(name string, p *cnicall.Process) cnicall.Request {
		r := x.request(name, "web", x.spaces.Path(name))
		r.Process = p
		return r
	}
	links := func() string {
		out, err := exec.Command("nsenter", "--net="+x.node.Path(), "sh", "-c", "ip -o link | grep -o 'sif-h[0-9]*'; nft list tables; ip rule | grep 5098; true").Output()
		must.NoError(t, err)
		return strings.Join(strings.Fields(string(out)), " ")
	}
	before := links()

	x.make("bad")
	for what, p := range map[string]*cnicall.Process{
		"nothing":       {},
		"no port":       {Ports: []string{"many"}},
		"twice":         {Ports: []string{"80", "tcp/80"}},
		"the root":      {Ports: []string{"80"}, Cgroup: "/"},
		"many ports":    {Ports: strings.Split(strings.Repeat("1 ", hostport.MaxPorts+1), " ")},
		"other version": {Ports: []string{"sctp/80"}},
	} {
		_, err := x.call(ask("bad", p))
		must.Error(t, err, must.Sprint(what))
	}
	vm := ask("bad", &cnicall.Process{Ports: []string{"80"}})
	vm.VM = true
	_, err := x.call(vm)
	must.ErrorContains(t, err, "virtual machine")
	must.SliceEmpty(t, x.listAttached())
	must.SliceEmpty(t, x.endpoints.all())
	must.Eq(t, before, links())

	x.make("db")
	db := ask("db", &cnicall.Process{Ports: []string{"5432", "udp/53"}})
	addresses, err := x.call(db)
	must.NoError(t, err)
	reaches := func(port string) bool { return echoes(x.node, net.JoinHostPort(addresses[0], port), 2*time.Second) }
	must.True(t, reaches("5432"))
	must.False(t, reaches("9000"), must.Sprint("a port of the node that was not given"))
	must.Eq(t, db.Process, x.only().Process)
	must.Eq(t, &api.Process{Ports: []string{"tcp/5432", "udp/53"}, Silent: []string{"udp/53"}}, x.processes.status(x.endpoints.all()[0]))

	again, err := x.call(db)
	must.NoError(t, err)
	must.Eq(t, addresses, again)
	_, err = x.call(ask("db", &cnicall.Process{Ports: []string{"5433"}}))
	must.ErrorContains(t, err, "detach it first")
	_, err = x.call(ask("db", nil))
	must.ErrorContains(t, err, "detach it first")

	// The same port, at another endpoint.
	x.make("two")
	other, err := x.call(ask("two", &cnicall.Process{Ports: []string{"5432"}}))
	must.NoError(t, err)
	must.True(t, echoes(x.node, net.JoinHostPort(other[0], "5432"), 2*time.Second))

	// The agent starts anew, and somebody has broken the way meanwhile.
	x.processes = processes{}
	x.inNode(func() { must.NoError(t, x.keepProcesses(nil)) })
	must.True(t, reaches("5432"))
	_, err = exec.Command("nsenter", "--net="+x.node.Path(), "sh", "-ec", "ip link del sif-h0; nft delete table inet sif_host").Output()
	must.NoError(t, err)
	must.False(t, reaches("5432"))
	x.inNode(func() { must.NoError(t, x.keepProcesses(nil)) })
	must.True(t, reaches("5432"))
	must.True(t, echoes(x.node, net.JoinHostPort(other[0], "5432"), 2*time.Second))

	del := func(name string) {
		t.Helper()
		at := cnicall.AttachmentOf(name)
		_, err := x.call(cnicall.Request{Command: "DEL", ContainerID: at.ContainerID, IfName: at.IfName})
		must.NoError(t, err)
	}
	del("two")
	must.StrContains(t, links(), "sif-h0")
	must.StrNotContains(t, links(), "sif-h1")
	must.True(t, reaches("5432"))

	// Without its registration it has no endpoint, and so no way.
	x.deregister("web-1")
	x.tend()
	x.standings.missing[cnicall.AttachmentOf("db")] = time.Now().Add(-registrationGrace)
	x.tend()
	must.SliceEmpty(t, x.endpoints.all())
	must.Eq(t, before, links())
	x.register("web-1", "web")
	clear(x.standings.tried)
	x.tend()
	must.Len(t, 1, x.endpoints.all())
	addresses = []string{x.endpoints.all()[0].IPv4.String()}
	must.True(t, reaches("5432"))
	del("db")
	must.Eq(t, before, links())
}

// A process of the node is judged at its endpoint's interface as any workload is: what a contract
// does not name passes in neither direction, although the way leads there.
func TestProcessIsJudged(t *testing.T) {
	testhost.RequireRoot(t)
	testhost.RequireProgram(t, "bash")
	for _, m := range []bpf.Mechanism{bpf.TCX, bpf.Clsact} {
		t.Run(string(m), func(t *testing.T) { testProcessIsJudged(t, m) })
	}
}

func testProcessIsJudged(t *testing.T, mechanism bpf.Mechanism) {
	node := newNamespace(t)
	in := func(do func()) {
		t.Helper()
		must.NoError(t, node.Do(func(ns.NetNS) error { do(); return nil }))
	}
	ranges := []netip.Prefix{netip.MustParsePrefix("100.64.0.0/10"), netip.MustParsePrefix("fd5f::/32")}
	type workload struct {
		ns.NetNS
		v4, v6 netip.Addr
		device string
	}
	const idDB, idCaller, idStranger = 1, 2, 3
	var workloads []workload
	for i := range 3 {
		workloads = append(workloads, workload{newNamespace(t), netip.AddrFrom4([4]byte{100, 64, 0, byte(2 + i)}),
			netip.MustParseAddr(fmt.Sprintf("fd5f::%d", 2+i)), fmt.Sprintf("sif0123456789%d", i)})
	}
	db, caller, stranger := workloads[0], workloads[1], workloads[2]
	group, err := hostport.ParseGroup("sif-test-agent-" + string(mechanism))
	if errors.Is(err, hostport.ErrNoHierarchy) {
		testhost.Unmet(t, "needs cgroup v2")
	}
	must.NoError(t, err)
	root, err := exec.Command("findmnt", "-nt", "cgroup2", "-o", "TARGET").Output()
	must.NoError(t, err)
	first, _, _ := strings.Cut(string(root), "\n")
	dir := filepath.Join(first, string(group))
	must.NoError(t, os.Mkdir(dir, 0o755))
	t.Cleanup(func() { must.NoError(t, os.Remove(dir)) })

	pins := filepath.Join(t.TempDir(), "bpf")
	_, err = bpf.MountBPFFS(pins)
	must.NoError(t, err)
	t.Cleanup(func() { must.NoError(t, unix.Unmount(pins, 0)) })
	fw := firewall.New(firewall.Config{Underlay: "under0", Ranges: ranges, Links: func() []uint16 { return nil }, Published: 1000, DNSPackets: 1000})
	var processes hostport.Host
	var data *bpf.Datapath
	in(func() {
		routes(t)
		_, err = fw.Apply()
		must.NoError(t, err)
		data, err = bpf.Open(filepath.Join(pins, "sif"), bpf.Options{
			Resolver4: wellknown.LinkLocal4, Node4: wellknown.LinkLocal4, Node6: wellknown.LinkLocal6, NodeExit: wellknown.ExitMarkNode, Fabric: ranges, Mechanism: mechanism,
		})
		if err != nil {
			return
		}
		for i, w := range workloads {
			pair, err := makeVeth(w.device, "eth0", w, 1376)
			must.NoError(t, err)
			_, err = data.Attach(w.device)
			must.NoError(t, err)
			must.NoError(t, pair.raiseHost(w.v4, w.v6))
			must.NoError(t, pair.raiseWorkload("eth0", w, w.v4, w.v6))
			must.NoError(t, data.PutEndpoint(bpf.Endpoint{Interface: uint32(pair.hostIndex), Identity: uint32(1 + i), IPv4: w.v4, IPv6: w.v6}))
			for _, a := range []netip.Addr{w.v4, w.v6} {
				must.NoError(t, data.PutPeer(bpf.Peer{Address: a, Identity: uint32(1 + i), Interface: uint32(pair.hostIndex)}))
			}
		}
		must.NoError(t, data.ReplacePair(bpf.Pair{Source: idCaller, Destination: idDB}, []bpf.Rule{{Protocol: 6, From: 5432, To: 5432, Contract: 10}}))
		must.NoError(t, data.ReplacePair(bpf.Pair{Source: idDB, Destination: idCaller}, []bpf.Rule{{Protocol: 6, From: 90, To: 90, Contract: 11}, {Protocol: 17, From: 90, To: 90, Contract: 11}}))
		_, err = processes.Ensure([]hostport.Placed{{Namespace: db, Attachment: hostport.Attachment{
			Slot: 7, Interface: "eth0", IPv4: db.v4, IPv6: db.v6, MTU: 1376, Ports: []hostport.Port{{Protocol: fabric.TCP, Number: 5432}, {Protocol: fabric.TCP, Number: 5433}},
			Group: group, Reached: ranges,
		}}})
		must.NoError(t, err)
	})
	if errors.Is(err, ebpf.ErrNotSupported) {
		t.Skip(err) // the kernel has another mechanism
	}
	must.NoError(t, err)
	t.Cleanup(func() { _ = data.Close() })
	for _, address := range []string{":5432", "127.0.0.1:5433"} {
		listenOn(t, node, address)
	}
	for _, n := range []ns.NetNS{caller, stranger} {
		listenOn(t, n, ":90")
		listenOn(t, n, ":91")
	}
	// sends reports whether an echo comes back to a process of the node, in the cgroup or not.
	sends := func(inGroup bool, to netip.AddrPort, patience time.Duration) bool {
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		script := fmt.Sprintf("exec 3<>/dev/tcp/%s/%d; echo x >&3; read -u 3", to.Addr(), to.Port())
		cmd := exec.CommandContext(ctx, "nsenter", "--net="+node.Path(), "bash", "-ec", script)
		if inGroup {
			f, err := os.Open(dir)
			must.NoError(t, err)
			defer f.Close()
			cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(f.Fd())}
		}
		return cmd.Run() == nil
	}
	const minute, moment = time.Minute, 400 * time.Millisecond
	for _, pick := range []func(workload) netip.Addr{func(w workload) netip.Addr { return w.v4 }, func(w workload) netip.Addr { return w.v6 }} {
		at := func(w workload, port uint16) netip.AddrPort { return netip.AddrPortFrom(pick(w), port) }
		must.True(t, echoes(caller, at(db, 5432).String(), minute))
		must.False(t, echoes(caller, at(db, 5433).String(), moment), must.Sprint("no contract names the port"))
		must.False(t, echoes(stranger, at(db, 5432).String(), moment))
		must.True(t, sends(true, at(caller, 90), minute))
		must.False(t, sends(true, at(caller, 91), moment))
		must.False(t, sends(true, at(stranger, 90), moment))
		must.False(t, sends(false, at(caller, 90), moment), must.Sprint("another process of the node"))
	}
	// Root of the node, with the endpoint's address as the source of datagrams that a contract
	// allows.
	var heard net.PacketConn
	must.NoError(t, caller.Do(func(ns.NetNS) (err error) {
		heard, err = net.ListenPacket("udp", ":90")
		return err
	}))
	defer heard.Close()
	hears := func(patience time.Duration) bool {
		must.NoError(t, heard.SetReadDeadline(time.Now().Add(patience)))
		_, _, err := heard.ReadFrom(make([]byte, 10))
		return err == nil
	}
	for _, w := range []struct{ from, to netip.Addr }{{db.v4, caller.v4}, {db.v6, caller.v6}} {
		send := func(n ns.NetNS) {
			level, option := unix.SOL_IP, unix.IP_TRANSPARENT
			if w.from.Is6() {
				level, option = unix.SOL_IPV6, unix.IPV6_TRANSPARENT
			}
			dialer := net.Dialer{LocalAddr: net.UDPAddrFromAddrPort(netip.AddrPortFrom(w.from, 0)), Control: func(_, _ string, c syscall.RawConn) (err error) {
				_ = c.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), level, option, 1) })
				return err
			}}
			must.NoError(t, n.Do(func(ns.NetNS) error {
				conn, err := dialer.Dial("udp", netip.AddrPortFrom(w.to, 90).String())
				must.NoError(t, err)
				defer conn.Close()
				_, err = conn.Write([]byte("x"))
				return err
			}))
		}
		send(db)
		must.True(t, hears(minute))
		send(node)
		must.False(t, hears(moment))
	}
	// Rights that end cut what goes on.
	in(func() {
		var conn net.Conn
		must.NoError(t, caller.Do(func(ns.NetNS) (err error) {
			conn, err = net.DialTimeout("tcp", netip.AddrPortFrom(db.v4, 5432).String(), minute)
			return err
		}))
		defer conn.Close()
		_, err := conn.Write([]byte("x"))
		must.NoError(t, err)
		_, err = io.ReadFull(conn, make([]byte, 1))
		must.NoError(t, err)
		must.NoError(t, data.ReplacePair(bpf.Pair{Source: idCaller, Destination: idDB}, nil))
		_, _ = conn.Write([]byte("x"))
		must.NoError(t, conn.SetReadDeadline(time.Now().Add(moment)))
		_, err = io.ReadFull(conn, make([]byte, 1))
		must.Error(t, err)
	})
}

// What a process reaches by its endpoint is, of each address, what the longest prefix around it
// says.
func TestReach(t *testing.T) {
	ranges := []netip.Prefix{netip.MustParsePrefix("100.64.0.0/10")}
	rapid.Check(t, func(t *rapid.T) {
		prefix := rapid.Custom(func(t *rapid.T) netip.Prefix {
			a := netip.AddrFrom4([4]byte{10, 0, 0, rapid.Byte().Draw(t, "address")})
			return netip.PrefixFrom(a, rapid.IntRange(24, 32).Draw(t, "bits")).Masked()
		})
		w := desired.Workload{
			Endpoints: []desired.Endpoint{{Admission: fabric.Admission{Endpoint: "db"}, Party: "db"}, {Admission: fabric.Admission{Endpoint: "web"}, Party: "web"}},
			Externals: map[netip.Prefix]desired.External{},
			Rules:     []desired.Rule{{From: "db", To: "a"}, {From: "web", To: "b"}, {From: "c", To: "db"}},
		}
		for _, p := range rapid.SliceOfN(prefix, 0, 12).Draw(t, "prefixes") {
			w.Externals[p] = desired.External{Party: desired.Party(rapid.SampledFrom([]string{"a", "b", "c", ""}).Draw(t, "party"))}
		}
		got := reachOf(w, "db", ranges)
		within := func(list []netip.Prefix, a netip.Addr) bool {
			for _, p := range list {
				if p.Contains(a) {
					return true
				}
			}
			return false
		}
		must.True(t, within(got.Reached, netip.MustParseAddr("100.64.1.1")))
		for i := range 256 {
			a := netip.AddrFrom4([4]byte{10, 0, 0, byte(i)})
			longest, reached := -1, false
			for p, x := range w.Externals {
				if p.Contains(a) && p.Bits() > longest {
					longest, reached = p.Bits(), x.Party == "a"
				}
			}
			must.Eq(t, reached, within(got.Reached, a) && !within(got.Spared, a), must.Sprint(a))
		}
	})
}
