// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package lab

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/sif-project/sif/internal/wellknown"
)

const (
	controllerPort = 7700
	enginePort     = 7701
	bridge         = "sif0"
)

// wireguardOverhead is the most that WireGuard adds to a packet, in bytes: 80 over IPv6, 60 over
// IPv4.
const wireguardOverhead = 80

// ControllerAddress is the address of the first controller's API: HTTPS with the fabric's CA.
func (l *Lab) ControllerAddress() string {
	return "https://" + l.Controllers()[0]
}

// ControllerAddresses are the addresses of all controllers' APIs, separated by commas.
func (l *Lab) ControllerAddresses() string {
	return "https://" + strings.Join(l.Controllers(), ",https://")
}

// Controllers returns host:port of each controller, in the order of their nodes.
func (l *Lab) Controllers() []string {
	var list []string
	for _, n := range l.Topology.Nodes(Orchestrator) {
		list = append(list, fmt.Sprintf("%s:%d", n.Address, controllerPort))
	}
	return list
}

// EngineAddress returns host:port of a processor's engine.
func (l *Lab) EngineAddress(node *Node) string { return fmt.Sprintf("%s:%d", node.Address, enginePort) }

// BPFDir is a node's own BPF filesystem.
func (l *Lab) BPFDir(node string) string { return l.runDir(node, "bpf") }

// SIFRunDir is the directory of the sockets of a node's SIF daemons.
func (l *Lab) SIFRunDir(node string) string { return l.runDir(node, "sif") }

// WorkloadAPIDir is the directory of the socket of a node's Workload API.
func (l *Lab) WorkloadAPIDir(node string) string { return l.runDir(node, wellknown.WorkloadAPIVolume) }

// SIFDataDir is the directory of the files of a node's SIF daemons.
func (l *Lab) SIFDataDir(node string) string { return l.varDir(node, "sif") }

// DaemonDataDir is the directory of the files of one daemon.
func (l *Lab) DaemonDataDir(node *Node, daemon string) string {
	if daemon == "engine" && node.Is(Workload) {
		return filepath.Join(l.SIFDataDir(node.Name), daemon)
	}
	return l.SIFDataDir(node.Name)
}

// SIFConfig is the configuration file of a node's daemon: controller, engine or agent.
func (l *Lab) SIFConfig(node, daemon string) string { return l.varDir(node, daemon+".hcl") }

// startFabric starts the SIF daemons: the controller, then every node's links, agent and engine.
func (l *Lab) startFabric(ctx context.Context) error {
	for _, n := range l.Topology.Nodes(Orchestrator) {
		if err := l.startController(ctx, n); err != nil {
			return err
		}
	}
	g, ctx := errgroup.WithContext(ctx)
	for _, n := range l.Topology.Nodes(Processor, Workload) {
		g.Go(func() error { return l.startNode(ctx, n) })
	}
	return g.Wait()
}

func (l *Lab) startController(ctx context.Context, node *Node) error {
	secret, err := l.secretFile(node.Name)
	if err != nil {
		return err
	}
	var c hclText
	l.common(&c, node, "controller")
	c.attr("fabric", l.Topology.Fabric)
	c.attr("listen", fmt.Sprintf("%s:%d", node.Address, controllerPort))
	c.block("underlay", "address", node.Address, "interface", underlay)
	l.consulBlock(&c, node)
	l.vaultBlock(&c, l.Secrets.Machines[node.Name].RoleID, secret)
	nomad := l.Secrets.Machines[node.Name].Settings.Nomad
	c.block("nomad", "address", l.NomadAddress(), "ca_file", l.ServersCA(), "auth_method", nomad.AuthMethod, "token_role", nomad.TokenRole)
	c.block("pools", "ipv4", l.Topology.Pools.IPv4, "ipv6", l.Topology.Pools.IPv6)
	p, err := l.daemon(node, "controller", c)
	if err != nil {
		return err
	}
	client, err := l.httpsClientOf(clientNS, l.FabricCA())
	if err != nil {
		return err
	}
	if err := l.launch(ctx, p, 30*time.Second, func(ctx context.Context) error {
		return httpAnswers(ctx, client, fmt.Sprintf("https://%s:%d/v1/health?standbyok=true", node.Address, controllerPort))
	}); err != nil {
		return err
	}
	l.progress.line("controller: https://%s:%d", node.Address, controllerPort)
	return nil
}

// httpAnswers succeeds on any HTTP answer except a server error.
func httpAnswers(ctx context.Context, client *http.Client, url string) error {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	response, err := client.Do(request)
	if err != nil {
		return err
	}
	response.Body.Close()
	if response.StatusCode >= http.StatusInternalServerError {
		return fmt.Errorf("it answered %s", response.Status)
	}
	return nil
}

func (l *Lab) startNode(ctx context.Context, node *Node) error {
	if err := l.mountBPF(node.Name); err != nil {
		return err
	}
	if err := mkdirs(l.SIFRunDir(node.Name), l.SIFDataDir(node.Name)); err != nil {
		return err
	}
	socket := filepath.Join(l.SIFRunDir(node.Name), wellknown.LinkSocket)
	links := &Process{Node: node.Name, Name: "link", Args: []string{
		filepath.Join(l.Bin, "sif"), "link",
		"-run-dir=" + l.SIFRunDir(node.Name), "-data-dir=" + filepath.Join(l.SIFDataDir(node.Name), wellknown.LinkDir), "-log-level=debug",
	}}
	if err := l.launch(ctx, links, 10*time.Second, socketExists(socket)); err != nil {
		return err
	}
	secret, err := l.secretFile(node.Name)
	if err != nil {
		return err
	}
	// The agent comes first: it registers the links, for which the others wait.
	for _, daemon := range slices.Backward(node.Daemons()) {
		if err := l.startDaemon(ctx, node, daemon, secret, socket); err != nil {
			return err
		}
	}
	l.progress.line("%s: link, %s", node.Name, strings.Join(node.Daemons(), ", "))
	if !node.Is(Workload) {
		return nil
	}
	return l.startNomadClient(ctx, node)
}

// startDaemon starts the agent or the engine of a node.
func (l *Lab) startDaemon(ctx context.Context, node *Node, daemon, secret, socket string) error {
	var c hclText
	l.common(&c, node, daemon)
	c.attr("zone", node.Zone)
	c.attr("node", node.Name)
	c.attr("fabric", l.Topology.Fabric)
	c.attr("bpf_dir", l.BPFDir(node.Name))
	if node.BPFAttach != "" {
		c.attr("bpf_attach", node.BPFAttach)
	}
	c.block("underlay", "address", node.Address, "interface", underlay)
	if r := l.Topology.Resolver(); r != nil { // whatever resolvers this machine has
		c.block("dns", "upstream", r.Addresses)
	}
	l.consulBlock(&c, node)
	l.vaultBlock(&c, l.Secrets.Machines[node.Name].RoleID, secret)
	c.block("controller", "addresses", l.Controllers())
	links := []any{"socket", socket, "mtu", l.Topology.Underlay.MTU - wireguardOverhead}
	if l.KeyPeriod > 0 {
		links = append(links, "key_period", l.KeyPeriod.String())
	}
	c.block("link", links...)
	ready := func(context.Context) error { return l.conflistExists(node.Name) }
	if daemon == "engine" {
		listen := l.EngineAddress(node)
		c.block("engine", "listen", listen, "namespaces", l.Namespace(node.Name))
		if node.HasSwitch() {
			c.block("ovs", "db", l.OVSDatabase(node.Name), "rundir", l.OVSRunDir(node.Name), "control", l.OVSRunDir(node.Name)+"/ovs-vswitchd.ctl", "bridge", bridge)
		}
		ready = l.listens(node.Name, listen)
	} else {
		plugins, configs := l.CNIDirs(node.Name)
		if err := mkdirs(plugins, configs); err != nil {
			return err
		}
		// What workloads reach on their node if a contract says so: Consul's agent, a collector.
		c.block("expose", "port", 8500, "to", "127.0.0.1:8500")
		c.block("expose", "protocol", "udp", "port", 8125, "to", "127.0.0.1:8125")
		c.block("expose", "port", 4317, "to", "[fe80::1]:4317")
		c.block("cni", "plugin_dir", plugins, "config_dir", configs, "socket", filepath.Join(l.SIFRunDir(node.Name), "cni.sock"))
		c.block("workload_api", "directory", l.WorkloadAPIDir(node.Name))
	}
	p, err := l.daemon(node, daemon, c)
	if err != nil {
		return err
	}
	return l.launch(ctx, p, 40*time.Second, ready)
}

// conflistExists checks for the agent's network configuration.
func (l *Lab) conflistExists(node string) error {
	_, configs := l.CNIDirs(node)
	files, err := filepath.Glob(configs + "/*.conflist")
	if err == nil && len(files) == 0 {
		err = fmt.Errorf("there is no network configuration in %s", configs)
	}
	return err
}

// mountBPF mounts a BPF filesystem for a node in the machine's mount namespace, so that it outlives
// every daemon.
func (l *Lab) mountBPF(node string) error {
	dir := l.BPFDir(node)
	if err := mkdirs(dir); err != nil {
		return err
	}
	if err := unix.Mount("bpf", dir, "bpf", 0, "mode=0700"); err != nil {
		return fmt.Errorf("mount a BPF filesystem on %s: %w", dir, err)
	}
	return nil
}

func socketExists(path string) func(context.Context) error {
	return func(context.Context) error {
		if !exists(path) {
			return fmt.Errorf("%s does not exist", path)
		}
		return nil
	}
}

// listens checks from the node itself that something listens on a TCP address.
func (l *Lab) listens(node, address string) func(context.Context) error {
	return func(ctx context.Context) error {
		conn, err := l.Dial(node)(ctx, "tcp", address)
		if err != nil {
			return err
		}
		return conn.Close()
	}
}

func (l *Lab) common(c *hclText, node *Node, daemon string) {
	c.attr("trust_domain", l.Topology.TrustDomain)
	c.attr("log_level", "debug")
	c.attr("data_dir", l.DaemonDataDir(node, daemon))
	c.attr("run_dir", l.SIFRunDir(node.Name))
}

func (l *Lab) consulBlock(c *hclText, node *Node) {
	s := l.Secrets.Machines[node.Name].Settings.Consul
	c.block("consul", "address", "http://127.0.0.1:8500", "auth_method", s.AuthMethod, "token_role", s.TokenRole)
}

// vaultBlock leaves the mounts and roles at their defaults, which are what sif setup makes.
func (l *Lab) vaultBlock(c *hclText, roleID, secretIDFile string) {
	c.block("vault", "address", l.VaultAddress(), "ca_file", l.ServersCA(), "role_id", roleID, "secret_id_file", secretIDFile)
}

// daemon writes a daemon's configuration and returns its process, not started yet.
func (l *Lab) daemon(node *Node, name string, c hclText) (*Process, error) {
	if err := mkdirs(l.SIFRunDir(node.Name), l.SIFDataDir(node.Name)); err != nil {
		return nil, err
	}
	file := l.SIFConfig(node.Name, name)
	if err := os.WriteFile(file, []byte(c.String()), 0o600); err != nil {
		return nil, fmt.Errorf("write %s: %w", file, err)
	}
	return &Process{Node: node.Name, Name: name, Args: []string{filepath.Join(l.Bin, "sif"), name, "-config=" + file}}, nil
}

// hclText writes attributes and blocks of plain strings, lists of these, and numbers.
type hclText struct{ strings.Builder }

func (h *hclText) attr(name string, value any) { fmt.Fprintf(h, "%s = %s\n", name, literal(value)) }

func (h *hclText) block(name string, pairs ...any) {
	fmt.Fprintf(h, "\n%s {\n", name)
	for i := 0; i < len(pairs); i += 2 {
		fmt.Fprintf(h, "  %s = %s\n", pairs[i], literal(pairs[i+1]))
	}
	fmt.Fprintf(h, "}\n")
}

func literal(v any) string {
	switch v := v.(type) {
	case string:
		return fmt.Sprintf("%q", v)
	case []string:
		quoted := make([]string, len(v))
		for i, s := range v {
			quoted[i] = literal(s)
		}
		return "[" + strings.Join(quoted, ", ") + "]"
	}
	return fmt.Sprint(v)
}
