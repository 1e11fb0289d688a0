// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package command

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/containernetworking/plugins/pkg/ns"
	consulapi "github.com/hashicorp/consul/api"
	"github.com/shoenig/test/must"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/sif-project/sif/api"
	"github.com/sif-project/sif/engine/ovs/ovstest"
	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/internal/join"
	"github.com/sif-project/sif/internal/setup/setuptest"
	"github.com/sif-project/sif/internal/testhost"
)

// guest is a network namespace as a machine, with directories of its own. It reaches the servers of
// the test at their addresses on the loopback interface.
type guest struct {
	t         *testing.T
	namespace string
	dir       string
	address   string
	env       []string
}

func newGuest(t *testing.T, namespace, address string, servers ...string) *guest {
	g := &guest{t: t, namespace: namespace, dir: t.TempDir(), address: address}
	t.Cleanup(func() { // if the machine has not left
		_ = unix.Unmount(g.path("bpf"), unix.MNT_DETACH)
		if address == "192.0.2.2" {
			_ = netns.DeleteNamed("sif-p1-l0")
		}
	})
	g.run("ip", "link", "set", "lo", "up")
	// Addresses are complete at once, so that two states can be compared.
	g.run("sh", "-c", "echo 0 > /proc/sys/net/ipv6/conf/default/accept_dad; echo 0 > /proc/sys/net/ipv6/conf/all/accept_dad")
	// A namespace has the machine's values.
	g.run("sh", "-c", "echo 0 > /proc/sys/net/ipv4/ip_forward; echo 0 > /proc/sys/net/ipv6/conf/all/forwarding")
	g.run("ip", "link", "add", "eth0", "type", "veth", "peer", "name", "eth0-far")
	g.run("ip", "addr", "add", address+"/24", "dev", "eth0")
	g.run("ip", "link", "set", "eth0", "up")
	g.run("ip", "link", "set", "eth0-far", "up")
	space, err := ns.GetNS("/run/netns/" + namespace)
	must.NoError(t, err)
	defer space.Close()
	for _, server := range servers {
		must.NoError(t, space.Do(func(ns.NetNS) error {
			l, err := net.Listen("tcp", server)
			if err == nil {
				t.Cleanup(func() { l.Close() })
				go relay(l, server)
			}
			return err
		}))
	}
	g.env = slices.DeleteFunc(os.Environ(), func(v string) bool {
		return strings.HasPrefix(v, "CONSUL_") || strings.HasPrefix(v, "VAULT_") || strings.HasPrefix(v, "NOMAD_") || strings.HasPrefix(v, "SIF_")
	})
	return g
}

// relay passes connections on to a server in the namespace of the test.
func relay(l net.Listener, server string) {
	for {
		near, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			defer near.Close()
			far, err := net.Dial("tcp", server)
			if err != nil {
				return
			}
			defer far.Close()
			go func() {
				_, _ = io.Copy(far, near)
				_ = far.(*net.TCPConn).CloseWrite()
			}()
			_, _ = io.Copy(near, far)
		}()
	}
}

func (g *guest) command(args ...string) *exec.Cmd {
	cmd := exec.Command("nsenter", append([]string{"--net=/run/netns/" + g.namespace}, args...)...)
	cmd.Env = g.env
	return cmd
}

func (g *guest) try(args ...string) (string, error) {
	out, err := g.command(args...).CombinedOutput()
	return string(out), err
}

func (g *guest) run(args ...string) string {
	g.t.Helper()
	out, err := g.try(args...)
	must.NoError(g.t, err, must.Sprintf("%s: %s", strings.Join(args, " "), out))
	return out
}

func (g *guest) path(name string) string { return filepath.Join(g.dir, name) }

// directories are the options of sif node join and leave.
func (g *guest) directories() []string {
	return []string{"-config-dir=" + g.path("etc"), "-data-dir=" + g.path("var"), "-run-dir=" + g.path("run"), "-bpf-dir=" + g.path("bpf")}
}

// start starts a daemon as sif node join said, and returns its process.
func (g *guest) start(command string) *exec.Cmd {
	g.t.Helper()
	cmd := g.command(strings.Fields(command)...)
	log, err := os.Create(filepath.Join(g.t.TempDir(), "log"))
	must.NoError(g.t, err)
	cmd.Stdout, cmd.Stderr = log, log
	must.NoError(g.t, cmd.Start())
	ended := make(chan struct{})
	go func() {
		_ = cmd.Wait()
		close(ended)
	}()
	g.t.Cleanup(func() {
		_ = cmd.Process.Kill()
		<-ended
		if text, err := os.ReadFile(log.Name()); g.t.Failed() && err == nil {
			g.t.Logf("%s:\n%s", command, text)
		}
	})
	return cmd
}

// state is all that a machine shows of the fabric, by what was asked.
func (g *guest) state() map[string]string {
	g.t.Helper()
	s := map[string]string{}
	counters := regexp.MustCompile(`packets \d+ bytes \d+|\[\d+:\d+\]|(?m)^#.*$`)
	ask := func(args ...string) {
		text, err := g.try(args...)
		if err != nil {
			text = err.Error()
		}
		s[strings.Join(args, " ")] = counters.ReplaceAllString(text, "")
	}
	ask("ip", "-o", "link")
	ask("ip", "-o", "addr")
	ask("ip", "route", "show", "table", "all")
	ask("ip", "-6", "route", "show", "table", "all")
	ask("ip", "rule")
	ask("ip", "neigh", "show", "nud", "permanent")
	ask("nft", "list", "ruleset")
	ask("iptables-save")
	ask("ip6tables-save")
	ask("sh", "-c", "cd /proc/sys/net && grep -r . ipv4/conf/*/forwarding ipv6/conf/*/forwarding ipv4/conf/*/accept_redirects ipv4/ip_forward ipv6/conf/lo ipv4/conf/all ipv6/conf/all | sort")
	mounts, err := os.ReadFile("/proc/self/mounts")
	must.NoError(g.t, err)
	for line := range strings.Lines(string(mounts)) {
		if strings.Contains(line, g.dir) {
			s["mounts"] += line
		}
	}
	spaces, err := os.ReadDir("/run/netns")
	must.NoError(g.t, err)
	for _, e := range spaces {
		if strings.HasPrefix(e.Name(), "sif-p1-") && g.address == "192.0.2.2" {
			s["namespaces"] += e.Name() + "\n"
		}
	}
	must.NoError(g.t, filepath.WalkDir(g.dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil {
			s["files"] += path + "\n"
		}
		return err
	}))
	return s
}

// differences are what two states do not have in common.
func differences(before, after map[string]string) string {
	var b strings.Builder
	for what, was := range before {
		if is := after[what]; is != was {
			fmt.Fprintf(&b, "%s was\n%s\nand is\n%s\n", what, was, is)
		}
	}
	for what, is := range after {
		if _, known := before[what]; !known {
			fmt.Fprintf(&b, "%s was not there, and is\n%s\n", what, is)
		}
	}
	return b.String()
}

// A machine joins with real daemons and leaves. What it has afterwards is what it had before.
func TestNodeLeave(t *testing.T) {
	testhost.RequireRoot(t)
	for _, program := range []string{"nsenter", "ip", "nft", "iptables-save"} {
		testhost.RequireProgram(t, program)
	}
	servers := startServers(t)
	j := newJoining(t, servers.vaultAddress, servers.vault, servers.consulAddress, workloadNode("w1"),
		setuptest.Node{NodeID: fabric.NodeID{Zone: "aws1", Name: "p1"}, Kind: fabric.KindProcessor})
	// Daemons need no token there.
	all := `key_prefix "" { policy = "write" } service_prefix "" { policy = "write" } node_prefix "" { policy = "write" } agent_prefix "" { policy = "write" } session_prefix "" { policy = "write" }`
	policy, _, err := servers.consul.ACL().PolicyCreate(&consulapi.ACLPolicy{Name: "everybody", Rules: all}, nil)
	must.NoError(t, err)
	_, _, err = servers.consul.ACL().TokenUpdate(&consulapi.ACLToken{
		AccessorID: "00000000-0000-0000-0000-000000000002", SecretID: "anonymous", Policies: []*consulapi.ACLTokenPolicyLink{{Name: policy.Name}},
	}, nil)
	must.NoError(t, err)
	c := servers.startController(t)
	addresses := []string{strings.TrimPrefix(servers.vaultAddress, "http://"), servers.consulAddress, c.address}
	installPlugin(t)

	t.Run("workload", func(t *testing.T) {
		t.Parallel()
		name := ovstest.Namespace(t, "w")
		g := newGuest(t, name, "192.0.2.1", addresses...)
		testLeave(t, g, c, func() string { return j.token(t, "w1", func(g *join.Grant) { g.Controllers = []string{c.address} }) }, "", "agent")
	})
	t.Run("processor", func(t *testing.T) {
		t.Parallel()
		instance := ovstest.Start(t)
		g := newGuest(t, instance.Namespace, "192.0.2.2", addresses...)
		more := fmt.Sprintf("\novs {\n  rundir = %q\n  control = %q\n  bridge = %q\n}\nengine {\n  listen = \"192.0.2.2:8441\"\n}\n", instance.Config.RunDir, instance.Config.Control, instance.Config.Bridge)
		db := "--db=unix:" + filepath.Join(instance.Config.RunDir, "db.sock")
		before := g.run("ovs-vsctl", db, "show") + g.run("ovs-vsctl", db, "list", "datapath") + g.run("ovs-vsctl", db, "list", "ct_zone")
		testLeave(t, g, c, func() string {
			return j.token(t, "p1", func(g *join.Grant) { g.Kinds, g.Controllers = []join.Kind{join.Processor}, []string{c.address} })
		}, more, "engine")
		must.Eq(t, before, g.run("ovs-vsctl", db, "show")+g.run("ovs-vsctl", db, "list", "datapath")+g.run("ovs-vsctl", db, "list", "ct_zone"))
	})
}

// installPlugin puts a plugin beside the sif of the tests, which an agent installs.
func installPlugin(t *testing.T) {
	sif, err := exec.LookPath("sif")
	must.NoError(t, err)
	sif, err = filepath.EvalSymlinks(sif)
	must.NoError(t, err)
	plugin := filepath.Join(filepath.Dir(sif), "sif-cni")
	must.NoError(t, os.WriteFile(plugin, []byte("#!/bin/sh\n"), 0o755))
	t.Cleanup(func() { _ = os.Remove(plugin) })
}

func testLeave(t *testing.T, g *guest, c *controllerProcess, token func() string, more, daemon string) {
	// Somebody's firewall, in which the fabric inserts rules, and somebody's own configuration.
	g.run("iptables", "-P", "FORWARD", "DROP")
	g.run("iptables", "-A", "INPUT", "-i", "eth0", "-p", "tcp", "--dport", "22", "-j", "ACCEPT")
	g.run("ip", "route", "add", "198.51.100.0/24", "via", "192.0.2.254", "onlink", "dev", "eth0")
	g.run("sh", "-c", "echo 1 > /proc/sys/net/ipv4/conf/eth0/forwarding")
	must.NoError(t, os.MkdirAll(g.path("cni-bin"), 0o755))
	must.NoError(t, os.WriteFile(g.path("cni-bin/bridge"), nil, 0o755))
	before := g.state()

	g.env = append(g.env, "CONSUL_HTTP_ADDR="+c.consulAddress)
	join := append([]string{"sif", "node", "join", "-no-start", "-json", "-underlay-interface=eth0",
		"-cni-plugin-dir=" + g.path("cni-bin"), "-cni-config-dir=" + g.path("cni/config"), "-nomad-address=http://127.0.0.1:1"}, g.directories()...)
	begin := func(args ...string) []*exec.Cmd {
		t.Helper()
		out := g.run(append(join, args...)...)
		var reply joinReply
		must.NoError(t, json.Unmarshal([]byte(out), &reply), must.Sprint(out))
		file := g.path("etc/" + daemon + ".hcl")
		text, err := os.ReadFile(file)
		must.NoError(t, err)
		text = regexp.MustCompile(`\novs \{\n\}\n`).ReplaceAll(text, nil)
		must.NoError(t, os.WriteFile(file, append(text, more...), 0o600))
		var running []*exec.Cmd
		for _, command := range reply.Next {
			if strings.HasPrefix(command, "sif link") || strings.HasPrefix(command, "sif "+daemon) {
				running = append(running, g.start(command))
			}
		}
		must.Len(t, 2, running)
		eventually(t, func() error {
			list, err := c.client(t).Nodes(t.Context())
			if err == nil && !slices.ContainsFunc(list.Nodes, func(n api.NodeInfo) bool { return n.Node.Underlay.String() == g.address && !n.Reported.IsZero() }) {
				err = errors.New("the node has not reported yet")
			}
			return err
		})
		eventually(t, func() error {
			out, err := g.try("ip", "-o", "link")
			if spaces, _ := os.ReadDir("/run/netns"); err == nil && !strings.Contains(out, "sif-l0") && !slices.ContainsFunc(spaces, func(e fs.DirEntry) bool { return e.Name() == "sif-p1-l0" }) {
				err = errors.New("it has no link yet")
			}
			return err
		})
		eventually(t, func() error {
			out, err := g.try("iptables", "-S", "FORWARD")
			if err == nil && !strings.Contains(out, "sif-fabric") {
				err = errors.New("it has not inserted its rules yet")
			}
			return err
		})
		return running
	}
	leave := append([]string{"sif", "node", "leave"}, g.directories()...)
	gone := func() {
		t.Helper()
		must.Eq(t, "", differences(before, g.state()))
		out := g.run(leave...)
		must.StrContains(t, out, "Nothing of the fabric is on this machine.")
	}

	begin(token())
	must.NotEq(t, "", differences(before, g.state()))
	dry := g.run(append(leave, "-dry-run")...)
	for _, text := range []string{"inet sif", "sif-fabric", g.path("etc/vault-secret-id"), "sif " + daemon, "sif link", "net.ipv4.ip_forward=0"} {
		if daemon == "engine" && strings.HasPrefix(text, "net.") { // a processor forwards in namespaces of its own
			continue
		}
		must.StrContains(t, dry, text)
	}
	out := g.run(leave...)
	must.StrContains(t, out, "This machine has left the fabric.")
	must.StrContains(t, out, "sif node remove aws1/"+map[string]string{"agent": "w1", "engine": "p1"}[daemon])
	gone()

	// All daemons crashed, and an earlier leave was interrupted. What is kept joins again.
	for _, p := range begin(token()) {
		must.NoError(t, p.Process.Kill())
	}
	must.NoError(t, os.RemoveAll(g.path("run")))
	g.run("nft", "delete", "table", "inet", "sif")
	out = g.run(append(leave, "-keep-config", "-json")...)
	var reply leaveReply
	must.NoError(t, json.Unmarshal([]byte(out), &reply), must.Sprint(out))
	must.SliceEmpty(t, reply.Failed)
	must.SliceNotEmpty(t, reply.Leftovers)
	after := g.state()
	files, kept := before["files"], after["files"]
	delete(before, "files")
	delete(after, "files")
	must.Eq(t, "", differences(before, after))
	must.StrContains(t, kept, g.path("etc/vault-secret-id"))
	before["files"] = files
	begin("-resume")

	// A workload that runs here is named, and nothing is touched. With -force it is cut off.
	if daemon == "agent" {
		g.run("ip", "link", "add", "sif0123456789a", "type", "veth", "peer", "name", "inside")
		out, err := g.try(leave...)
		must.Error(t, err)
		must.StrContains(t, out, "a workload runs in the fabric on this machine: interface sif0123456789a; drain the node first with: sif node drain -enable aws1/w1")
		must.StrContains(t, g.run("nft", "list", "tables"), "inet sif")
		must.StrContains(t, g.run("ip", "-o", "link"), "sif0123456789a")
		must.StrContains(t, g.state()["files"], g.path("etc/vault-secret-id"))
		leave = append(leave, "-force")
	}
	g.run(leave...)
	gone()
}
