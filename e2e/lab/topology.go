// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package lab

import (
	"embed"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/hashicorp/hcl/v2"
	"github.com/hashicorp/hcl/v2/gohcl"
	"github.com/hashicorp/hcl/v2/hclparse"

	"github.com/sif-project/sif/fabric"
)

// Kinds of node.
const (
	Orchestrator = "orchestrator"
	Processor    = "processor"
	Workload     = "workload"
)

// Topology describes a lab's zones and nodes, and what the internet passes between the zones.
type Topology struct {
	Fabric      string   `hcl:"fabric"`
	TrustDomain string   `hcl:"trust_domain"`
	Datacenter  string   `hcl:"datacenter"` // Consul's datacenter; a Nomad datacenter is a zone
	Underlay    Underlay `hcl:"underlay,block"`
	Pools       Pools    `hcl:"pools,block"`
	Internet    Internet `hcl:"internet,block"`
	Zones       []*Zone  `hcl:"zone,block"`
}

// Underlay describes the nodes' interfaces.
type Underlay struct {
	MTU int `hcl:"mtu"` // bytes
}

// Pools are the prefixes from which the controller assigns address pools to nodes.
type Pools struct {
	IPv4 string `hcl:"ipv4"`
	IPv6 string `hcl:"ipv6"`
}

// Internet is the namespace that routes between zones and drops packets that no Pass names.
type Internet struct {
	Users   Users      `hcl:"users,block"`
	Passes  []*Pass    `hcl:"pass,block"`
	Outside []*Outside `hcl:"outside,block"`
	Records []*Record  `hcl:"record,block"`
}

// Users is the network outside the fabric.
type Users struct {
	Subnet  string `hcl:"subnet"`
	Host    string `hcl:"host"`   // address of the machine that the lab runs on
	Client  string `hcl:"client"` // address of the namespace "client"
	Subnet6 string `hcl:"subnet6,optional"`
	Client6 string `hcl:"client6,optional"`
}

// Pass lets new flows through the internet, and the packets that answer them.
type Pass struct {
	Name string   `hcl:"name,label"`
	From []string `hcl:"from"` // "nodes", a kind of node, "users", "outside"
	To   []string `hcl:"to"`
	TCP  []string `hcl:"tcp,optional"` // destination ports: "8301", "18080-18099"
	UDP  []string `hcl:"udp,optional"`
	Any  bool     `hcl:"any,optional"` // everything, whatever the protocol
}

// Zone is a cloud: a subnet whose nodes reach one another directly.
type Zone struct {
	Name    string  `hcl:"name,label"`
	Subnet  string  `hcl:"subnet"`
	Subnet6 string  `hcl:"subnet6,optional"`
	Nodes   []*Node `hcl:"node,block"`
}

// Node is a machine of the lab: a network namespace with one underlay interface, eth0.
type Node struct {
	Name    string `hcl:"name,label"`
	Kind    string `hcl:"kind"` // orchestrator, or a fabric.NodeKind
	Address string `hcl:"address"`
	// Address6 is the node's IPv6 address in its zone's subnet6. Nodes speak IPv4 to one another.
	Address6 string   `hcl:"address6,optional"`
	Drivers  []string `hcl:"drivers,optional"` // of a workload node's Nomad client: see drivers
	// BPFAttach is bpf_attach of a workload node's agent: auto (default), tcx, clsact.
	BPFAttach string `hcl:"bpf_attach,optional"`
	// ConsulServer makes an orchestrator node's Consul agent a server. The first one's always is.
	ConsulServer bool `hcl:"consul_server,optional"`

	Zone string // name of its zone; not in the file
}

// drivers are those that the lab can configure.
var drivers = []string{"docker", "exec", "raw_exec", "java", "qemu"}

//go:embed topology/*.hcl
var topologies embed.FS

// DefaultTopology returns the topology that `make dev` brings up: two zones.
func DefaultTopology() (*Topology, error) {
	return embedded("two-zones.hcl")
}

// embedded returns a topology of the directory topology.
func embedded(name string) (*Topology, error) {
	src, err := topologies.ReadFile("topology/" + name)
	if err != nil {
		return nil, fmt.Errorf("read topology: %w", err)
	}
	return ParseTopology(name, src)
}

// LoadTopology reads and checks a topology file.
func LoadTopology(path string) (*Topology, error) {
	src, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read topology: %w", err)
	}
	return ParseTopology(path, src)
}

// ParseTopology decodes and checks a topology. Messages contain name. With surroundings_of, a file
// has the zones only, and everything else is that of another topology of the directory topology.
func ParseTopology(name string, src []byte) (*Topology, error) {
	file, diags := hclparse.NewParser().ParseHCL(src, name)
	if diags.HasErrors() {
		return nil, fmt.Errorf("topology: %w", diags)
	}
	var head struct {
		SurroundingsOf string   `hcl:"surroundings_of,optional"`
		Body           hcl.Body `hcl:",remain"`
	}
	if diags := gohcl.DecodeBody(file.Body, nil, &head); diags.HasErrors() {
		return nil, fmt.Errorf("topology: %w", diags)
	}
	var t Topology
	if head.SurroundingsOf == "" {
		diags = gohcl.DecodeBody(head.Body, nil, &t)
	} else {
		other, err := embedded(head.SurroundingsOf)
		if err != nil {
			return nil, fmt.Errorf("topology %s: surroundings_of: %w", name, err)
		}
		t = *other
		var own struct {
			Zones []*Zone `hcl:"zone,block"`
		}
		diags = gohcl.DecodeBody(head.Body, nil, &own)
		t.Zones = own.Zones
	}
	if diags.HasErrors() {
		return nil, fmt.Errorf("topology: %w", diags)
	}
	if err := t.check(); err != nil {
		return nil, fmt.Errorf("topology %s: %w", name, err)
	}
	return &t, nil
}

var (
	label     = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,26}[a-z0-9])?$`)
	portRange = regexp.MustCompile(`^\d{1,5}(-\d{1,5})?$`)
)

func (t *Topology) check() error {
	if t.Underlay.MTU < 1280 || t.Underlay.MTU > 65535 {
		return fmt.Errorf("underlay mtu is %d, but must be 1280 to 65535", t.Underlay.MTU)
	}
	for _, p := range []string{t.Pools.IPv4, t.Pools.IPv6} {
		if _, err := netip.ParsePrefix(p); err != nil {
			return fmt.Errorf("pool: %w", err)
		}
	}
	users, err := netip.ParsePrefix(t.Internet.Users.Subnet)
	if err != nil {
		return fmt.Errorf("users subnet: %w", err)
	}
	for _, a := range []string{t.Internet.Users.Host, t.Internet.Users.Client} {
		if err := inside(users, a); err != nil {
			return fmt.Errorf("users: %w", err)
		}
	}
	subnets := []netip.Prefix{users}
	names := map[string]bool{}
	addresses := map[string]bool{}
	orchestrators := 0
	for _, z := range t.Zones {
		if !label.MatchString(z.Name) || len(z.Name) > 10 {
			return fmt.Errorf("zone %q: the name must be a lower-case label of at most 10 characters, because it names a network interface", z.Name)
		}
		subnet, err := netip.ParsePrefix(z.Subnet)
		if err != nil {
			return fmt.Errorf("zone %s: %w", z.Name, err)
		}
		for _, s := range subnets {
			if s.Overlaps(subnet) {
				return fmt.Errorf("zone %s: subnet %s overlaps %s", z.Name, subnet, s)
			}
		}
		subnets = append(subnets, subnet)
		for _, n := range z.Nodes {
			n.Zone = z.Name
			switch {
			case !label.MatchString(n.Name) || len(n.Name) > 15:
				return fmt.Errorf("node %q: the name must be a lower-case label of at most 15 characters, because it names a network interface", n.Name)
			case names[n.Name] || n.Name == internetNS || n.Name == clientNS:
				return fmt.Errorf("node %s: another node has this name", n.Name)
			case addresses[n.Address]:
				return fmt.Errorf("node %s: another node has address %s", n.Name, n.Address)
			case n.Kind != Orchestrator && fabric.NodeKind(n.Kind).Check() != nil:
				return fmt.Errorf("node %s: unknown kind %q", n.Name, n.Kind)
			case n.ConsulServer && n.Kind != Orchestrator:
				return fmt.Errorf("node %s: only an orchestrator node can have a server of Consul", n.Name)
			case n.Is(Workload) != (len(n.Drivers) > 0):
				return fmt.Errorf("node %s: a workload node must have drivers, and other nodes must not", n.Name)
			}
			for _, d := range n.Drivers {
				if !slices.Contains(drivers, d) {
					return fmt.Errorf("node %s: unknown driver %q", n.Name, d)
				}
			}
			if err := inside(subnet, n.Address); err != nil {
				return fmt.Errorf("node %s: %w", n.Name, err)
			}
			if err := inside6(z.Subnet6, n.Address6); err != nil {
				return fmt.Errorf("node %s: %w", n.Name, err)
			}
			names[n.Name], addresses[n.Address] = true, true
			if n.Kind == Orchestrator {
				orchestrators++
			}
		}
	}
	if orchestrators == 0 {
		return errors.New("expected at least one orchestrator node, found none")
	}
	if err := inside6(t.Internet.Users.Subnet6, t.Internet.Users.Client6); err != nil {
		return fmt.Errorf("users: %w", err)
	}
	if err := t.Internet.checkOutside(names, addresses); err != nil {
		return err
	}
	for _, p := range t.Internet.Passes {
		if err := p.check(); err != nil {
			return fmt.Errorf("pass %q: %w", p.Name, err)
		}
	}
	return nil
}

func (p *Pass) check() error {
	for _, g := range slices.Concat(p.From, p.To) {
		if !slices.Contains([]string{"nodes", Orchestrator, Processor, Workload, "users", "outside"}, g) {
			return fmt.Errorf("unknown group %q", g)
		}
	}
	for _, r := range slices.Concat(p.TCP, p.UDP) {
		if !portRange.MatchString(r) {
			return fmt.Errorf("ports %q: expected a port or a range such as 18080-18099", r)
		}
		from, to, _ := strings.Cut(r, "-")
		lo, _ := strconv.Atoi(from)
		hi := lo
		if to != "" {
			hi, _ = strconv.Atoi(to)
		}
		if lo < 1 || hi < lo || hi > 65535 {
			return fmt.Errorf("ports %q: out of range", r)
		}
	}
	return nil
}

func inside(subnet netip.Prefix, address string) error {
	a, err := netip.ParseAddr(address)
	if err != nil {
		return err
	}
	if !subnet.Contains(a) || a == gateway(subnet) {
		return fmt.Errorf("address %s must be in subnet %s and must not be its gateway's", a, subnet)
	}
	return nil
}

// inside6 checks an address that may be missing.
func inside6(subnet, address string) error {
	if address == "" {
		return nil
	}
	s, err := netip.ParsePrefix(subnet)
	if err != nil {
		return fmt.Errorf("subnet6 for address %s: %w", address, err)
	}
	return inside(s, address)
}

// gateway returns the internet's address in a subnet, the first one.
func gateway(subnet netip.Prefix) netip.Addr { return subnet.Masked().Addr().Next() }

// Nodes returns the nodes of the given kinds in the file's order, or all nodes if no kind is given.
func (t *Topology) Nodes(kinds ...string) []*Node {
	var nodes []*Node
	for _, z := range t.Zones {
		for _, n := range z.Nodes {
			if len(kinds) == 0 || slices.ContainsFunc(kinds, n.Is) {
				nodes = append(nodes, n)
			}
		}
	}
	return nodes
}

// Node returns the node of that name, or nil.
func (t *Topology) Node(name string) *Node {
	for _, n := range t.Nodes() {
		if n.Name == name {
			return n
		}
	}
	return nil
}

// Orchestrator returns the node that runs the servers: the first one. Each orchestrator node has a
// controller.
func (t *Topology) Orchestrator() *Node { return t.Nodes(Orchestrator)[0] }

// Is reports whether the node is of a kind. It may be processor and workload node at once.
func (n *Node) Is(kind string) bool { return slices.Contains(n.units(), kind) }

func (n *Node) units() []string { return fabric.NodeKind(n.Kind).Units() }

// Daemons returns the names of the node's daemons of ours that have a configuration file.
func (n *Node) Daemons() []string {
	var list []string
	for _, d := range []struct{ kind, name string }{{Orchestrator, "controller"}, {Processor, "engine"}, {Workload, "agent"}} {
		if n.Is(d.kind) {
			list = append(list, d.name)
		}
	}
	return list
}

// HasSwitch reports whether the node has Open vSwitch. A node with workloads has none.
func (n *Node) HasSwitch() bool { return n.Kind == Processor }

// HasDriver reports whether the node's Nomad client offers the driver.
func (n *Node) HasDriver(name string) bool { return slices.Contains(n.Drivers, name) }
