// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package daemon

import (
	"context"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/containernetworking/plugins/pkg/ns"
	"github.com/containernetworking/plugins/pkg/testutils"
	"github.com/hashicorp/go-hclog"
	"github.com/shoenig/test/must"

	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/internal/config"
	"github.com/sif-project/sif/internal/node/link"
	"github.com/sif-project/sif/internal/testhost"
	"github.com/sif-project/sif/internal/trust/roster"
)

// TestMain runs `sif link` if a test started the test binary for that, in a network namespace.
func TestMain(m *testing.M) {
	dir := os.Getenv("SIF_DAEMON_TEST_LINK")
	if dir == "" {
		os.Exit(m.Run())
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	server := link.NewServer(link.ServerConfig{RunDir: filepath.Join(dir, "run"), DataDir: filepath.Join(dir, "data"), Logger: hclog.Default()})
	if server.Run(ctx) != nil {
		os.Exit(1)
	}
}

// startLink starts a `sif link` and waits until it answers.
func startLink(t *testing.T, namespace ns.NetNS, dir string) (stop func()) {
	self, err := os.Executable()
	must.NoError(t, err)
	process := exec.Command("nsenter", "--net="+namespace.Path(), self)
	process.Env = append(os.Environ(), "SIF_DAEMON_TEST_LINK="+dir)
	process.Stderr = os.Stderr
	must.NoError(t, process.Start())
	stop = func() {
		process.Process.Signal(syscall.SIGTERM)
		process.Wait()
	}
	t.Cleanup(stop)
	client := link.NewClient(filepath.Join(dir, "run"))
	for range 1000 {
		if _, err := client.Status(t.Context()); err == nil {
			return stop
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatal("sif link does not answer")
	return nil
}

// take takes a UDP port, as a WireGuard device of somebody else does.
func take(t *testing.T, namespace ns.NetNS, port int) {
	must.NoError(t, namespace.Do(func(ns.NetNS) error {
		c, err := net.ListenUDP("udp4", &net.UDPAddr{Port: port})
		if err == nil {
			t.Cleanup(func() { c.Close() })
		}
		return err
	}))
}

// A port that another process has, or takes while `sif link` is not running, moves to a free one,
// which is published and kept. The names of the devices stay.
func TestTakenPortsMove(t *testing.T) {
	t.Run(config.DeviceUserspace, func(t *testing.T) { takenPortsMove(t, config.DeviceUserspace) })
	t.Run(config.DeviceKernel, func(t *testing.T) {
		testhost.RequireRoot(t)
		if err := link.KernelSupport(); err != nil {
			testhost.UnmetHere(t, err.Error())
		}
		takenPortsMove(t, config.DeviceKernel)
	})
}

func takenPortsMove(t *testing.T, device string) {
	testhost.RequireRoot(t)
	testhost.RequireProgram(t, "nsenter")
	namespace, err := testutils.NewNS()
	must.NoError(t, err)
	t.Cleanup(func() {
		must.NoError(t, namespace.Close())
		must.NoError(t, testutils.UnmountNS(namespace))
	})
	member := func(kind fabric.NodeKind, zone, name string, number byte) roster.Member {
		m := roster.Member{Node: fabric.Node{
			Kind: kind, Zone: zone, Name: name, Underlay: netip.AddrFrom4([4]byte{192, 0, 2, number}),
			Pool4: netip.PrefixFrom(netip.AddrFrom4([4]byte{100, 64, number, 0}), 24),
			Pool6: netip.PrefixFrom(netip.AddrFrom16([16]byte{0xfd, 7: number}), 64),
		}}
		key, err := link.GenerateKey()
		must.NoError(t, err)
		public := key.Public()
		m.Link = fabric.Link{PublicKey: public[:], Ports: map[fabric.NodeID]uint16{{}: 51820}}
		return m
	}
	self := member(fabric.KindWorkload, "z1", "w1", 1)
	processor := member(fabric.KindProcessor, "z1", "p1", 2)
	members := []roster.Member{self, processor, member(fabric.KindWorkload, "z1", "w2", 3)}

	dir := t.TempDir()
	c := &config.Config{DataDir: dir, Link: &config.Link{Socket: filepath.Join(dir, "run", "link.sock"), MTU: 1420, Device: device}}
	open := func() (l *Links) {
		must.NoError(t, namespace.Do(func(ns.NetNS) (err error) {
			l, err = openLinks(c, fabric.KindWorkload, hclog.NewNullLogger())
			return err
		}))
		return l
	}
	// restart restarts what runs the devices; do is done meanwhile, while they are down.
	stop := func() {}
	restart := func(do func()) {
		stop()
		if device == config.DeviceUserspace {
			do()
			stop = startLink(t, namespace, dir)
			return
		}
		kernel, ok := open().backend.(*link.Kernel)
		must.True(t, ok)
		must.NoError(t, kernel.Remove()) // as after a reboot
		do()
	}
	published := func(l *Links) [2]uint16 {
		statement, err := l.statement(self.ID())
		must.NoError(t, err)
		ports := statement.Ports
		return [2]uint16{ports[fabric.NodeID{}], ports[processor.ID()]}
	}
	// set applies the links as keepLinks does, and returns what is then published.
	set := func(move bool) [2]uint16 {
		t.Helper()
		l := open()
		_, err = l.assign(self.Node, members, nil)
		must.NoError(t, err)
		moved, err := l.apply(t.Context(), self.Node, members, nil)
		must.NoError(t, err)
		must.Eq(t, move, moved)
		devices, err := l.backend.Status(t.Context())
		must.NoError(t, err)
		var up []string
		for _, d := range devices {
			must.True(t, d.Up, must.Sprint(d.Error))
			up = append(up, d.Name)
		}
		must.Eq(t, []string{"sif-l0", "sif-l1"}, up)
		must.Eq(t, [2]uint16{devices[0].ListenPort, devices[1].ListenPort}, published(l))
		must.Eq(t, [2]uint16{l.Ports()[0], l.Ports()[1]}, [2]uint16{min(published(l)[0], published(l)[1]), max(published(l)[0], published(l)[1])})
		return published(l)
	}
	restart(func() { take(t, namespace, 51820) })
	must.Eq(t, [2]uint16{51822, 51821}, set(true))
	must.Eq(t, [2]uint16{51822, 51821}, set(false))

	restart(func() {})
	must.Eq(t, [2]uint16{51822, 51821}, set(false))

	restart(func() { take(t, namespace, 51821) })
	must.Eq(t, [2]uint16{51822, 51823}, set(true))

	// If no port is left, the error says so, and the other device goes on.
	restart(func() {
		for port := 51823; port <= 51899; port++ {
			take(t, namespace, port)
		}
	})
	l := open()
	_, err = l.apply(t.Context(), self.Node, members, nil)
	must.ErrorContains(t, err, "move the port of sif-l1: other processes have all UDP ports from 51820 to 51899 that no link has")
	devices, err := l.backend.Status(t.Context())
	must.NoError(t, err)
	must.True(t, devices[0].Up)
	must.False(t, devices[1].Up)
	must.StrContains(t, devices[1].Error, "address already in use")
}

// Without the kernel's WireGuard "kernel" is refused, and "auto" is `sif link`.
func TestDeviceOfLinks(t *testing.T) {
	testhost.RequireRoot(t)
	dir := t.TempDir()
	c := &config.Config{DataDir: dir, Link: &config.Link{Socket: filepath.Join(dir, "run", "link.sock"), MTU: 1420}}
	open := func(device string) (*Links, error) {
		c.Link.Device = device
		return openLinks(c, fabric.KindWorkload, hclog.NewNullLogger())
	}
	kernel := func(device string) bool {
		l, err := open(device)
		must.NoError(t, err)
		_, is := l.backend.(*link.Kernel)
		return is
	}
	must.False(t, kernel(config.DeviceUserspace))
	if link.KernelSupport() == nil {
		must.True(t, kernel(config.DeviceAuto))
		must.True(t, kernel(config.DeviceKernel))
		return
	}
	must.False(t, kernel(config.DeviceAuto))
	_, err := open(config.DeviceKernel)
	must.ErrorContains(t, err, `link.device is "kernel": this kernel has no WireGuard: run `+"`modprobe wireguard`"+`, or set it to "auto"`)
}
