// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package desired

import (
	"net/netip"
	"slices"

	"github.com/sif-project/sif/fabric"
)

// External is a prefix outside the fabric in a data path. A data path looks up the longest prefix
// that contains an address, so a prefix has the rights of all who hold any prefix around it.
type External struct {
	Party Party // empty: nobody holds the prefix, although a shorter one is held
	// From says that its flows come in at the node; Exits by what flows to it leave.
	From  bool
	Exits Exits
	// Nested says that a shorter prefix is around this one, from which it may differ.
	Nested bool
	// Withheld says that the prefix is in a reserved one, and that not all who hold a prefix around
	// it hold it, too. Any other nested prefix has at least the rights of those around it.
	Withheld bool
}

// Exits are the exits by which flows leave.
type Exits struct{ Zone, Node bool }

// grant is the right of an identity to be called by an external, or to call one.
type grant struct {
	identity Party
	inward   bool
	contract fabric.Ref
	rules    []fabric.Rule
	audit    bool
	exit     fabric.Exit
}

// holding is a set of prefixes that one external holds for the same grants: by its prefixes and its
// Consul service for all of them, by a name for those of the service that asked.
type holding struct {
	holder   Holder
	prefixes []netip.Prefix
	listed   []netip.Prefix
	grants   []grant
}

// outside collects who may come from outside and who may go there.
type outside struct {
	known    fabric.Outside
	holdings map[Holder]*holding
	order    []*holding
	host     []Holder // externals that are the node itself
	toHost   []grant
}

func newOutside(known fabric.Outside) *outside {
	return &outside{known: known, holdings: map[Holder]*holding{}}
}

// byZone returns a document without the externals that a processor does not carry: those that leave
// by the workload's node, or are that node.
func byZone(doc fabric.Document) fabric.Document {
	var edges []fabric.Edge
	for _, e := range doc.Originates {
		e.Peers = slices.DeleteFunc(slices.Clone(e.Peers), func(p fabric.Peer) bool { return p.Exit == fabric.ExitNode || p.IsNode() })
		edges = append(edges, e)
	}
	doc.Originates = edges
	return doc
}

func (o *outside) at(h Holder, listed []netip.Prefix) *holding {
	held := o.holdings[h]
	if held == nil {
		held = &holding{holder: h, listed: listed}
		o.holdings[h] = held
		o.order = append(o.order, held)
	}
	return held
}

// addIngress adds what externals may open to an identity.
func (o *outside) addIngress(id fabric.Identity, doc fabric.Document) {
	for _, g := range fabric.ExternalGrants(id, doc) {
		held := o.at(Holder{External: g.External}, nil)
		held.prefixes = append(held.prefixes, g.Prefixes...)
		held.grants = append(held.grants, grant{PartyOf(id), true, g.Contract, g.Rules, g.Audit, fabric.ExitZone})
	}
}

// addEgress adds what an identity may open to externals.
func (o *outside) addEgress(id fabric.Identity, doc fabric.Document) {
	for _, g := range fabric.EgressGrants(id, doc) {
		right := grant{PartyOf(id), false, g.Contract, g.Rules, g.Audit, g.External.Exit}
		x := g.External
		if x.IsNode() {
			o.host = append(o.host, Holder{External: x.Name, Responder: true})
			o.toHost = append(o.toHost, right)
			continue
		}
		if prefixes := append(slices.Clone(x.Prefixes), registered(o.known, x.Consul)...); len(prefixes) > 0 {
			held := o.at(Holder{External: x.Name, Responder: true}, x.Listed)
			held.prefixes = append(held.prefixes, prefixes...)
			held.grants = append(held.grants, right)
		}
		if addresses := named(o.known, id.Service, x); len(addresses) > 0 {
			held := o.at(Holder{External: x.Name, Responder: true, Asker: id.Service}, x.Listed)
			held.prefixes = append(held.prefixes, addresses...)
			held.grants = append(held.grants, right)
		}
	}
}

// registered returns the addresses of a Consul service's instances that count.
func registered(known fabric.Outside, c *fabric.ConsulInstances) (list []netip.Prefix) {
	if c == nil {
		return nil
	}
	for _, r := range known.Registered {
		if r.Service != c.Service || r.Datacenter != c.Datacenter {
			continue
		}
		for _, a := range r.Addresses {
			if c.Counts(a) {
				list = append(list, single(a))
			}
		}
	}
	return list
}

// named returns the addresses of the names that a service asked for and that an external has.
func named(known fabric.Outside, service fabric.Ref, x fabric.Peer) (list []netip.Prefix) {
	for _, n := range known.Named {
		if n.Service == service && x.HasName(n.Name) {
			for _, a := range n.Addresses {
				list = append(list, single(a))
			}
		}
	}
	return list
}

func single(a netip.Addr) netip.Prefix { return netip.PrefixFrom(a, a.BitLen()) }

// lookup finds values by prefixes around a prefix, in a time that does not depend on their number.
type lookup[V any] struct {
	values  map[netip.Prefix][]V
	lengths [2][]int // of IPv4 and IPv6 prefixes, each once
}

func (l *lookup[V]) add(p netip.Prefix, v V) {
	if l.values == nil {
		l.values = map[netip.Prefix][]V{}
	}
	p = p.Masked()
	if _, known := l.values[p]; !known {
		family := family(p)
		if !slices.Contains(l.lengths[family], p.Bits()) {
			l.lengths[family] = append(l.lengths[family], p.Bits())
		}
	}
	l.values[p] = append(l.values[p], v)
}

// around calls do with the values of every prefix that contains all of p.
func (l *lookup[V]) around(p netip.Prefix, do func(outer netip.Prefix, v V)) {
	for _, bits := range l.lengths[family(p)] {
		if bits > p.Bits() {
			continue
		}
		outer, err := p.Addr().Prefix(bits)
		if err != nil {
			continue // cannot happen: bits is at most p.Bits()
		}
		for _, v := range l.values[outer] {
			do(outer, v)
		}
	}
}

func family(p netip.Prefix) int {
	if p.Addr().Is4() {
		return 0
	}
	return 1
}

// resolve returns the prefixes that a data path must know, with their parties, and the rules. zone
// says that the zone has an exit of its own; otherwise the node is the exit.
func (o *outside) resolve(zone bool) (map[netip.Prefix]External, []Rule) {
	var held lookup[*holding]
	var barred lookup[bool] // reserved prefixes; true: no binding can open them
	pieces := map[netip.Prefix]bool{}
	for _, h := range o.order {
		for _, p := range h.prefixes {
			p = p.Masked()
			pieces[p] = true
			held.add(p, h)
		}
	}
	if len(pieces) == 0 {
		return map[netip.Prefix]External{}, nil
	}
	inside := func(p netip.Prefix) (is bool) {
		held.around(p, func(netip.Prefix, *holding) { is = true })
		return is
	}
	cut := func(p netip.Prefix) {
		if inside(p) {
			pieces[p.Masked()] = true
		}
	}
	for _, r := range fabric.Translated(o.known.Ranges) {
		barred.add(r, true)
		cut(r)
	}
	for _, r := range fabric.Translated(slices.Concat(fabric.Reserved(), o.known.Reserved)) {
		barred.add(r, false)
		// A data path cannot tell an IPv4-mapped address from the IPv4 address, whose pieces count.
		if !r.Addr().Is4In6() {
			cut(r)
		}
	}
	for _, h := range o.order {
		for _, l := range h.listed {
			cut(l)
		}
	}

	externals := make(map[netip.Prefix]External, len(pieces))
	var rules []Rule
	type edge struct {
		from, to Party
		contract fabric.Ref
		exit     fabric.Exit
	}
	added := map[edge]bool{}
	for piece := range pieces {
		holders, nested, withheld := map[*holding]bool{}, false, false
		held.around(piece, func(outer netip.Prefix, h *holding) {
			holders[h] = true
			nested = nested || outer.Bits() < piece.Bits()
		})
		barred.around(piece, func(reserved netip.Prefix, always bool) {
			for h := range holders {
				// Who comes from a node is no danger to it, so originators may.
				if always || h.holder.Responder && !fabric.Lifted(h.listed, reserved, piece) {
					delete(holders, h)
					withheld = true
				}
			}
		})
		var names []Holder
		for h := range holders {
			names = append(names, h.holder)
		}
		if len(names) == 0 {
			externals[piece] = External{Nested: nested, Withheld: withheld}
			continue
		}
		x := External{Party: PartyOfExternals(names), Nested: nested, Withheld: withheld}
		for h := range holders {
			for _, g := range h.grants {
				r := Rule{From: g.identity, To: x.Party, Contract: g.contract, Rules: g.rules, Audit: g.audit, Exit: g.exit}
				if g.inward {
					r.From, r.To = x.Party, g.identity
					x.From = true
				} else {
					if !zone {
						r.Exit = fabric.ExitNode
					}
					x.Exits.Node = x.Exits.Node || r.Exit == fabric.ExitNode
					x.Exits.Zone = x.Exits.Zone || r.Exit == fabric.ExitZone
				}
				// The same externals may have several prefixes, and be of one contract twice.
				if e := (edge{r.From, r.To, r.Contract, r.Exit}); !added[e] {
					added[e] = true
					rules = append(rules, r)
				}
			}
		}
		externals[piece] = x
	}
	return externals, rules
}

// toNode returns the party of the node itself, empty if nobody may call it, and the rules.
func (o *outside) toNode() (Party, []Rule) {
	if len(o.host) == 0 {
		return "", nil
	}
	host := PartyOfExternals(o.host)
	var rules []Rule
	type edge struct {
		from     Party
		contract fabric.Ref
		ports    string
	}
	added := map[edge]bool{}
	for _, g := range o.toHost {
		// Two externals of one contract may have other ports.
		e := edge{g.identity, g.contract, ""}
		for _, r := range g.rules {
			e.ports += r.String() + " "
		}
		if !added[e] {
			added[e] = true
			rules = append(rules, Rule{From: g.identity, To: host, Contract: g.contract, Rules: g.rules, Audit: g.audit})
		}
	}
	return host, rules
}
