// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package host

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/containernetworking/plugins/pkg/ns"
	"github.com/containernetworking/plugins/pkg/testutils"
	"github.com/shoenig/test/must"
	"golang.org/x/sys/unix"

	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/internal/config"
	"github.com/sif-project/sif/internal/node/firewall"
	"github.com/sif-project/sif/internal/node/kernel"
	"github.com/sif-project/sif/internal/node/link"
	"github.com/sif-project/sif/internal/testhost"
)

// inside runs f in a network namespace in which commands were run.
func inside(t *testing.T, commands string, f func(space ns.NetNS)) {
	t.Helper()
	testhost.RequireRoot(t)
	space, err := testutils.NewNS()
	must.NoError(t, err)
	t.Cleanup(func() {
		must.NoError(t, space.Close())
		must.NoError(t, testutils.UnmountNS(space))
	})
	must.NoError(t, space.Do(func(ns.NetNS) error {
		out, err := exec.Command("sh", "-ec", commands).CombinedOutput()
		must.NoError(t, err, must.Sprint(string(out)))
		f(space)
		return nil
	}))
}

// results returns the findings that are not well, a sentence each.
func results(findings ...Finding) (list []string) {
	for _, f := range findings {
		if f.Result != Well {
			list = append(list, string(f.Result)+" "+f.String())
		}
	}
	return list
}

// withoutTUN runs f where /dev/net/tun is no device, as where the module is not loaded.
func withoutTUN(t *testing.T, f func() error) error {
	t.Helper()
	empty := filepath.Join(t.TempDir(), "tun")
	must.NoError(t, os.WriteFile(empty, nil, 0o600))
	return kernel.Try(func() error {
		// The thread does not come back from the mount namespace, so it must not be used again.
		runtime.LockOSThread()
		if err := unix.Unshare(unix.CLONE_FS | unix.CLONE_NEWNS); err != nil {
			return err
		}
		if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
			return err
		}
		if err := unix.Mount(empty, "/dev/net/tun", "", unix.MS_BIND, ""); err != nil {
			return err
		}
		defer unix.Unmount("/dev/net/tun", unix.MNT_DETACH)
		return f()
	})
}

func TestWireGuard(t *testing.T) {
	testhost.RequireRoot(t)
	must.NoError(t, kernel.Try(link.UserspaceSupport))
	gone := withoutTUN(t, link.UserspaceSupport)
	must.ErrorContains(t, gone, "create TUN interface")
	none := errors.New("the kernel has no WireGuard")
	for _, c := range []struct {
		device            string
		kernel, userspace error
		want              string
	}{
		{config.DeviceAuto, nil, gone, ""},
		{config.DeviceKernel, nil, gone, ""},
		{config.DeviceUserspace, none, nil, ""},
		{config.DeviceAuto, none, nil, "warning WireGuard works in user space only"},
		{config.DeviceAuto, none, gone, "error WireGuard works neither in the kernel"},
		{config.DeviceKernel, none, nil, `error WireGuard does not work in the kernel, as link.device = "kernel" needs it`},
		{config.DeviceUserspace, nil, gone, "error WireGuard does not work in user space"},
	} {
		got := judgeWireGuard(c.device, c.kernel, c.userspace)
		if c.want == "" {
			must.Eq(t, Well, got.Result, must.Sprint(c))
			continue
		}
		must.StrHasPrefix(t, c.want, string(got.Result)+" "+got.String())
		must.StrContains(t, got.Remedy, "modprobe")
	}
}

func TestPorts(t *testing.T) {
	wanted := []Port{
		{fabric.TCP, netip.MustParseAddrPort("0.0.0.0:8441"), "the engine"}, {fabric.UDP, netip.MustParseAddrPort("0.0.0.0:8442"), "probes among nodes"},
		{fabric.UDP, Resolver, "the endpoints' DNS server"}, {fabric.TCP, Resolver, "the endpoints' DNS server"},
	}
	inside(t, "ip link set lo up; ip address add 169.254.1.1/32 dev lo", func(ns.NetNS) {
		must.SliceEmpty(t, results(Ports(wanted)...))
		must.SliceEmpty(t, results(LinkPorts(nil)))
		tcp, err := net.Listen("tcp", "0.0.0.0:8441")
		must.NoError(t, err)
		defer tcp.Close()
		dns, err := net.ListenPacket("udp", "0.0.0.0:53") // as dnsmasq does
		must.NoError(t, err)
		defer dns.Close()
		other, err := net.ListenPacket("udp", "127.0.0.1:8442") // which is in nobody's way
		must.NoError(t, err)
		defer other.Close()
		found := results(Ports(wanted)...)
		must.Len(t, 2, found)
		me := fmt.Sprintf("(process %d)", os.Getpid())
		must.StrHasPrefix(t, "error TCP port 8441 is taken: host.test "+me, found[0])
		must.StrHasPrefix(t, "error UDP port 169.254.1.1:53 is taken: host.test "+me, found[1])
		must.StrContains(t, found[1], "dnsmasq: bind-dynamic")

		// Links take free ports; only when there is none, it is wrong.
		var taken []net.PacketConn
		for port := 51820; port <= 51899; port++ {
			if port == 51821 {
				f := LinkPorts(nil)
				must.Eq(t, Well, f.Result)
				must.StrContains(t, f.Detail, "1 are taken by others (51820 by host.test "+me)
			}
			c, err := net.ListenPacket("udp", fmt.Sprintf(":%d", port))
			must.NoError(t, err)
			taken = append(taken, c)
		}
		must.StrHasPrefix(t, "error UDP ports 51820-51899 are all taken", results(LinkPorts(nil))[0])
		must.SliceEmpty(t, results(LinkPorts([]uint16{51820})))
		for _, c := range taken {
			c.Close()
		}
	})
}

func TestUnderlay(t *testing.T) {
	at := netip.MustParseAddr("192.0.2.2")
	inside(t, "ip link add name eth0 type veth peer name far; ip link set eth0 up; ip link set far up; ip address add 192.0.2.2/24 dev eth0", func(ns.NetNS) {
		must.SliceEmpty(t, results(Underlay(at, "eth0"), Underlay(at, "")))
		must.StrHasPrefix(t, "error the underlay address 192.0.2.2 is on the interface eth0, not on eth1", results(Underlay(at, "eth1"))[0])
		must.StrHasPrefix(t, "error the underlay address 192.0.2.3 is not an address of this machine", results(Underlay(netip.MustParseAddr("192.0.2.3"), "eth0"))[0])
		must.NoError(t, exec.Command("ip", "link", "set", "eth0", "down").Run())
		must.StrHasPrefix(t, "error the underlay address 192.0.2.2 is on the interface eth0, which is down: ip link set eth0 up", results(Underlay(at, "eth0"))[0])
	})
}

func TestRoutesWithinThePool(t *testing.T) {
	pools := []netip.Prefix{netip.MustParsePrefix("100.64.0.0/10"), netip.MustParsePrefix("fd5f:7369:6600::/48")}
	inside(t, `
		ip link add name eth0 type veth peer name far; ip link set eth0 up; ip link set far up; ip address add 192.0.2.2/24 dev eth0
		ip link add name sif-l0 type veth peer name sif-l1; ip link set sif-l0 up; ip link set sif-l1 up
		ip route add 100.64.3.0/24 dev sif-l0 proto 205; ip route add 100.64.4.0/24 dev eth0 proto 205
		ip link set lo up; ip address add 100.64.9.1/32 dev lo; ip address add fd5f:7369:6600:9::1/128 dev lo
		ip route add blackhole 100.64.0.0/16
		ip route add 100.100.0.0/16 via 192.0.2.1; ip route add 10.0.0.0/8 via 192.0.2.1; ip route add fd5f:7369:6600:5::/64 dev eth0`,
		func(ns.NetNS) {
			s, err := LookAround(nil)
			must.NoError(t, err)
			found := results(s.Within(pools)...)
			must.Len(t, 2, found)
			must.StrHasPrefix(t, "error the node's route to 100.100.0.0/16 (by eth0) overlaps the fabric's pool 100.64.0.0/10", found[0])
			must.StrHasPrefix(t, "error the node's route to fd5f:7369:6600:5::/64 (by eth0) overlaps the fabric's pool", found[1])
			must.SliceEmpty(t, s.Within([]netip.Prefix{netip.MustParsePrefix("172.16.0.0/12")}))
		})
}

func TestFirewalls(t *testing.T) {
	const ruleset = "nft list ruleset; (iptables-save; ip6tables-save) | sed '/^#/d'" // comments have the time
	for _, c := range []struct{ what, commands, want string }{
		{"nothing", "true", "well other firewalls drop nothing of the fabric"},
		{"docker", "iptables -P FORWARD DROP", "well other firewalls drop what they do not know, and the daemons insert 2 rules there"},
		{"ip6tables", "ip6tables -P INPUT DROP; ip6tables -P FORWARD DROP", "well other firewalls drop what they do not know, and the daemons insert"},
		{"nftables", "nft 'add table inet hard; add chain inet hard f { type filter hook forward priority 0; policy drop; }'", "error nftables chain inet hard f has the policy drop"},
	} {
		t.Run(c.what, func(t *testing.T) {
			inside(t, c.commands, func(ns.NetNS) {
				before, err := exec.Command("sh", "-c", ruleset).Output()
				must.NoError(t, err)
				fw := firewall.New(firewall.Config{Links: func() []uint16 { return []uint16{51820} }, Published: 1, DNSPackets: 1})
				findings := Firewalls(fw)
				must.Len(t, 2, findings)
				must.Eq(t, Well, findings[0].Result, must.Sprint(findings[0]))
				must.StrHasPrefix(t, c.want, string(findings[1].Result)+" "+findings[1].String())
				after, err := exec.Command("sh", "-c", ruleset).Output()
				must.NoError(t, err)
				must.Eq(t, string(before), string(after))
			})
		})
	}
}

func TestDisk(t *testing.T) {
	here := t.TempDir()
	f := Disk(filepath.Join(here, "not", "yet", "there"))
	must.StrContains(t, f.Detail, "MiB free")
	d := testhost.NewDisk(t, 1)
	must.StrContains(t, results(Disk(d.Dir))[0], "is in memory (tmpfs), and what a node keeps must survive a reboot")
	must.StrContains(t, results(Room(d.Dir))[0], "KiB free: make room there")

	// A file system of a file, which is small, then read-only.
	image, at := filepath.Join(here, "image"), filepath.Join(here, "at")
	must.NoError(t, os.Mkdir(at, 0o700))
	must.NoError(t, os.WriteFile(image, nil, 0o600))
	must.NoError(t, os.Truncate(image, 16<<20))
	out, err := exec.Command("sh", "-ec", fmt.Sprintf("mkfs.ext4 -q %s && mount -o loop %s %s", image, image, at)).CombinedOutput()
	if err != nil {
		t.Logf("no loop device here: %s", out)
		return
	}
	defer unix.Unmount(at, 0)
	must.StrContains(t, results(Disk(at))[0], "MiB free, a node needs 64")
	must.SliceEmpty(t, results(Room(at)))
	must.NoError(t, exec.Command("mount", "-o", "remount,ro", at).Run())
	must.StrContains(t, results(Disk(at))[0], "mounted read-only")
	must.StrContains(t, results(Room(at))[0], "mounted read-only")
}

func TestSysctls(t *testing.T) {
	write := func(t *testing.T, root, name, text string) {
		path := filepath.Join(root, name)
		must.NoError(t, os.MkdirAll(filepath.Dir(path), 0o755))
		must.NoError(t, os.WriteFile(path, []byte(text), 0o644))
	}
	for _, c := range []struct {
		what  string
		files map[string]string
		want  []string // the beginnings of what is not well; ROOT is the root
	}{
		{what: "nothing"},
		{"off", map[string]string{"etc/sysctl.d/60-hardening.conf": "# hard\n\nnet.ipv4.ip_forward = 0\n-net/ipv6/conf/all/forwarding=0\n"}, []string{
			"warning net.ipv4.ip_forward is set to 0 by ROOT/etc/sysctl.d/60-hardening.conf:3: whenever that is applied, the node forwards no IPv4 packets",
			"warning net.ipv6.conf.all.forwarding is set to 0 by ROOT/etc/sysctl.d/60-hardening.conf:4",
		}},
		{"the other name", map[string]string{"usr/lib/sysctl.d/50.conf": "net.ipv4.conf.all.forwarding=0\n"}, []string{"warning net.ipv4.ip_forward is set to 0 by ROOT/usr/lib/sysctl.d/50.conf:1"}},
		{"a pattern", map[string]string{"etc/sysctl.d/a.conf": "net.ipv6.conf.*.disable_ipv6=1\n"}, []string{"warning net.ipv6.conf.all.disable_ipv6 is set to 1 by"}},
		{"a later file mends it", map[string]string{"etc/sysctl.d/10.conf": "net.ipv4.ip_forward=0\n", "etc/sysctl.d/zz-sif.conf": "net.ipv4.ip_forward = 1\n"}, nil},
		{"a file of the same name replaces it", map[string]string{"usr/lib/sysctl.d/10.conf": "net.ipv4.ip_forward=0\n", "etc/sysctl.d/10.conf": "\n"}, nil},
		{"the last file", map[string]string{"etc/sysctl.d/zz.conf": "net.ipv4.ip_forward=1\n", "etc/sysctl.conf": "net.ipv4.ip_forward=0\n"}, []string{
			"warning net.ipv4.ip_forward is set to 0 by ROOT/etc/sysctl.conf:1",
		}},
		{"others", map[string]string{"etc/sysctl.d/10.conf": "kernel.unprivileged_bpf_disabled=1\nnet.ipv6.conf.default.disable_ipv6=1\nbroken\n; comment = 1\n"}, nil},
	} {
		t.Run(c.what, func(t *testing.T) {
			root := t.TempDir()
			for name, text := range c.files {
				write(t, root, name, text)
			}
			found := results(Sysctls(root)...)
			must.Len(t, len(c.want), found, must.Sprint(found))
			for i, want := range c.want {
				must.StrHasPrefix(t, strings.ReplaceAll(want, "ROOT", root), found[i])
				// What is advised helps.
				if _, command, is := strings.Cut(found[i], ": echo "); is {
					line, file, _ := strings.Cut(command, " >> ")
					path := filepath.Join(root, file)
					old, err := os.ReadFile(path)
					must.True(t, err == nil || errors.Is(err, os.ErrNotExist))
					write(t, root, file, string(old)+strings.Trim(line, "'")+"\n")
				}
			}
			if len(c.want) > 0 && c.what != "the last file" {
				must.SliceEmpty(t, results(Sysctls(root)...))
			}
		})
	}
}

// TestPath measures a way on which a router drops large packets without a word, and one on which it
// says so.
func TestPath(t *testing.T) {
	const way = `
		ip link set lo up
		ip netns add %[1]s-r; ip netns add %[1]s-b
		ip link add name eth0 type veth peer name v1 netns %[1]s-r; ip link set eth0 up; ip addr add 192.0.2.2/24 dev eth0; ip route add default via 192.0.2.1
		ip -n %[1]s-r link set v1 up; ip -n %[1]s-r addr add 192.0.2.1/24 dev v1
		ip -n %[1]s-r link add name v2 type veth peer name eth0 netns %[1]s-b; ip -n %[1]s-r link set v2 up; ip -n %[1]s-r addr add 198.51.100.1/24 dev v2
		ip -n %[1]s-b link set eth0 up; ip -n %[1]s-b addr add 198.51.100.2/24 dev eth0; ip -n %[1]s-b route add default via 198.51.100.1
		ip netns exec %[1]s-r sysctl -q net.ipv4.ip_forward=1`
	name := fmt.Sprintf("mtu%d", os.Getpid())
	t.Cleanup(func() {
		_ = exec.Command("ip", "netns", "del", name+"-r").Run()
		_ = exec.Command("ip", "netns", "del", name+"-b").Run()
	})
	run := func(command string, args ...any) {
		t.Helper()
		out, err := exec.Command("sh", "-ec", fmt.Sprintf(command, args...)).CombinedOutput()
		must.NoError(t, err, must.Sprint(string(out)))
	}
	inside(t, fmt.Sprintf(way, name), func(ns.NetNS) {
		to := netip.MustParseAddr("198.51.100.2")
		must.SliceEmpty(t, results(Path(t.Context(), "z1/w2", to, 1420, true)))
		run("ip -n %s-r link set v2 mtu 1400", name)
		found := results(Path(t.Context(), "z1/w2", to, 1420, true))
		must.Len(t, 1, found)
		must.StrHasPrefix(t, "error the path to z1/w2 (198.51.100.2) carries packets of 13", found[0])
		must.StrContains(t, found[0], "need 1480")
		must.StrHasPrefix(t, "warning ", results(Path(t.Context(), "Vault", to, 1420, false))[0])
		must.SliceEmpty(t, results(Path(t.Context(), "z1/w2", to, 1330, true)))

		run("ip -n %[1]s-r link set v2 mtu 1500; ip netns exec %[1]s-r nft 'add table ip x; add chain ip x f { type filter hook forward priority 0; }; add rule ip x f meta length > 1450 drop'", name)
		carried, err := PathMTU(t.Context(), to, 1480)
		must.NoError(t, err)
		must.Between(t, 1450-finest, carried, 1450)

		run("ip netns exec %[1]s-b nft 'add table ip x; add chain ip x i { type filter hook input priority 0; policy drop; }'", name)
		must.StrHasPrefix(t, "warning the path to z1/w2 (198.51.100.2) was not measured: it does not answer ICMP echo requests", results(Path(t.Context(), "z1/w2", to, 1420, true))[0])
		must.StrHasPrefix(t, "skipped ", results(Path(t.Context(), "Vault", to, 1420, false))[0])
	})
}

func TestIPv6(t *testing.T) {
	inside(t, "sysctl -qw net.ipv6.conf.all.disable_ipv6=1 net.ipv6.conf.default.disable_ipv6=1", func(ns.NetNS) {
		f := IPv6()
		must.Eq(t, Well, f.Result)
		must.StrContains(t, f.Detail, "off on new interfaces")
	})
}
