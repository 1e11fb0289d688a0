// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package agent

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/types"
	"github.com/containernetworking/plugins/pkg/ns"
	"github.com/shoenig/test/must"
	"github.com/vishvananda/netlink"

	"github.com/sif-project/sif/internal/node/cnicall"
)

func showAttach(t *testing.T, h *cniHost) {
	for _, version := range []string{"0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"} {
		c := h.container(t)
		conf := h.entry(map[string]any{"cniVersion": version})
		result := h.add(t, c, conf)
		must.Eq(t, any(version), result["cniVersion"])
		ep, has := h.endpoints.get(cnicall.Attachment{ContainerID: c.id, IfName: "eth0"})
		must.True(t, has)
		// What the result says is there, in both namespaces, and nothing else.
		interfaces := result["interfaces"].([]any)
		must.Len(t, 2, interfaces)
		host, inside := interfaces[0].(map[string]any), interfaces[1].(map[string]any)
		must.Eq(t, any(ep.HostIf), host["name"])
		must.Nil(t, host["sandbox"])
		h.inNode(func() {
			link, err := netlink.LinkByName(ep.HostIf)
			must.NoError(t, err)
			must.Eq(t, host["mac"], any(link.Attrs().HardwareAddr.String()))
		})
		must.Eq(t, any("eth0"), inside["name"])
		must.Eq(t, any(c.netns), inside["sandbox"])
		must.NoError(t, c.Do(func(ns.NetNS) error {
			link, err := netlink.LinkByName("eth0")
			must.NoError(t, err)
			must.Eq(t, inside["mac"], any(link.Attrs().HardwareAddr.String()))
			if version == "1.1.0" {
				must.Eq(t, inside["mtu"], any(float64(link.Attrs().MTU)))
			} else {
				must.Nil(t, inside["mtu"])
			}
			return nil
		}))
		ips := result["ips"].([]any)
		must.Len(t, 2, ips)
		for i, addr := range []netip.Addr{ep.IPv4, ep.IPv6} {
			ip := ips[i].(map[string]any)
			must.Eq(t, any(single(addr).String()), ip["address"])
			must.Eq(t, any(float64(1)), ip["interface"])
			must.StrContains(t, c.inside(t, "ip", "-o", "addr", "show", "dev", "eth0"), single(addr).String()+" scope global")
			if version < "1.0.0" {
				must.Eq(t, any([]string{"4", "6"}[i]), ip["version"])
			}
		}
		must.Len(t, 2, result["routes"].([]any))
		must.StrContains(t, c.inside(t, "ip", "route"), "default via 169.254.1.1")
		must.Eq(t, any([]any{"169.254.1.1"}), result["dns"].(map[string]any)["nameservers"])
		h.well(t, "DEL", c, conf)
		must.False(t, c.has(t, "eth0"))
	}
	// An allocation of Nomad is what Nomad says, whatever the configuration has for others.
	c := h.container(t)
	h.add(t, c, h.entry(nil), "CNI_ARGS=IgnoreUnknown=true;NOMAD_ALLOC_ID=alloc")
	ep, _ := h.endpoints.get(cnicall.Attachment{ContainerID: c.id, IfName: "eth0"})
	must.Eq(t, "alloc", ep.ID)
	must.Nil(t, ep.Attached)
	h.well(t, "DEL", c, h.entry(nil))
}

// A runtime should not, but Nomad does: after a reboot, or when CHECK failed.
func showAttachAgain(t *testing.T, h *cniHost) {
	c := h.container(t)
	first := h.add(t, c, h.entry(nil))
	must.Eq(t, first, h.add(t, c, h.entry(nil)))
	second := container{c.id, "", newNamespace(t)}
	second.netns = second.Path()
	again := h.add(t, second, h.entry(nil))
	must.Eq(t, first["ips"], again["ips"])
	must.False(t, c.has(t, "eth0"))
	must.True(t, second.has(t, "eth0"))
	h.well(t, "DEL", second, h.entry(nil))
}

func showChain(t *testing.T, h *cniHost) {
	for _, version := range []string{"0.3.1", "0.4.0", "1.0.0", "1.1.0"} {
		c := h.container(t)
		previous := map[string]any{
			"interfaces": []any{map[string]any{"name": "lo", "mac": "00:00:00:00:00:00", "sandbox": c.netns}},
			"ips":        []any{map[string]any{"version": "4", "address": "127.0.0.1/8", "interface": 0}},
			"routes":     []any{map[string]any{"dst": "198.51.100.0/24", "gw": "127.0.0.1"}},
			"dns":        map[string]any{"nameservers": []any{"192.0.2.53"}, "search": []any{"example.com"}},
		}
		if version != "0.3.1" { // it could leave its version out
			previous["cniVersion"] = version
		}
		conf := h.entry(map[string]any{"cniVersion": version, "prevResult": previous})
		result := h.add(t, c, conf)
		interfaces, ips := result["interfaces"].([]any), result["ips"].([]any)
		must.Len(t, 3, interfaces)
		must.Eq(t, any("lo"), interfaces[0].(map[string]any)["name"])
		must.Eq(t, any("127.0.0.1/8"), ips[0].(map[string]any)["address"])
		must.Eq(t, any(float64(0)), ips[0].(map[string]any)["interface"])
		must.Eq(t, any(float64(2)), ips[1].(map[string]any)["interface"])
		must.Len(t, 3, result["routes"].([]any))
		must.Eq(t, any([]any{"169.254.1.1"}), result["dns"].(map[string]any)["nameservers"], must.Sprint("our resolver is the only one"))
		conf["prevResult"] = result
		if version != "0.3.1" {
			h.well(t, "CHECK", c, conf)
		}
		h.well(t, "DEL", c, conf)
	}
}

func showNameTaken(t *testing.T, h *cniHost) {
	c := h.container(t)
	c.inside(t, "ip", "link", "add", "eth0", "type", "veth", "peer", "name", "other")
	h.fails(t, cnicall.CodeTaken, "an interface eth0 already", "ADD", c, h.entry(nil))
	must.True(t, c.has(t, "eth0"))
	h.well(t, "DEL", c, h.entry(nil))
	must.True(t, c.has(t, "eth0"))
	h.fails(t, types.ErrInvalidEnvironmentVariables, "those of sif attach", "ADD", container{"attached-web", c.netns, c}, h.entry(nil))
}

func showNetworkNames(t *testing.T, h *cniHost) {
	c := h.container(t)
	for _, name := range []string{"", "-net", "a/b", "a b", "../net"} {
		h.fails(t, types.ErrInvalidNetworkConfig, "name", "ADD", c, h.entry(map[string]any{"name": name}))
	}
	h.fails(t, types.ErrInvalidNetworkConfig, "name", "GC", c, h.entry(map[string]any{"name": nil}))
}

func showContainerIDs(t *testing.T, h *cniHost) {
	c := h.container(t)
	for _, id := range []string{"", "-c", "_c", ".", "a/b", "a b", "ä", "a\n"} {
		for _, command := range []string{"ADD", "CHECK", "DEL"} {
			h.fails(t, types.ErrInvalidEnvironmentVariables, "CNI_CONTAINERID", command, container{id, c.netns, c}, h.entry(nil))
		}
	}
	for _, id := range []string{"a", "0_A.b-c", strings.Repeat("x", 200)} {
		odd := container{id, c.netns, c}
		h.add(t, odd, h.entry(nil))
		h.well(t, "DEL", odd, h.entry(nil))
	}
}

func showInterfaceNames(t *testing.T, h *cniHost) {
	c := h.container(t)
	for _, name := range []string{"", ".", "..", "a/b", "a:b", "a b", "sixteen-characte"} {
		for _, command := range []string{"ADD", "CHECK", "DEL"} {
			h.fails(t, types.ErrInvalidEnvironmentVariables, "CNI_IFNAME", command, c, h.entry(nil), "CNI_IFNAME="+name)
		}
	}
	// Two attachments of one container differ in the name.
	h.add(t, c, h.entry(nil))
	h.add(t, c, h.entry(nil), "CNI_IFNAME=fifteen-charact")
	must.True(t, c.has(t, "fifteen-charact"))
	h.well(t, "DEL", c, h.entry(nil), "CNI_IFNAME=fifteen-charact")
	must.True(t, c.has(t, "eth0"))
	h.well(t, "DEL", c, h.entry(nil))
}

func showVariables(t *testing.T, h *cniHost) {
	c := h.container(t)
	for _, command := range []string{"ADD", "CHECK"} {
		h.fails(t, types.ErrInvalidEnvironmentVariables, "missing: CNI_CONTAINERID, CNI_IFNAME, CNI_NETNS", command, c, h.entry(nil), "CNI_CONTAINERID=", "CNI_IFNAME=", "CNI_NETNS=")
	}
	h.fails(t, types.ErrInvalidEnvironmentVariables, "missing: CNI_CONTAINERID, CNI_IFNAME", "DEL", c, h.entry(nil), "CNI_CONTAINERID=", "CNI_IFNAME=", "CNI_NETNS=")
	h.fails(t, types.ErrInvalidEnvironmentVariables, "CNI_COMMAND", "add", c, h.entry(nil))
	h.fails(t, types.ErrInvalidEnvironmentVariables, "CNI_NETNS", "ADD", c, h.entry(nil), "CNI_NETNS=/nowhere")
	h.fails(t, types.ErrInvalidEnvironmentVariables, "CNI_NETNS: /dev/null is not a network namespace", "ADD", c, h.entry(nil), "CNI_NETNS=/dev/null")
	h.fails(t, types.ErrInvalidEnvironmentVariables, "CNI_NETNS: /proc/self/ns/mnt is not a network namespace", "ADD", c, h.entry(nil), "CNI_NETNS=/proc/self/ns/mnt")
	h.fails(t, types.ErrInvalidEnvironmentVariables, "node's own", "ADD", c, h.entry(nil), "CNI_NETNS="+h.node.Path())
	h.fails(t, types.ErrInvalidEnvironmentVariables, "CNI_ARGS", "ADD", c, h.entry(nil), "CNI_ARGS=a")
	h.fails(t, types.ErrInvalidEnvironmentVariables, "NOMAD_ALLOC_ID", "ADD", c, h.entry(map[string]any{"consul_service": nil}))
	// The others are optional, and it delegates nothing, so it needs no CNI_PATH.
	h.add(t, c, h.entry(nil), "CNI_PATH=", "CNI_ARGS=")
	h.well(t, "CHECK", c, h.entry(nil), "CNI_PATH=")
	h.well(t, "DEL", c, h.entry(nil), "CNI_PATH=", "CNI_NETNS=")
	h.well(t, "STATUS", container{}, h.entry(nil), "CNI_PATH=", "CNI_IFNAME=")
	h.well(t, "GC", container{}, h.entry(map[string]any{"cni.dev/valid-attachments": []any{}}), "CNI_PATH=", "CNI_IFNAME=")
}

func showVersions(t *testing.T, h *cniHost) {
	c := h.container(t)
	for _, version := range []string{"0.4.0", "1.0.0", "1.1.0", "2.0.0"} {
		stdout, stderr, code := h.run(t, "VERSION", container{}, map[string]any{"cniVersion": version})
		must.Eq(t, []any{0, ""}, []any{code, stderr})
		must.Eq(t, `{"cniVersion":"`+version+`","supportedVersions":["0.3.0","0.3.1","0.4.0","1.0.0","1.1.0"]}`+"\n", stdout)
	}
	h.fails(t, types.ErrDecodingFailure, "version", "VERSION", container{}, "{")
	for _, version := range []any{nil, "", "0.2.0", "1.2.0", "2.0.0", "x", "1.1.0.0"} {
		for _, command := range []string{"ADD", "CHECK", "DEL", "GC", "STATUS"} {
			h.fails(t, types.ErrIncompatibleCNIVersion, "cniVersion", command, c, h.entry(map[string]any{"cniVersion": version}))
		}
	}
	h.fails(t, types.ErrIncompatibleCNIVersion, "has no CHECK, which came with 0.4.0", "CHECK", c, h.entry(map[string]any{"cniVersion": "0.3.1"}))
	for _, command := range []string{"GC", "STATUS"} {
		h.fails(t, types.ErrIncompatibleCNIVersion, "which came with 1.1.0", command, c, h.entry(map[string]any{"cniVersion": "1.0.0"}))
	}
	// libcni takes the newest of the configuration's versions.
	data, err := json.Marshal(map[string]any{"cniVersions": []string{"0.4.0", "1.1.0", "1.0.0"}, "name": "net", "plugins": []any{h.plain(nil)}})
	must.NoError(t, err)
	list, err := libcni.NetworkConfFromBytes(data)
	must.NoError(t, err)
	must.Eq(t, "1.1.0", list.CNIVersion)
}

func showUnknownFields(t *testing.T, h *cniHost) {
	c := h.container(t)
	conf := h.entry(map[string]any{"x": 1, "cni.dev/x": []any{nil}, "args": map[string]any{"labels": map[string]any{"a": "b"}}, "capabilities": map[string]bool{"bandwidth": true},
		"runtimeConfig": map[string]any{"bandwidth": map[string]any{"ingressRate": 1}}})
	h.add(t, c, conf)
	h.well(t, "CHECK", c, conf)
	h.well(t, "DEL", c, conf)
}

func showWellKnownKeys(t *testing.T, h *cniHost) {
	c := h.container(t)
	for want, changes := range map[string]map[string]any{
		`ipam: {"type":"host-local"}`:       {"ipam": map[string]any{"type": "host-local"}},
		"ipMasq: true":                      {"ipMasq": true},
		`dns: {"nameservers":["192.0.2.1"]`: {"dns": map[string]any{"nameservers": []string{"192.0.2.1"}}},
	} {
		h.fails(t, types.ErrUnsupportedField, want, "ADD", c, h.entry(changes))
	}
	conf := h.entry(map[string]any{"ipam": map[string]any{}, "ipMasq": false, "dns": map[string]any{"domain": "example.com", "search": []string{"a.example.com"}, "options": []string{"ndots:2"}}})
	result := h.add(t, c, conf)
	must.Eq(t, any(map[string]any{"nameservers": []any{"169.254.1.1"}, "domain": "example.com", "search": []any{"a.example.com"}, "options": []any{"ndots:2"}}), result["dns"])
	h.well(t, "DEL", c, conf)
}

// libcni loads what lies beside a network configuration, unless that forbids it.
func showInlinedPlugins(t *testing.T, h *cniHost) {
	dir := t.TempDir()
	must.NoError(t, os.MkdirAll(filepath.Join(dir, "net"), 0o755))
	must.NoError(t, os.WriteFile(filepath.Join(dir, "net", "10-tuning.conf"), []byte(`{"type": "tuning", "sysctl": {"net.core.somaxconn": "321"}}`), 0o600))
	for only, want := range map[bool]string{false: "321", true: "4096"} {
		data, err := json.Marshal(map[string]any{"cniVersion": "1.1.0", "name": "net", "loadOnlyInlinedPlugins": only, "plugins": []any{h.plain(nil)}})
		must.NoError(t, err)
		must.NoError(t, os.WriteFile(filepath.Join(dir, "net.conflist"), data, 0o600))
		list, err := libcni.LoadNetworkConf(dir, "net")
		must.NoError(t, err)
		c := h.container(t)
		cni := libcni.NewCNIConfigWithCacheDir([]string{h.bin}, t.TempDir(), nil)
		h.inNode(func() {
			_, err = cni.AddNetworkList(t.Context(), list, runtimeOf(c))
			must.NoError(t, err)
			got := strings.TrimSpace(c.inside(t, "cat", "/proc/sys/net/core/somaxconn"))
			must.Eq(t, want == "321", got == "321")
			must.NoError(t, cni.DelNetworkList(t.Context(), list, runtimeOf(c)))
		})
	}
}

func showDisableCheck(t *testing.T, h *cniHost) {
	list := h.list(t, "1.1.0", h.plain(nil))
	cni := libcni.NewCNIConfigWithCacheDir([]string{h.bin}, t.TempDir(), nil)
	c := h.container(t)
	h.inNode(func() {
		must.ErrorContains(t, cni.CheckNetworkList(t.Context(), list, runtimeOf(c)), "is not attached")
		list.DisableCheck = true
		must.NoError(t, cni.CheckNetworkList(t.Context(), list, runtimeOf(c)))
	})
}

// The network configuration that the agent installs is shared by whatever runtime reads it, so it
// is not for garbage collection.
func showDisableGC(t *testing.T, h *cniHost) {
	data, err := cniConfig(h.socket)
	must.NoError(t, err)
	installed, err := libcni.NetworkConfFromBytes(data)
	must.NoError(t, err)
	must.True(t, installed.DisableGC)
	c, cni := h.container(t), libcni.NewCNIConfigWithCacheDir([]string{h.bin}, t.TempDir(), nil)
	h.inNode(func() {
		r := runtimeOf(c)
		r.Args = [][2]string{{"NOMAD_ALLOC_ID", "alloc-gc"}}
		_, err := cni.AddNetworkList(t.Context(), installed, r)
		must.NoError(t, err)
		must.NoError(t, cni.GCNetworkList(t.Context(), installed, &libcni.GCArgs{}))
		must.True(t, h.known(c))
		must.NoError(t, cni.DelNetworkList(t.Context(), installed, r))
	})
}

func showErrors(t *testing.T, h *cniHost) {
	c := h.container(t)
	for _, e := range []struct {
		code     uint
		want     string
		command  string
		conf     any
		variable string
	}{
		{types.ErrIncompatibleCNIVersion, "0.1.0", "ADD", h.entry(map[string]any{"cniVersion": "0.1.0"}), ""},
		{types.ErrUnsupportedField, `ipam: {"type":"dhcp"}`, "ADD", h.entry(map[string]any{"ipam": map[string]any{"type": "dhcp"}}), ""},
		{types.ErrUnknownContainer, "is not attached", "CHECK", h.entry(nil), ""},
		{types.ErrInvalidEnvironmentVariables, "SIF_VM", "ADD", h.entry(nil), "CNI_ARGS=SIF_VM=perhaps"},
		{types.ErrInvalidNetworkConfig, "8388608 bytes", "ADD", strings.Repeat(" ", 9<<20), ""},
		{types.ErrDecodingFailure, "read the network configuration", "ADD", "", ""},
		{types.ErrDecodingFailure, "read the network configuration", "ADD", "[]", ""},
		{types.ErrDecodingFailure, "read the network configuration", "DEL", h.entry(map[string]any{"socket": 1}), ""},
		{types.ErrDecodingFailure, "prevResult", "ADD", h.entry(map[string]any{"prevResult": []any{}}), ""},
		{types.ErrDecodingFailure, "interface 0 is null", "ADD", h.entry(map[string]any{"prevResult": map[string]any{"interfaces": []any{nil}}}), ""},
		{types.ErrDecodingFailure, "address 0 is null", "CHECK", h.entry(map[string]any{"prevResult": map[string]any{"ips": []any{nil}}}), ""},
		{types.ErrDecodingFailure, "of interface 7", "DEL", h.entry(map[string]any{"prevResult": map[string]any{"ips": []any{map[string]any{"address": "192.0.2.1/24", "interface": 7}}}}), ""},
		{types.ErrInvalidNetworkConfig, `"socket"`, "ADD", h.entry(map[string]any{"socket": nil}), ""},
		{types.ErrInvalidNetworkConfig, `timeout "soon"`, "ADD", h.entry(map[string]any{"timeout": "soon"}), ""},
		{types.ErrInvalidNetworkConfig, `"service" is "shop/web"`, "ADD", h.entry(map[string]any{"consul_service": nil, "service": "shop/web"}), ""},
		{types.ErrTryAgainLater, "is not running", "ADD", h.entry(map[string]any{"socket": h.socket + ".none", "timeout": "300ms"}), ""},
		{types.ErrTryAgainLater, "is not registered", "ADD", h.entry(map[string]any{"consul_service": "none", "timeout": "300ms"}), ""},
		{cnicall.CodeRefused, "not admitted to the fabric: no selector matched", "ADD", h.entry(nil), "CNI_ARGS=NOMAD_ALLOC_ID=refused"},
		{types.ErrInternal, "no such allocation", "ADD", h.entry(map[string]any{"timeout": "300ms"}), "CNI_ARGS=NOMAD_ALLOC_ID=unknown"},
	} {
		env := []string{}
		if e.variable != "" {
			env = append(env, e.variable)
		}
		h.fails(t, e.code, e.want, e.command, c, e.conf, env...)
		must.False(t, c.has(t, "eth0"), must.Sprint(e.want))
		must.MapLen(t, 0, h.left(), must.Sprint(e.want))
	}
	// The version of an error is that of the configuration.
	stdout, _, _ := h.run(t, "CHECK", c, h.entry(map[string]any{"cniVersion": "0.4.0"}))
	must.StrHasPrefix(t, `{"cniVersion":"0.4.0","code":3,"msg":`, stdout)
}

func showDetach(t *testing.T, h *cniHost) {
	c := h.container(t)
	result := h.add(t, c, h.entry(nil))
	conf := h.entry(map[string]any{"prevResult": result})
	h.well(t, "DEL", c, conf)
	must.False(t, c.has(t, "eth0"))
	must.False(t, h.known(c))
	for range 2 {
		h.well(t, "DEL", c, conf)
	}
}

// DEL leaves nothing, whatever is missing.
func showDetachGone(t *testing.T, h *cniHost) {
	// Never attached, without prevResult, without the namespace.
	c := h.container(t)
	h.well(t, "DEL", c, h.entry(nil))
	h.well(t, "DEL", c, h.entry(nil), "CNI_NETNS=")
	h.well(t, "DEL", c, h.entry(nil), "CNI_NETNS=/nowhere")
	h.well(t, "DEL", c, h.entry(map[string]any{"prevResult": nil}))

	// The interface, or all of the namespace, is gone.
	h.add(t, c, h.entry(nil))
	c.inside(t, "ip", "link", "del", "eth0")
	h.well(t, "DEL", c, h.entry(nil))
	h.add(t, c, h.entry(nil))
	h.well(t, "DEL", c, h.entry(nil), "CNI_NETNS=/nowhere")
	must.False(t, h.known(c))
	must.False(t, c.has(t, "eth0"))

	// The agent is away: it finds out.
	h.add(t, c, h.entry(nil))
	stdout, stderr, code := h.run(t, "DEL", c, h.entry(map[string]any{"socket": h.socket + ".none"}))
	must.Eq(t, []any{0, ""}, []any{code, stdout})
	must.StrContains(t, stderr, "is left for the agent to clean up")
	must.True(t, h.known(c))
	h.well(t, "DEL", c, h.entry(nil))

	// After an ADD that failed.
	h.fails(t, types.ErrTryAgainLater, "is not registered", "ADD", c, h.entry(map[string]any{"consul_service": "none", "timeout": "300ms"}))
	h.well(t, "DEL", c, h.entry(nil))
}

func showCheck(t *testing.T, h *cniHost) {
	c := h.container(t)
	result := h.add(t, c, h.entry(nil))
	conf := h.entry(map[string]any{"prevResult": result})
	h.well(t, "CHECK", c, conf)

	// What is missing is put back, not reported: of a failed CHECK the runtime may think that the
	// container is lost.
	c.inside(t, "ip", "route", "del", "default")
	c.inside(t, "ip", "addr", "flush", "dev", "eth0")
	h.well(t, "CHECK", c, conf)
	must.StrContains(t, c.inside(t, "ip", "route"), "default via 169.254.1.1")
	for _, ip := range result["ips"].([]any) {
		must.StrContains(t, c.inside(t, "ip", "-o", "addr"), strings.Split(ip.(map[string]any)["address"].(string), "/")[0])
	}

	// What cannot be put back is an error.
	change := func(what string, edit func(map[string]any)) map[string]any {
		var other map[string]any
		data, err := json.Marshal(result)
		must.NoError(t, err, must.Sprint(what))
		must.NoError(t, json.Unmarshal(data, &other))
		edit(other)
		return h.entry(map[string]any{"prevResult": other})
	}
	h.fails(t, cnicall.CodeChanged, "no other plugin may change it", "CHECK", c, change("mac", func(r map[string]any) {
		r["interfaces"].([]any)[1].(map[string]any)["mac"] = "02:00:00:00:00:01"
	}))
	h.fails(t, cnicall.CodeChanged, "but by prevResult 100.64.0.99", "CHECK", c, change("address", func(r map[string]any) {
		r["ips"].([]any)[0].(map[string]any)["address"] = "100.64.0.99/32"
	}))
	elsewhere := h.container(t)
	h.fails(t, cnicall.CodeChanged, "has no interface eth0", "CHECK", container{c.id, elsewhere.netns, elsewhere}, conf)
	h.well(t, "CHECK", c, h.entry(nil))
	c.inside(t, "ip", "link", "del", "eth0")
	h.fails(t, cnicall.CodeChanged, "no longer exists", "CHECK", c, conf)
	h.well(t, "DEL", c, conf)
	h.fails(t, types.ErrUnknownContainer, "is not attached", "CHECK", c, conf)
	h.fails(t, types.ErrTryAgainLater, "is not running", "CHECK", c, h.entry(map[string]any{"socket": h.socket + ".none", "timeout": "300ms"}))
}

// Plugins after ours may add routes, addresses and interfaces.
func showCheckAfterOthers(t *testing.T, h *cniHost) {
	c := h.container(t)
	result := h.add(t, c, h.entry(nil))
	c.inside(t, "ip", "link", "add", "more0", "type", "veth", "peer", "name", "more1")
	c.inside(t, "ip", "addr", "add", "192.0.2.7/24", "dev", "eth0")
	c.inside(t, "ip", "route", "add", "198.51.100.0/24", "via", "169.254.1.1")
	result["interfaces"] = append(result["interfaces"].([]any), map[string]any{"name": "more0", "sandbox": c.netns})
	result["ips"] = append(result["ips"].([]any), map[string]any{"address": "192.0.2.7/24", "interface": 1}, map[string]any{"address": "192.0.2.8/24", "interface": 2})
	result["routes"] = []any{map[string]any{"dst": "198.51.100.0/24"}}
	conf := h.entry(map[string]any{"prevResult": result})
	h.well(t, "CHECK", c, conf)
	must.StrContains(t, c.inside(t, "ip", "-o", "addr"), "192.0.2.7/24")
	must.StrContains(t, c.inside(t, "ip", "route"), "198.51.100.0/24")
	h.well(t, "DEL", c, conf)
}

func showStatus(t *testing.T, h *cniHost) {
	h.well(t, "STATUS", container{}, h.entry(nil))
	h.fails(t, types.ErrLimitedConnectivity, "is not running", "STATUS", container{}, h.entry(map[string]any{"socket": h.socket + ".none"}))
	h.engines.mu.Lock()
	conns := h.engines.conns
	h.engines.conns = nil
	h.engines.mu.Unlock()
	h.fails(t, types.ErrPluginNotAvailable, "no engine of zone", "STATUS", container{}, h.entry(nil))
	// It only informs: DEL works all the same.
	h.well(t, "DEL", h.container(t), h.entry(nil))
	h.engines.mu.Lock()
	h.engines.conns = conns
	h.engines.mu.Unlock()

	var taken []netip.Addr
	for {
		v4, _, err := h.addresses.take(h.now())
		if errors.Is(err, errPoolExhausted) {
			break
		}
		must.NoError(t, err)
		taken = append(taken, v4)
	}
	must.StrContains(t, strings.Join(h.nearlyFull(), ""), "is nearly used up")
	h.fails(t, types.ErrPluginNotAvailable, "no address of 100.64.0.0/24 is free", "STATUS", container{}, h.entry(nil))
	c := h.container(t)
	h.fails(t, types.ErrTryAgainLater, "exhausted", "ADD", c, h.entry(nil))
	must.False(t, c.has(t, "eth0"))
	for _, v4 := range taken {
		h.addresses.giveBack(v4)
	}
	must.SliceEmpty(t, h.nearlyFull())
	h.well(t, "STATUS", container{}, h.entry(nil))
}

func showCollect(t *testing.T, h *cniHost) {
	one, two, nomad, byHand := h.container(t), h.container(t), h.container(t), h.make("collect")
	here := func(name string) map[string]any { return h.entry(map[string]any{"name": name}) }
	h.add(t, one, here("net"))
	h.add(t, two, here("net"))
	h.add(t, nomad, here("other"), "CNI_ARGS=NOMAD_ALLOC_ID=alloc-1")
	_, err := h.call(h.request("collect", "web", byHand))
	must.NoError(t, err)
	at := func(c container) map[string]any { return map[string]any{"containerID": c.id, "ifname": "eth0"} }
	collect := func(list any, keys ...string) {
		conf := here("net")
		for _, key := range keys {
			conf[key] = list
		}
		h.well(t, "GC", container{}, conf)
	}
	must.Len(t, 4, h.endpoints.all())
	both := []any{at(one), at(two)}
	collect(both, "cni.dev/valid-attachments", "cni.dev/attachments")
	collect(both, "cni.dev/attachments")
	collect(nil) // it does not say
	must.Len(t, 4, h.endpoints.all())

	// Another program with a network of the same name.
	foreign := h.container(t)
	r := cnicall.Request{Command: "GC", Network: "net", Runtime: "podman", Valid: []cnicall.Attachment{{ContainerID: foreign.id, IfName: "eth0"}}}
	_, err = h.call(r)
	must.NoError(t, err)
	r.Network, r.Runtime = "", ""
	_, err = h.call(r)
	must.ErrorContains(t, err, "so nothing is detached")
	must.Len(t, 4, h.endpoints.all())

	// Stale ones go, with their namespace or without it, and the others stay.
	collect([]any{at(two), at(foreign)}, "cni.dev/valid-attachments")
	must.False(t, h.known(one))
	must.False(t, one.has(t, "eth0"))
	must.True(t, h.known(two) && h.known(nomad) && two.has(t, "eth0") && nomad.has(t, "eth0"))
	must.SliceNotEmpty(t, addressesIn(t, byHand))
	collect([]any{}, "cni.dev/valid-attachments")
	must.Len(t, 2, h.endpoints.all())

	// As many as the largest pool has.
	many := make([]any, 4093)
	for i := range many {
		many[i] = map[string]any{"containerID": fmt.Sprintf("%064d", i), "ifname": "eth0"}
	}
	collect(many, "cni.dev/valid-attachments", "cni.dev/attachments")
	h.well(t, "DEL", nomad, here("other"))
	x := cnicall.AttachmentOf("collect")
	_, err = h.call(cnicall.Request{Command: "DEL", ContainerID: x.ContainerID, IfName: x.IfName})
	must.NoError(t, err)
}

func showConcurrency(t *testing.T, h *cniHost) {
	var all sync.WaitGroup
	var mu sync.Mutex
	addresses := map[string]bool{}
	containers := make([]container, 12)
	for i := range containers {
		containers[i] = h.container(t)
	}
	for _, c := range containers {
		all.Go(func() {
			result := h.add(t, c, h.entry(nil))
			h.well(t, "CHECK", c, h.entry(map[string]any{"prevResult": result}))
			mu.Lock()
			for _, ip := range result["ips"].([]any) {
				addresses[ip.(map[string]any)["address"].(string)] = true
			}
			mu.Unlock()
			h.well(t, "DEL", c, h.entry(nil))
		})
	}
	all.Wait()
	must.MapLen(t, 2*len(containers), addresses)
}

// The command line of the CNI project, as another program than libcni in this test.
func showCNITool(t *testing.T, h *cniHost) {
	for _, version := range []string{"0.4.0", "1.0.0", "1.1.0"} {
		h.written(t, map[string]any{"cniVersion": version, "name": "net", "plugins": []any{h.plain(nil)}})
		c := h.container(t)
		out, err := h.cnitool(t, "add", c)
		must.NoError(t, err, must.Sprint(out))
		must.StrContains(t, out, `"cniVersion": "`+version+`"`)
		must.True(t, c.has(t, "eth0"))
		must.Len(t, 1, h.listAttached())
		for _, command := range []string{"check", "status", "del", "del"} {
			out, err = h.cnitool(t, command, c)
			must.NoError(t, err, must.Sprint(command, out))
		}
		must.False(t, c.has(t, "eth0"))
		out, err = h.cnitool(t, "check", c)
		must.Error(t, err, must.Sprint(out))

		// It collects what it added, and nothing that this test added.
		ours := h.container(t)
		h.add(t, ours, h.entry(nil))
		_, err = h.cnitool(t, "add", c)
		must.NoError(t, err)
		out, err = h.cnitool(t, "gc", c)
		must.NoError(t, err, must.Sprint(out))
		must.False(t, c.has(t, "eth0"))
		must.True(t, ours.has(t, "eth0"))
		h.well(t, "DEL", ours, h.entry(nil))
	}
}
