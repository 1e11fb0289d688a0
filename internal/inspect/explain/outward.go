// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package explain

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/sif-project/sif/api"
	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/fabric/desired"
	"github.com/sif-project/sif/internal/inspect/verify"
	"github.com/sif-project/sif/internal/wellknown"
)

// knownTo returns what the node of the sender knows of the outside: names in force, instances of
// Consul services, reserved addresses. Of a sender that is not live, only the latter are known.
func knownTo(f verify.Fabric, from api.Party) fabric.Outside {
	if dump, read := f.Dumps[from.Node]; read && from.Live() {
		return dump.Outside
	}
	var known fabric.Outside
	for _, n := range f.Status.Nodes {
		switch {
		case n.Enforced == nil:
		case from.Live() && n.ID() == from.Node:
			return n.Enforced.Outside
		default:
			known.Ranges, known.Reserved = append(known.Ranges, n.Enforced.Outside.Ranges...), append(known.Reserved, n.Enforced.Outside.Reserved...)
		}
	}
	return known
}

// outward applies the rule to a flow to the outside of the fabric.
func outward(f verify.Fabric, from, to api.Party, doc fabric.Document, protocol fabric.Protocol, port uint16) api.Declared {
	known := knownTo(f, from)
	var d api.Declared
	var because fabric.EgressGrant
	var how string
	for _, g := range fabric.EgressGrants(from.Identity(), doc) {
		by, has := holds(known, g.External, from.Service, to)
		opens := slices.ContainsFunc(g.Rules, func(r fabric.Rule) bool { return r.Matches(protocol, port) })
		if has && opens && (!d.Allowed || d.Audit && !g.Audit) {
			d, because, how = api.Declared{Allowed: true, Audit: g.Audit, Contract: g.Contract}, g, by
		}
	}
	if !d.Allowed {
		if why := reservation(known, to); why != "" {
			d.Reasons = append(d.Reasons, api.Reason{Why: why})
		}
		d.Reasons = append(d.Reasons, against(f, from, to, protocol, port)...)
		return d
	}
	d.Reasons = []api.Reason{inFavour(f.Graph, d, from, to)}
	if how != "" {
		d.Reasons = append(d.Reasons, api.Reason{Why: fmt.Sprintf("external %s %s", because.External.Name, how)})
	}
	if !because.External.IsNode() {
		d.Reasons = append(d.Reasons, api.Reason{Why: exitText(f, from, because.External.Exit)})
	}
	return d
}

// holds reports whether an external, as bindings admit it, has what the flow goes to, and by what.
func holds(known fabric.Outside, x fabric.Peer, service fabric.Ref, to api.Party) (by string, has bool) {
	switch {
	case to.OwnNode:
		return "", x.IsNode()
	case to.DNSName != "":
		i := slices.IndexFunc(x.Names, func(n string) bool { return n == to.DNSName || fabric.MatchName(n, to.DNSName) })
		if i >= 0 && x.Names[i] != to.DNSName {
			by = fmt.Sprintf("names it as %q", x.Names[i])
		}
		return by, i >= 0
	case !to.Address.IsValid():
		return "", x.Name == to.External
	}
	if _, reserved := known.ReservedBy(x, netip.PrefixFrom(to.Address, to.Address.BitLen())); reserved {
		return "", false
	}
	for _, p := range x.Prefixes {
		if p.Contains(to.Address) {
			return fmt.Sprintf("has the prefix %s", p), true
		}
	}
	for _, n := range known.Named {
		if n.Service == service && slices.Contains(n.Addresses, to.Address) && x.HasName(n.Name) {
			return fmt.Sprintf("has the address by the name %s, which %s resolved", n.Name, service), true
		}
	}
	if x.Consul != nil {
		within := x.Consul.Counts(to.Address)
		for _, r := range known.Registered {
			if within && r.Service == x.Consul.Service && r.Datacenter == x.Consul.Datacenter && slices.Contains(r.Addresses, to.Address) {
				return fmt.Sprintf("has the address as an instance of the Consul service %s", x.Consul), true
			}
		}
	}
	return "", false
}

// byZoneExit reports whether a flow that is allowed to the outside leaves by the exit of a zone.
func byZoneExit(f verify.Fabric, from, to api.Party, q api.Question) bool {
	known, doc := knownTo(f, from), verify.Documents(f.Graph, f.Now)[from.Service]
	return slices.ContainsFunc(fabric.EgressGrants(from.Identity(), doc), func(g fabric.EgressGrant) bool {
		_, has := holds(known, g.External, from.Service, to)
		return has && g.External.Exit == fabric.ExitZone && slices.ContainsFunc(g.Rules, func(r fabric.Rule) bool { return r.Matches(q.Protocol, q.Port) })
	})
}

// called returns the externals that contracts with the sender as originator name, and that declare
// what the flow goes to, whether or not bindings admit it.
func called(g *fabric.Graph, from, to api.Party) []fabric.Ref {
	var names []fabric.Ref
	for name, d := range g.Domains {
		for _, c := range d.Contracts {
			if !slices.Contains(c.Originators, from.Service) {
				continue
			}
			for _, x := range d.Externals {
				if r := (fabric.Ref{Domain: name, Name: x.Name}); slices.Contains(c.Responders, r) && declares(x, to) && !slices.Contains(names, r) {
					names = append(names, r)
				}
			}
		}
	}
	slices.SortFunc(names, fabric.CompareRefs)
	return names
}

// declares reports whether an external declares what the flow goes to.
func declares(x fabric.External, to api.Party) bool {
	contains := func(p netip.Prefix) bool { return p.Contains(to.Address) }
	switch {
	case to.OwnNode:
		return x.Node
	case to.DNSName != "":
		return slices.ContainsFunc(x.Names, func(n string) bool { return n == to.DNSName || fabric.MatchName(n, to.DNSName) })
	}
	return to.Address.IsValid() && (slices.ContainsFunc(x.Prefixes, contains) || x.Consul != nil && slices.ContainsFunc(x.Consul.Within, contains))
}

// withheld says why a contract that names an external and opens the port does not let a flow pass.
func withheld(to api.Party) string {
	switch {
	case to.OwnNode:
		return "bindings do not let the domain reach the port of its nodes"
	case to.DNSName != "":
		return "bindings do not let the external have the name"
	case to.Outside() && to.External == (fabric.Ref{}):
		return "bindings do not let the external have the address, or the address is reserved, or no instance of the Consul service has it"
	}
	return "bindings do not let the external have the address"
}

// unnamed says that no contract names what the flow goes to.
func unnamed(from, to api.Party) string {
	switch {
	case to.OwnNode:
		return fmt.Sprintf("refused: no contract lets %s reach its node: no external with a node block is among the responders", from.Service)
	case to.DNSName != "":
		return fmt.Sprintf("refused: no contract of %s names %s, so it cannot resolve the name", from.Service, to.DNSName)
	}
	return fmt.Sprintf("no endpoint has address %s, and no external that a contract of %s names", to.Address, from.Service)
}

// reservation says that an address is reserved, and why; empty if it is not.
func reservation(known fabric.Outside, to api.Party) string {
	if !to.Address.IsValid() || to.OwnNode {
		return ""
	}
	of := func(list []netip.Prefix) (netip.Prefix, bool) {
		i := slices.IndexFunc(list, func(p netip.Prefix) bool { return p.Contains(to.Address) })
		if i < 0 {
			return netip.Prefix{}, false
		}
		return list[i], true
	}
	const listed = "an external has it only where the binding of its domain lists it exactly"
	if r, is := of(known.Ranges); is {
		return fmt.Sprintf("%s is in the fabric's range %s, of which no external has an address", to.Address, r)
	}
	if r, is := of(fabric.Reserved()); is {
		return fmt.Sprintf("%s is reserved in every fabric (%s): %s", to.Address, r, listed)
	}
	if _, is := of(known.Reserved); is {
		return fmt.Sprintf("%s is reserved, as an address of a node or of a server of Consul, Vault or Nomad: %s", to.Address, listed)
	}
	return ""
}

// exitOf returns the processor by which new flows of a live sender to an external leave, and false
// if they leave by its node. It is what the sender's node chooses while all processors of the zone
// that have an address to the outside are there.
func exitOf(status api.Status, from api.Party, exit fabric.Exit) (processor fabric.NodeID, byZone bool) {
	if exit == fabric.ExitNode || !desired.HasBoundary(verify.Nodes(status), from.Zone) {
		return fabric.NodeID{}, false
	}
	var exits, staying []fabric.NodeID
	for _, n := range status.Nodes {
		if n.Zone != from.Zone || len(n.Exit) == 0 {
			continue
		}
		exits = append(exits, n.ID())
		if n.State == nil || !n.State.Draining {
			staying = append(staying, n.ID())
		}
	}
	processor, ok := desired.ChooseExit(staying, from.Endpoint)
	if !ok {
		processor, _ = desired.ChooseExit(exits, from.Endpoint)
	}
	return processor, true
}

// exitText says by what the flows of a sender to an external leave.
func exitText(f verify.Fabric, from api.Party, exit fabric.Exit) string {
	if !from.Live() {
		if exit == fabric.ExitNode {
			return "its flows leave by the workload's node"
		}
		return "its flows leave by the exit of the workload's zone"
	}
	node, byZone := exitOf(f.Status, from, exit)
	switch {
	case !byZone:
		node = from.Node
	case node.IsZero():
		return fmt.Sprintf("its flows leave by a processor of zone %s, of which none is there", from.Zone)
	}
	text := fmt.Sprintf("its flows leave by %s", node)
	for _, n := range f.Status.Nodes {
		var addresses []string
		for _, a := range n.Exit {
			addresses = append(addresses, a.Address.String())
		}
		if n.ID() == node && len(addresses) > 0 {
			return text + ", with the address " + strings.Join(addresses, " or ")
		}
	}
	return text
}

// unexposed says that the node of a live sender does not offer a port; empty if it does, or if that
// is not known.
func unexposed(status api.Status, from, to api.Party, q api.Question) string {
	if !to.OwnNode || !from.Live() {
		return ""
	}
	for _, n := range status.Nodes {
		if n.ID() == from.Node && n.Kind.Has(fabric.KindWorkload) && !slices.ContainsFunc(n.Exposed, func(p api.ExposedPort) bool { return p.Protocol == q.Protocol && p.Port == q.Port }) {
			return fmt.Sprintf("%s does not expose port %s to its workloads: its configuration needs a block expose for it", from.Node, flowText(q.Protocol, q.Port))
		}
	}
	return ""
}

// addressesOf returns the addresses of what a flow goes to outside, as the node of the sender knows
// them.
func addressesOf(known fabric.Outside, from, to api.Party) []netip.Addr {
	switch {
	case to.OwnNode && to.Address.IsValid():
		return []netip.Addr{to.Address}
	case to.OwnNode:
		return []netip.Addr{wellknown.LinkLocal4, wellknown.LinkLocal6}
	case to.Address.IsValid():
		return []netip.Addr{to.Address}
	}
	var list []netip.Addr
	for _, n := range known.Named {
		if n.Service == from.Service && to.DNSName != "" && fabric.MatchName(to.DNSName, n.Name) {
			list = append(list, n.Addresses...)
		}
	}
	return list
}
