// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package engine

import (
	"cmp"
	"net/netip"
	"slices"

	"github.com/sif-project/sif/engine/ovs"
	"github.com/sif-project/sif/fabric/desired"
)

// placed is the endpoints of a bridge as the pipeline has them, kept from one state to the next:
// most of 100,000 endpoints are the same in both. It holds for one set of ports.
type placed struct {
	byName map[string]place
	sorted []ovs.Endpoint // those that a port leads to; see Pipeline.Set
}

// place is an endpoint, and what it was made from. The former has number 0 if no port leads to it.
type place struct {
	from SwitchEndpoint
	to   ovs.Endpoint
}

// list returns the endpoints that the bridge wants.
func (p *placed) list(b *bridge) []ovs.Endpoint {
	if p.byName == nil {
		p.byName = make(map[string]place, len(b.wanted.Endpoints))
	}
	var fresh []ovs.Endpoint
	gone := map[uint64]bool{}
	add := func(name string, ep SwitchEndpoint) {
		was, known := p.byName[name]
		if known && was.from.equal(ep) {
			return
		}
		gone[was.to.ID] = true
		e := b.place(name, ep)
		if p.byName[name] = (place{ep, e}); e.ID != 0 {
			fresh = append(fresh, e)
		}
	}
	for name, ep := range b.wanted.Endpoints {
		add(name, ep)
	}
	probes := make(map[string]bool, len(b.wanted.Probes))
	for node, ep := range b.wanted.Probes {
		name := probeName(node)
		probes[name] = true
		add(name, ep)
	}
	if len(p.byName) > len(b.wanted.Endpoints)+len(probes) {
		for name, was := range p.byName {
			if _, wanted := b.wanted.Endpoints[name]; !wanted && !probes[name] {
				gone[was.to.ID] = true
				delete(p.byName, name)
			}
		}
	}
	delete(gone, 0)
	if len(gone) > 0 {
		kept := make([]ovs.Endpoint, 0, len(p.sorted)+len(fresh))
		for _, e := range p.sorted {
			if !gone[e.ID] {
				kept = append(kept, e)
			}
		}
		p.sorted = kept
	}
	p.sorted = merge(p.sorted, fresh)
	return p.sorted
}

// merge returns sorted, which stays as it is, and more in the order of their numbers.
func merge(sorted, more []ovs.Endpoint) []ovs.Endpoint {
	if len(more) == 0 {
		return sorted
	}
	slices.SortFunc(more, func(a, b ovs.Endpoint) int { return cmp.Compare(a.ID, b.ID) })
	all := make([]ovs.Endpoint, 0, len(sorted)+len(more))
	for _, e := range more {
		n, _ := slices.BinarySearchFunc(sorted, e.ID, func(have ovs.Endpoint, id uint64) int { return cmp.Compare(have.ID, id) })
		all = append(append(all, sorted[:n]...), e)
		sorted = sorted[n:]
	}
	return append(all, sorted...)
}

// place translates an endpoint for the pipeline. The result is empty if its port does not exist
// yet.
func (b *bridge) place(name string, ep SwitchEndpoint) ovs.Endpoint {
	e := ovs.Endpoint{
		ID: endpointNumber(name), Class: ep.Class, Group: ep.Group, Number: ep.Number,
		Prefixes: []netip.Prefix{netip.PrefixFrom(ep.IPv4, 32), netip.PrefixFrom(ep.IPv6, 128)},
	}
	if ep.Way == desired.ByWays {
		e.SourcePorts = b.sources(ep.Sources)
	} else {
		peer, _ := ep.Way.Processor() // none: the zone's own nodes
		if port, ok := b.portTo(peer); ok {
			e.OutPort, e.SourcePorts = port.No, []uint32{port.No}
		}
		// Others are limited where they are, and here with their zone.
		e.Limited = ep.Way == desired.ZoneLink && ep.Class != ovs.ProbeClass
	}
	if len(e.SourcePorts) == 0 {
		return ovs.Endpoint{}
	}
	return e
}

func (e SwitchEndpoint) equal(o SwitchEndpoint) bool {
	return e.IPv4 == o.IPv4 && e.IPv6 == o.IPv6 && e.Class == o.Class && e.Way == o.Way &&
		e.Group == o.Group && e.Number == o.Number && slices.Equal(e.Sources, o.Sources)
}
