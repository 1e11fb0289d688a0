// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package controller

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/sif-project/sif/api"
	"github.com/sif-project/sif/fabric"
)

// processors returns the registered processors with a switch, in order.
func (c *Controller) processors() []fabric.NodeID {
	var list []fabric.NodeID
	for _, n := range c.nodes.all() {
		if n.Boundary() {
			list = append(list, n.ID())
		}
	}
	return list
}

func (c *Controller) getLinks(_ context.Context, r request) (any, error) {
	if err := r.operator.mayReadAll("list the links"); err != nil {
		return nil, err
	}
	processors := c.processors()
	said := map[fabric.NodeID]api.NodeStatus{}
	for _, n := range c.nodes.all() {
		for _, report := range c.reports.of(n) {
			if report.Kind == fabric.KindProcessor {
				said[n.ID()] = report
			}
		}
	}
	reply := api.LinkList{Links: []api.LinkInfo{}}
	for _, l := range fabric.LinksOf(c.policy.current.Load().graph.Links) {
		info := api.LinkInfo{LinkRule: l}
		if l.Name != "" {
			info.Warnings = vacant([]fabric.LinkRule{l}, processors)
		}
		for i, b := range processors {
			for _, a := range processors[:i] {
				if l.Covers(a, b) {
					t := api.Tunnel{Ends: [2]api.TunnelEnd{tunnelEnd(said[a], a, b, l.Name), tunnelEnd(said[b], b, a, l.Name)}}
					info.Tunnels = append(info.Tunnels, t)
					info.Warnings = append(info.Warnings, c.unreachable(l, a, b)...)
				}
			}
		}
		slices.SortFunc(info.Tunnels, func(x, y api.Tunnel) int {
			return slices.CompareFunc(x.Ends[:], y.Ends[:], func(a, b api.TunnelEnd) int { return fabric.CompareNodeIDs(a.Node, b.Node) })
		})
		reply.Links = append(reply.Links, info)
	}
	return reply, nil
}

// tunnelEnd returns what a processor said of its tunnel to a peer.
func tunnelEnd(said api.NodeStatus, node, peer fabric.NodeID, link string) api.TunnelEnd {
	e := api.TunnelEnd{Node: node, Reported: said.Reported}
	to := peer.String()
	for i, l := range said.Links {
		if l.Peer == to && l.Link == link {
			e.Link = &said.Links[i]
		}
	}
	if link != "" {
		to += "#" + link
	}
	for i, w := range said.Ways {
		if w.To == to {
			e.Way = &said.Ways[i]
		}
	}
	return e
}

// unreachable returns a warning if neither of two processors has an address that a link asks for.
func (c *Controller) unreachable(l fabric.LinkRule, a, b fabric.NodeID) []string {
	if l.Endpoints == "" {
		return nil
	}
	for _, id := range []fabric.NodeID{a, b} {
		m, known := c.nodes.member(id)
		if !known || m.link.Addresses[l.Endpoints].IsValid() {
			return nil
		}
	}
	return []string{fmt.Sprintf("neither %s nor %s has an address named %q, so no tunnel between them can begin: name one in underlay { addresses } of the configuration of at least one of them",
		a, b, l.Endpoints)}
}

// vacant returns a warning for each end of the links at which there is no processor.
func vacant(links []fabric.LinkRule, processors []fabric.NodeID) []string {
	zones, nodes := map[string]bool{}, map[string]bool{}
	for _, id := range processors {
		zones[id.Zone], nodes[id.String()] = true, true
	}
	var list []string
	for _, l := range links {
		for _, e := range l.Vacant(processors) {
			what, names := "zone "+e.Zone, slices.Sorted(maps.Keys(zones))
			if e.Node != "" {
				what, names = "processor "+e.String(), slices.Sorted(maps.Keys(nodes))
			}
			p := fabric.Problem{Pos: l.Pos, Summary: fmt.Sprintf("link %s ends at %s, which has not registered or has no switch: nothing is linked there yet", l.Name, what)}
			switch {
			case e.Zone == fabric.EveryZone:
				p.Summary = fmt.Sprintf("link %s links nothing yet: no processor with a switch has registered", l.Name)
			case fabric.Nearest(e.String(), names) != "":
				p.Remedy = fmt.Sprintf("did you mean %q?", fabric.Nearest(e.String(), names))
			}
			list = append(list, p.String())
		}
	}
	return slices.Compact(list) // both ends of a link may be every zone
}

// pathsConcerned returns the domains whose contracts a change could leave without a way, none for
// all of them, and whether there can be any.
func pathsConcerned(req api.GraphRequest) (domains []string, some bool) {
	if len(req.Links)+len(req.RemoveLinks) > 0 {
		return nil, true
	}
	domains = slices.Sorted(maps.Keys(req.Domains))
	return domains, len(domains) > 0
}

// zonePair is the zones of an originator and of a responder.
type zonePair struct{ from, to string }

// wayless returns a warning for each contract of the domains, or of all if none is named, that has
// endpoints in two zones between which no way has what the contract requires.
func (c *Controller) wayless(next *fabric.Graph, domains []string) []string {
	processors := c.processors()
	bounded := map[string]bool{} // zones with a switch
	for _, id := range processors {
		bounded[id.Zone] = true
	}
	zones := c.table.zones()
	if domains == nil {
		domains = slices.Sorted(maps.Keys(next.Domains))
	}
	joins := map[string]func(a, b string) bool{} // by what a path requires
	var list []string
	for _, name := range domains {
		d := next.Domains[name]
		if d == nil {
			continue
		}
		for i := range d.Contracts {
			k := &d.Contracts[i]
			if !k.InForce(c.policy.now()) {
				continue
			}
			key := strings.Join(k.Path.Require, " ")
			if joins[key] == nil {
				joins[key] = k.Path.Joins(next.Links, processors)
			}
			for _, p := range apart(k, zones) {
				if !bounded[p.from] || !bounded[p.to] || joins[key](p.from, p.to) {
					continue
				}
				why := "no link leads there"
				if len(k.Path.Require) > 0 {
					why = "no way there has links with " + strings.Join(k.Path.Require, ", ") + ", which it requires"
				}
				list = append(list, fabric.Problem{Pos: k.Pos, Summary: fmt.Sprintf("contract %s/%s has endpoints in zones %s and %s, but %s, so no way fits its flows%s",
					name, k.Name, p.from, p.to, why, c.reports.open(fabric.Ref{Domain: name, Name: k.Name}, p))}.String())
			}
		}
	}
	return list
}

// apart returns the pairs of different zones in which a contract has endpoints, in order.
func apart(k *fabric.Contract, zones map[fabric.Ref]map[string]bool) []zonePair {
	set := map[zonePair]bool{}
	for _, o := range k.Originators {
		for _, r := range k.Responders {
			for from := range zones[o] {
				for to := range zones[r] {
					if from != to {
						set[zonePair{from, to}] = true
					}
				}
			}
		}
	}
	return slices.SortedFunc(maps.Keys(set), func(a, b zonePair) int { return strings.Compare(a.from+" "+a.to, b.from+" "+b.to) })
}

// zones returns in which zones each service has live endpoints.
func (t *table) zones() map[fabric.Ref]map[string]bool {
	zones := map[fabric.Ref]map[string]bool{}
	t.mu.Lock()
	defer t.mu.Unlock()
	now := t.now()
	for _, g := range t.grants {
		if !g.live(now) {
			continue
		}
		service := g.admission.Service
		if zones[service] == nil {
			zones[service] = map[string]bool{}
		}
		zones[service][g.admission.Zone] = true
	}
	return zones
}

// open says how many connections of a contract the nodes of two zones last reported, in words; they
// do not report where the other end of each is.
func (r *reports) open(contract fabric.Ref, zones zonePair) string {
	var count uint64
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, s := range r.last {
		if s.Zone != zones.from {
			continue
		}
		for _, f := range s.Flows {
			if f.Contract == contract {
				count += f.Count
			}
		}
	}
	if count == 0 {
		return ""
	}
	return fmt.Sprintf("; connections of it that nodes of zone %s report now, to whichever zone: %d", zones.from, count)
}
