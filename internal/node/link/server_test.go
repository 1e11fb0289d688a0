// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package link

import (
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

	"github.com/hashicorp/go-hclog"
	"github.com/shoenig/test/must"

	"github.com/sif-project/sif/internal/testhost"
	"github.com/sif-project/sif/internal/wellknown"
)

func TestLinks(t *testing.T) {
	nodes := newNodes(t, 3)
	a, b, c := nodes[0], nodes[1], nodes[2]
	for _, n := range []*testNode{b, c} {
		for _, addr := range []netip.Addr{n.v4, n.v6} {
			listen(t, n.innerPath(), netip.AddrPortFrom(addr, 7))
		}
	}
	ctx := t.Context()
	must.NoError(t, a.client.Apply(ctx, []Device{a.device(b.peer(), c.peer())}))
	must.NoError(t, b.client.Apply(ctx, []Device{b.device(a.peer())}))
	must.NoError(t, c.client.Apply(ctx, []Device{c.device(a.peer())}))

	// TCP over both families, interface and UDP socket in different namespaces.
	must.NoError(t, converse(a, b))
	must.NoError(t, converse(a, c))
	must.StrContains(t, run(t, "ip", "-n", a.outer, "link"), "eth0")
	must.StrNotContains(t, run(t, "ip", "-n", a.outer, "link"), "sif-zone")
	must.StrContains(t, run(t, "nsenter", "--net=/var/run/netns/"+a.outer, "ss", "-nul"), ":51820")
	must.StrNotContains(t, run(t, "nsenter", "--net="+a.innerPath(), "ss", "-nul"), ":51820")
	must.Eq(t, "0\n", run(t, "nsenter", "--net="+a.innerPath(), "sysctl", "-n", "net.ipv4.conf.sif-zone.rp_filter"))

	s := status(t, a)
	must.True(t, s.Up)
	must.Eq(t, "", s.Error)
	must.Eq(t, a.private.Public(), s.PublicKey)
	must.Len(t, 2, s.Peers)
	for _, p := range s.Peers {
		must.Less(t, time.Minute, time.Since(p.LastHandshake))
		must.Greater(t, 2<<20, p.ReceivedBytes)
		must.Greater(t, 2<<20, p.SentBytes)
	}

	t.Run("applying the same again changes nothing", func(t *testing.T) {
		before := status(t, a)
		must.NoError(t, NewClient(a.runDir()).Apply(ctx, []Device{a.device(c.peer(), b.peer())}))
		after := status(t, a)
		for i := range after.Peers {
			must.True(t, before.Peers[i].LastHandshake.Equal(after.Peers[i].LastHandshake))
			must.GreaterEq(t, before.Peers[i].SentBytes, after.Peers[i].SentBytes)
		}
	})

	t.Run("changing one peer does not interrupt another", func(t *testing.T) {
		// While c is added and removed, a pings b every 2 ms on one connection, and TCP must
		// retransmit nothing.
		conn, err := dial(a.innerPath(), netip.AddrPortFrom(b.v4, 7))
		must.NoError(t, err)
		defer conn.Close()
		handshake := func() time.Time {
			for _, p := range status(t, a).Peers {
				if p.PublicKey == b.private.Public() {
					return p.LastHandshake
				}
			}
			return time.Time{}
		}
		before := handshake()
		stop, done := make(chan struct{}), make(chan error, 1)
		go func() {
			for {
				select {
				case <-stop:
					done <- nil
					return
				default:
				}
				if err := echo(conn, 64); err != nil {
					done <- err
					return
				}
				time.Sleep(2 * time.Millisecond)
			}
		}()
		counter := func() string {
			return run(t, "nsenter", "--net="+a.innerPath(), "awk", "/^Tcp: [0-9]/{print $13}", "/proc/net/snmp")
		}
		retransmitted := counter()
		for range 5 {
			must.NoError(t, a.client.Apply(ctx, []Device{a.device(b.peer())}))
			d := a.device(b.peer(), c.peer())
			d.Peers[1].PersistentKeepalive = 7 * time.Second
			must.NoError(t, a.client.Apply(ctx, []Device{d}))
			d.MTU = 1400
			must.NoError(t, a.client.Apply(ctx, []Device{d}))
			must.NoError(t, a.client.Apply(ctx, []Device{a.device(b.peer(), c.peer())}))
		}
		must.Eq(t, retransmitted, counter())
		close(stop)
		must.NoError(t, <-done)
		must.True(t, before.Equal(handshake()), must.Sprint("the session with b was replaced"))
		// c accepts one handshake of a per 20 ms (WireGuard's protection against floods), and a
		// retries after 5 s.
		eventually(t, func() error { return converse(a, c) })
	})

	t.Run("routes are exactly those of the peers", func(t *testing.T) {
		routes := func() string {
			return run(t, "ip", "-n", a.inner, "-4", "route", "show", "dev", "sif-zone") +
				run(t, "ip", "-n", a.inner, "-6", "route", "show", "dev", "sif-zone")
		}
		must.Eq(t, 4, strings.Count(routes(), "mtu 1420"))
		must.NoError(t, a.client.Apply(ctx, []Device{a.device(b.peer())}))
		must.StrContains(t, routes(), "100.64.2.0/24")
		must.StrContains(t, routes(), "fd5f:0:0:2::/64")
		must.StrNotContains(t, routes(), "100.64.3.0/24")
		must.StrNotContains(t, routes(), "fd5f:0:0:3::/64")
		d := a.device(b.peer(), c.peer())
		d.MTU = 1380
		must.NoError(t, a.client.Apply(ctx, []Device{d}))
		must.Eq(t, 4, strings.Count(routes(), "mtu 1380"))
		d.Routes = false
		must.NoError(t, a.client.Apply(ctx, []Device{d}))
		must.Eq(t, "", strings.TrimSpace(routes()))

		// A route that is removed from outside is restored.
		must.NoError(t, a.client.Apply(ctx, []Device{a.device(b.peer(), c.peer())}))
		run(t, "ip", "-n", a.inner, "route", "del", "100.64.2.0/24")
		eventually(t, func() error {
			if !strings.Contains(routes(), "100.64.2.0/24") {
				return fmt.Errorf("the route is not restored: %s", routes())
			}
			return nil
		})
	})

	t.Run("an address of another peer is not accepted", func(t *testing.T) {
		// c sends from an address that a knows as b's.
		run(t, "ip", "-n", c.inner, "addr", "add", "100.64.2.99/32", "dev", "lo")
		listenAddr := netip.AddrPortFrom(a.v4, 9)
		listen(t, a.innerPath(), listenAddr)
		err := inNamespace(c.innerPath(), func() error {
			conn, err := (&net.Dialer{Timeout: time.Second,
				LocalAddr: &net.TCPAddr{IP: net.IPv4(100, 64, 2, 99)}}).Dial("tcp", listenAddr.String())
			if err == nil {
				conn.Close()
			}
			return err
		})
		must.Error(t, err)
		honest, err := dial(c.innerPath(), listenAddr)
		must.NoError(t, err)
		honest.Close()
	})

	t.Run("wg configures it too", func(t *testing.T) {
		testhost.RequireProgram(t, "wg")
		// wg looks for sockets in this directory only.
		name := fmt.Sprintf("siflt%d", os.Getpid())
		if err := os.Mkdir("/var/run/wireguard", 0o755); err == nil {
			t.Cleanup(func() { os.Remove("/var/run/wireguard") })
		}
		alias := "/var/run/wireguard/" + name + ".sock"
		must.NoError(t, os.Symlink(filepath.Join(a.runDir(), "sif-zone.sock"), alias))
		t.Cleanup(func() { os.Remove(alias) })
		must.StrContains(t, run(t, "wg", "show", name), b.private.Public().String())
		run(t, "wg", "set", name, "peer", b.private.Public().String(), "persistent-keepalive", "11")
		saved, err := loadDevices(a.dataDir())
		must.NoError(t, err)
		must.Len(t, 1, saved)
		found := false
		for _, p := range saved[0].Peers {
			found = found || p.PersistentKeepalive == 11*time.Second
		}
		must.True(t, found)
		out, err := exec.Command("wg", "set", name, "private-key", "/dev/null", "listen-port", "notaport").CombinedOutput()
		must.Error(t, err, must.Sprint(string(out)))
		must.NoError(t, a.client.Apply(ctx, []Device{a.device(b.peer(), c.peer())}))
	})

	t.Run("killed and restarted it restores its devices", func(t *testing.T) {
		// So that nothing that refers to it must be made again, the interface stays.
		for _, end := range []syscall.Signal{syscall.SIGKILL, syscall.SIGTERM} {
			index := func() string {
				number, _, _ := strings.Cut(run(t, "ip", "-n", a.inner, "-o", "link", "show", "sif-zone"), ":")
				return number
			}
			before, routes := index(), run(t, "ip", "-n", a.inner, "route", "show", "dev", "sif-zone")
			a.stop(end)
			must.StrNotContains(t, run(t, "ip", "-n", a.inner, "link", "show", "sif-zone"), "LOWER_UP")
			must.Eq(t, routes, strings.ReplaceAll(run(t, "ip", "-n", a.inner, "route", "show", "dev", "sif-zone"), " linkdown", ""))
			a.start(t)
			must.Eq(t, before, index())
		}
		must.True(t, status(t, a).Up)
		must.NoError(t, converse(a, b))
		must.NoError(t, converse(a, c))
	})

	t.Run("a connection outlives a restart of sif link", func(t *testing.T) {
		conn, err := dial(a.innerPath(), netip.AddrPortFrom(b.v6, 7))
		must.NoError(t, err)
		defer conn.Close()
		must.NoError(t, echo(conn, 1<<16))
		a.stop(syscall.SIGTERM)
		a.start(t)
		must.NoError(t, echo(conn, 1<<16))
	})

	t.Run("peers reach it at once after a restart", func(t *testing.T) {
		addr := netip.AddrPortFrom(a.v4, 11)
		listen(t, a.innerPath(), addr)
		a.stop(syscall.SIGKILL)
		a.start(t)
		conn, err := dial(b.innerPath(), addr) // within 5 s; WireGuard's own timeout is 15 s
		must.NoError(t, err)
		conn.Close()
	})

	t.Run("the interface comes back when it is deleted", func(t *testing.T) {
		run(t, "ip", "-n", a.inner, "link", "del", "sif-zone")
		eventually(t, func() error { return converse(a, b) })
	})

	t.Run("a replaced namespace gets its interface", func(t *testing.T) {
		run(t, "ip", "netns", "del", a.inner)
		eventually(t, func() error {
			if s := status(t, a); s.Up || !strings.Contains(s.Error, a.inner) {
				return fmt.Errorf("the status does not name the missing namespace: %+v", s)
			}
			return nil
		})
		must.Error(t, a.client.Apply(ctx, []Device{a.device(b.peer(), c.peer())}))
		run(t, "ip", "netns", "add", a.inner)
		run(t, "ip", "-n", a.inner, "link", "set", "lo", "up")
		run(t, "ip", "-n", a.inner, "addr", "add", a.v4.String()+"/32", "dev", "lo")
		run(t, "ip", "-n", a.inner, "addr", "add", a.v6.String()+"/128", "dev", "lo")
		eventually(t, func() error { return converse(a, b) })
	})

	t.Run("a port in use is reported and tried again", func(t *testing.T) {
		var other *net.UDPConn
		must.NoError(t, inNamespace("/var/run/netns/"+a.outer, func() (err error) {
			other, err = net.ListenUDP("udp4", &net.UDPAddr{Port: 51999})
			return err
		}))
		defer other.Close()
		d := a.device(b.peer(), c.peer())
		d.ListenPort = 51999
		must.ErrorContains(t, a.client.Apply(ctx, []Device{d}), "address already in use")
		// The device goes on with the old port.
		must.True(t, status(t, a).Up)
		must.Eq(t, testPort, status(t, a).ListenPort)
		must.NoError(t, converse(a, b))

		// A device without a port comes up when the port becomes free.
		must.NoError(t, a.client.Apply(ctx, nil))
		must.ErrorContains(t, a.client.Apply(ctx, []Device{d}), "address already in use")
		must.False(t, status(t, a).Up)
		must.StrContains(t, status(t, a).Error, "listen on UDP port 51999")
		other.Close()
		eventually(t, func() error {
			if s := status(t, a); !s.Up || s.ListenPort != 51999 {
				return fmt.Errorf("still not up: %+v", s)
			}
			return nil
		})
		must.NoError(t, converse(a, b))
		must.NoError(t, a.client.Apply(ctx, []Device{a.device(b.peer(), c.peer())}))
	})

	t.Run("a peer without a key is left out alone", func(t *testing.T) {
		d := a.device(Peer{Endpoint: netip.MustParseAddrPort("192.0.2.1:51820"), AllowedIPs: []netip.Prefix{netip.MustParsePrefix("100.64.9.0/24")}}, b.peer())
		must.ErrorContains(t, a.client.Apply(ctx, []Device{d}), "peer at 192.0.2.1:51820 left out: it has no public key")
		must.Len(t, 1, status(t, a).Peers)
		must.NoError(t, converse(a, b))
		must.NoError(t, a.client.Apply(ctx, []Device{a.device(b.peer(), c.peer())}))
	})

	t.Run("a route that the kernel would refuse is set", func(t *testing.T) {
		disable := func(value string) {
			run(t, "ip", "netns", "exec", a.inner, "sysctl", "-qw", "net.ipv6.conf.sif-zone.disable_ipv6="+value)
		}
		must.NoError(t, a.client.Apply(ctx, nil))
		must.NoError(t, a.client.Apply(ctx, []Device{a.device(b.peer())}))
		disable("1")
		must.NoError(t, a.client.Apply(ctx, []Device{a.device(b.peer(), c.peer())}))
		must.NoError(t, converse(a, b))
	})

	t.Run("an invalid device stays as it is", func(t *testing.T) {
		d := a.device(b.peer())
		d.MTU = 12
		must.Error(t, a.client.Apply(ctx, []Device{d}))
		must.Len(t, 2, status(t, a).Peers)
		other := a.device(b.peer())
		other.Name = "sif-p-1"
		must.ErrorContains(t, a.client.Apply(ctx, []Device{a.device(), other}), "same listen port")
	})

	t.Run("deleting leaves nothing", func(t *testing.T) {
		// Interfaces that sif link did not create stay, whatever their names.
		run(t, "ip", "-n", a.inner, "link", "add", "sif-foreign", "type", "veth", "peer", "name", "other")
		must.NoError(t, a.client.Apply(ctx, nil))
		devices, err := a.client.Status(ctx)
		must.NoError(t, err)
		must.SliceEmpty(t, devices)
		links := run(t, "ip", "-n", a.inner, "link")
		must.StrNotContains(t, links, "sif-zone")
		must.StrContains(t, links, "sif-foreign")
		must.StrNotContains(t, run(t, "nsenter", "--net=/var/run/netns/"+a.outer, "ss", "-nul"), ":51820")
		_, err = os.Stat(filepath.Join(a.runDir(), "sif-zone.sock"))
		must.ErrorIs(t, err, os.ErrNotExist)
		saved, err := loadDevices(a.dataDir())
		must.NoError(t, err)
		must.SliceEmpty(t, saved)
	})
}

// TestInterfacesThatWereLeft starts `sif link` where an earlier one left interfaces that are not as
// they are to be.
func TestInterfacesThatWereLeft(t *testing.T) {
	n := newNodes(t, 1)[0]
	other := newKey(t)
	peer := Peer{PublicKey: other.Public(), AllowedIPs: []netip.Prefix{netip.MustParsePrefix("100.64.9.0/24")}}
	apply := func() {
		t.Helper()
		must.NoError(t, n.client.Apply(t.Context(), []Device{n.device(peer)}))
	}
	index := func() string {
		out, _ := execute("ip", "-n", n.inner, "-o", "link", "show", "sif-zone")
		number, _, _ := strings.Cut(out, ":")
		return number
	}
	apply()
	for name, tc := range map[string]struct {
		change func(t *testing.T) // while nothing runs
		again  bool               // the interface is made again
		failed string             // what the status then says
	}{
		"as it was": {change: func(*testing.T) {}},
		"down, with another MTU": {change: func(t *testing.T) {
			run(t, "ip", "-n", n.inner, "link", "set", "sif-zone", "down", "mtu", "1300")
		}},
		"deleted":              {again: true, change: func(t *testing.T) { run(t, "ip", "-n", n.inner, "link", "del", "sif-zone") }},
		"renamed":              {again: true, change: func(t *testing.T) { run(t, "ip", "-n", n.inner, "link", "set", "sif-zone", "down", "name", "strange") }},
		"in another namespace": {again: true, change: func(t *testing.T) { run(t, "ip", "-n", n.inner, "link", "set", "sif-zone", "netns", n.outer) }},
		"another one with its name": {failed: "not of this sif link (type tun", change: func(t *testing.T) {
			run(t, "ip", "-n", n.inner, "link", "del", "sif-zone")
			run(t, "ip", "-n", n.inner, "tuntap", "add", "sif-zone", "mode", "tun")
		}},
	} {
		t.Run(name, func(t *testing.T) {
			before := index()
			n.stop(syscall.SIGKILL)
			tc.change(t)
			n.start(t)
			if tc.failed != "" {
				must.StrContains(t, status(t, n).Error, tc.failed)
				run(t, "ip", "-n", n.inner, "link", "del", "sif-zone")
			}
			eventually(t, func() error {
				s := status(t, n)
				all := run(t, "ip", "-n", n.inner, "link") + run(t, "ip", "-n", n.outer, "link")
				if !s.Up || strings.Count(all, "sif-zone:") != 1 || strings.Contains(all, "strange") {
					return fmt.Errorf("the device is not there once, and up: %+v\n%s", s, all)
				}
				return nil
			})
			must.StrContains(t, run(t, "ip", "-n", n.inner, "route", "show", "dev", "sif-zone"), "100.64.9.0/24")
			if tc.failed == "" {
				must.Eq(t, tc.again, index() != before)
			}
		})
	}
	t.Run("of a device that is not wanted any more", func(t *testing.T) {
		n.stop(syscall.SIGKILL)
		must.NoError(t, os.Remove(filepath.Join(n.dataDir(), stateFile)))
		n.start(t)
		eventually(t, func() error {
			if links := run(t, "ip", "-n", n.inner, "link"); strings.Contains(links, "sif-zone") {
				return fmt.Errorf("it is still there: %s", links)
			}
			return nil
		})
	})
	t.Run("and the kernel's devices take their place", func(t *testing.T) {
		apply()
		must.NoError(t, n.client.forget(n.dataDir())) // it runs
		must.True(t, status(t, n).Up)
		n.stop(syscall.SIGKILL)
		must.NoError(t, n.client.forget(n.dataDir()))
		must.StrNotContains(t, run(t, "ip", "-n", n.inner, "link"), "sif-zone")
		n.start(t)
		devices, err := n.client.Status(t.Context())
		must.NoError(t, err)
		must.SliceEmpty(t, devices)
	})
	t.Run("by one whose saved devices are unreadable", func(t *testing.T) {
		apply()
		before := index()
		n.stop(syscall.SIGKILL)
		must.NoError(t, os.WriteFile(filepath.Join(n.dataDir(), stateFile), []byte("{"), 0o600))
		n.start(t)
		apply()
		must.True(t, status(t, n).Up)
		must.Eq(t, before, index())
	})
}

func TestSecondServerIsRefused(t *testing.T) {
	n := newNodes(t, 1)[0]
	err := NewServer(ServerConfig{RunDir: n.runDir(), DataDir: t.TempDir(), Logger: hclog.NewNullLogger()}).Run(t.Context())
	must.ErrorContains(t, err, "another `sif link`")
	_, err = n.client.Status(t.Context())
	must.NoError(t, err)
	for path, mode := range map[string]os.FileMode{n.runDir(): 0o700, filepath.Join(n.runDir(), wellknown.LinkSocket): 0o600} {
		info, err := os.Stat(path)
		must.NoError(t, err)
		must.Eq(t, mode, info.Mode().Perm())
	}
}

// BenchmarkThroughput sends one TCP stream from node to node: over the bare veth pairs of the
// underlay, and through the link. Compare within one run.
func BenchmarkThroughput(b *testing.B) {
	nodes := newNodes(b, 2)
	from, to := nodes[0], nodes[1]
	must.NoError(b, from.client.Apply(b.Context(), []Device{from.device(to.peer())}))
	must.NoError(b, to.client.Apply(b.Context(), []Device{to.device(from.peer())}))
	for _, bc := range []struct {
		name, from, to string
		addr           netip.Addr
	}{
		{"underlay", "/var/run/netns/" + from.outer, "/var/run/netns/" + to.outer, to.underlay},
		{"link-v4", from.innerPath(), to.innerPath(), to.v4},
		{"link-v6", from.innerPath(), to.innerPath(), to.v6},
	} {
		b.Run(bc.name, func(b *testing.B) {
			var listener net.Listener
			must.NoError(b, inNamespace(bc.to, func() (err error) {
				listener, err = net.Listen("tcp", netip.AddrPortFrom(bc.addr, 9).String())
				return err
			}))
			defer listener.Close()
			received := make(chan int64, 1)
			go func() {
				conn, err := listener.Accept()
				if err != nil {
					received <- -1
					return
				}
				defer conn.Close()
				n, _ := io.Copy(io.Discard, conn)
				received <- n
			}()
			conn, err := dial(bc.from, netip.AddrPortFrom(bc.addr, 9))
			must.NoError(b, err)
			block := make([]byte, 128<<10)
			b.SetBytes(int64(len(block)))
			b.ResetTimer()
			for range b.N {
				if _, err := conn.Write(block); err != nil {
					b.Fatal(err)
				}
			}
			must.NoError(b, conn.Close())
			must.Eq(b, int64(b.N)*int64(len(block)), <-received)
		})
	}
}

// TestChangedDeviceIsPutBack changes what the kernel has of a device, and sees it back.
func TestChangedDeviceIsPutBack(t *testing.T) {
	nodes := newNodes(t, 2)
	a, b := nodes[0], nodes[1]
	for _, addr := range []netip.Addr{b.v4, b.v6} {
		listen(t, b.innerPath(), netip.AddrPortFrom(addr, 7))
	}
	must.NoError(t, a.client.Apply(t.Context(), []Device{a.device(b.peer())}))
	must.NoError(t, b.client.Apply(t.Context(), []Device{b.device(a.peer())}))
	must.NoError(t, converse(a, b))
	pool := b.pools()[0].String()
	for _, c := range []struct{ command, kind string }{
		{"sysctl -q net.ipv4.conf.sif-zone.rp_filter=1", "sysctl"},
		{"sysctl -q net.ipv6.conf.sif-zone.disable_ipv6=1", "sysctl"},
		{"ip link set sif-zone mtu 1300", "interface"},
		{"ip link set sif-zone down", "interface"},
		{"ip link set sif-zone name strange", "interface"},
		{"ip link del sif-zone", "interface"},
		{"ip link set sif-zone netns 1", "interface"},
		{"ip route del " + pool, "route"},
		{"ip route add 198.18.0.0/24 dev sif-zone proto 205", "route"},
	} {
		t.Run(c.command, func(t *testing.T) {
			before := status(t, a).Repaired[c.kind]
			run(t, "nsenter", append([]string{"--net=" + a.innerPath()}, strings.Fields(c.command)...)...)
			eventually(t, func() error {
				s := status(t, a)
				if s.Repaired[c.kind] <= before || s.Error != "" {
					return fmt.Errorf("not counted: %v, %s", s.Repaired, s.Error)
				}
				return nil
			})
			eventually(t, func() error { return converse(a, b) })
		})
	}
}
