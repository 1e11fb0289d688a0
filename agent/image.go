// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package agent

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"github.com/sif-project/sif/bpf"
	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/fabric/desired"
	"github.com/sif-project/sif/internal/node/firewall"
	"github.com/sif-project/sif/internal/wellknown"
)

// image is the content of the data path's maps.
type image struct {
	endpoints map[uint32]bpf.Endpoint // by interface index
	peers     map[netip.Addr]bpf.Peer
	externals map[externalKey]bpf.External
	checks    map[bpf.Check]bool
	pairs     map[bpf.Pair][]bpf.Rule // canonical
	published map[publishedKey]bpf.Published
	exits     []uint32 // marks of exits to which packets are led, ordered
	ways      relations
	classes   map[uint32]uint16 // numbers of contracts' classes, by the contracts' numbers
	links     []uint32          // by which packets from peers with ways may arrive, ordered
	// egress is what the node's firewall must let out, except to what is withheld. It is not in the
	// maps.
	egress   []firewall.Egress
	withheld []netip.Prefix
}

// publishedKey is the key of a published port in the maps.
type publishedKey struct {
	Protocol uint8
	From     netip.AddrPort
}

// externalKey is the key of an external in the maps.
type externalKey struct {
	Interface uint32
	Prefix    netip.Prefix
}

func newImage() image {
	return image{
		endpoints: map[uint32]bpf.Endpoint{}, peers: map[netip.Addr]bpf.Peer{}, externals: map[externalKey]bpf.External{},
		checks: map[bpf.Check]bool{}, pairs: map[bpf.Pair][]bpf.Rule{}, published: map[publishedKey]bpf.Published{},
		ways: relations{}, classes: map[uint32]uint16{},
	}
}

// numbers gives keys their node-local numbers.
type numbers interface {
	Of(key string) (uint32, error)
}

// layout maps words to what the maps contain: numbers for parties and contracts, indexes for
// interfaces.
type layout struct {
	num       numbers
	underlay  uint32                 // the interface by which externals come
	own       map[string]uint32      // interfaces of the node's endpoints, by endpoint
	links     map[desired.Way]uint32 // interfaces of the links that are up
	exits     choice
	marks     map[fabric.NodeID]uint32 // of packets to the zone's processors
	ways      *wayNumbers              // nil: none were given yet
	zone      string                   // the node's
	reject    map[string]bool          // endpoints that are told of refusals
	gone      []netip.Addr             // addresses whose endpoints have ended, by their owners' word
	published []bpf.Published
}

// unnumbered is the error about what an image lacks because a party or a contract has no number and
// none can be assigned, as with a full disk. The image has all the rest.
type unnumbered struct {
	error
	parties   map[desired.Party]bool // those that lack something
	addresses map[netip.Addr]bool    // of their endpoints
}

func (u *unnumbered) Unwrap() error { return u.error }

// concerns reports whether the image lacks something of an endpoint. It may be called on nil.
func (u *unnumbered) concerns(adm fabric.Admission) bool { return u != nil && u.addresses[adm.IPv4] }

func (u *unnumbered) add(err error, parties ...desired.Party) {
	if u.error == nil {
		u.error = err // the others have the same cause
	}
	for _, p := range parties {
		u.parties[p] = true
	}
}

// image returns what the maps must contain. It leaves out endpoints behind a link that is not up.
// If the error is an unnumbered, the image can be used: it lacks just what the error says.
func (l layout) image(w desired.Workload) (image, error) {
	im := newImage()
	lacking := &unnumbered{parties: map[desired.Party]bool{}, addresses: map[netip.Addr]bool{}}
	parties := map[desired.Party]uint32{}
	number := func(p desired.Party) (n uint32, err error) {
		n, known := parties[p]
		if !known {
			if n, err = l.num.Of(desired.PartyKey{Party: p}.String()); err != nil {
				return 0, err
			}
			parties[p] = n
		}
		return n, nil
	}
	ways := cmp.Or(l.ways, &wayNumbers{})
	ways.assign(w)
	for _, e := range w.Endpoints {
		index, up := l.links[e.Way]
		switch e.Way {
		case desired.OwnInterface:
			index, up = l.own[e.Endpoint]
		case desired.ByWays:
			index, up = 0, true
		}
		if !up {
			continue
		}
		n, err := number(e.Party)
		if err != nil {
			lacking.add(err, e.Party)
			continue
		}
		for _, addr := range []netip.Addr{e.IPv4, e.IPv6} {
			p := bpf.Peer{Address: addr, Identity: n, Interface: index}
			if e.Way == desired.ByWays {
				p.Ways, p.Group, p.Number = true, ways.groups[e.Group], e.Number
			}
			im.peers[addr] = p
		}
		if e.Way != desired.OwnInterface {
			continue
		}
		im.endpoints[index] = bpf.Endpoint{Interface: index, Identity: n, IPv4: e.IPv4, IPv6: e.IPv6, Exit: l.exits.marks[e.Endpoint], Reject: l.reject[e.Endpoint], Number: e.Number}
		for _, c := range e.Checks {
			im.checks[bpf.Check{Interface: index, Protocol: uint8(c.Protocol), Port: c.Port}] = true
		}
	}
	for prefix, x := range w.Externals {
		n := uint32(0) // nobody's
		if x.Party != "" {
			var err error
			if n, err = number(x.Party); err != nil {
				lacking.add(err, x.Party)
				n = 0 // nor does a shorter prefix's party have it
			}
		}
		for index, is := range l.interfaces(x) {
			switch {
			case is && n != 0:
				im.externals[externalKey{index, prefix}] = bpf.External{Prefix: prefix, Identity: n, Interface: index}
			case x.Nested || x.Party != "" && n == 0:
				im.externals[externalKey{index, prefix}] = bpf.External{Prefix: prefix, Interface: index}
			}
		}
	}
	if w.Host != "" {
		n, err := number(w.Host)
		if err != nil {
			lacking.add(err, w.Host)
		} else {
			for _, p := range wellknown.HostPrefixes() {
				im.externals[externalKey{0, p}] = bpf.External{Prefix: p, Identity: n}
			}
		}
	}
	for _, a := range l.gone {
		if _, again := im.peers[a]; !again {
			im.peers[a] = bpf.Peer{Address: a, Gone: true}
		}
	}
	for _, p := range l.published {
		im.published[publishedKey{p.Protocol, p.From}] = p
	}
	im.exits = l.exits.kept
	for _, s := range w.Ways {
		marks := [desired.Buckets]uint32{}
		for bucket, hop := range s.Next {
			marks[bucket] = l.marks[hop.Processor]
		}
		if marks != [desired.Buckets]uint32{} {
			im.ways[relation{ways.classes[s.Class], ways.groups[s.To]}] = marks
		}
	}
	if len(w.Ways) > 0 {
		for way, index := range l.links {
			if processor, ok := way.Processor(); ok && processor.Zone == l.zone {
				im.links = append(im.links, index)
			}
		}
		slices.Sort(im.links)
	}
	for _, r := range w.Rules {
		from, err := number(r.From)
		to, unknown := number(r.To)
		contract, none := l.num.Of(desired.ContractKey{Contract: r.Contract}.String())
		if err := cmp.Or(err, unknown, none); err != nil {
			lacking.add(err, r.From, r.To)
			continue
		}
		if class := ways.classes[r.Class]; class != 0 {
			im.classes[contract] = class
		}
		if r.Audit {
			contract |= bpf.AuditContract
		}
		pair := bpf.Pair{Source: from, Destination: to}
		for _, rule := range r.Rules {
			for _, p := range rule.Ports {
				im.pairs[pair] = append(im.pairs[pair], bpf.Rule{Protocol: uint8(rule.Protocol), From: p.From, To: p.To, Contract: contract, ExitNode: r.Exit == fabric.ExitNode})
			}
		}
	}
	for pair, rules := range im.pairs {
		im.pairs[pair] = bpf.Canonical(rules)
	}
	if lacking.error == nil {
		return im, nil
	}
	for _, e := range w.Endpoints {
		if lacking.parties[e.Party] {
			lacking.addresses[e.IPv4] = true
		}
	}
	return im, lacking
}

// interfaces returns the interfaces by which packets may come from a prefix, 0 for packets to it,
// and whether they may.
func (l layout) interfaces(x desired.External) map[uint32]bool {
	is := map[uint32]bool{
		0:            x.Exits.Zone || x.Exits.Node,
		l.underlay:   x.From || x.Exits.Node,
		bpf.FromNode: x.From,
	}
	for way, index := range l.links {
		if processor, ok := way.Processor(); ok && processor.Zone == l.zone {
			is[index] = x.Exits.Zone
		}
	}
	return is
}

// egressOf returns what the endpoints of the node may reach with the node as exit, and the prefixes
// in which only what is listed for just them may be reached.
func egressOf(w desired.Workload) (list []firewall.Egress, withheld []netip.Prefix) {
	prefixes := map[desired.Party][]netip.Prefix{}
	for prefix, x := range w.Externals {
		if x.Exits.Node {
			prefixes[x.Party] = append(prefixes[x.Party], prefix)
		}
		if x.Withheld {
			withheld = append(withheld, prefix)
		}
	}
	endpoints := map[desired.Party][]netip.Addr{}
	for _, e := range w.Endpoints {
		if e.Way == desired.OwnInterface {
			endpoints[e.Party] = append(endpoints[e.Party], e.IPv4, e.IPv6)
		}
	}
	for _, r := range w.Rules {
		if r.Exit != fabric.ExitNode {
			continue
		}
		for _, rule := range r.Rules {
			for _, ports := range rule.Ports {
				for _, from := range endpoints[r.From] {
					for _, prefix := range prefixes[r.To] {
						e := firewall.Egress{Endpoint: from, Prefix: prefix, Protocol: rule.Protocol, Ports: ports}
						if e.Check() == nil { // both are of one family, and the protocol is of that
							list = append(list, e)
						}
					}
				}
			}
		}
	}
	if len(list) == 0 {
		return nil, nil
	}
	slices.SortFunc(list, func(a, b firewall.Egress) int { return cmp.Compare(a.String(), b.String()) })
	slices.SortFunc(withheld, netip.Prefix.Compare)
	return list, withheld
}

// holds reports whether im is as want in all that concerns the endpoint with these addresses: how
// its packets are known, which checks of it pass, what those of its identity may do, and by which
// ways packets go to other zones.
func (im image) holds(want image, v4, v6 netip.Addr) bool {
	if !maps.Equal(im.ways, want.ways) || !maps.Equal(im.classes, want.classes) || !slices.Equal(im.links, want.links) {
		return false
	}
	if im.peers[v4] != want.peers[v4] || im.peers[v6] != want.peers[v6] {
		return false
	}
	for index, ep := range want.endpoints {
		if ep.IPv4 != v4 {
			continue
		}
		if im.endpoints[index] != ep {
			return false
		}
		for c := range want.checks {
			if c.Interface == index && !im.checks[c] {
				return false
			}
		}
	}
	identity := want.peers[v4].Identity
	for _, pairs := range []map[bpf.Pair][]bpf.Rule{im.pairs, want.pairs} {
		for pair := range pairs {
			if (pair.Source == identity || pair.Destination == identity) && !slices.Equal(im.pairs[pair], want.pairs[pair]) {
				return false
			}
		}
	}
	return true
}

// readImage reads the content of the maps.
func readImage(d Datapath) (image, error) {
	im := newImage()
	endpoints, err := d.Endpoints()
	if err != nil {
		return im, err
	}
	for _, ep := range endpoints {
		im.endpoints[ep.Interface] = ep
	}
	peers, err := d.Peers()
	if err != nil {
		return im, err
	}
	for _, p := range peers {
		im.peers[p.Address] = p
	}
	externals, err := d.Externals()
	if err != nil {
		return im, err
	}
	for _, x := range externals {
		im.externals[externalKey{x.Interface, x.Prefix}] = x
	}
	checks, err := d.Checks()
	if err != nil {
		return im, err
	}
	for _, c := range checks {
		im.checks[c] = true
	}
	published, err := d.Published()
	if err != nil {
		return im, err
	}
	for _, p := range published {
		im.published[publishedKey{p.Protocol, p.From}] = p
	}
	if im.exits, err = d.Exits(); err != nil {
		return im, err
	}
	ways, err := d.Ways()
	if err != nil {
		return im, err
	}
	im.ways = relationsOf(ways)
	if im.classes, err = d.Classes(); err != nil {
		return im, err
	}
	if im.links, err = d.Links(); err != nil {
		return im, err
	}
	im.pairs, err = d.Pairs()
	return im, err
}

// fresh reports whether no address in the maps has an identity.
func (im image) fresh(identity uint32) bool {
	for _, ep := range im.endpoints {
		if ep.Identity == identity {
			return false
		}
	}
	for _, p := range im.peers {
		if p.Identity == identity {
			return false
		}
	}
	for _, x := range im.externals {
		if x.Identity == identity {
			return false
		}
	}
	return true
}

// write changes the maps from have to want and lists the changes. It removes first what is no
// longer allowed, but gives an external whose party has changed its rules before: an address has
// another party whenever one more service asks for its name, and flows to it go on. It continues
// after an error, because the entries are independent, apart from prefixes: an address that is
// nobody's never gets the rights of a prefix around it, neither while write is at work nor if the
// kernel does not take its entry.
func write(d Datapath, have, want image) (changes []string, err error) {
	var errs []error
	do := func(err error, format string, args ...any) {
		changes = append(changes, fmt.Sprintf(format, args...))
		if err != nil {
			errs = append(errs, fmt.Errorf(format+": %w", append(args, err)...))
		}
	}
	// New ways come before the peers that need them, and old ones go after their peers.
	if !slices.Equal(have.links, want.links) {
		do(d.SetLinks(want.links), "set the links by which other zones' packets arrive")
	}
	ways := want.ways.and(have.ways)
	if !maps.Equal(have.ways, ways) {
		do(d.SetWays(ways.ways()), "set the ways to other zones")
	}
	if !maps.Equal(have.classes, want.classes) {
		do(d.SetClasses(want.classes), "set the classes of contracts")
	}
	lacking := map[uint32][]netip.Prefix{} // by interface: prefixes that must be nobody's, and are not
	put := func(x bpf.External) {
		if x.Identity != 0 && slices.ContainsFunc(lacking[x.Interface], func(p netip.Prefix) bool { return fabric.Covers(x.Prefix, p) }) {
			x.Identity = 0
		}
		err := d.PutExternal(x)
		if do(err, "set external %s", x.Prefix); err != nil && x.Identity == 0 {
			lacking[x.Interface] = append(lacking[x.Interface], x.Prefix)
		}
	}
	// The narrow ones come first; of those that go, they go last.
	given, kept, gone := externalChanges(have, want)
	for _, x := range given {
		if x.Identity == 0 {
			put(x)
		}
	}
	// What is there around those is nobody's either before anything goes that hides it.
	for _, x := range slices.Concat(kept, given) {
		_, is := have.externals[externalKey{x.Interface, x.Prefix}]
		if is && x.Identity != 0 && slices.ContainsFunc(lacking[x.Interface], func(p netip.Prefix) bool { return fabric.Covers(x.Prefix, p) }) {
			put(x)
		}
	}
	moved := map[uint32]bool{} // identities that externals get which are there
	for key, x := range want.externals {
		if was, is := have.externals[key]; is && was != x && x.Identity != 0 {
			moved[x.Identity] = true
		}
	}
	for identity := range moved {
		moved[identity] = have.fresh(identity)
	}
	early := map[bpf.Pair]bool{}
	for pair, rules := range want.pairs {
		if (moved[pair.Source] || moved[pair.Destination]) && !slices.Equal(have.pairs[pair], rules) {
			early[pair] = true
			do(d.ReplacePair(pair, rules), "set the rules of identities %d to %d", pair.Source, pair.Destination)
		}
	}
	for _, x := range given {
		if _, is := have.externals[externalKey{x.Interface, x.Prefix}]; is && moved[x.Identity] {
			put(x)
		}
	}
	for pair := range have.pairs {
		if _, stays := want.pairs[pair]; !stays {
			do(d.ReplacePair(pair, nil), "remove the rules of identities %d to %d", pair.Source, pair.Destination)
		}
	}
	for addr := range have.peers {
		if _, stays := want.peers[addr]; !stays {
			do(d.DeletePeer(addr), "remove peer %s", addr)
		}
	}
	for _, x := range gone {
		do(d.DeleteExternal(x), "remove external %s", x.Prefix)
	}
	for key, p := range have.published {
		if _, stays := want.published[key]; !stays {
			do(d.DeletePublished(p), "remove published port %s", p.From)
		}
	}
	if !slices.Equal(have.exits, want.exits) {
		do(d.SetExits(want.exits), "set the exits")
	}
	for index, ep := range have.endpoints {
		if _, stays := want.endpoints[index]; !stays {
			do(d.DeleteEndpoint(index), "remove endpoint %s", ep.IPv4)
		}
	}
	for c := range have.checks {
		_, was := have.endpoints[c.Interface]
		_, stays := want.endpoints[c.Interface]
		// Deleting an endpoint deleted its checks. A check without an endpoint would apply to the
		// next interface with the same index.
		if !want.checks[c] && (stays || !was) {
			do(d.DeleteCheck(c), "remove the check of port %d at interface %d", c.Port, c.Interface)
		}
	}
	for pair, rules := range want.pairs {
		if !early[pair] && !slices.Equal(have.pairs[pair], rules) {
			do(d.ReplacePair(pair, rules), "set the rules of identities %d to %d", pair.Source, pair.Destination)
		}
	}
	for _, x := range given {
		if _, is := have.externals[externalKey{x.Interface, x.Prefix}]; x.Identity != 0 && !(is && moved[x.Identity]) {
			put(x)
		}
	}
	for addr, p := range want.peers {
		if have.peers[addr] != p {
			do(d.PutPeer(p), "set peer %s", addr)
		}
	}
	for key, p := range want.published {
		if have.published[key] != p {
			do(d.PutPublished(p), "set published port %s", p.From)
		}
	}
	for index, ep := range want.endpoints {
		if have.endpoints[index] != ep {
			do(d.PutEndpoint(ep), "set endpoint %s", ep.IPv4)
		}
	}
	for c := range want.checks {
		if !have.checks[c] {
			do(d.PutCheck(c), "set the check of port %d at interface %d", c.Port, c.Interface)
		}
	}
	if !maps.Equal(ways, want.ways) {
		do(d.SetWays(want.ways.ways()), "remove ways to other zones")
	}
	return changes, errors.Join(errs...)
}

// externalChanges returns the externals that the maps lack, those that they have as they must be,
// and those that go: the first two with narrow prefixes first, the last with wide ones first.
func externalChanges(have, want image) (given, kept, gone []bpf.External) {
	for key, x := range want.externals {
		if was, is := have.externals[key]; is && was == x {
			kept = append(kept, x)
		} else {
			given = append(given, x)
		}
	}
	for key, x := range have.externals {
		if _, stays := want.externals[key]; !stays {
			gone = append(gone, x)
		}
	}
	wideFirst := func(a, b bpf.External) int { return cmp.Compare(a.Prefix.Bits(), b.Prefix.Bits()) }
	for _, list := range [][]bpf.External{given, kept} {
		slices.SortFunc(list, func(a, b bpf.External) int { return wideFirst(b, a) })
	}
	slices.SortFunc(gone, wideFirst)
	return given, kept, gone
}
