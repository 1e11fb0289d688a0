// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

// Package explain tells whether the graph allows a flow and why, and what each data path on the
// flow's path contains about it. It is pure: graph, status and dumps are its input. It knows no
// daemon.
package explain

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/sif-project/sif/api"
	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/internal/inspect/verify"
	"github.com/sif-project/sif/internal/wellknown"
)

// UnknownError is returned for a text that names no party.
type UnknownError struct{ text string }

func (e *UnknownError) Error() string { return e.text }

func unknown(format string, args ...any) error { return &UnknownError{fmt.Sprintf(format, args...)} }

// UnreadableError is returned for a party of a domain that the asker may not read.
type UnreadableError struct{ Party, Domain string }

func (e *UnreadableError) Error() string {
	return fmt.Sprintf("%q is of domain %q, which may not be read", e.Party, e.Domain)
}

func partyOf(e fabric.Admission) api.Party {
	return api.Party{Service: e.Service, Endpoint: e.Endpoint, Zone: e.Zone, Node: e.Host(), Roles: e.Roles, IPv4: e.IPv4, IPv6: e.IPv6, Origin: e.Origin}
}

// OwnNode is the text that names what listens on the node of the sender.
const OwnNode = "node"

// resolve returns the parties that a text names: a service or external ("domain/name"), an address,
// or an endpoint or allocation by its ID or a prefix of the ID, or by the name under which a node
// attached it, also as zone/node/name. A service stands for all its live endpoints. A destination
// may also be OwnNode or a DNS name outside the fabric.
func resolve(v View, text string, destination bool) ([]api.Party, error) {
	parties, err := v.find(text, destination)
	if err != nil {
		return nil, err
	}
	_, why := verify.Revoked(v.Status, v.Now)
	for i, p := range parties {
		if p.Live() {
			parties[i].Revoked = why[p.Endpoint]
		}
	}
	for _, p := range parties {
		if domain := p.Domain(); domain != "" && !v.reads(domain) {
			return nil, &UnreadableError{text, domain}
		}
	}
	return parties, nil
}

func (v View) reads(domain string) bool { return v.Reads == nil || v.Reads(domain) }

func (v View) find(text string, destination bool) ([]api.Party, error) {
	revoked, _ := verify.Revoked(v.Status, v.Now)
	live := append(verify.Endpoints(v.Status, v.Now), revoked...) // those still run: the answer says what became of them
	fabric.SortAdmissions(live)
	if a, err := netip.ParseAddr(text); err == nil {
		return []api.Party{byAddress(v.Fabric, live, a.Unmap(), destination)}, nil
	}
	if destination && text == OwnNode {
		return []api.Party{{OwnNode: true}}, nil
	}
	if attached := v.attached(live, text); attached != nil {
		return attached, nil
	}
	if strings.Contains(text, ".") && !strings.Contains(text, "/") {
		name := strings.ToLower(strings.TrimSuffix(text, "."))
		fault, remedy := fabric.NameFault(name)
		switch {
		case fault != "":
			return nil, unknown("name %q %s; %s", text, fault, remedy)
		case !destination:
			return nil, unknown("%q is a name outside the fabric; flows from there are known by their addresses", text)
		}
		return []api.Party{{DNSName: name}}, nil
	}
	if r, err := fabric.ParseRef(text); err == nil {
		if !v.reads(r.Domain) {
			return nil, &UnreadableError{text, r.Domain} // not even whether there is such a service
		}
		return byName(v.Fabric, live, r, destination)
	}
	var found []fabric.Admission
	for _, e := range live {
		if e.Endpoint == text {
			return []api.Party{partyOf(e)}, nil
		}
		if strings.HasPrefix(e.Endpoint, text) && v.reads(e.Service.Domain) {
			found = append(found, e)
		}
	}
	switch len(found) {
	case 0:
		return nil, unknown("%q is neither a service (domain/service), nor an address, nor the ID of a live endpoint or allocation, nor the name of an attached one", text)
	case 1:
		return []api.Party{partyOf(found[0])}, nil
	}
	var ids []string
	for _, e := range found {
		ids = append(ids, e.Endpoint)
	}
	return nil, fmt.Errorf("%q is the beginning of several endpoints: %s", text, strings.Join(ids, ", "))
}

// attached returns the live endpoints that nodes attached under a name, of which there may be
// several; one if the name has its node, which it must if it looks like a DNS name. An endpoint
// whose domain may not be read counts only with its node, so that a name tells nothing of it.
func (v View) attached(live []fabric.Admission, text string) (parties []api.Party) {
	for _, e := range live {
		name := e.Origin.Attached
		if name != "" && (text == name && !strings.Contains(name, ".") && v.reads(e.Service.Domain) || text == e.Host().String()+"/"+name) {
			parties = append(parties, partyOf(e))
		}
	}
	return parties
}

// byAddress returns the party with an address. Which externals a destination outside belongs to
// depends on the sender, so it has none here.
func byAddress(f verify.Fabric, live []fabric.Admission, a netip.Addr, destination bool) api.Party {
	for _, e := range live {
		if e.IPv4 == a || e.IPv6 == a {
			return partyOf(e)
		}
	}
	p := api.Party{Address: a}
	for _, n := range verify.Nodes(f.Status) {
		if n.Health4() == a || n.Health6() == a {
			p.Node = n.ID()
			return p
		}
	}
	if destination {
		p.OwnNode = a == wellknown.LinkLocal4 || a == wellknown.LinkLocal6
		return p
	}
	narrowest := -1
	eachExternal(f.Graph, func(r fabric.Ref, x fabric.External) {
		for _, prefix := range x.Prefixes {
			if prefix.Contains(a) && prefix.Bits() > narrowest {
				narrowest, p.External = prefix.Bits(), r
			}
		}
	})
	return p
}

func byName(f verify.Fabric, live []fabric.Admission, r fabric.Ref, destination bool) ([]api.Party, error) {
	var parties []api.Party
	for _, e := range live {
		if e.Service == r {
			parties = append(parties, partyOf(e))
		}
	}
	if len(parties) > 0 {
		return parties, nil
	}
	if doc, ok := verify.Documents(f.Graph, f.Now)[r]; ok {
		return []api.Party{{Service: r, Roles: doc.Roles()}}, nil
	}
	eachExternal(f.Graph, func(name fabric.Ref, x fabric.External) {
		if name == r {
			parties = partiesOf(name, x, destination)
		}
	})
	if len(parties) == 0 {
		return nil, unknown("the graph in force has no service or external %s", r)
	}
	return parties, nil
}

// partiesOf returns what an external has: its prefixes, by their first addresses, and as a
// destination its names and the rest.
func partiesOf(r fabric.Ref, x fabric.External, destination bool) (parties []api.Party) {
	for _, prefix := range x.Prefixes {
		parties = append(parties, api.Party{External: r, Address: prefix.Addr()})
	}
	if !destination {
		if len(parties) == 0 {
			parties = []api.Party{{External: r}}
		}
		return parties
	}
	for _, name := range x.Names {
		parties = append(parties, api.Party{External: r, DNSName: name})
	}
	if x.Consul != nil || x.Node {
		parties = append(parties, api.Party{External: r, OwnNode: x.Node})
	}
	return parties
}

// eachExternal calls a function for all externals, ordered by name.
func eachExternal(g *fabric.Graph, visit func(fabric.Ref, fabric.External)) {
	var names []string
	for name := range g.Domains {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		for _, x := range g.Domains[name].Externals {
			visit(fabric.Ref{Domain: name, Name: x.Name}, x)
		}
	}
}
