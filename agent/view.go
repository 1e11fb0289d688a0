// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package agent

import (
	"net/netip"
	"slices"

	"github.com/sif-project/sif/agent/dns"
	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/internal/outside/registered"
)

// view is what DNS may tell the endpoints of this node.
type view struct{ agent *Agent }

// Known implements dns.View.
func (v view) Known(asker netip.Addr) bool {
	_, ok := v.asker(asker)
	return ok
}

func (v view) asker(addr netip.Addr) (endpoint, bool) {
	return v.agent.endpoints.find(func(ep endpoint) bool {
		return (ep.IPv4 == addr || ep.IPv6 == addr) && v.agent.revoked(ep) == nil
	})
}

// Reach implements dns.View. It applies the one rule to a service. Only health comes from the
// Consul catalog; endpoints exist if they were admitted.
func (v view) Reach(asker netip.Addr, service fabric.Ref, ports bool) dns.Reach {
	ep, ok := v.asker(asker)
	if !ok {
		return dns.Reach{}
	}
	id := ep.Admission.Identity()
	doc := v.agent.node.Revision.Documents()[id.Service].At(v.agent.now())
	for _, g := range fabric.EgressGrants(id, doc) {
		if x := g.External; x.Name == service && x.Consul != nil {
			return dns.Reach{Allowed: true, Endpoints: v.agent.instances(x)}
		}
	}
	reach := dns.Reach{Allowed: originates(id, doc, service)}
	if !reach.Allowed {
		return reach
	}
	for _, other := range v.agent.known(service) {
		grants := fabric.Grants(id, doc, other.Identity())
		if len(grants) == 0 {
			continue
		}
		r := dns.Record{Endpoint: other.Endpoint, Zone: other.Zone, IPv4: other.IPv4, IPv6: other.IPv6, Healthy: v.agent.handedOut(other)}
		if ports {
			r.Ports = named(other.Ports, grants)
		}
		reach.Endpoints = append(reach.Endpoints, r)
	}
	return reach
}

// named returns the ports with names that grants open, once for each protocol.
func named(ports []fabric.NamedPort, grants []fabric.Grant) (list []dns.Port) {
	for _, p := range ports {
		for _, protocol := range []fabric.Protocol{fabric.TCP, fabric.UDP} {
			if slices.ContainsFunc(grants, func(g fabric.Grant) bool {
				return slices.ContainsFunc(g.Rules, func(r fabric.Rule) bool { return r.Matches(protocol, p.Port) })
			}) {
				list = append(list, dns.Port{Name: p.Name, Protocol: protocol, Number: p.Port})
			}
		}
	}
	return list
}

// instances returns the instances of an external's Consul service that pass their checks and that
// the external may have. To who asks, they are in the node's own zone.
func (a *Agent) instances(x fabric.Peer) (list []dns.Record) {
	known := a.reservations()
	for _, address := range a.registered.Passing(registered.Service{Name: x.Consul.Service, Datacenter: x.Consul.Datacenter}) {
		single := netip.PrefixFrom(address, address.BitLen())
		if _, reserved := known.ReservedBy(x, single); !x.Consul.Counts(address) || reserved {
			continue
		}
		r := dns.Record{Zone: a.node.Self.Zone, Healthy: true}
		if address.Is4() {
			r.IPv4 = address
		} else {
			r.IPv6 = address
		}
		list = append(list, r)
	}
	return list
}

// Owner implements dns.View.
func (v view) Owner(asker, address netip.Addr) (service fabric.Ref, zone string, ok bool) {
	ep, known := v.asker(asker)
	if !known {
		return service, "", false
	}
	if address == ep.IPv4 || address == ep.IPv6 {
		return ep.Admission.Service, ep.Admission.Zone, true
	}
	id := ep.Admission.Identity()
	doc := v.agent.node.Revision.Documents()[id.Service].At(v.agent.now())
	for _, other := range v.agent.holders(address) {
		if len(fabric.Grants(id, doc, other.Identity())) > 0 {
			return other.Service, other.Zone, true
		}
	}
	return service, "", false
}

// originates reports whether a contract lets id open flows to service.
func originates(id fabric.Identity, doc fabric.Document, service fabric.Ref) bool {
	return slices.ContainsFunc(doc.Originates, func(e fabric.Edge) bool {
		return (e.Unrequested || slices.Contains(id.Roles.Originate, e.Contract)) &&
			slices.ContainsFunc(e.Peers, func(p fabric.Peer) bool { return p.Name == service })
	})
}

// known returns the endpoints of a service that this node knows.
func (a *Agent) known(service fabric.Ref) []fabric.Admission {
	return a.knownWhere(func(adm fabric.Admission) bool { return adm.Service == service })
}

// holders returns the endpoints with an address that this node knows.
func (a *Agent) holders(address netip.Addr) []fabric.Admission {
	return a.knownWhere(func(adm fabric.Admission) bool { return adm.IPv4 == address || adm.IPv6 == address })
}

// knownWhere returns the endpoints that this node knows, its own and their counterparts, for which
// match is true.
func (a *Agent) knownWhere(match func(fabric.Admission) bool) []fabric.Admission {
	var list []fabric.Admission
	for _, ep := range a.live() {
		if match(ep.Admission) {
			list = append(list, ep.Admission)
		}
	}
	for _, le := range a.counterparts.Where(a.now(), match) {
		list = append(list, le.Admission)
	}
	return list
}
