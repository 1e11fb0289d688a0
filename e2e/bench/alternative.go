// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"

	"github.com/containernetworking/plugins/pkg/ns"
	"github.com/vishvananda/netlink"

	"github.com/sif-project/sif/internal/wellknown"
)

// plain makes a namespace on a node that is connected like a workload, with the same MTU and an
// address of the node's pool (the n-th from the end), but without programs at its interface. It is
// removed with the lab.
func (f *fabric) plain(ctx context.Context, node string, like endpoint, n int) (endpoint, error) {
	name := fmt.Sprintf("plain-%s-%d", node, n)
	pool := like.addr.As4()
	pool[3] = byte(255 - n)
	e := endpoint{netns: f.NetNS(name), addr: netip.AddrFrom4(pool)}
	mtu, err := mtuOf(like)
	if err != nil {
		return e, err
	}
	// Its name has the form of an endpoint's, so that the node's firewall treats it like one.
	host := fmt.Sprintf("%s%011x", wellknown.InterfacePrefix, 0xbe0000+n)
	return e, script(ctx, fmt.Sprintf(`
		ip netns add %[1]s
		ip -n %[2]s link add %[3]s mtu %[4]d type veth peer name eth0 mtu %[4]d netns %[1]s
		ip -n %[2]s link set %[3]s up
		ip -n %[1]s link set lo up
		ip -n %[1]s addr add %[5]s/32 dev eth0
		ip -n %[1]s link set eth0 up
		ip -n %[2]s route add %[5]s/32 dev %[3]s
		ip -n %[2]s neigh replace %[5]s dev %[3]s lladdr $(ip -n %[1]s -br link show eth0 | awk '{print $3}') nud permanent
		ip -n %[1]s neigh replace %[6]s dev eth0 lladdr $(ip -n %[2]s -br link show %[3]s | awk '{print $3}') nud permanent
		ip -n %[1]s route add %[6]s dev eth0
		ip -n %[1]s route add default via %[6]s src %[5]s`, f.Namespace(name), f.Namespace(node), host, mtu, e.addr, wellknown.LinkLocal4))
}

// script runs lines in a shell that stops at the first failure.
func script(ctx context.Context, lines string) error {
	if out, err := exec.CommandContext(ctx, "sh", "-ec", lines).CombinedOutput(); err != nil {
		return fmt.Errorf("%w: %s: %s", err, out, strings.TrimSpace(lines))
	}
	return nil
}

func mtuOf(e endpoint) (mtu int, err error) {
	err = ns.WithNetNSPath(e.netns, func(ns.NetNS) error {
		link, err := netlink.LinkByName("eth0")
		if err == nil {
			mtu = link.Attrs().MTU
		}
		return err
	})
	return mtu, err
}

// bare makes a namespace in a zone that is connected like a node, and lets all its packets pass the
// internet.
func (f *fabric) bare(ctx context.Context, zone string) (endpoint, error) {
	for _, z := range f.Topology.Zones {
		if z.Name != zone {
			continue
		}
		subnet := netip.MustParsePrefix(z.Subnet)
		octets := subnet.Addr().As4()
		octets[3] = 200
		name := "bare-" + zone
		e := endpoint{netns: f.NetNS(name), addr: netip.AddrFrom4(octets)}
		return e, script(ctx, fmt.Sprintf(`
			ip netns add %[1]s
			ip -n %[2]s link add bare-%[3]s type veth peer name eth0 netns %[1]s
			ip -n %[2]s link set bare-%[3]s master zone-%[3]s up
			ip -n %[1]s link set lo up
			ip -n %[1]s addr add %[4]s/%[5]d dev eth0
			ip -n %[1]s link set eth0 up
			ip -n %[1]s route add default via %[6]s
			ip netns exec %[2]s nft insert rule inet internet forward ip saddr %[4]s accept`,
			f.Namespace(name), f.Namespace("internet"), zone, e.addr, subnet.Bits(), subnet.Masked().Addr().Next()))
	}
	return endpoint{}, fmt.Errorf("the topology has no zone %s", zone)
}

// nebula connects two bare namespaces with Nebula, from the programs in dir, and returns its two
// ends. They send to each other directly.
func (f *fabric) nebula(ctx context.Context, dir string, a, b endpoint) (x, y endpoint, stop func(), err error) {
	cert := filepath.Join(dir, "nebula-cert")
	run := func(args ...string) {
		if err != nil {
			return
		}
		cmd := exec.CommandContext(ctx, cert, args...)
		cmd.Dir = f.dir
		if out, failed := cmd.CombinedOutput(); failed != nil {
			err = fmt.Errorf("nebula-cert %s: %w: %s", args[0], failed, out)
		}
	}
	x = endpoint{a.netns, netip.MustParseAddr("172.31.255.1")}
	y = endpoint{b.netns, netip.MustParseAddr("172.31.255.2")}
	run("ca", "-name", "bench")
	run("sign", "-name", "a", "-ip", x.addr.String()+"/24")
	run("sign", "-name", "b", "-ip", y.addr.String()+"/24")
	if err != nil {
		return x, y, nil, err
	}
	var running []*exec.Cmd
	stop = func() {
		for _, c := range running {
			_ = c.Process.Signal(syscall.SIGTERM)
			_ = c.Wait() // it always fails: a signal ended the process
		}
	}
	for name, e := range map[string]endpoint{"a": a, "b": b} {
		text := fmt.Sprintf(`pki: {ca: %[1]s/ca.crt, cert: %[1]s/%[2]s.crt, key: %[1]s/%[2]s.key}
static_host_map:
  "%[3]s": ["%[5]s:4242"]
  "%[4]s": ["%[6]s:4242"]
lighthouse: {am_lighthouse: false}
listen: {host: 0.0.0.0, port: 4242, batch: 64}
cipher: aes
tun: {dev: nebula0, mtu: 1420}
logging: {level: warning}
firewall:
  outbound: [{port: any, proto: any, host: any}]
  inbound: [{port: any, proto: any, host: any}]
`, f.dir, name, x.addr, y.addr, a.addr, b.addr)
		if err := f.write(name+".yml", text); err != nil {
			stop()
			return x, y, nil, err
		}
		log, err := os.Create(filepath.Join(f.dir, name+".log"))
		if err != nil {
			stop()
			return x, y, nil, err
		}
		cmd := exec.CommandContext(ctx, "nsenter", "--net="+e.netns, "--", filepath.Join(dir, "nebula"), "-config", filepath.Join(f.dir, name+".yml"))
		cmd.Env = append(os.Environ(), "SIF_LAB="+f.Name)
		cmd.Stdout, cmd.Stderr = log, log
		err = cmd.Start()
		log.Close()
		if err != nil {
			stop()
			return x, y, nil, fmt.Errorf("start nebula: %w", err)
		}
		running = append(running, cmd)
	}
	if err := awaitAddress(x, 5*time.Second); err != nil {
		log, _ := os.ReadFile(filepath.Join(f.dir, "a.log")) // if it cannot be read, the error lacks it
		stop()
		return x, y, nil, fmt.Errorf("nebula: %w: %s", err, log)
	}
	if err := awaitAddress(y, 5*time.Second); err != nil {
		stop()
		return x, y, nil, fmt.Errorf("nebula: %w", err)
	}
	return x, y, stop, nil
}

// awaitAddress waits until an endpoint has its address.
func awaitAddress(e endpoint, within time.Duration) error {
	deadline := time.Now().Add(within)
	for {
		err := ns.WithNetNSPath(e.netns, func(ns.NetNS) error {
			l, err := net.ListenTCP("tcp", net.TCPAddrFromAddrPort(netip.AddrPortFrom(e.addr, 0)))
			if err != nil {
				return err
			}
			return l.Close()
		})
		if err == nil {
			return nil
		}
		if time.Now().After(deadline) {
			return errors.Join(fmt.Errorf("no interface has address %s after %s", e.addr, within), err)
		}
		runtime.Gosched()
		time.Sleep(50 * time.Millisecond)
	}
}
