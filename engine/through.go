// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package engine

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/fabric/desired"
	"github.com/sif-project/sif/internal/node/rpc"
	"github.com/sif-project/sif/internal/trust/identity"
)

// An engine to which no tunnel leads is reached through the engines of others, which pass the
// connection on: see rpc.Through.

// pathsTo returns the ways by which the engine of a processor is reached, those with the fewest
// tunnels first: for each of the own tunnels one. turn chooses among equal ones. Ways lead through
// others only where links are declared.
func pathsTo(self, to fabric.NodeID, tunnels []desired.Tunnel, turn int) (paths [][]desired.Hop) {
	leads := map[fabric.NodeID][]desired.Hop{}
	transit := false
	for _, t := range tunnels {
		leads[t.A] = append(leads[t.A], desired.Hop{Processor: t.B, Link: t.Link})
		leads[t.B] = append(leads[t.B], desired.Hop{Processor: t.A, Link: t.Link})
		transit = transit || t.Link != ""
	}
	for _, first := range leads[self] {
		if first.Processor != to && !transit {
			continue
		}
		if path := shortest(first, to, leads, self.Zone, turn); path != nil {
			paths = append(paths, path)
		}
	}
	slices.SortStableFunc(paths, func(a, b []desired.Hop) int { return len(a) - len(b) })
	return paths
}

// shortest returns the path with the fewest tunnels that begins by a tunnel and does not come back
// to the zone where it began, or nil.
func shortest(first desired.Hop, to fabric.NodeID, leads map[fabric.NodeID][]desired.Hop, home string, turn int) []desired.Hop {
	seen := map[fabric.NodeID]bool{first.Processor: true}
	for paths := [][]desired.Hop{{first}}; len(paths) > 0; paths = paths[1:] {
		path := paths[0]
		at := path[len(path)-1].Processor
		if at == to {
			return path
		}
		for i := range leads[at] {
			next := leads[at][(i+turn)%len(leads[at])]
			if !seen[next.Processor] && next.Processor.Zone != home {
				seen[next.Processor] = true
				paths = append(paths, append(slices.Clone(path), next))
			}
		}
	}
	return nil
}

// linkedZones returns the zones to which tunnels lead from a processor.
func linkedZones(self fabric.NodeID, tunnels []desired.Tunnel) map[string]bool {
	zones := map[string]bool{}
	for _, t := range tunnels {
		switch self {
		case t.A:
			zones[t.B.Zone] = true
		case t.B:
			zones[t.A.Zone] = true
		}
	}
	return zones
}

// reach connects to the engine of a processor by a path.
func (d *Daemon) reach(ctx context.Context, n fabric.Node, path []desired.Hop) (*rpc.Conn, error) {
	raw, err := d.dial(ctx, path[0])
	for i, hop := range path[1:] {
		if err != nil {
			break
		}
		var via fabric.Node
		if via, err = d.processor(path[i].Processor); err != nil {
			raw.Close()
			break
		}
		raw, err = rpc.Through(ctx, raw, d.node.Identity.ClientTLS(identity.OfNode(via)), d.node.Identity, hop.Processor)
	}
	if err != nil {
		return nil, err
	}
	return rpc.DialBy(ctx, raw, d.node.Identity.ClientTLS(identity.OfNode(n)), d.node.Identity, d.Handle)
}

// dial connects to the engine at the other end of a tunnel.
func (d *Daemon) dial(ctx context.Context, tunnel desired.Hop) (conn net.Conn, err error) {
	n, err := d.processor(tunnel.Processor)
	if err != nil {
		return nil, err
	}
	err = d.inLink(tunnel, func() (err error) {
		conn, err = rpc.Open(ctx, netip.AddrPortFrom(n.Health4(), n.Engine).String())
		return err
	})
	return conn, err
}

// processor returns a processor of the roster.
func (d *Daemon) processor(id fabric.NodeID) (fabric.Node, error) {
	nodes := d.node.Nodes()
	if i := slices.IndexFunc(nodes, func(n fabric.Node) bool { return n.ID() == id && n.Boundary() && n.Engine != 0 }); i >= 0 {
		return nodes[i], nil
	}
	return fabric.Node{}, fmt.Errorf("%s is no processor of the fabric", id)
}

// passOn connects a processor to the engine of another one to which a tunnel leads from here.
func (d *Daemon) passOn(ctx context.Context, from rpc.Peer, to fabric.NodeID) (net.Conn, error) {
	if from.Kind != fabric.KindProcessor || from.Zone == d.self.Zone || to.Zone == d.self.Zone || to.Zone == from.Zone {
		return nil, fmt.Errorf("connections are passed on only between processors of two other zones, not from %s to %s", from.NodeID, to)
	}
	var errs []error
	for _, tunnel := range d.node.Links.Tunnels(to) {
		conn, err := d.dial(ctx, tunnel)
		if err == nil {
			return conn, nil
		}
		errs = append(errs, err)
	}
	if len(errs) == 0 {
		return nil, fmt.Errorf("no link leads from %s to %s", d.self.ID(), to)
	}
	return nil, errors.Join(errs...)
}
