// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

// Package explain says of a flow whether the graph allows it and why, and what
// each data path on its way holds about it. It is pure: graph, status and what
// nodes read back are given to it, and it knows no daemon.
package explain

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/internal/verify"
)

// Party is one end of a flow: a live endpoint, a service without one, an
// external, or an address of nobody.
type Party struct {
	Service  fabric.Ref   `json:"service,omitzero"`
	External fabric.Ref   `json:"external,omitzero"`
	Address  netip.Addr   `json:"address,omitzero"` // of externals and of nobody
	Endpoint string       `json:"endpoint,omitempty"`
	Node     string       `json:"node,omitempty"` // zone/node
	Roles    fabric.Roles `json:"roles,omitzero"` // of a service without endpoints: all that it may request
	IPv4     netip.Addr   `json:"ipv4,omitzero"`
	IPv6     netip.Addr   `json:"ipv6,omitzero"`

	zone string
}

func (p Party) live() bool { return p.Endpoint != "" }

func (p Party) identity() fabric.Identity {
	return fabric.Identity{Service: p.Service, Roles: p.Roles}
}

// Name is the service or external, or the address of nobody.
func (p Party) Name() string {
	switch {
	case p.Service != fabric.Ref{}:
		return p.Service.String()
	case p.External != fabric.Ref{}:
		return p.External.String()
	}
	return p.Address.String()
}

func (p Party) String() string {
	switch {
	case p.live():
		return fmt.Sprintf("%s (endpoint %s on %s)", p.Service, p.Endpoint, p.Node)
	case p.Service != fabric.Ref{}:
		return p.Service.String() + " (no live endpoint)"
	case p.External != fabric.Ref{}:
		return fmt.Sprintf("external %s (%s)", p.External, p.Address)
	}
	return p.Address.String() + " (nobody)"
}

func partyOf(e verify.Endpoint) Party {
	return Party{Service: e.Service, Endpoint: e.Endpoint, Node: e.Host(), zone: e.Zone, Roles: e.Roles, IPv4: e.IPv4, IPv6: e.IPv6}
}

// Resolve finds whom a text means: a service or external ("domain/name"), an
// address, or an endpoint or allocation by its ID or the beginning of it. A
// service stands for all its live endpoints.
func Resolve(f verify.Fabric, text string) ([]Party, error) {
	live := verify.Endpoints(f.Status, f.Now)
	if a, err := netip.ParseAddr(text); err == nil {
		return []Party{byAddress(f, live, a.Unmap())}, nil
	}
	if r, err := fabric.ParseRef(text); err == nil {
		return byName(f, live, r)
	}
	var found []verify.Endpoint
	for _, e := range live {
		if e.Endpoint == text {
			return []Party{partyOf(e)}, nil
		}
		if strings.HasPrefix(e.Endpoint, text) {
			found = append(found, e)
		}
	}
	switch len(found) {
	case 0:
		return nil, fmt.Errorf("%q is neither a service (domain/service), nor an address, nor the ID of a live endpoint or allocation", text)
	case 1:
		return []Party{partyOf(found[0])}, nil
	}
	var ids []string
	for _, e := range found {
		ids = append(ids, e.Endpoint)
	}
	return nil, fmt.Errorf("%q is the beginning of several endpoints: %s", text, strings.Join(ids, ", "))
}

func byAddress(f verify.Fabric, live []verify.Endpoint, a netip.Addr) Party {
	for _, e := range live {
		if e.IPv4 == a || e.IPv6 == a {
			return partyOf(e)
		}
	}
	p := Party{Address: a}
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

func byName(f verify.Fabric, live []verify.Endpoint, r fabric.Ref) ([]Party, error) {
	var parties []Party
	for _, e := range live {
		if e.Service == r {
			parties = append(parties, partyOf(e))
		}
	}
	if len(parties) > 0 {
		return parties, nil
	}
	if doc, ok := verify.Documents(f.Graph, f.Now)[r]; ok {
		return []Party{{Service: r, Roles: doc.Roles()}}, nil
	}
	eachExternal(f.Graph, func(name fabric.Ref, x fabric.External) {
		if name == r {
			for _, prefix := range x.Prefixes {
				parties = append(parties, Party{External: r, Address: prefix.Addr()})
			}
		}
	})
	if len(parties) == 0 {
		return nil, fmt.Errorf("the graph in force has no service or external %s", r)
	}
	return parties, nil
}

// eachExternal visits all externals in order of their names.
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
