// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

//go:build e2e

package e2e

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/miekg/dns"
	"github.com/shoenig/test/must"

	"github.com/sif-project/sif/api"
	"github.com/sif-project/sif/bpf"
	"github.com/sif-project/sif/e2e/lab"
)

// hostRow is something that others take away from a node. The commands run in the node's network
// namespace, in a shell that knows:
//
//	$NODE, $BPF, $PLUGIN, $CONFIG, $RUN  the node's name, BPF filesystem, CNI and run directories
//	$OWN6                                the node's own IPv6 address
//	$IF, $V4, $V6, $NS                   an endpoint of the node that no other row has: its
//	                                     interface, addresses and network namespace
//	$LINK                                the network namespace of a processor's first link
//	$OVS                                 the run directory of a processor's Open vSwitch
type hostRow struct {
	what string // the row's first cell in docs/operations.md
	node string
	cut  string
	// cutIn is done instead of cut, by the test.
	cutIn func(t *testing.T, f *fabricUnderTest, w workload)
	// holds, or holdsIn, succeeds while it is as it must be.
	holds   string
	holdsIn func(t *testing.T, f *fabricUnderTest, s setting) error
	// kind, as counted in the status, says that it is put back. says, of which the node's status
	// then contains each part, that it is reported.
	kind string
	says []string
	undo string
	// restart says that it is also taken away while the daemon is not there.
	restart bool
	// fixed says that an endpoint of another node does not do.
	fixed bool
}

// hostRows has a row for each row of the table in docs/operations.md.
var hostRows = []hostRow{
	{what: "`net.ipv4.ip_forward`, `net.ipv6.conf.all.forwarding`", node: "aws1-w1", kind: "sysctl", restart: true,
		cut:   `sysctl -q net.ipv4.ip_forward=0 net.ipv6.conf.all.forwarding=0`,
		holds: `[ "$(sysctl -n net.ipv4.ip_forward net.ipv6.conf.all.forwarding net.ipv4.conf.$IF.forwarding | tr -d '\n')" = 111 ]`},
	{what: "the address 169.254.1.1 on `lo`", node: "aws1-w1", kind: "address", restart: true,
		cut: `ip addr del 169.254.1.1/32 dev lo`, holds: `ip addr show dev lo | grep -q 169.254.1.1/32`},
	{what: "an endpoint's routes", node: "aws1-w1", kind: "route", restart: true,
		cut:   `ip route del $V4/32; ip -6 route del $V6/128`,
		holds: `ip route show $V4/32 | grep -q $IF && ip -6 route show $V6/128 | grep -q $IF`},
	{what: "an endpoint's neighbours", node: "aws1-w2", kind: "neighbour", restart: true,
		cut:   `ip neigh del $V4 dev $IF; ip neigh replace $V6 lladdr 02:00:00:00:00:99 dev $IF nud permanent`,
		holds: `ip neigh show $V4 dev $IF | grep -q PERMANENT && ! ip neigh show dev $IF | grep -q 02:00:00:00:00:99`},
	{what: "an endpoint's interface: that it is up", node: "aws1-w2", kind: "interface", restart: true,
		cut: `ip link set dev $IF down`, holds: `ip link show dev $IF | grep -q ,UP && ip route show $V4/32 | grep -q $IF`},
	{what: "an endpoint's interface: its name", node: "gcp1-w1", kind: "interface", restart: true,
		cut: `ip link set dev $IF name strange0`, holds: `ip link show dev $IF`},
	{what: "an endpoint's interface: its Ethernet address and MTU", node: "gcp1-w1", kind: "interface",
		cut:   `ip link set dev $IF address 02:00:00:00:00:98; ip link set dev $IF mtu 1000`,
		holds: `! ip link show dev $IF | grep -q 02:00:00:00:00:98 && ! ip link show dev $IF | grep -q "mtu 1000" && ip -6 route show $V6/128 | grep -q $IF`},
	{what: "an endpoint's interface: that no bridge has it", node: "gcp1-w2", kind: "interface",
		cut:   `ip link add name strange-br type bridge; ip link set dev $IF master strange-br`,
		holds: `! ip link show dev $IF | grep -q strange-br`, undo: `ip link del dev strange-br`},
	{what: "an endpoint's interface: that it exists", node: "gcp1-w2", kind: "interface",
		cut: `ip link del dev $IF`, holds: `ip link show dev $IF && ip route show $V4/32 | grep -q $IF`},
	{what: "IPv6 on the fabric's interfaces", node: "gcp1-w1", kind: "sysctl",
		cut:   `sysctl -q net.ipv6.conf.all.disable_ipv6=1 net.ipv6.conf.default.disable_ipv6=1`,
		holds: `[ "$(sysctl -n net.ipv6.conf.$IF.disable_ipv6 net.ipv6.conf.sif-l0.disable_ipv6 net.ipv6.conf.sif-l1.disable_ipv6 | tr -d '\n')" = 000 ] && ip -6 route show $V6/128 | grep -q $IF`,
		undo: `sysctl -q net.ipv6.conf.all.disable_ipv6=0 net.ipv6.conf.default.disable_ipv6=0
			ip addr add $OWN6/64 dev eth0 nodad; ip -6 route replace default via ${OWN6%::*}::1`}, // what the host had of its own
	{what: "redirects, router advertisements and forwarding of an endpoint's interface", node: "gcp1-w1", kind: "sysctl",
		cut:   `sysctl -q net.ipv4.conf.$IF.accept_redirects=1 net.ipv6.conf.$IF.accept_ra=2 net.ipv4.conf.$IF.forwarding=0`,
		holds: `[ "$(sysctl -n net.ipv4.conf.$IF.accept_redirects net.ipv6.conf.$IF.accept_ra net.ipv4.conf.$IF.forwarding | tr -d '\n')" = 001 ]`},
	{what: "addresses, routes and neighbours inside a workload", node: "aws1-w1", kind: "route",
		cut:   `nsenter --net=$NS sh -ec 'ip route flush table main; ip -6 route del default; ip neigh flush dev eth0 nud permanent'`,
		holds: `nsenter --net=$NS sh -ec 'ip route show default | grep -q 169.254.1.1; ip -6 route show default | grep -q fe80::1; ip neigh show 169.254.1.1 | grep -q PERMANENT'`},
	{what: "the programs at an endpoint's interface", node: "aws1-w2", kind: "data path", restart: true, fixed: true,
		cut: `bpftool link detach pinned $BPF/sif/links/$IF/from_workload`,
		holdsIn: func(_ *testing.T, f *fabricUnderTest, s setting) error {
			l, err := link.LoadPinnedLink(filepath.Join(f.BPFDir(s.node), "sif", "links", s.host, "from_workload"), nil)
			if err != nil {
				return err
			}
			defer l.Close()
			info, err := l.Info()
			if err == nil && info.TCX().Ifindex == 0 {
				return errors.New("the program is detached")
			}
			return err
		}},
	{what: "the same, where `clsact` attaches them", node: "gcp1-w2", kind: "data path", restart: true, fixed: true,
		cut:   `tc qdisc del dev $IF clsact`,
		holds: `tc filter show dev $IF ingress | grep -q sif_from_workload && tc filter show dev $IF egress | grep -q sif_to_workload`},
	{what: "the entries of the maps", node: "gcp1-w2", kind: "map entry", restart: true,
		cutIn: func(t *testing.T, f *fabricUnderTest, w workload) {
			must.NoError(t, f.kernel(t, w.node).DeletePeer(w.v4))
		},
		holdsIn: func(t *testing.T, f *fabricUnderTest, s setting) error {
			d, err := bpf.OpenPinned(filepath.Join(f.BPFDir(s.node), "sif"))
			if err != nil {
				return err // the pins may be away as well
			}
			defer d.Close()
			peers, err := d.Peers()
			if err == nil && !slices.ContainsFunc(peers, func(p bpf.Peer) bool { return p.Address == s.workload.v4 }) {
				return errors.New("the entry is missing")
			}
			return err
		}},
	{what: "the pins in `bpf_dir`", node: "aws1-w1", kind: "data path",
		cut: `rm -rf $BPF/sif/*`, holds: `[ -e $BPF/sif/sif_rules ] && [ -e $BPF/sif/links/$IF/to_workload ]`},
	{what: "the nftables table `inet sif`", node: "aws1-w2", kind: "firewall", restart: true,
		cut: `nft flush ruleset`, holds: `nft list chain inet sif forward | grep -q drop`},
	{what: "iptables' chains FORWARD, INPUT and OUTPUT that drop (Docker, ufw)", node: "aws1-w1", kind: "firewall", restart: true,
		cut:   `iptables -P FORWARD DROP; ip6tables -P FORWARD DROP`,
		holds: `! iptables -S FORWARD | grep -q -- "-P FORWARD DROP" || { iptables -S FORWARD | grep -q sif-fabric && ip6tables -S FORWARD | grep -q sif-fabric; }`,
		undo:  `for i in iptables ip6tables; do $i -P FORWARD ACCEPT; $i -F FORWARD; done`},
	{what: "the same of `iptables-legacy`", node: "gcp1-w2", kind: "firewall",
		cut:   `iptables-legacy -P FORWARD DROP`,
		holds: `! iptables-legacy -S FORWARD | grep -q -- "-P FORWARD DROP" || iptables-legacy -S FORWARD | grep -q sif-fabric`,
		undo:  `iptables-legacy -P FORWARD ACCEPT; iptables-legacy -F FORWARD`},
	{what: "the CNI plugin and its network configuration", node: "gcp1-w1", kind: "cni",
		cut: `rm $PLUGIN/sif $CONFIG/sif.conflist`, holds: `[ -x $PLUGIN/sif ] && [ -s $CONFIG/sif.conflist ]`},
	{what: "the links' devices", node: "aws1-w2", kind: "interface",
		cut:   `ip link del dev sif-l0; ip link set dev sif-l1 mtu 1300; sysctl -q net.ipv4.conf.sif-l1.rp_filter=1`,
		holds: `ip link show dev sif-l0 && ! ip link show dev sif-l1 | grep -q "mtu 1300" && [ "$(sysctl -n net.ipv4.conf.sif-l1.rp_filter)" = 0 ]`},
	{what: "the links' routes", node: "aws1-w1", kind: "route",
		cut: `ip route flush dev sif-l1`, holds: `ip route show dev sif-l1 | grep -q 100.`},
	{what: "a processor's namespaces: parameters, addresses, neighbours, routes, rules", node: "aws1-p1", kind: "routing rule", restart: true,
		cut:   `nsenter --net=$LINK sh -ec 'ip rule del pref 101; ip route flush table 102; ip neigh flush dev switch0 nud permanent; sysctl -q net.ipv4.ip_forward=0'`,
		holds: `nsenter --net=$LINK sh -ec 'ip rule show | grep -q ^101; ip route show table 102 | grep -q blackhole; ip neigh show dev switch0 | grep -q PERMANENT; [ $(sysctl -n net.ipv4.ip_forward) = 1 ]'`},
	{what: "a processor's veth pairs to the switch", node: "gcp1-p1", kind: "interface",
		cut: `ip link del dev sif-o0`, holds: `ip link show dev sif-o0`},
	{what: "a processor's exit: its veth pair", node: "aws1-p1", kind: "interface", restart: true,
		cut:   `ip link del dev sif-exit`,
		holds: `ip link show dev sif-exit && ip route show dev sif-exit | grep -q "via 169.254.1.1" && ovs-vsctl --db=unix:$OVS/db.sock get interface sif-oexit ofport | grep -q "^[1-9]"`},
	{what: "a processor's exit: routes, neighbours, forwarding", node: "gcp1-p1", kind: "route", restart: true,
		cut: `ip route flush dev sif-exit; ip -6 route flush dev sif-exit; ip neigh flush dev sif-exit nud permanent; sysctl -q net.ipv4.ip_forward=0 net.ipv6.conf.all.forwarding=0`,
		holds: `ip route show dev sif-exit | grep -q "via 169.254.1.1"; ip -6 route show dev sif-exit | grep -q "via fe80::1"; ip neigh show 169.254.1.1 dev sif-exit | grep -q PERMANENT
			ip neigh show fe80::1 dev sif-exit | grep -q PERMANENT; [ "$(sysctl -n net.ipv4.conf.eth0.forwarding net.ipv6.conf.all.forwarding | tr -d '\n')" = 11 ]`},
	{what: "a processor's exit: the nftables table `inet sif_exit`", node: "aws1-p1", kind: "firewall", restart: true,
		cut: `nft delete table inet sif_exit`, holds: `nft list chain inet sif_exit forward | grep -q exit-unasked && nft list chain inet sif_exit postrouting | grep -q "snat ip6"`},
	{what: "the routing rules for exits (priorities 5099 to 5101)", node: "gcp1-w1", kind: "routing rule", restart: true,
		cut: `for v in -4 -6; do for p in 5099 5100 5101; do ip $v rule del pref $p; done; done`,
		holds: `for v in -4 -6; do ip $v rule show | grep -q "^5099:.*lookup main"; ip $v rule show | grep -q "^5100:.*fwmark 0x51f00100 lookup 5100"
			ip $v rule show | grep -q "^5101:.*fwmark 0x51f00100/0xffffff00 lookup 5356"; done`},
	{what: "the routing tables for exits (5100 to 5356)", node: "gcp1-w2", kind: "route", restart: true,
		cut:   `for v in -4 -6; do ip $v route flush table 5100; ip $v route flush table 5356; done`,
		holds: `for v in -4 -6; do ip $v route show table 5100 | grep -q "default dev sif-l1"; ip $v route show table 5356 | grep -q "blackhole default"; done`},
	{what: "the flows of the switch", node: "aws1-p1", kind: "flow", restart: true,
		cut:   `ovs-ofctl -O OpenFlow14 del-flows unix:$OVS/sif0.mgmt table=0`,
		holds: `ovs-ofctl -O OpenFlow14 dump-flows unix:$OVS/sif0.mgmt table=0 | grep -q in_port`},
	{what: "the settings of the bridge and its ports", node: "gcp1-p1", kind: "switch", restart: true,
		cut:   `ovs-vsctl --db=unix:$OVS/db.sock --no-wait set-fail-mode sif0 standalone -- set bridge sif0 stp_enable=true`,
		holds: `[ "$(ovs-vsctl --db=unix:$OVS/db.sock get bridge sif0 fail_mode stp_enable | tr -d '\n')" = securefalse ]`},
	{what: "the switch's idle times and most number of connections", node: "gcp1-p1", kind: "switch", restart: true,
		cut:   `ovs-appctl -t $OVS/ovs-vswitchd.ctl dpctl/ct-set-limits netdev@ovs-netdev zone=1,limit=7`,
		holds: `ovs-appctl -t $OVS/ovs-vswitchd.ctl dpctl/ct-get-limits netdev@ovs-netdev zone=1 | grep -q "limit=1000000"`},

	{what: "an nftables chain of others that drops what is forwarded (firewalld, own rules)", node: "gcp1-w1",
		cut:  `nft 'add table inet strange; add chain inet strange f { type filter hook forward priority 5; policy drop; }'`,
		says: []string{"nftables chain inet strange f has the policy drop", `insert rule inet strange f iifname "sif*" accept`},
		undo: `nft delete table inet strange`},
	{what: "a routing rule or table that takes packets to endpoints elsewhere", node: "gcp1-w2",
		cut:  `ip route add blackhole default table 4242; ip rule add pref 10 to $V4 lookup 4242`,
		says: []string{"do not reach its interface", "ip rule"}, undo: `ip rule del pref 10; ip route flush table 4242`},
	{what: "a routing rule of others before them that takes packets to the outside", node: "gcp1-w1",
		cut:  `ip rule add pref 4999 from 100.64.0.0/10 lookup main`,
		says: []string{"routing rule 4999 (IPv4) from 100.64.0.0/10 comes before", "give it a priority above 5101"}, undo: `ip rule del pref 4999`},
	{what: "an address of the exit that changed, or is configured and not there", node: "gcp1-p1",
		cut:  `ip addr add 2001:db8:102::99/64 dev eth0 nodad; ip addr del 2001:db8:102::10/64 dev eth0`,
		says: []string{"have had the address 2001:db8:102::10 and now have 2001:db8:102::99", "let in the new one"},
		undo: `ip addr add 2001:db8:102::10/64 dev eth0 nodad; ip addr del 2001:db8:102::99/64 dev eth0`},
	{what: "a resolver, gateway or address of the node inside the fabric's pool", node: "aws1-w1",
		cut:  `ip addr add 100.127.0.1/32 dev eth0`,
		says: []string{"the node's own address (on eth0) 100.127.0.1 lies in the fabric's pool", "use another address"}, undo: `ip addr del 100.127.0.1/32 dev eth0`},
	{what: "the socket of the CNI plugin", node: "aws1-w2",
		cut: `mv $RUN/cni.sock $RUN/cni.sock.away`, says: []string{"cni.sock was removed", "restart the agent"}, undo: `mv $RUN/cni.sock.away $RUN/cni.sock`},
	{what: "other programs at an endpoint's interface", node: "gcp1-w1", cutIn: attachAnother, fixed: true,
		says: []string{"is not guarded by the fabric alone", "2 programs", "bpftool net show"}},
	{what: "the override of tests (`PASS_ALL`)", node: "gcp1-w2",
		cutIn: func(t *testing.T, f *fabricUnderTest, w workload) { f.kernelPasses(t, w.node) },
		says:  []string{"eBPF lets everything pass"}},
}

// attachAnother attaches a second program to an endpoint's interface until the test ends.
func attachAnother(t *testing.T, f *fabricUnderTest, w workload) {
	taken, err := link.LoadPinnedLink(filepath.Join(f.BPFDir(w.node), "sif", "links", f.interfaceOf(t, w), "to_workload"), nil)
	must.NoError(t, err)
	defer taken.Close()
	info, err := taken.Info()
	must.NoError(t, err)
	program, err := ebpf.NewProgramFromID(info.Program)
	must.NoError(t, err)
	defer program.Close()
	must.NoError(t, f.In(w.node, func() error {
		other, err := link.AttachTCX(link.TCXOptions{Interface: int(info.TCX().Ifindex), Program: program, Attach: ebpf.AttachTCXIngress})
		if err == nil {
			t.Cleanup(func() { other.Close() })
		}
		return err
	}))
}

// TestHostTableIsComplete compares the rows here with those of the documentation.
func TestHostTableIsComplete(t *testing.T) {
	_, text, found := strings.Cut(world.file(t, "docs/operations.md"), "## What is compared with the host\n")
	must.True(t, found)
	text, _, _ = strings.Cut(text, "\n## ")
	var documented, tested []string
	for line := range strings.Lines(text) {
		if cells := strings.Split(line, "|"); len(cells) > 3 && !strings.HasPrefix(line, "|---") && strings.TrimSpace(cells[1]) != "what" {
			documented = append(documented, strings.TrimSpace(cells[1])+" "+strings.TrimSpace(cells[2]))
		}
	}
	for _, r := range hostRows {
		outcome := "reported"
		if r.kind != "" {
			outcome = "put back: " + r.kind
		}
		tested = append(tested, r.what+" "+outcome)
	}
	slices.Sort(documented)
	slices.Sort(tested)
	must.Eq(t, tested, documented)
}

// hostEnvironment returns what the commands of a row know.
func (f *fabricUnderTest) hostEnvironment(s setting) []string {
	plugins, configs := f.CNIDirs(s.node)
	return []string{
		"NODE=" + s.node, "BPF=" + f.BPFDir(s.node), "PLUGIN=" + plugins, "CONFIG=" + configs, "RUN=" + f.SIFRunDir(s.node),
		"OVS=" + f.OVSRunDir(s.node), "LINK=/run/netns/" + f.Namespace(s.node) + "-l0",
		"OWN6=" + f.Topology.Node(s.node).Address6, "IF=" + s.host, "V4=" + s.workload.v4.String(), "V6=" + s.workload.v6.String(), "NS=" + s.workload.netns,
	}
}

// interfaceOf returns the host side of an endpoint's pair of interfaces.
func (f *fabricUnderTest) interfaceOf(t *testing.T, w workload) string {
	t.Helper()
	out := f.hostCommand(t, w.node, nil, "ip -o -4 route show "+w.v4.String()+"/32")
	fields := strings.Fields(out)
	i := slices.Index(fields, "dev")
	must.GreaterEq(t, 0, i, must.Sprintf("%s has no route: %q", w, out))
	return fields[i+1]
}

// hostCommand runs a shell command in a node's network namespace, which must succeed.
func (f *fabricUnderTest) hostCommand(t *testing.T, node string, env []string, script string) string {
	t.Helper()
	out, err := f.tryHostCommand(node, env, script)
	must.NoError(t, err, must.Sprintf("%s on %s: %s", script, node, out))
	return out
}

func (f *fabricUnderTest) tryHostCommand(node string, env []string, script string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	cmd, err := f.Command(ctx, node, "sh", "-ec", script)
	if err != nil {
		return "", err
	}
	cmd.Env = append(cmd.Env, env...)
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// setting is a row with an endpoint of its own and what its commands know.
type setting struct {
	hostRow
	workload workload
	host     string // the workload's interface on the node
	env      []string
}

// holds returns an error while it is not as it must be.
func (f *fabricUnderTest) holds(t *testing.T, s setting) error {
	if s.holdsIn != nil {
		return s.holdsIn(t, f, s)
	}
	if out, err := f.tryHostCommand(s.node, s.env, s.hostRow.holds); err != nil {
		return fmt.Errorf("%w %s", err, out)
	}
	return nil
}

// settings gives each row an endpoint of its node that no other row has. It returns the rows for
// which there were too few.
func (f *fabricUnderTest) settings(t *testing.T, rows []hostRow) (list []setting, left []hostRow) {
	t.Helper()
	free := map[string][]workload{}
	for _, n := range f.status(t).Nodes {
		for _, ep := range n.Endpoints {
			if path := namespaceOf(ep.Endpoint); path != "" {
				free[n.Node] = append(free[n.Node], workload{alloc: ep.Endpoint, zone: n.Zone, node: n.Node, service: ep.Service, v4: ep.IPv4, v6: ep.IPv6, netns: path})
			}
		}
	}
	slices.SortStableFunc(rows, func(a, b hostRow) int { // those that have no choice are first
		switch {
		case a.fixed == b.fixed:
			return 0
		case a.fixed:
			return -1
		}
		return 1
	})
	for _, r := range rows {
		s := setting{hostRow: r}
		if all := r.cut + r.holds; strings.Contains(all, "$IF") || strings.Contains(all, "$V4") || strings.Contains(all, "$NS") || r.cutIn != nil && strings.Contains(r.node, "-w") {
			// An endpoint of another node does as well, if this one has no more.
			nodes := []string{r.node}
			if !r.fixed {
				nodes = append(nodes, slices.Sorted(maps.Keys(free))...)
			}
			i := slices.IndexFunc(nodes, func(n string) bool { return len(free[n]) > 0 })
			if i < 0 {
				left = append(left, r)
				continue
			}
			s.node = nodes[i]
			s.workload, free[s.node] = free[s.node][0], free[s.node][1:]
		}
		if s.workload.alloc != "" {
			s.host = f.interfaceOf(t, s.workload)
		}
		s.env = f.hostEnvironment(s)
		list = append(list, s)
	}
	must.SliceNotEmpty(t, list)
	return list, left
}

// take takes everything away, and checks that it is gone.
func (f *fabricUnderTest) take(t *testing.T, list []setting) {
	t.Helper()
	for _, s := range list {
		if s.kind != "" {
			must.NoError(t, f.holds(t, s), must.Sprintf("before: %s on %s", s.what, s.node))
		}
	}
	for _, s := range list {
		if s.undo != "" {
			t.Cleanup(func() { f.hostCommand(t, s.node, s.env, s.undo) })
		}
		if s.cutIn != nil {
			s.cutIn(t, f, s.workload)
		}
		if s.cut != "" {
			f.hostCommand(t, s.node, s.env, s.cut)
		}
	}
	for _, s := range list {
		if s.kind != "" {
			must.Error(t, f.holds(t, s), must.Sprintf("%s on %s is still there", s.what, s.node))
		}
	}
}

// back waits until everything is as it was: in the kernel, for packets, and in the words of verify.
func (f *fabricUnderTest) back(t *testing.T, list []setting) {
	t.Helper()
	eventually(t, 25*time.Second, func() error {
		var errs []error
		for _, s := range list {
			if err := f.holds(t, s); err != nil {
				errs = append(errs, fmt.Errorf("%s on %s is not back: %w", s.what, s.node, err))
			}
		}
		return errors.Join(errs...)
	})
	svc := f.workload(t, "getaway-app/getaway-svc", "aws1")
	for _, zone := range []string{"aws1", "gcp1"} {
		for _, gateway := range f.workloads(t, "getaway-app/news-gw", zone) {
			reaches(t, svc, gateway, 9001, true, 20*time.Second)
			eventually(t, 10*time.Second, func() error {
				conn, err := dial(svc.netns, netip.AddrPortFrom(gateway.v6, 9001), time.Second)
				if err == nil {
					conn.Close()
				}
				return err
			})
		}
	}
	eventually(t, 10*time.Second, func() error {
		_, err := resolve(svc, "news-gw.getaway-app.sif")
		return err
	})
	// To the outside by the zone's exit, and by the node's.
	for service, name := range map[string]string{"getaway-app/news-gw": "news.example.com", "getaway-app/weather-gw": "weather.example.net"} {
		for _, gateway := range f.workloads(t, service, "") {
			for _, kind := range []uint16{dns.TypeA, dns.TypeAAAA} {
				if service == "getaway-app/weather-gw" && kind == dns.TypeAAAA {
					continue // the node, which may have lost its IPv6
				}
				to := resolves(t, gateway, name, kind)[0]
				eventually(t, 10*time.Second, func() error {
					conn, err := dial(gateway.netns, netip.AddrPortFrom(to, 80), time.Second)
					if err != nil {
						return fmt.Errorf("%s to %s: %w", gateway, to, err)
					}
					return conn.Close()
				})
			}
		}
	}
	f.allWell(t, 40*time.Second)
	f.verified(t, 20*time.Second)
}

// repaired returns how often something of a kind was put back on a node.
func repaired(s api.Status, node, kind string) uint64 {
	for _, n := range s.Nodes {
		if n.Node == node {
			return n.Repaired[kind]
		}
	}
	return 0
}

// TestHostsThatChangeUnderUs takes away everything that is put back, as much at once as there are
// endpoints for.
func TestHostsThatChangeUnderUs(t *testing.T) {
	resume := func() {
		world.signalDaemons(t, syscall.SIGCONT)
		world.freezeLinks(t, syscall.SIGCONT)
	}
	t.Cleanup(resume)
	rows := slices.DeleteFunc(slices.Clone(hostRows), func(r hostRow) bool { return r.kind == "" })
	for len(rows) > 0 {
		world.allWell(t, 40*time.Second)
		var list []setting
		list, rows = world.settings(t, rows)
		before := world.status(t)
		world.freezeLinks(t, syscall.SIGSTOP)
		world.signalDaemons(t, syscall.SIGSTOP)
		world.take(t, list)
		resume()
		world.back(t, list)
		after := world.status(t)
		for _, s := range list {
			must.Greater(t, repaired(before, s.node, s.kind), repaired(after, s.node, s.kind), must.Sprintf("%s on %s is not counted as %s", s.what, s.node, s.kind))
		}
	}
}

// freezeLinks stops or continues the link processes.
func (f *fabricUnderTest) freezeLinks(t *testing.T, s syscall.Signal) {
	t.Helper()
	for _, n := range f.Topology.Nodes(lab.Processor, lab.Workload) {
		must.NoError(t, f.Signal(n.Name, "link", s))
	}
}

// TestRestartPutsBack takes things away while agents and engines are not there.
func TestRestartPutsBack(t *testing.T) {
	world.allWell(t, 40*time.Second)
	list, left := world.settings(t, slices.DeleteFunc(slices.Clone(hostRows), func(r hostRow) bool { return !r.restart }))
	must.SliceEmpty(t, left)
	nodes := world.Topology.Nodes(lab.Processor, lab.Workload)
	start := func() {
		for _, n := range nodes {
			must.NoError(t, world.Start(n.Name, daemonOf(n)))
		}
	}
	t.Cleanup(start)
	for _, n := range nodes {
		must.NoError(t, world.Signal(n.Name, daemonOf(n), syscall.SIGKILL))
	}
	for _, n := range nodes {
		eventually(t, 5*time.Second, func() error {
			if world.Alive(n.Name, daemonOf(n)) {
				return fmt.Errorf("the daemon of %s is still there", n.Name)
			}
			return nil
		})
	}
	world.take(t, list)
	start()
	world.back(t, list)
}

// TestHostFindings changes what is not ours, and sees it reported with the remedy until it is
// undone.
func TestHostFindings(t *testing.T) {
	world.allWell(t, 40*time.Second)
	t.Run("reported", func(t *testing.T) {
		list, left := world.settings(t, slices.DeleteFunc(slices.Clone(hostRows), func(r hostRow) bool { return r.kind != "" }))
		must.SliceEmpty(t, left)
		world.take(t, list)
		eventually(t, 30*time.Second, func() error {
			status := world.status(t)
			var errs []error
			for _, s := range list {
				i := slices.IndexFunc(status.Nodes, func(n api.NodeStatus) bool { return n.Node == s.node })
				must.GreaterEq(t, 0, i)
				if !slices.ContainsFunc(status.Nodes[i].Degraded, func(d string) bool {
					return !slices.ContainsFunc(s.says, func(part string) bool { return !strings.Contains(d, part) })
				}) {
					errs = append(errs, fmt.Errorf("%s is not reported by %s: %q", s.what, s.node, status.Nodes[i].Degraded))
				}
			}
			return errors.Join(errs...)
		})
		r := world.sif(t, "status")
		must.Eq(t, 2, r.code)
		must.StrNotContains(t, r.stdout, "All is well")
	})
	world.allWell(t, 40*time.Second)
	world.verified(t, 20*time.Second)
}
