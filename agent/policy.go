// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package agent

import (
	"net/netip"
	"slices"
	"strings"

	"github.com/sif-project/sif/fabric"
)

// kernelState is what the node's data path should hold: a function of the
// endpoints, their counterparts and the documents in force, and of nothing
// else.
type kernelState struct {
	Endpoints map[string]kernelEndpoint // by host-side interface
	Peers     map[netip.Addr]kernelPeer
	Externals map[kernelExternal]uint32 // to identity
	Pairs     map[kernelPair][]kernelRule
}

type kernelEndpoint struct {
	Index      int
	IPv4, IPv6 netip.Addr
	Identity   uint32
	Checks     []fabric.Check
}

// kernelPeer is who an address is, and the one interface by which it may come.
type kernelPeer struct {
	Identity uint32
	Index    int
}

type kernelExternal struct {
	Index  int
	Prefix netip.Prefix
}

type kernelPair struct{ Src, Dst uint32 } // identities

type kernelRule struct {
	Protocol fabric.Protocol
	Ports    fabric.PortRange
	Contract uint32
	Audit    bool // flows pass and are reported
}

// numbers gives identities and contracts their node-local numbers.
type numbers interface {
	Of(name string) (uint32, error)
}

// compiler computes kernelStates.
type compiler struct {
	num      numbers
	underlay int // index of the interface by which externals come
	// towards returns the index of the interface by which the endpoints of a
	// zone come, and false while there is none.
	towards func(zone, node string) (int, bool)
}

// compile computes what the kernel should hold.
func (c compiler) compile(local []endpoint, counterparts []fabric.Admission, docs map[fabric.Ref]fabric.Document) (kernelState, error) {
	s := kernelState{
		Endpoints: map[string]kernelEndpoint{}, Peers: map[netip.Addr]kernelPeer{},
		Externals: map[kernelExternal]uint32{}, Pairs: map[kernelPair][]kernelRule{},
	}
	ids := map[string]uint32{}
	number := func(id fabric.Identity) (uint32, error) {
		key := id.Key()
		n, ok := ids[key]
		if ok {
			return n, nil
		}
		n, err := c.num.Of("identity " + key)
		ids[key] = n
		return n, err
	}
	var here, all []fabric.Identity
	for _, ep := range local {
		n, err := number(ep.Admission.Identity())
		if err != nil {
			return s, err
		}
		s.Endpoints[ep.HostIf] = kernelEndpoint{Index: ep.HostIndex, IPv4: ep.IPv4, IPv6: ep.IPv6, Identity: n, Checks: ep.Admission.Checks}
		s.Peers[ep.IPv4] = kernelPeer{n, ep.HostIndex}
		s.Peers[ep.IPv6] = kernelPeer{n, ep.HostIndex}
		here = append(here, ep.Admission.Identity())
	}
	all = slices.Clone(here)
	for _, a := range counterparts {
		index, ok := c.towards(a.Zone, a.Node)
		if !ok {
			continue
		}
		n, err := number(a.Identity())
		if err != nil {
			return s, err
		}
		s.Peers[a.IPv4] = kernelPeer{n, index}
		s.Peers[a.IPv6] = kernelPeer{n, index}
		all = append(all, a.Identity())
	}
	for _, g := range fabric.GrantsAmong(unique(here), unique(all), docs) {
		pair := kernelPair{ids[g.Originator.Key()], ids[g.Responder.Key()]}
		if err := c.addRules(&s, pair, g.Contract, g.Audit, g.Rules); err != nil {
			return s, err
		}
	}
	return s, c.externals(&s, unique(here), docs, ids)
}

// externals adds who may come from outside the fabric. An address may belong
// to several externals: then the identity of the narrowest prefix stands for
// all of them and has the rights of each.
func (c compiler) externals(s *kernelState, here []fabric.Identity, docs map[fabric.Ref]fabric.Document, ids map[string]uint32) error {
	var grants []fabric.ExternalGrant
	var prefixes []netip.Prefix
	for _, id := range here {
		for _, g := range fabric.ExternalGrants(id, docs[id.Service]) {
			grants = append(grants, g)
			prefixes = append(prefixes, g.Prefixes...)
		}
	}
	seen := map[kernelPair]map[fabric.Ref]bool{}
	for _, prefix := range prefixes {
		prefix = prefix.Masked()
		covers := func(p netip.Prefix) bool { return p.Bits() <= prefix.Bits() && p.Contains(prefix.Addr()) }
		var names []string
		var entitled []fabric.ExternalGrant
		for _, g := range grants {
			if slices.ContainsFunc(g.Prefixes, covers) {
				names = append(names, g.External.String())
				entitled = append(entitled, g)
			}
		}
		slices.Sort(names)
		n, err := c.num.Of("external " + strings.Join(slices.Compact(names), " "))
		if err != nil {
			return err
		}
		s.Externals[kernelExternal{c.underlay, prefix}] = n
		for _, g := range entitled {
			pair := kernelPair{n, ids[g.Responder.Key()]}
			if seen[pair] == nil {
				seen[pair] = map[fabric.Ref]bool{}
			}
			if seen[pair][g.Contract] {
				continue
			}
			seen[pair][g.Contract] = true
			if err := c.addRules(s, pair, g.Contract, g.Audit, g.Rules); err != nil {
				return err
			}
		}
	}
	return nil
}

func (c compiler) addRules(s *kernelState, pair kernelPair, contract fabric.Ref, audit bool, rules []fabric.Rule) error {
	n, err := c.num.Of("contract " + contract.String())
	if err != nil {
		return err
	}
	for _, r := range rules {
		for _, p := range r.Ports {
			s.Pairs[pair] = append(s.Pairs[pair], kernelRule{r.Protocol, p, n, audit})
		}
	}
	return nil
}

// unique returns the identities without repetitions.
func unique(ids []fabric.Identity) []fabric.Identity {
	seen := map[string]bool{}
	var list []fabric.Identity
	for _, id := range ids {
		if key := id.Key(); !seen[key] {
			seen[key] = true
			list = append(list, id)
		}
	}
	return list
}
