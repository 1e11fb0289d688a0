// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package agent

import (
	"os/exec"
	"strings"
	"testing"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"
	"github.com/shoenig/test/must"

	"github.com/sif-project/sif/internal/node/cnicall"
)

// chained is an attachment by a list of plugins.
type chained struct {
	*cniHost
	container
	cni  *libcni.CNIConfig
	list *libcni.NetworkConfigList
	conf *libcni.RuntimeConf
}

func (h *cniHost) chained(t *testing.T, capabilities map[string]any, plugins ...map[string]any) chained {
	x := chained{cniHost: h, container: h.container(t), cni: libcni.NewCNIConfigWithCacheDir([]string{h.bin}, t.TempDir(), nil), list: h.list(t, "1.1.0", plugins...)}
	x.conf = runtimeOf(x.container)
	x.conf.CapabilityArgs = capabilities
	return x
}

func (x chained) add(t *testing.T) (result *current.Result, err error) {
	x.inNode(func() {
		var r types.Result
		if r, err = x.cni.AddNetworkList(t.Context(), x.list, x.conf); err == nil {
			result, err = current.GetResult(r)
		}
	})
	return result, err
}

func (x chained) check(t *testing.T) (err error) {
	x.inNode(func() { err = x.cni.CheckNetworkList(t.Context(), x.list, x.conf) })
	return err
}

func (x chained) del(t *testing.T) {
	t.Helper()
	var err error
	x.inNode(func() { err = x.cni.DelNetworkList(t.Context(), x.list, x.conf) })
	must.NoError(t, err)
	must.False(t, x.container.has(t, "eth0"))
	must.MapEmpty(t, x.left())
}

// repair does what the agent does every few seconds.
func (x chained) repair(t *testing.T) {
	t.Helper()
	ep, has := x.endpoints.get(cnicall.Attachment{ContainerID: x.id, IfName: "eth0"})
	must.True(t, has)
	x.inNode(func() { must.NoError(t, x.repairWorkload(ep)) })
}

// inNodeRun returns what a program prints in the namespace of the node.
func (h *cniHost) inNodeRun(t *testing.T, program ...string) (out string, err error) {
	h.inNode(func() {
		var text []byte
		text, err = exec.Command(program[0], program[1:]...).CombinedOutput()
		out = string(text)
	})
	return out, err
}

// What docs/cni.md says of other plugins in the list, with the CNI project's own.
func TestChainedPlugins(t *testing.T) {
	h := newCNIHost(t)
	ours := h.plain(nil)
	published := map[string]bool{"portMappings": true}
	ports := map[string]any{"portMappings": []any{map[string]any{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}}}
	rules := func() string {
		out, err := h.inNodeRun(t, "sh", "-c", "nft list ruleset; iptables-save; ip6tables-save")
		must.NoError(t, err, must.Sprint(out))
		return out
	}
	before := rules()
	for name, tc := range map[string]struct {
		capabilities map[string]any
		plugins      []map[string]any
		interfaces   string // in the result
		shown        func(x chained, result *current.Result)
	}{
		"loopback before": {nil, []map[string]any{{"type": "loopback"}, ours}, "lo HOST eth0", func(x chained, result *current.Result) {
			must.Eq(t, 2, *result.IPs[len(result.IPs)-1].Interface)
		}},
		"loopback after": {nil, []map[string]any{ours, {"type": "loopback"}}, "HOST eth0", nil},
		"tuning after": {nil, []map[string]any{ours, {"type": "tuning", "sysctl": map[string]string{"net.core.somaxconn": "321", "net.ipv4.conf.IFNAME.arp_filter": "1"}, "allmulti": true}}, "HOST eth0",
			func(x chained, _ *current.Result) {
				x.repair(t)
				must.Eq(t, "321", strings.TrimSpace(x.inside(t, "cat", "/proc/sys/net/core/somaxconn")))
				must.Eq(t, "1", strings.TrimSpace(x.inside(t, "cat", "/proc/sys/net/ipv4/conf/eth0/arp_filter")))
				must.StrContains(t, x.inside(t, "ip", "link", "show", "eth0"), "ALLMULTI")
			}},
		"portmap after": {ports, []map[string]any{ours, {"type": "portmap", "capabilities": published}}, "HOST eth0", func(x chained, _ *current.Result) {
			must.StrContains(t, rules(), "8080")
		}},
		"firewall after": {nil, []map[string]any{ours, {"type": "firewall", "backend": "iptables"}}, "HOST eth0", func(x chained, result *current.Result) {
			must.StrContains(t, rules(), strings.TrimSuffix(result.IPs[0].Address.String(), "/32"))
		}},
		"all at once": {ports, []map[string]any{{"type": "loopback"}, ours, {"type": "tuning"}, {"type": "portmap", "capabilities": published}}, "lo HOST eth0", nil},
	} {
		t.Run(name, func(t *testing.T) {
			x := h.chained(t, tc.capabilities, tc.plugins...)
			result, err := x.add(t)
			must.NoError(t, err)
			ep, _ := h.endpoints.get(cnicall.Attachment{ContainerID: x.id, IfName: "eth0"})
			var names []string
			for _, i := range result.Interfaces {
				names = append(names, strings.Replace(i.Name, ep.HostIf, "HOST", 1))
			}
			must.Eq(t, tc.interfaces, strings.Join(names, " "))
			must.Eq(t, []string{"169.254.1.1"}, result.DNS.Nameservers)
			if tc.shown != nil {
				tc.shown(x, result)
			}
			must.NoError(t, x.check(t))
			x.del(t)
			x.del(t)
		})
	}
	// portmap and firewall keep chains of their own, without what was in them.
	must.StrNotContains(t, strings.ReplaceAll(rules(), before, ""), "100.64.0.")

	// Other addresses than the fabric's are put back, and CHECK names them.
	t.Run("tuning of the hardware address", func(t *testing.T) {
		x := h.chained(t, nil, ours, map[string]any{"type": "tuning", "mac": "02:00:00:00:00:99"})
		_, err := x.add(t)
		must.NoError(t, err)
		must.StrContains(t, x.inside(t, "ip", "link", "show", "eth0"), "02:00:00:00:00:99")
		x.repair(t)
		must.StrNotContains(t, x.inside(t, "ip", "link", "show", "eth0"), "02:00:00:00:00:99")
		must.ErrorContains(t, x.check(t), "no other plugin may change it")
		x.del(t)
	})
	t.Run("tuning of the MTU", func(t *testing.T) {
		x := h.chained(t, nil, ours, map[string]any{"type": "tuning", "mtu": 1300})
		_, err := x.add(t)
		must.NoError(t, err)
		must.StrContains(t, x.inside(t, "ip", "link", "show", "eth0"), "mtu 1300")
		x.repair(t)
		must.StrContains(t, x.inside(t, "ip", "link", "show", "eth0"), "mtu 1376")
		x.del(t)
	})
	t.Run("an interface of that name before", func(t *testing.T) {
		x := h.chained(t, nil, map[string]any{"type": "ptp", "ipam": map[string]any{"type": "host-local", "subnet": "192.0.2.0/24", "dataDir": t.TempDir()}}, ours)
		_, err := x.add(t)
		must.ErrorContains(t, err, "an interface eth0 already")
		x.del(t)
	})
	// Whether the kernel can shape or not: nothing stays of it.
	t.Run("bandwidth after", func(t *testing.T) {
		x := h.chained(t, map[string]any{"bandwidth": map[string]any{"ingressRate": 8_000_000, "ingressBurst": 800_000}}, ours,
			map[string]any{"type": "bandwidth", "capabilities": map[string]bool{"bandwidth": true}})
		_, shapes := h.inNodeRun(t, "tc", "qdisc", "add", "dev", "lo", "root", "tbf", "rate", "8mbit", "burst", "100kb", "latency", "25ms")
		_, err := x.add(t)
		must.Eq(t, shapes == nil, err == nil, must.Sprint(shapes, err))
		if err == nil {
			must.NoError(t, x.check(t))
			ep, _ := h.endpoints.get(cnicall.Attachment{ContainerID: x.id, IfName: "eth0"})
			out, err := h.inNodeRun(t, "tc", "qdisc", "show", "dev", ep.HostIf)
			must.NoError(t, err)
			must.StrContains(t, out, "tbf")
		}
		x.del(t)
	})
}
