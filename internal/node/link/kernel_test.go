// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package link

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/shoenig/test/must"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"
	"pgregory.net/rapid"

	"github.com/sif-project/sif/internal/testhost"
)

// Law: the netlink messages for a change bring a device of Linux 6.1 into the desired state.
func TestConfigMakesDeviceAsWanted(t *testing.T) {
	keys := make([]PrivateKey, 6)
	for i := range keys {
		keys[i] = newKey(t)
	}
	rapid.Check(t, func(t *rapid.T) {
		device := new(wgtypes.Device)
		for _, want := range rapid.SliceOfN(wantedDevices(keys), 1, 4).Draw(t, "wanted") {
			c := difference(stateOf(device), want, nil, time.Now())
			config, err := c.config()
			must.NoError(t, err)
			configureLikeLinux(device, config)
			device.ListenPort = int(want.ListenPort) // written apart
			got := stateOf(device)
			must.Eq(t, change{}, difference(got, want, nil, time.Now()))
			must.Eq(t, len(want.Peers), len(got.peers)) // the one with the throw-away key is gone
		}
	})
}

// configureLikeLinux does to a device what drivers/net/wireguard/netlink.c of Linux 6.1 does: an
// address that a second peer gets is taken from the first.
func configureLikeLinux(d *wgtypes.Device, config wgtypes.Config) {
	if config.ReplacePeers {
		panic("replacing all peers interrupts their sessions")
	}
	if config.PrivateKey != nil {
		d.PrivateKey = *config.PrivateKey
	}
	for _, c := range config.Peers {
		at := -1
		for i, p := range d.Peers {
			if p.PublicKey == c.PublicKey {
				at = i
			}
		}
		if c.Remove {
			if at >= 0 {
				d.Peers = append(d.Peers[:at], d.Peers[at+1:]...)
			}
			continue
		}
		if at < 0 {
			d.Peers = append(d.Peers, wgtypes.Peer{PublicKey: c.PublicKey})
			at = len(d.Peers) - 1
		}
		if c.Endpoint != nil {
			d.Peers[at].Endpoint = c.Endpoint
		}
		if c.PersistentKeepaliveInterval != nil {
			d.Peers[at].PersistentKeepaliveInterval = *c.PersistentKeepaliveInterval
		}
		for _, n := range c.AllowedIPs {
			for i := range d.Peers {
				var kept []net.IPNet
				for _, have := range d.Peers[i].AllowedIPs {
					if have.String() != n.String() {
						kept = append(kept, have)
					}
				}
				d.Peers[i].AllowedIPs = kept
			}
			d.Peers[at].AllowedIPs = append(d.Peers[at].AllowedIPs, n)
		}
	}
}

// The answer is the same each time, and an error names what is missing.
func TestKernelSupport(t *testing.T) {
	testhost.RequireRoot(t)
	err := KernelSupport()
	must.Eq(t, err, KernelSupport())
	if err != nil {
		must.EqError(t, err, "this kernel has no WireGuard")
	}
	must.StrNotContains(t, run(t, "ip", "link"), "probe")
}

func requireKernel(t testing.TB) {
	t.Helper()
	testhost.RequireRoot(t)
	if err := KernelSupport(); err != nil {
		testhost.UnmetHere(t, err.Error())
	}
}

// kernel returns a Kernel as a daemon of the node has it after each start.
func (n *testNode) kernel(t testing.TB) *Kernel {
	t.Helper()
	var k *Kernel
	must.NoError(t, inNamespace("/var/run/netns/"+n.outer, func() (err error) {
		k, err = NewKernel(KernelConfig{
			Owner: n.dir, Userspace: NewClient(n.runDir()), UserspaceData: n.dataDir(),
			Logger: hclog.New(&hclog.LoggerOptions{Output: os.Stderr, Level: hclog.Debug}),
		})
		return err
	}))
	return k
}

func statusOf(t testing.TB, k *Kernel) DeviceStatus {
	t.Helper()
	devices, err := k.Status(t.Context())
	must.NoError(t, err)
	must.Len(t, 1, devices)
	return devices[0]
}

func handshakes(s DeviceStatus) map[Key]time.Time {
	times := map[Key]time.Time{}
	for _, p := range s.Peers {
		times[p.PublicKey] = p.LastHandshake
	}
	return times
}

func retransmissions(t testing.TB, n *testNode) string {
	return run(t, "nsenter", "--net="+n.innerPath(), "awk", "/^Tcp: [0-9]/{print $13}", "/proc/net/snmp")
}

// pinging sends a datagram from one node to the other and back every 10 ms while do runs, and
// returns how many were sent and lost.
func pinging(t testing.TB, from, to *testNode, do func()) (sent, lost int) {
	t.Helper()
	var far, near *net.UDPConn
	must.NoError(t, inNamespace(to.innerPath(), func() (err error) {
		far, err = net.ListenUDP("udp", &net.UDPAddr{IP: to.v4.AsSlice(), Port: 77})
		return err
	}))
	defer far.Close()
	must.NoError(t, inNamespace(from.innerPath(), func() (err error) {
		near, err = net.DialUDP("udp", &net.UDPAddr{IP: from.v4.AsSlice()}, far.LocalAddr().(*net.UDPAddr))
		return err
	}))
	defer near.Close()
	go func() {
		packet := make([]byte, 100)
		for {
			n, at, err := far.ReadFromUDPAddrPort(packet)
			if errors.Is(err, net.ErrClosed) {
				return
			}
			_, _ = far.WriteToUDPAddrPort(packet[:n], at) // lost if the link is down
		}
	}()
	var received atomic.Int64
	go func() {
		for {
			if _, err := near.Read(make([]byte, 100)); err == nil {
				received.Add(1)
			} else if errors.Is(err, net.ErrClosed) {
				return
			}
		}
	}()
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		tick := time.NewTicker(10 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-stop:
				return
			case <-tick.C:
				_, _ = near.Write([]byte("ping"))
				sent++
			}
		}
	}()
	time.Sleep(500 * time.Millisecond)
	do()
	time.Sleep(500 * time.Millisecond)
	close(stop)
	<-stopped
	time.Sleep(time.Second) // for the last answers
	must.Positive(t, received.Load())
	return sent, sent - int(received.Load())
}

func TestKernelDevices(t *testing.T) {
	requireKernel(t)
	nodes := bareNodes(t, 3)
	a, b, c := nodes[0], nodes[1], nodes[2]
	for _, n := range []*testNode{b, c} {
		for _, addr := range []netip.Addr{n.v4, n.v6} {
			listen(t, n.innerPath(), netip.AddrPortFrom(addr, 7))
		}
	}
	ctx := t.Context()
	ka := a.kernel(t)
	must.NoError(t, ka.Apply(ctx, []Device{a.device(b.peer(), c.peer())}))
	must.NoError(t, b.kernel(t).Apply(ctx, []Device{b.device(a.peer())}))
	must.NoError(t, c.kernel(t).Apply(ctx, []Device{c.device(a.peer())}))
	must.NoError(t, converse(a, b))
	must.NoError(t, converse(a, c))

	t.Run("interface and socket are in different namespaces", func(t *testing.T) {
		must.StrNotContains(t, run(t, "ip", "-n", a.outer, "link"), "sif-zone")
		must.StrContains(t, run(t, "ip", "-n", a.inner, "-d", "link"), "alias "+ka.alias("sif-zone"))
		must.StrContains(t, run(t, "nsenter", "--net=/var/run/netns/"+a.outer, "ss", "-nul"), ":51820")
		must.StrNotContains(t, run(t, "nsenter", "--net="+a.innerPath(), "ss", "-nul"), ":51820")
		s := statusOf(t, ka)
		must.True(t, s.Up)
		must.Eq(t, "", s.Error)
		must.Eq(t, KindKernel, s.Kind)
		must.Eq(t, a.private.Public(), s.PublicKey)
		must.Eq(t, testPort, s.ListenPort)
		must.Len(t, 2, s.Peers)
		for _, p := range s.Peers {
			must.Greater(t, 2<<20, p.ReceivedBytes)
		}
	})

	t.Run("the next process adopts the device and changes nothing", func(t *testing.T) {
		before := handshakes(statusOf(t, ka))
		sent, lost := pinging(t, a, b, func() {
			for range 5 {
				ka = a.kernel(t) // as after kill -9
				must.NoError(t, ka.Apply(ctx, []Device{a.device(c.peer(), b.peer())}))
			}
		})
		must.Eq(t, 0, lost, must.Sprintf("of %d", sent))
		must.Eq(t, before, handshakes(statusOf(t, ka)))
		must.MapEmpty(t, statusOf(t, ka).Repaired)
	})

	t.Run("changing one peer or one address does not interrupt others", func(t *testing.T) {
		more := netip.MustParsePrefix("198.18.1.0/24")
		before := handshakes(statusOf(t, ka))[b.private.Public()]
		retransmitted := retransmissions(t, a)
		sent, lost := pinging(t, a, b, func() {
			for range 5 {
				must.NoError(t, ka.Apply(ctx, []Device{a.device(b.peer())}))
				d := a.device(b.peer(), c.peer())
				d.Peers[1].PersistentKeepalive = 7 * time.Second
				d.Peers[0].AllowedIPs = append(d.Peers[0].AllowedIPs, more)
				must.NoError(t, ka.Apply(ctx, []Device{d}))
				d.MTU = 1400
				must.NoError(t, ka.Apply(ctx, []Device{d}))
				d = a.device(b.peer(), c.peer())
				d.Peers[1].AllowedIPs = append(d.Peers[1].AllowedIPs, more) // it moves from b to c
				must.NoError(t, ka.Apply(ctx, []Device{d}))
				must.NoError(t, ka.Apply(ctx, []Device{a.device(b.peer(), c.peer())}))
			}
		})
		must.Eq(t, 0, lost, must.Sprintf("of %d", sent))
		must.Eq(t, retransmitted, retransmissions(t, a))
		must.Eq(t, before, handshakes(statusOf(t, ka))[b.private.Public()])
		must.StrNotContains(t, run(t, "nsenter", "--net="+a.innerPath(), "wg", "show", "sif-zone", "allowed-ips"), "198.18")
		must.Len(t, 2, statusOf(t, ka).Peers)
		eventually(t, func() error { return converse(a, c) })
		must.MapEmpty(t, statusOf(t, ka).Repaired)
	})

	t.Run("a port in use is reported", func(t *testing.T) {
		var other *net.UDPConn
		must.NoError(t, inNamespace("/var/run/netns/"+a.outer, func() (err error) {
			other, err = net.ListenUDP("udp4", &net.UDPAddr{Port: 51999})
			return err
		}))
		defer other.Close()
		d := a.device(b.peer(), c.peer())
		d.ListenPort = 51999
		taken := func(err error) {
			t.Helper()
			var failed *ApplyError
			must.True(t, errors.As(err, &failed), must.Sprint(err))
			must.Eq(t, []string{"sif-zone"}, failed.PortTaken)
			must.ErrorContains(t, err, "another process has the UDP port 51999")
		}
		// A device that is up goes on with its old port, and says so.
		sent, lost := pinging(t, a, b, func() { taken(ka.Apply(ctx, []Device{d})) })
		must.Eq(t, 0, lost, must.Sprintf("of %d", sent))
		must.Eq(t, testPort, statusOf(t, ka).ListenPort)
		must.StrContains(t, run(t, "nsenter", "--net=/var/run/netns/"+a.outer, "ss", "-nul"), ":51820")
		// A new one comes up when the port becomes free.
		must.NoError(t, ka.Apply(ctx, nil))
		taken(ka.Apply(ctx, []Device{d}))
		must.False(t, statusOf(t, ka).Up)
		must.StrContains(t, statusOf(t, ka).Error, "51999")
		other.Close()
		must.NoError(t, ka.Apply(ctx, []Device{d}))
		must.True(t, statusOf(t, ka).Up)
		must.NoError(t, converse(a, b))
		must.NoError(t, ka.Apply(ctx, []Device{a.device(b.peer(), c.peer())}))
		must.NoError(t, converse(a, b))
	})

	t.Run("what others change is put back and counted", func(t *testing.T) {
		pool := b.pools()[0].String()
		for _, x := range []struct{ command, kind string }{
			{"sysctl -q net.ipv4.conf.sif-zone.rp_filter=1", "sysctl"},
			{"ip link set sif-zone mtu 1300", "interface"},
			{"ip link set sif-zone down", "interface"},
			{"sh -c (ip link set sif-zone down; ip link set sif-zone name strange; ip link set strange up)", "interface"},
			{"ip link del sif-zone", "interface"},
			{"ip link set sif-zone netns 1", "interface"},
			{"ip link set sif-zone alias x", ""},
			{"ip route del " + pool, "route"},
			{"ip route add 198.18.0.0/24 dev sif-zone proto 205", "route"},
			{"wg set sif-zone peer " + b.private.Public().String() + " remove", "interface"},
			{"wg set sif-zone listen-port 4444", "interface"},
		} {
			args := strings.Fields(x.command)
			if args[0] == "sh" {
				args = []string{"sh", "-c", strings.Join(args[2:], " ")}
			}
			before := statusOf(t, ka).Repaired[x.kind]
			run(t, "nsenter", append([]string{"--net=" + a.innerPath()}, args...)...)
			err := ka.Apply(ctx, []Device{a.device(b.peer(), c.peer())})
			if x.kind == "" { // somebody has taken it over
				must.ErrorContains(t, err, `that is not this daemon's (type wireguard, alias "x")`, must.Sprint(x.command))
				run(t, "nsenter", "--net="+a.innerPath(), "ip", "link", "set", "sif-zone", "alias", "")
				must.NoError(t, ka.Apply(ctx, []Device{a.device(b.peer(), c.peer())}))
				continue
			}
			must.NoError(t, err, must.Sprint(x.command))
			must.Greater(t, before, statusOf(t, ka).Repaired[x.kind], must.Sprint(x.command))
			must.True(t, statusOf(t, ka).Up, must.Sprint(x.command))
			eventually(t, func() error { return converse(a, b) })
			repaired := statusOf(t, ka).Repaired
			must.NoError(t, ka.Apply(ctx, []Device{a.device(b.peer(), c.peer())}))
			must.Eq(t, repaired, statusOf(t, ka).Repaired, must.Sprint(x.command))
		}
	})

	t.Run("a replaced namespace gets its device", func(t *testing.T) {
		run(t, "ip", "netns", "del", a.inner)
		must.Error(t, ka.Apply(ctx, []Device{a.device(b.peer(), c.peer())}))
		must.StrContains(t, statusOf(t, ka).Error, a.inner)
		run(t, "ip", "netns", "add", a.inner)
		run(t, "ip", "-n", a.inner, "link", "set", "lo", "up")
		run(t, "ip", "-n", a.inner, "addr", "add", a.v4.String()+"/32", "dev", "lo")
		run(t, "ip", "-n", a.inner, "addr", "add", a.v6.String()+"/128", "dev", "lo")
		eventually(t, func() error { return ka.Apply(ctx, []Device{a.device(b.peer(), c.peer())}) })
		eventually(t, func() error { return converse(a, b) })
	})

	t.Run("an interrupted creation is finished", func(t *testing.T) {
		must.NoError(t, ka.Apply(ctx, nil))
		run(t, "ip", "-n", a.outer, "link", "add", "sif-zone", "type", "wireguard")
		ka = a.kernel(t)
		must.NoError(t, ka.Apply(ctx, []Device{a.device(b.peer(), c.peer())}))
		eventually(t, func() error { return converse(a, b) })
		must.NoError(t, ka.Apply(ctx, nil))
		// This one's socket would be in the wrong namespace.
		run(t, "ip", "-n", a.inner, "link", "add", "sif-zone", "type", "wireguard")
		must.ErrorContains(t, ka.Apply(ctx, []Device{a.device(b.peer(), c.peer())}), "not this daemon's")
		run(t, "ip", "-n", a.inner, "link", "del", "sif-zone")
		must.NoError(t, ka.Apply(ctx, []Device{a.device(b.peer(), c.peer())}))
	})

	t.Run("a device without a socket is made again", func(t *testing.T) {
		for _, state := range []string{"up", "down"} {
			must.NoError(t, ka.Apply(ctx, nil))
			run(t, "ip", "netns", "add", a.outer+"x")
			run(t, "ip", "-n", a.outer+"x", "link", "add", "sif-zone", "type", "wireguard")
			run(t, "ip", "-n", a.outer+"x", "link", "set", "sif-zone", "alias", ka.alias("sif-zone"))
			run(t, "ip", "-n", a.outer+"x", "link", "set", "sif-zone", "netns", a.inner)
			run(t, "ip", "-n", a.inner, "link", "set", "sif-zone", state)
			run(t, "ip", "netns", "del", a.outer+"x")
			eventually(t, func() error {
				return errors.Join(ka.Apply(ctx, []Device{a.device(b.peer(), c.peer())}), converse(a, b))
			})
		}
	})

	t.Run("others' devices are left alone", func(t *testing.T) {
		run(t, "ip", "-n", a.inner, "link", "add", "sif-other", "type", "wireguard")
		run(t, "ip", "-n", a.inner, "link", "set", "sif-other", "alias", "sif sif-other of /elsewhere")
		d := a.device(b.peer())
		d.Name = "sif-other"
		err := ka.Apply(ctx, []Device{d, a.device(b.peer(), c.peer())})
		must.ErrorContains(t, err, "same listen port")
		d.ListenPort = 51830
		must.ErrorContains(t, ka.Apply(ctx, []Device{d, a.device(b.peer(), c.peer())}), `that is not this daemon's (type wireguard, alias "sif sif-other of /elsewhere")`)
		must.NoError(t, converse(a, b))
		must.NoError(t, ka.Remove())
		links := run(t, "ip", "-n", a.inner, "link")
		must.StrContains(t, links, "sif-other")
		must.StrNotContains(t, links, "sif-zone")
		must.StrNotContains(t, run(t, "nsenter", "--net=/var/run/netns/"+a.outer, "ss", "-nul"), ":51820")
		run(t, "ip", "-n", a.inner, "link", "del", "sif-other")
		// The next process finds what is to be deleted.
		must.NoError(t, ka.Apply(ctx, []Device{a.device(b.peer())}))
		must.NoError(t, a.kernel(t).Apply(ctx, nil))
		must.StrNotContains(t, run(t, "ip", "-n", a.inner, "link"), "sif-")
	})
}

// A node changes from one kind of device to the other and back; its peer notices nothing.
func TestChangeOfKind(t *testing.T) {
	requireKernel(t)
	nodes := bareNodes(t, 2)
	a, b := nodes[0], nodes[1]
	for _, addr := range []netip.Addr{b.v4, b.v6} {
		listen(t, b.innerPath(), netip.AddrPortFrom(addr, 7))
	}
	ctx := t.Context()
	must.NoError(t, b.kernel(t).Apply(ctx, []Device{b.device(a.peer())}))
	a.start(t)
	t.Cleanup(func() { a.stop(syscall.SIGTERM) })
	must.NoError(t, a.client.Apply(ctx, []Device{a.device(b.peer())}))
	must.NoError(t, converse(a, b))

	ka := a.kernel(t)
	sent, lost := pinging(t, b, a, func() { must.NoError(t, ka.Apply(ctx, []Device{a.device(b.peer())})) })
	t.Logf("to the kernel: %d of %d packets lost at one in 10 ms", lost, sent)
	must.Less(t, 100, lost)
	must.NoError(t, converse(a, b))
	must.True(t, statusOf(t, ka).Up)
	devices, err := a.client.Status(ctx)
	must.NoError(t, err)
	must.SliceEmpty(t, devices)

	back := NewClient(a.runDir())
	back.Replace(a.kernel(t))
	sent, lost = pinging(t, b, a, func() { must.NoError(t, back.Apply(ctx, []Device{a.device(b.peer())})) })
	t.Logf("back to user space: %d of %d packets lost at one in 10 ms", lost, sent)
	must.Less(t, 100, lost)
	must.NoError(t, converse(a, b))
	must.Eq(t, KindUserspace, status(t, a).Kind)
	must.StrContains(t, run(t, "ip", "-n", a.inner, "-d", "link", "show", "sif-zone"), "tun")

	// A `sif link` that does not run must not make its devices again.
	a.stop(syscall.SIGKILL)
	ka = a.kernel(t)
	must.NoError(t, ka.Apply(ctx, []Device{a.device(b.peer())}))
	must.NoError(t, converse(a, b))
	a.start(t)
	devices, err = a.client.Status(ctx)
	must.NoError(t, err)
	must.SliceEmpty(t, devices)
	must.NoError(t, ka.Apply(ctx, []Device{a.device(b.peer())}))
	must.NoError(t, converse(a, b))
	must.NoError(t, ka.Remove())
	if left := run(t, "ip", "-n", a.inner, "link"); strings.Contains(left, "sif-") {
		must.NoError(t, fmt.Errorf("left: %s", left))
	}
}
