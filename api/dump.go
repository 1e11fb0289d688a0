// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package api

import (
	"context"
	"fmt"
	"hash/fnv"
	"maps"
	"net/http"
	"net/netip"
	"slices"

	"github.com/sif-project/sif/fabric"
)

// Layer is a kind of data path.
type Layer string

// The layers.
const (
	LayerEBPF   Layer = "ebpf"   // at the endpoints of a workload node
	LayerSwitch Layer = "switch" // Open vSwitch, at a zone's boundary
)

// Dump is the content of a node's data path, as read back from its maps or flows. The daemon only
// adds the names of the numbers in it.
type Dump struct {
	Node     fabric.NodeID  `json:"node"`
	Layer    Layer          `json:"layer"`
	Sequence uint64         `json:"sequence"`      // of the revision that the node enforces
	Root     fabric.Hash    `json:"root,omitzero"` // of that revision
	Peers    []DumpPeer     `json:"peers,omitempty"`
	Rules    []DumpRule     `json:"rules,omitempty"`
	External []DumpExternal `json:"externals,omitempty"`
	Guarded  []DumpEndpoint `json:"endpoints,omitempty"` // ebpf only
	Ways     []DumpWay      `json:"ways,omitempty"`
	// Outside is what the node knew of the outside when it wrote this.
	Outside fabric.Outside `json:"outside,omitzero"`
	// Problems are what the daemon would never write, one sentence each: programs that are not
	// attached, flows of another program, a test override.
	Problems []string `json:"problems,omitempty"`
}

// Digest is the same for two dumps that let the same parties exchange the same packets: addresses
// with identities and ways, guarded endpoints, externals, and the ports that identities may use. It
// does not depend on their order, on how ports are split into ranges, on the contracts that allow
// them and the exits of those, on Outside, or on Problems. It finds faults, not forgeries.
func (d Dump) Digest() string {
	var sum uint64
	add := func(format string, args ...any) {
		h := fnv.New64a()
		fmt.Fprintf(h, format, args...)
		sum += h.Sum64()
	}
	for _, p := range d.Peers {
		add("peer %s %q %s", p.Address, p.Identity, p.Via)
	}
	for _, e := range d.Guarded {
		checks := make([]string, 0, len(e.Checks))
		for _, c := range e.Checks {
			checks = append(checks, fmt.Sprintf("%s/%d", c.Protocol, c.Port))
		}
		slices.Sort(checks)
		add("endpoint %s %s %q %v", e.IPv4, e.IPv6, e.Identity, slices.Compact(checks))
	}
	for _, x := range d.External {
		add("external %s %q %t %t", x.Prefix, x.Identity, x.In, x.Out)
	}
	type pair struct {
		from, to string
		protocol fabric.Protocol
	}
	ports := map[pair][]fabric.PortRange{}
	for _, r := range d.Rules {
		if !r.Shadowed {
			k := pair{r.From, r.To, r.Protocol}
			ports[k] = append(ports[k], r.Ports)
		}
	}
	for k, list := range ports {
		add("rule %q %q %s %v", k.from, k.to, k.protocol, fabric.MergePorts(list))
	}
	return fmt.Sprintf("%d-%016x", len(d.Peers), sum)
}

// DumpPeer is an address of the fabric with its identity.
type DumpPeer struct {
	Address  netip.Addr `json:"address"`
	Identity string     `json:"identity"` // the key of a fabric.Identity
	// Via is the path of its packets in both directions: "endpoint" for an endpoint of this node,
	// "zone" for the link to the nodes of this zone, "the ways of GROUP, number N" for an endpoint
	// of another zone, or "zone/node" if all its packets go through one processor, as before 0.2.0.
	Via string `json:"via"`
}

// DumpEndpoint is a local endpoint whose interface has our programs.
type DumpEndpoint struct {
	IPv4     netip.Addr     `json:"ipv4"`
	IPv6     netip.Addr     `json:"ipv6"`
	Identity string         `json:"identity"`
	Checks   []fabric.Check `json:"checks,omitempty"`
}

// DumpWay is by which hops the packets from nodes of one group to those of another go, of contracts
// with one path.
type DumpWay struct {
	From string `json:"from"` // group: a zone, or "zone without processors"
	To   string `json:"to"`
	// Path is what the contracts wish of the links: "require a b, prefer c, avoid d".
	Path string `json:"path,omitempty"`
	// Next are the buckets of pairs of endpoints by hop, as 256 bits in hexadecimal digits. A hop
	// is "zone/node", or "zone/node#link".
	Next map[string]string `json:"next"`
}

// DumpExternal is a prefix outside the fabric with its identity.
type DumpExternal struct {
	Prefix netip.Prefix `json:"prefix"`
	// Identity is "external" and all externals with this prefix; empty if none has it, although
	// some have a shorter one.
	Identity string `json:"identity"`
	// In says that its flows may come in, Out that flows may go there.
	In  bool `json:"in,omitempty"`
	Out bool `json:"out,omitempty"`
}

// DumpRule allows one identity to open flows to another.
type DumpRule struct {
	From     string           `json:"from"` // identity, as in DumpPeer and DumpExternal
	To       string           `json:"to"`
	Protocol fabric.Protocol  `json:"protocol"`
	Ports    fabric.PortRange `json:"ports"`
	Contract string           `json:"contract"` // "domain/contract"
	// Path is what the contract wishes of the links between zones, as in DumpWay.
	Path string `json:"path,omitempty"`
	// Exit is set by ebpf only: by what flows to an external leave.
	Exit fabric.Exit `json:"exit,omitempty"`
	// Audit is set by ebpf only: the switch does not distinguish flows that audit mode allows.
	Audit bool `json:"audit,omitempty"`
	// Shadowed is set by the switch only: other rules of the pair match all ports of the contract
	// first, so Ports is zero. Connections that the contract admitted may still exist.
	Shadowed bool `json:"shadowed,omitempty"`
}

// DumpRequest names nodes, at most MaxDumpNodes.
type DumpRequest struct {
	Nodes []fabric.NodeID `json:"nodes"`
}

// MaxDumpNodes is the largest number of nodes in a DumpRequest.
const MaxDumpNodes = 1024

// DumpReply has the dumps of the nodes.
type DumpReply struct {
	Dumps  map[fabric.NodeID]Dump   `json:"dumps"`
	Failed map[fabric.NodeID]string `json:"failed,omitempty"` // why the dump of a node is missing
}

// Dumps makes nodes read back what they enforce. A node that cannot is in failed, with the reason.
func (c *Client) Dumps(ctx context.Context, nodes []fabric.NodeID) (dumps map[fabric.NodeID]Dump, failed map[fabric.NodeID]string, err error) {
	dumps, failed = map[fabric.NodeID]Dump{}, map[fabric.NodeID]string{}
	for some := range slices.Chunk(nodes, MaxDumpNodes) {
		var reply DumpReply
		if err := c.call(ctx, http.MethodPost, "/v1/dump", DumpRequest{Nodes: some}, &reply); err != nil {
			return nil, nil, err
		}
		maps.Copy(dumps, reply.Dumps)
		maps.Copy(failed, reply.Failed)
	}
	return dumps, failed, nil
}
