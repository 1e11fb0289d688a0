// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package api

import (
	"context"
	"maps"
	"net/http"
	"net/netip"
	"slices"

	"github.com/sif-project/sif/fabric"
)

// Layer is a data path that decides about packets.
type Layer string

// The layers.
const (
	LayerEBPF   Layer = "ebpf"   // at the endpoints of a workload node
	LayerSwitch Layer = "switch" // Open vSwitch, at a zone's boundary
)

// Dump is what a node's data path really holds: read from its maps or flows,
// not from what its daemon remembers. Only the names for the numbers in them
// are the daemon's.
type Dump struct {
	Node     fabric.NodeID  `json:"node"`
	Layer    Layer          `json:"layer"`
	Sequence uint64         `json:"sequence"`      // of the revision that the node enforces
	Root     fabric.Hash    `json:"root,omitzero"` // likewise
	Peers    []DumpPeer     `json:"peers,omitempty"`
	Rules    []DumpRule     `json:"rules,omitempty"`
	External []DumpExternal `json:"externals,omitempty"`
	Guarded  []DumpEndpoint `json:"endpoints,omitempty"` // ebpf only
	// Problems are what no state of ours would look like, a sentence each:
	// programs that are not attached, flows of somebody else, a test override.
	Problems []string `json:"problems,omitempty"`
}

// DumpPeer is an address of the fabric whose owner the data path knows.
type DumpPeer struct {
	Address  netip.Addr `json:"address"`
	Identity string     `json:"identity"` // the key of a fabric.Identity
	// Via is by what its packets come, and go: "endpoint" for one of the node's
	// own, "zone" for the link to the nodes of the own zone, else "zone/node" of
	// the processor at the other end of the link.
	Via string `json:"via"`
}

// The ways of DumpPeer.Via that are not a processor.
const (
	ViaEndpoint = "endpoint"
	ViaZone     = "zone"
)

// DumpEndpoint is an endpoint whose interface the data path guards.
type DumpEndpoint struct {
	IPv4     netip.Addr     `json:"ipv4"`
	IPv6     netip.Addr     `json:"ipv6"`
	Identity string         `json:"identity"`
	Checks   []fabric.Check `json:"checks,omitempty"`
}

// DumpExternal is a prefix outside the fabric whose owner the data path knows.
type DumpExternal struct {
	Prefix   netip.Prefix `json:"prefix"`
	Identity string       `json:"identity"` // "external", and the names of all externals that the prefix belongs to
}

// DumpRule lets one identity open flows to another.
type DumpRule struct {
	From     string           `json:"from"` // identities as of peers and externals
	To       string           `json:"to"`
	Protocol fabric.Protocol  `json:"protocol"`
	Ports    fabric.PortRange `json:"ports"`
	Contract string           `json:"contract"` // "domain/contract"
	// Audit: ebpf only. The switch does not tell such flows from others.
	Audit bool `json:"audit,omitempty"`
	// Shadowed: switch only. Other rules of the pair admit all ports of the
	// contract first, so Ports is zero. Connections of it may live.
	Shadowed bool `json:"shadowed,omitempty"`
}

// DumpRequest names nodes, at most MaxDumpNodes.
type DumpRequest struct {
	Nodes []fabric.NodeID `json:"nodes"`
}

// MaxDumpNodes is how many nodes can be asked at once.
const MaxDumpNodes = 1024

// DumpReply is what the nodes read back, by their names.
type DumpReply struct {
	Dumps  map[fabric.NodeID]Dump   `json:"dumps"`
	Failed map[fabric.NodeID]string `json:"failed,omitempty"` // why a node's dump is missing
}

// Dumps has nodes read back what they enforce. A node that could
// not is missing among the dumps and there with the reason among the failed.
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
