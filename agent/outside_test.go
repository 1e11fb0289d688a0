// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package agent

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/containernetworking/plugins/pkg/ns"
	"github.com/shoenig/test/must"
	"golang.org/x/sys/unix"

	"github.com/sif-project/sif/bpf"
	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/internal/node/firewall"
	"github.com/sif-project/sif/internal/node/host"
	"github.com/sif-project/sif/internal/node/kernel"
	"github.com/sif-project/sif/internal/testhost"
	"github.com/sif-project/sif/internal/wellknown"
)

// The programs at workloads and the node's firewall work together, with real packets of both
// families: what leaves by the node, what the node exposes, and published ports from outside, from
// the node and from a workload of the node. A workload without contracts reaches none of it.
func TestOutsideOfNode(t *testing.T) {
	testhost.RequireRoot(t)
	for _, m := range []bpf.Mechanism{bpf.TCX, bpf.Clsact} {
		t.Run(string(m), func(t *testing.T) { testOutsideOfNode(t, m) })
	}
}

func testOutsideOfNode(t *testing.T, mechanism bpf.Mechanism) {
	node, outside := newNamespace(t), newNamespace(t)
	in := func(n ns.NetNS, do func()) {
		t.Helper()
		must.NoError(t, n.Do(func(ns.NetNS) error { do(); return nil }))
	}
	run := func(n ns.NetNS, args ...string) {
		t.Helper()
		out, err := exec.Command("nsenter", append([]string{"--net=" + n.Path()}, args...)...).CombinedOutput()
		must.NoError(t, err, must.Sprintf("%q: %s", args, out))
	}
	const node4, node6, outside4, outside6 = "192.0.2.1", "2001:db8::1", "192.0.2.9", "2001:db8::9"
	const withheld4, withheld6 = "192.0.2.10", "2001:db8::a" // of the outside, too
	run(node, "ip", "link", "add", "under0", "type", "veth", "peer", "name", "eth0", "netns", outside.Path())
	for _, a := range []struct {
		ns.NetNS
		device, v4, v6 string
	}{{node, "under0", node4, node6}, {outside, "eth0", outside4, outside6}} {
		run(a, "ip", "link", "set", "lo", "up")
		run(a, "ip", "addr", "add", a.v4+"/24", "dev", a.device)
		run(a, "ip", "addr", "add", a.v6+"/64", "dev", a.device, "nodad")
		run(a, "sysctl", "-qw", "net.ipv6.conf."+a.device+".accept_dad=0")
		run(a, "ip", "link", "set", a.device, "up")
	}
	run(outside, "ip", "addr", "add", withheld4+"/24", "dev", "eth0")
	run(outside, "ip", "addr", "add", withheld6+"/64", "dev", "eth0", "nodad", "preferred_lft", "0") // no source of answers
	ranges := []netip.Prefix{netip.MustParsePrefix("100.64.0.0/10"), netip.MustParsePrefix("fd5f::/32")}
	type workload struct {
		ns.NetNS
		v4, v6   netip.Addr
		identity uint32
		device   string
	}
	const idCaller, idServer, idStranger, idOutside, idNode, idSelf = 1, 2, 3, 4, 5, 6
	var workloads []workload
	for i := range 3 {
		workloads = append(workloads, workload{newNamespace(t), netip.AddrFrom4([4]byte{100, 64, 0, byte(2 + i)}),
			netip.MustParseAddr(fmt.Sprintf("fd5f::%d", 2+i)), uint32(1 + i), fmt.Sprintf("sif0123456789%d", i)})
	}
	caller, server, stranger := workloads[0], workloads[1], workloads[2]

	pins := filepath.Join(t.TempDir(), "bpf")
	_, err := bpf.MountBPFFS(pins)
	must.NoError(t, err)
	t.Cleanup(func() { must.NoError(t, unix.Unmount(pins, 0)) })
	exposed := []firewall.Exposed{
		{Protocol: fabric.TCP, Port: 8500, To: netip.MustParseAddrPort("127.0.0.1:8500")}, {Protocol: fabric.TCP, Port: 8500, To: netip.MustParseAddrPort("[fe80::1]:8500")}}
	fw := firewall.New(firewall.Config{Underlay: "under0", Ranges: ranges, Links: func() []uint16 { return nil }, Published: 1000, DNSPackets: 1000, Exposed: exposed})
	var data *bpf.Datapath
	in(node, func() {
		must.NoError(t, kernel.Set(kernel.State{Sysctls: host.Forwarding, Interfaces: router(fabric.Node{}).Interfaces}))
		_, err = fw.Apply()
		must.NoError(t, err)
		data, err = bpf.Open(filepath.Join(pins, "sif"), bpf.Options{
			Resolver4: wellknown.LinkLocal4, Node4: wellknown.LinkLocal4, Node6: wellknown.LinkLocal6, NodeExit: wellknown.ExitMarkNode, Fabric: ranges, Mechanism: mechanism,
		})
		if err != nil {
			return
		}
		for _, w := range workloads {
			pair, err := makeVeth(w.device, "eth0", w, 1376)
			must.NoError(t, err)
			pair.loopback = true
			_, err = data.Attach(w.device)
			must.NoError(t, err)
			must.NoError(t, pair.raiseHost(w.v4, w.v6))
			must.NoError(t, pair.raiseWorkload("eth0", w, w.v4, w.v6))
			must.NoError(t, data.PutEndpoint(bpf.Endpoint{Interface: uint32(pair.hostIndex), Identity: w.identity, IPv4: w.v4, IPv6: w.v6}))
			for _, a := range []netip.Addr{w.v4, w.v6} {
				must.NoError(t, data.PutPeer(bpf.Peer{Address: a, Identity: w.identity, Interface: uint32(pair.hostIndex)}))
			}
		}
		underlay, err := linkIndex("under0")
		must.NoError(t, err)
		for _, e := range []bpf.External{
			{Prefix: netip.MustParsePrefix(outside4 + "/32"), Identity: idOutside}, {Prefix: netip.MustParsePrefix(outside4 + "/32"), Identity: idOutside, Interface: uint32(underlay)},
			{Prefix: netip.MustParsePrefix(outside6 + "/128"), Identity: idOutside}, {Prefix: netip.MustParsePrefix(outside6 + "/128"), Identity: idOutside, Interface: uint32(underlay)},
			{Prefix: netip.MustParsePrefix(withheld4 + "/32"), Identity: idOutside}, {Prefix: netip.MustParsePrefix(withheld4 + "/32"), Identity: idOutside, Interface: uint32(underlay)},
			{Prefix: netip.MustParsePrefix(withheld6 + "/128"), Identity: idOutside}, {Prefix: netip.MustParsePrefix(withheld6 + "/128"), Identity: idOutside, Interface: uint32(underlay)},
			{Prefix: netip.MustParsePrefix(node4 + "/32"), Identity: idNode, Interface: bpf.FromNode}, {Prefix: netip.MustParsePrefix(node6 + "/128"), Identity: idNode, Interface: bpf.FromNode},
			{Prefix: netip.MustParsePrefix("169.254.1.1/32"), Identity: idSelf}, {Prefix: netip.MustParsePrefix("fe80::1/128"), Identity: idSelf},
		} {
			must.NoError(t, data.PutExternal(e))
		}
		for pair, r := range map[bpf.Pair]bpf.Rule{
			{Source: idCaller, Destination: idServer}:  {Protocol: 6, From: 80, To: 80, Contract: 11},
			{Source: idCaller, Destination: idSelf}:    {Protocol: 6, From: 8500, To: 8500, Contract: 12},
			{Source: idOutside, Destination: idServer}: {Protocol: 6, From: 80, To: 80, Contract: 13},
			{Source: idNode, Destination: idServer}:    {Protocol: 6, From: 80, To: 80, Contract: 14},
		} {
			must.NoError(t, data.ReplacePair(pair, []bpf.Rule{r}))
		}
		must.NoError(t, data.ReplacePair(bpf.Pair{Source: idCaller, Destination: idOutside}, []bpf.Rule{
			{Protocol: 6, From: 80, To: 80, Contract: 10, ExitNode: true}, {Protocol: 17, From: 80, To: 80, Contract: 10, ExitNode: true}}))
		var mappings []firewall.PortMapping
		var egress []firewall.Egress
		for _, p := range []struct{ node, server, caller, outside string }{
			{node4, server.v4.String(), caller.v4.String(), "0.0.0.0/0"}, {node6, server.v6.String(), caller.v6.String(), "::/0"},
		} {
			from, to := netip.AddrPortFrom(netip.MustParseAddr(p.node), 20001), netip.AddrPortFrom(netip.MustParseAddr(p.server), 80)
			mappings = append(mappings, firewall.PortMapping{Protocol: fabric.TCP, From: from, To: to})
			must.NoError(t, data.PutPublished(bpf.Published{Protocol: 6, From: from, To: to}))
			for _, protocol := range []fabric.Protocol{fabric.TCP, fabric.UDP} {
				egress = append(egress, firewall.Egress{Endpoint: netip.MustParseAddr(p.caller), Prefix: netip.MustParsePrefix(p.outside), Protocol: protocol, Ports: fabric.PortRange{From: 80, To: 80}})
			}
		}
		must.NoError(t, fw.SetPorts(mappings))
		must.NoError(t, fw.SetEgress(egress, []netip.Prefix{netip.MustParsePrefix(withheld4 + "/32"), netip.MustParsePrefix(withheld6 + "/128")}))
	})
	if errors.Is(err, ebpf.ErrNotSupported) {
		t.Skip(err) // the kernel has another mechanism
	}
	must.NoError(t, err)
	t.Cleanup(func() { _ = data.Close() })

	serve := func(n ns.NetNS, address string) {
		in(n, func() {
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
		})
	}
	serve(outside, ":80")
	serve(outside, ":81")
	serve(server, ":80")
	serve(node, ":8500") // on all addresses, which are closed but for those that are exposed
	serve(node, ":8501")
	reaches := func(n ns.NetNS, to string, patience time.Duration) bool {
		var conn net.Conn
		in(n, func() { conn, err = net.DialTimeout("tcp", testhost.Zoned(to), patience) })
		if err != nil {
			return false
		}
		defer conn.Close()
		must.NoError(t, conn.SetDeadline(time.Now().Add(time.Minute)))
		_, err := conn.Write([]byte("x"))
		must.NoError(t, err)
		_, err = io.ReadFull(conn, make([]byte, 1))
		return err == nil
	}
	for _, c := range []struct {
		what string
		from ns.NetNS
		to   string
		open bool
	}{
		{"outside by the node", caller, outside4 + ":80", true},
		{"outside by the node, IPv6", caller, "[" + outside6 + "]:80", true},
		{"another port outside", caller, outside4 + ":81", false},
		{"withheld, which the programs let out", caller, withheld4 + ":80", false},
		{"withheld, which the programs let out, IPv6", caller, "[" + withheld6 + "]:80", false},
		{"exposed", caller, "169.254.1.1:8500", true},
		{"exposed, IPv6", caller, "[fe80::1%eth0]:8500", true},
		{"not exposed", caller, "169.254.1.1:8501", false},
		{"the node's address", caller, node4 + ":8500", false},
		{"published, from a workload", caller, node4 + ":20001", true},
		{"published, from a workload, IPv6", caller, "[" + node6 + "]:20001", true},
		{"directly", caller, server.v4.String() + ":80", true},
		{"published, from outside", outside, node4 + ":20001", true},
		{"published, from outside, IPv6", outside, "[" + node6 + "]:20001", true},
		{"published, from the node", node, node4 + ":20001", true},
		{"published, from the node, IPv6", node, "[" + node6 + "]:20001", true},
		{"a stranger, outside", stranger, outside4 + ":80", false},
		{"a stranger, exposed", stranger, "169.254.1.1:8500", false},
		{"a stranger, exposed, IPv6", stranger, "[fe80::1%eth0]:8500", false},
		{"a stranger, published", stranger, node4 + ":20001", false},
		{"a stranger, published, IPv6", stranger, "[" + node6 + "]:20001", false},
	} {
		patience := time.Minute
		if !c.open {
			patience = 300 * time.Millisecond
		}
		must.Eq(t, c.open, reaches(c.from, c.to, patience), must.Sprint(c.what))
	}

	// Datagrams of every size, in fragments or not.
	in(outside, func() {
		u, err := net.ListenPacket("udp", ":80")
		must.NoError(t, err)
		t.Cleanup(func() { u.Close() })
		go func() {
			b := make([]byte, 65535)
			for {
				n, from, err := u.ReadFrom(b)
				if err != nil {
					return
				}
				u.WriteTo(b[:n], from)
			}
		}()
	})
	for _, to := range []string{outside4 + ":80", "[" + outside6 + "]:80"} {
		var conn net.Conn
		in(caller, func() { conn, err = net.Dial("udp", to) })
		must.NoError(t, err)
		defer conn.Close()
		for _, size := range []int{1, 1300, 1376, 3000, 65000} {
			n := 0
			for range 50 { // the first large answer teaches the other one the MTU of the way back
				_, err := conn.Write(make([]byte, size))
				must.NoError(t, err)
				must.NoError(t, conn.SetReadDeadline(time.Now().Add(200*time.Millisecond)))
				for n, err = conn.Read(make([]byte, 65535)); err == nil && n != size; { // the late answer to one before
					n, err = conn.Read(make([]byte, 65535))
				}
				if err == nil {
					break
				}
			}
			must.Eq(t, size, n, must.Sprintf("%d bytes to %s", size, to))
		}
	}
}
