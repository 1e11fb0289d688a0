// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package kernel

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"

	"github.com/containernetworking/plugins/pkg/ns"
	"github.com/containernetworking/plugins/pkg/testutils"
	"github.com/shoenig/test/must"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/sif-project/sif/internal/leftover"
	"github.com/sif-project/sif/internal/testhost"
)

// inNamespace runs do in a new network namespace.
func inNamespace(t *testing.T, do func()) {
	testhost.RequireRoot(t)
	space, err := testutils.NewNS()
	must.NoError(t, err)
	t.Cleanup(func() {
		must.NoError(t, space.Close())
		must.NoError(t, testutils.UnmountNS(space))
	})
	must.NoError(t, space.Do(func(ns.NetNS) error {
		// A new namespace has the machine's value.
		must.NoError(t, os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("0"), 0o644))
		do()
		return nil
	}))
}

func run(t *testing.T, command string) {
	t.Helper()
	out, err := exec.Command("sh", "-ec", command).CombinedOutput()
	must.NoError(t, err, must.Sprintf("%s: %s", command, out))
}

func mac(text string) net.HardwareAddr {
	m, err := net.ParseMAC(text)
	if err != nil {
		panic(err)
	}
	return m
}

// sample is a state of every kind. Interface "a" is one end of a veth pair.
func sample(index int) State {
	prefix := netip.MustParsePrefix
	return State{
		Sysctls: []Sysctl{{"net/ipv4/ip_forward", "1"}, {"net/ipv6/conf/all/forwarding", "1"}},
		Interfaces: []Interface{
			{Name: "lo", Addresses: []Address{{Prefix: prefix("169.254.1.1/32"), Scope: unix.RT_SCOPE_LINK}}, OnlyAddresses: true},
			{
				Name: "a", Index: index, MTU: 1376, MAC: mac("02:00:00:00:00:0a"),
				IPv4: []Sysctl{{"forwarding", "1"}, {"accept_redirects", "0"}, {"send_redirects", "0"}, {"rp_filter", "0"}},
				IPv6: []Sysctl{
					{"disable_ipv6", "0"}, {"accept_ra", "0"}, {"accept_dad", "0"}, {"accept_redirects", "0"}, {"forwarding", "1"}, {"addr_gen_mode", "1"},
				},
				Addresses: []Address{{Prefix: prefix("fd5f::1/128")}},
				Neighbours: []Neighbour{
					{netip.MustParseAddr("100.64.0.2"), mac("02:00:00:00:00:0b")}, {netip.MustParseAddr("fd5f::2"), mac("02:00:00:00:00:0b")},
				},
				Routes: []Route{
					{Prefix: prefix("100.64.0.2/32")}, {Prefix: prefix("fd5f::2/128")}, {Prefix: prefix("100.65.0.0/24"), MTU: 1300},
					{Prefix: prefix("0.0.0.0/0"), Table: 101, Gateway: netip.MustParseAddr("169.254.1.9")},
					{Prefix: prefix("::/0"), Table: 101, Gateway: netip.MustParseAddr("fe80::9")},
					{Prefix: prefix("100.66.0.0/24"), Source: netip.MustParseAddr("169.254.1.1")},
					{Prefix: prefix("::1/128"), Table: 101, Local: true},
				},
				OnlyRoutes: []int{0, 101}, Alone: true,
			},
		},
		Blackholes: []Blackhole{
			{Prefix: prefix("0.0.0.0/0"), Table: 101, Priority: 1 << 20}, {Prefix: prefix("::/0"), Table: 101, Priority: 1 << 20},
		},
		Rules: []Rule{
			{Priority: 101, Interface: "a", Table: 101, Alone: true},
			{Priority: 102, Mark: 0x51f00101, Mask: 0xffffffff, Table: 102}, {Priority: 102, Mark: 0x51f00102, Mask: 0xffffffff, Table: 103},
			{Priority: 103, Mark: 0x51f00100, Mask: 0xffffff00, Table: 104}, {Priority: 104, To: prefix("100.64.1.0/24")},
		},
		OnlyRules: true,
	}
}

// TestRepair takes away one thing after the other.
func TestRepair(t *testing.T) {
	for _, c := range []struct{ command, kind, subject string }{
		{"sysctl -q net.ipv4.ip_forward=0", KindSysctl, "net.ipv4.ip_forward"},
		{"sysctl -q net.ipv6.conf.all.forwarding=0", KindSysctl, "net.ipv6.conf.all.forwarding"},
		{"sysctl -q net.ipv4.conf.a.forwarding=0", KindSysctl, "net.ipv4.conf.a.forwarding"},
		{"sysctl -q net.ipv4.conf.a.accept_redirects=1", KindSysctl, "net.ipv4.conf.a.accept_redirects"},
		{"sysctl -q net.ipv4.conf.a.send_redirects=1", KindSysctl, "net.ipv4.conf.a.send_redirects"},
		{"sysctl -q net.ipv4.conf.a.rp_filter=2", KindSysctl, "net.ipv4.conf.a.rp_filter"},
		{"sysctl -q net.ipv6.conf.a.accept_ra=2", KindSysctl, "net.ipv6.conf.a.accept_ra"},
		{"sysctl -q net.ipv6.conf.a.accept_dad=1", KindSysctl, "net.ipv6.conf.a.accept_dad"},
		{"sysctl -q net.ipv6.conf.a.accept_redirects=1", KindSysctl, "net.ipv6.conf.a.accept_redirects"},
		{"sysctl -q net.ipv6.conf.a.forwarding=0", KindSysctl, "net.ipv6.conf.a.forwarding"},
		{"sysctl -q net.ipv6.conf.a.addr_gen_mode=0", KindSysctl, "net.ipv6.conf.a.addr_gen_mode"},
		{"sysctl -q net.ipv6.conf.all.disable_ipv6=1 net.ipv6.conf.default.disable_ipv6=1", KindSysctl, "net.ipv6.conf.a.disable_ipv6"},
		{"ip addr del 169.254.1.1/32 dev lo", KindAddress, "169.254.1.1/32 on lo"},
		{"ip addr add 10.1.1.1/32 dev lo", KindAddress, "10.1.1.1/32 on lo"},
		{"ip addr flush dev a", KindAddress, "fd5f::1/128 on a"},
		{"ip link set lo down", KindInterface, "lo"},
		{"ip link set dev a down", KindInterface, "a"},
		{"ip link set dev a down; ip link set dev a up", KindNeighbour, "100.64.0.2 on a"},
		{"ip link set dev a mtu 1400", KindInterface, "a"},
		{"ip link set dev a mtu 1000", KindRoute, "fd5f::2/128 to a"}, // too small for IPv6
		{"ip link set dev a address 02:00:00:00:00:0c", KindInterface, "a"},
		{"ip link set dev a name strange", KindInterface, "a"},
		{"ip link set dev a down; ip link set dev a name strange", KindInterface, "a"},
		{"ip link add name br type bridge; ip link set dev a master br", KindInterface, "a"},
		{"ip neigh del 100.64.0.2 dev a", KindNeighbour, "100.64.0.2 on a"},
		{"ip neigh replace fd5f::2 lladdr 02:00:00:00:00:ff dev a nud permanent", KindNeighbour, "fd5f::2 on a"},
		{"ip neigh replace 100.64.0.2 lladdr 02:00:00:00:00:0b dev a nud reachable", KindNeighbour, "100.64.0.2 on a"},
		{"ip route del 100.64.0.2/32", KindRoute, "100.64.0.2/32 to a"},
		{"ip -6 route del fd5f::2/128", KindRoute, "fd5f::2/128 to a"},
		{"ip route replace 100.65.0.0/24 dev a proto 205 scope link", KindRoute, "100.65.0.0/24 to a"}, // without MTU
		{"ip route replace 100.64.0.2/32 dev b", KindRoute, "100.64.0.2/32 to a"},
		{"ip route add 100.99.0.0/24 dev a proto 205", KindRoute, "100.99.0.0/24 to a"},
		{"ip route add 100.98.0.0/24 dev a", KindRoute, "100.98.0.0/24 to a"},
		{"ip -6 route add fd99::/64 dev a", KindRoute, "fd99::/64 to a"},
		{"ip route flush table main", KindRoute, "100.66.0.0/24 to a"},
		{"ip route flush table 101", KindRoute, "blackhole 0.0.0.0/0 of table 101"},
		{"ip -6 route del local ::1 table 101", KindRoute, "::1/128 of table 101 to a"},
		{"ip -6 route flush table 101", KindRoute, "blackhole ::/0 of table 101"},
		{"ip rule del pref 101", KindRule, "routing rule 101 (IPv4)"},
		{"ip -6 rule del pref 101; ip -6 rule add pref 101 iif b lookup main", KindRule, "routing rule 101 (IPv6)"},
		{"ip rule del pref 102 fwmark 0x51f00102", KindRule, "routing rule 102 for mark 0x51f00102 (IPv4)"},
		{"ip -6 rule del pref 103", KindRule, "routing rule 103 for mark 0x51f00100 (IPv6)"},
		{"ip rule del pref 104; ip rule add pref 104 to 100.64.1.0/25 lookup main", KindRule, "routing rule 104 to 100.64.1.0/24"},
		{"ip rule add pref 102 fwmark 0x51f00103 lookup 104 protocol 205", KindRule, "routing rule 102 for mark 0x51f00103 (IPv4)"},
		{"ip -6 rule add pref 50 lookup main protocol 205", KindRule, "routing rule 50 (IPv6)"},
		{"ip rule flush; ip rule add pref 32766 lookup main", KindRule, "routing rule 104 to 100.64.1.0/24"},
	} {
		t.Run(c.command, func(t *testing.T) {
			inNamespace(t, func() {
				run(t, "ip link add name a address 02:00:00:00:00:0a mtu 1376 type veth peer name b; ip link set dev b up; ip link set lo up")
				link, err := netlink.LinkByName("a")
				must.NoError(t, err)
				want := sample(link.Attrs().Index)
				must.NoError(t, Set(want))
				changes, err := Repair(want)
				must.NoError(t, err)
				must.SliceEmpty(t, changes, must.Sprint("what was set differs"))
				run(t, c.command)
				changes, err = Repair(want)
				must.NoError(t, err)
				found := false
				for _, x := range changes {
					found = found || x.Kind == c.kind && x.Subject == c.subject
				}
				must.True(t, found, must.Sprint(changes))
				changes, err = Repair(want)
				must.NoError(t, err)
				must.SliceEmpty(t, changes)
			})
		})
	}
}

// What was written can be taken away: the rules, and the routes of all tables.
func TestLeftovers(t *testing.T) {
	inNamespace(t, func() {
		run(t, "ip link add name a address 02:00:00:00:00:0a type veth peer name b; ip link set dev b up; ip link set lo up; ip rule add pref 7 lookup main")
		link, err := netlink.LinkByName("a")
		must.NoError(t, err)
		must.NoError(t, Set(sample(link.Attrs().Index)))
		for _, find := range []func() ([]leftover.Leftover, error){Rules, Routes} {
			list, err := find()
			must.NoError(t, err)
			must.SliceNotEmpty(t, list)
			for _, l := range list {
				must.NoError(t, l.Remove(t.Context()))
			}
			list, err = find()
			must.NoError(t, err)
			must.SliceEmpty(t, list)
		}
		out, err := exec.Command("sh", "-ec", "ip rule; ip -6 rule; ip route show table all; ip -6 route show table all").Output()
		must.NoError(t, err)
		must.StrContains(t, string(out), "7:\tfrom all lookup main")
		must.StrNotContains(t, string(out), "205")
	})
}

// What others have written stays, even with our priorities; and an identical rule serves as ours.
func TestRulesOfOthersStay(t *testing.T) {
	inNamespace(t, func() {
		run(t, "ip rule add pref 102 fwmark 0x9 lookup 900; ip rule add pref 102 fwmark 0x51f00101 lookup 102; ip -6 rule add pref 5210 fwmark 0x80000/0xff0000 lookup main")
		want := State{Rules: []Rule{{Priority: 102, Mark: 0x51f00101, Mask: 0xffffffff, Table: 102}}, OnlyRules: true}
		changes, err := Repair(want)
		must.NoError(t, err)
		must.Len(t, 1, changes, must.Sprint(changes)) // IPv6
		changes, err = Repair(State{OnlyRules: true})
		must.NoError(t, err)
		must.Len(t, 1, changes, must.Sprint(changes))
		out, err := exec.Command("sh", "-c", "ip rule; ip -6 rule").Output()
		must.NoError(t, err)
		for _, rule := range []string{"fwmark 0x9 lookup 900", "fwmark 0x51f00101 lookup 102", "fwmark 0x80000/0xff0000 lookup main"} {
			must.StrContains(t, string(out), rule)
		}
	})
}

// Who comes before our rules and takes marked packets is told from who does not.
func TestTakers(t *testing.T) {
	packets := []Marked{{Mark: 0x51f00103, From: []netip.Prefix{netip.MustParsePrefix("100.64.1.0/24"), netip.MustParsePrefix("fd5f::/64")},
		By: func(name string) bool { return name == "sif0123456789a" }}}
	for command, takes := range map[string]bool{
		"ip rule add pref 100 lookup main":                                      true,
		"ip -6 rule add pref 100 lookup main":                                   true,
		"ip rule add pref 6000 lookup main":                                     false,
		"ip rule add pref 100 lookup local":                                     false,
		"ip rule add pref 100 lookup main protocol 205":                         false,
		"ip rule add pref 100 fwmark 0x100/0xf00 lookup 9":                      true,
		"ip rule add pref 100 fwmark 0x200/0xf00 lookup 9":                      false, // Cilium's
		"ip rule add pref 100 fwmark 0x80000/0xff0000 lookup main":              false, // Tailscale's
		"ip rule add pref 100 not fwmark 0xca6c lookup 9":                       true,  // wg-quick's
		"ip rule add pref 100 from 100.64.0.0/10 lookup 9":                      true,
		"ip rule add pref 100 from 10.0.0.5 lookup 9":                           false, // a cloud's second interface
		"ip rule add pref 100 to 198.51.100.0/24 lookup 9":                      true,
		"ip rule add pref 100 iif eth0 lookup 9":                                false,
		"ip rule add pref 100 iif sif0123456789a lookup 9":                      true,
		"ip rule add pref 100 oif eth0 lookup 9":                                false,
		"ip rule add pref 100 uidrange 0-99 lookup 9":                           false,
		"ip rule add pref 100 goto 6000; ip rule add pref 6000 lookup main":     true,
		"ip rule add pref 100 from 10.0.0.5 goto 6000; ip rule show >/dev/null": false,
	} {
		t.Run(command, func(t *testing.T) {
			inNamespace(t, func() {
				run(t, command)
				takers, err := Takers(packets, 5100)
				must.NoError(t, err)
				must.Eq(t, takes, len(takers) > 0, must.Sprint(takers))
			})
		})
	}
}

// TestMissingInterface shows that the rest is repaired.
func TestMissingInterface(t *testing.T) {
	inNamespace(t, func() {
		want := State{
			Sysctls:    []Sysctl{{"net/ipv4/ip_forward", "1"}},
			Interfaces: []Interface{{Name: "gone", Passing: true}, {Name: "nowhere"}, {Name: "lo"}},
		}
		changes, err := Repair(want)
		must.ErrorIs(t, err, ErrNoInterface)
		must.StrContains(t, err.Error(), "nowhere")
		must.StrNotContains(t, err.Error(), "gone")
		must.Len(t, 2, changes, must.Sprint(changes))
	})
}

// TestParametersThatAreRightAreNotWritten makes all of them read-only.
func TestParametersThatAreRightAreNotWritten(t *testing.T) {
	inNamespace(t, func() {
		done := make(chan struct{})
		here, err := ns.GetCurrentNS()
		must.NoError(t, err)
		defer here.Close()
		go func() {
			defer close(done)
			runtime.LockOSThread() // for good: the thread ends with its mount namespace
			must.NoError(t, here.Set())
			right := State{Sysctls: []Sysctl{{"net/ipv4/ip_forward", "1"}, {"net/ipv6/conf/all/forwarding", "1"}}}
			must.NoError(t, Set(right))
			must.NoError(t, unix.Unshare(unix.CLONE_NEWNS))
			must.NoError(t, unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""))
			must.NoError(t, unix.Mount(procSys, procSys, "", unix.MS_BIND, ""))
			must.NoError(t, unix.Mount("", procSys, "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY, ""))
			must.NoError(t, Set(right))
			right.Sysctls[1].Value = "0"
			must.ErrorContains(t, Set(right), "set the kernel parameter net.ipv6.conf.all.forwarding to 0")
		}()
		<-done
	})
}

// TestKernelWithoutIPv6 hides IPv6 as a kernel does that has none.
func TestKernelWithoutIPv6(t *testing.T) {
	inNamespace(t, func() {
		run(t, "ip link add name a type veth peer name b; ip link set dev a up")
		link, err := netlink.LinkByName("a")
		must.NoError(t, err)
		done := make(chan struct{})
		here, err := ns.GetCurrentNS()
		must.NoError(t, err)
		defer here.Close()
		go func() {
			defer close(done)
			runtime.LockOSThread() // for good: the thread ends with its mount namespace
			must.NoError(t, here.Set())
			must.NoError(t, unix.Unshare(unix.CLONE_NEWNS))
			must.NoError(t, unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""))
			must.NoError(t, unix.Mount("none", "/proc/sys/net/ipv6", "tmpfs", 0, ""))
			want := sample(link.Attrs().Index)
			must.ErrorIs(t, Set(want), ErrNoIPv6)
			changes, err := Repair(want)
			must.ErrorIs(t, err, ErrNoIPv6)
			must.StrNotContains(t, err.Error(), "\n")
			var what []string
			for _, c := range changes {
				what = append(what, c.Subject)
			}
			text := strings.Join(what, ", ")
			must.StrContains(t, text, "100.64.0.2/32 to a")
			must.StrNotContains(t, text, "fd5f::2")
		}()
		<-done
	})
}

// BenchmarkRepair compares the host sides of 200 endpoints of which nothing differs.
func BenchmarkRepair(b *testing.B) {
	testhost.RequireRoot(b)
	space, err := testutils.NewNS()
	must.NoError(b, err)
	b.Cleanup(func() {
		must.NoError(b, space.Close())
		must.NoError(b, testutils.UnmountNS(space))
	})
	must.NoError(b, space.Do(func(ns.NetNS) error {
		var want State
		for i := range 200 {
			name := fmt.Sprintf("a%d", i)
			must.NoError(b, netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: name, MTU: 1376}, PeerName: "b" + name}))
			link, err := netlink.LinkByName(name)
			must.NoError(b, err)
			side := sample(link.Attrs().Index).Interfaces[1]
			side.Name, side.MAC, side.Addresses, side.Alone = name, nil, nil, false
			side.Neighbours, side.Routes = nil, nil
			for _, a := range []netip.Addr{netip.AddrFrom4([4]byte{100, 64, 0, byte(i)}), netip.AddrFrom16([16]byte{0: 0xfd, 15: byte(i)})} {
				side.Neighbours = append(side.Neighbours, Neighbour{a, mac("02:00:00:00:00:0b")})
				side.Routes = append(side.Routes, Route{Prefix: netip.PrefixFrom(a, a.BitLen())})
			}
			want.Interfaces = append(want.Interfaces, side)
		}
		_, err := Repair(want)
		must.NoError(b, err)
		for b.Loop() {
			changes, err := Repair(want)
			must.NoError(b, err)
			must.SliceEmpty(b, changes)
		}
		return nil
	}))
}
