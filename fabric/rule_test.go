// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package fabric

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/shoenig/test/must"
	"pgregory.net/rapid"
)

// naive is the one rule of DESIGN.md section 2, written a second time: straight from the graph,
// without documents, identity keys or indexes.
func naive(g *Graph, now time.Time, src, dst Identity, protocol Protocol, port uint16) (allowed, audited bool) {
	for _, d := range g.Domains {
		for _, c := range d.Contracts {
			ref := Ref{d.Name, c.Name}
			enabled := !c.Disabled && (c.Expires.IsZero() || c.Expires.After(now))
			for _, end := range append(slices.Clone(c.Originators), c.Responders...) {
				if end.Domain != d.Name {
					accepted := false
					for _, a := range g.Domains[end.Domain].Accepts {
						accepted = accepted || a.Contract == ref && (len(a.Services) == 0 || slices.Contains(a.Services, end.Name))
					}
					enabled = enabled && accepted
				}
			}
			if !enabled || !slices.Contains(c.Originators, src.Service) || !slices.Contains(c.Responders, dst.Service) {
				continue
			}
			if !slices.Contains(src.Roles.Originate, ref) || !slices.Contains(dst.Roles.Respond, ref) {
				continue
			}
			for _, r := range c.Rules {
				for _, p := range r.Ports {
					if r.Protocol == protocol && p.From <= port && port <= p.To {
						allowed = true
						audited = audited || c.Mode == ModeAudit
						if c.Mode != ModeAudit {
							return true, false
						}
					}
				}
			}
		}
	}
	if d := g.Domains[src.Service.Domain]; !allowed && d.Mode == ModeAudit && src.Service.Domain == dst.Service.Domain {
		return true, true
	}
	return allowed, audited
}

// at is the time of the tests.
var at = time.Unix(1000, 0)

// drawGraph draws a small graph in which pairs of services often share contracts.
func drawGraph(t *rapid.T) *Graph {
	g := &Graph{Domains: map[string]*Domain{}}
	var refs []Ref
	for i := range rapid.IntRange(1, 2).Draw(t, "domains") {
		d := &Domain{Name: fmt.Sprintf("d%d", i)}
		if rapid.IntRange(0, 4).Draw(t, "domain's mode") == 0 {
			d.Mode = ModeAudit
		}
		for j := range rapid.IntRange(1, 4).Draw(t, "services") {
			name := fmt.Sprintf("s%d", j)
			d.Services = append(d.Services, Service{Name: name})
			refs = append(refs, Ref{d.Name, name})
		}
		g.Domains[d.Name] = d
	}
	for _, d := range g.sortedDomains() {
		side := rapid.SliceOfN(rapid.SampledFrom(refs), 1, 3)
		for j := range rapid.IntRange(0, 4).Draw(t, "contracts") {
			c := Contract{
				Name: fmt.Sprintf("c%d", j), Disabled: rapid.IntRange(0, 4).Draw(t, "disabled") == 0,
				Originators: side.Draw(t, "originators"), Responders: side.Draw(t, "responders"),
			}
			c.Expires = rapid.SampledFrom([]time.Time{{}, {}, at.Add(-1), at, at.Add(1)}).Draw(t, "expires")
			c.Mode = rapid.SampledFrom([]Mode{ModeEnforce, ModeEnforce, ModeAudit}).Draw(t, "mode")
			for range rapid.IntRange(1, 2).Draw(t, "rules") {
				r := Rule{Protocol: rapid.SampledFrom([]Protocol{TCP, UDP}).Draw(t, "protocol")}
				from := rapid.Uint16Range(1, 6).Draw(t, "from")
				r.Ports = []PortRange{{from, from + rapid.Uint16Range(0, 2).Draw(t, "width")}}
				c.Rules = append(c.Rules, r)
			}
			d.Contracts = append(d.Contracts, c)
			for _, other := range g.sortedDomains() {
				if other != d && rapid.Bool().Draw(t, "accepted") {
					a := Accept{Contract: Ref{d.Name, c.Name}}
					if rapid.Bool().Draw(t, "in part") {
						a.Services = []string{"s0"}
					}
					other.Accepts = append(other.Accepts, a)
				}
			}
		}
	}
	return g
}

// drawIdentity draws an endpoint's identity: a service with some of the existing roles, including
// roles that the graph does not give it.
func drawIdentity(t *rapid.T, g *Graph, label string) Identity {
	var services, contracts []Ref
	for _, d := range g.sortedDomains() {
		for _, s := range d.Services {
			services = append(services, Ref{d.Name, s.Name})
		}
		for _, c := range d.Contracts {
			contracts = append(contracts, Ref{d.Name, c.Name})
		}
	}
	id := Identity{Service: rapid.SampledFrom(services).Draw(t, label)}
	for _, c := range contracts {
		if rapid.IntRange(0, 3).Draw(t, label+" originates") > 0 {
			id.Roles.Originate = append(id.Roles.Originate, c)
		}
		if rapid.IntRange(0, 3).Draw(t, label+" responds") > 0 {
			id.Roles.Respond = append(id.Roles.Respond, c)
		}
	}
	return id
}

func documents(g *Graph) map[Ref]Document {
	docs := map[Ref]Document{}
	for _, d := range Documents(g) {
		docs[d.Service] = d.At(at)
	}
	return docs
}

func TestAllowAgreesWithTheRuleAsWritten(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		g := drawGraph(t)
		docs := documents(g)
		src, dst := drawIdentity(t, g, "src"), drawIdentity(t, g, "dst")
		for _, protocol := range []Protocol{TCP, UDP} {
			for port := uint16(1); port < 10; port++ {
				got := Decide(src, docs[src.Service], dst, protocol, port)
				allowed, audited := naive(g, at, src, dst, protocol, port)
				must.Eq(t, allowed, got.Allowed)
				must.Eq(t, audited, got.Audit)
			}
		}
	})
}

// naiveEgress is the one rule for a flow to an address outside the fabric, straight from the graph.
func naiveEgress(g *Graph, src Identity, to netip.Addr, protocol Protocol, port uint16) bool {
	bound := func(domain string) (prefixes []netip.Prefix, limited bool) {
		for _, name := range []string{domain, EveryDomain} {
			for _, b := range g.Bindings {
				if b.Domain == name {
					for _, o := range b.Outside {
						prefixes = append(prefixes, o.Prefixes...)
					}
					return prefixes, name != EveryDomain || len(prefixes) > 0
				}
			}
		}
		return nil, len(g.Bindings) > 0
	}
	for _, d := range g.Domains {
		granted, limited := bound(d.Name)
		listed := true
		for _, r := range Reserved() {
			if r.Contains(to) {
				listed = slices.ContainsFunc(granted, func(p netip.Prefix) bool {
					return p.Contains(to) && r.Contains(p.Addr()) && p.Bits() >= r.Bits()
				})
			}
		}
		for _, c := range d.Contracts {
			if c.Disabled || !(c.Expires.IsZero() || c.Expires.After(at)) || !slices.Contains(c.Originators, src.Service) ||
				!slices.Contains(src.Roles.Originate, Ref{d.Name, c.Name}) {
				continue
			}
			foreign := false
			for _, r := range slices.Concat(c.Originators, c.Responders) {
				foreign = foreign || r.Domain != d.Name // drawOutside draws no consent
			}
			opens := false
			for _, r := range c.Rules {
				for _, p := range r.Ports {
					opens = opens || r.Protocol == protocol && p.From <= port && port <= p.To
				}
			}
			for _, e := range d.Externals {
				for _, p := range e.Prefixes {
					admitted := !limited
					for _, outer := range granted {
						admitted = admitted || outer.Contains(p.Addr()) && outer.Bits() <= p.Bits()
					}
					if !foreign && opens && listed && admitted && p.Contains(to) && slices.Contains(c.Responders, Ref{d.Name, e.Name}) {
						return true
					}
				}
			}
		}
	}
	return false
}

// drawOutside adds externals and bindings to a graph, and lets contracts respond by them.
func drawOutside(t *rapid.T, g *Graph) {
	prefix := rapid.SampledFrom([]netip.Prefix{
		netip.MustParsePrefix("0.0.0.0/0"), netip.MustParsePrefix("192.0.2.0/24"), netip.MustParsePrefix("192.0.2.7/32"), netip.MustParsePrefix("169.254.0.0/16"),
		netip.MustParsePrefix("169.254.169.0/24"), netip.MustParsePrefix("169.254.169.254/32"), netip.MustParsePrefix("160.0.0.0/4"),
	})
	prefixes := rapid.SliceOfNDistinct(prefix, 1, 3, rapid.ID)
	for _, d := range g.sortedDomains() {
		d.Accepts = nil
		for i := range rapid.IntRange(0, 2).Draw(t, "externals") {
			d.Externals = append(d.Externals, External{Name: fmt.Sprintf("x%d", i), Prefixes: prefixes.Draw(t, "prefixes")})
		}
		for i := range d.Contracts {
			for _, e := range d.Externals {
				if rapid.Bool().Draw(t, "responds") {
					d.Contracts[i].Responders = append(d.Contracts[i].Responders, Ref{d.Name, e.Name})
				}
			}
		}
	}
	for _, name := range rapid.SliceOfNDistinct(rapid.SampledFrom([]string{"d0", "d1", EveryDomain}), 0, 2, rapid.ID).Draw(t, "bindings") {
		b := Binding{Domain: name}
		if rapid.Bool().Draw(t, "outside") {
			b.Outside = []OutsideGrants{{Prefixes: prefixes.Draw(t, "granted")}}
		}
		g.Bindings = append(g.Bindings, b)
	}
}

// What an endpoint may open to an address outside follows from its document alone, and is what the
// rule says, as far as the binding grants it; a reserved address needs to be listed.
func TestEgressAgreesWithTheRuleAsWritten(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		g := drawGraph(t)
		drawOutside(t, g)
		docs, src := documents(g), drawIdentity(t, g, "src")
		for _, to := range []string{"192.0.2.7", "192.0.2.8", "169.254.169.254", "169.254.1.2", "8.8.8.8"} {
			to := netip.MustParseAddr(to)
			reserved := slices.DeleteFunc(Reserved(), func(r netip.Prefix) bool { return !r.Contains(to) })
			listed := func(x Peer, r netip.Prefix) bool {
				return slices.ContainsFunc(x.Listed, func(l netip.Prefix) bool { return Covers(r, l) && l.Contains(to) })
			}
			for _, protocol := range []Protocol{TCP, UDP} {
				for port := uint16(1); port < 10; port++ {
					got := slices.ContainsFunc(EgressGrants(src, docs[src.Service]), func(g EgressGrant) bool {
						return slices.ContainsFunc(g.External.Prefixes, func(p netip.Prefix) bool { return p.Contains(to) }) &&
							!slices.ContainsFunc(reserved, func(r netip.Prefix) bool { return !listed(g.External, r) }) &&
							slices.ContainsFunc(g.Rules, func(r Rule) bool { return r.Matches(protocol, port) })
					})
					must.Eq(t, naiveEgress(g, src, to, protocol, port), got, must.Sprint(to, protocol, port))
				}
			}
		}
	})
}

// A node knows only the documents of its own services, so the result must not depend on which end
// of a contract is local.
func TestGrantsAreTheSameFromBothEnds(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		g := drawGraph(t)
		docs := documents(g)
		a, b := drawIdentity(t, g, "a"), drawIdentity(t, g, "b")
		must.Eq(t, Grants(a, docs[a.Service], b), GrantsTo(b, docs[b.Service], a))
	})
}

func TestGrantsAmongIsEveryPair(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		g := drawGraph(t)
		docs := documents(g)
		var all []Identity
		seen := map[string]bool{}
		for i := range 4 {
			id := drawIdentity(t, g, fmt.Sprint("id", i))
			if !seen[id.Key()] {
				seen[id.Key()] = true
				all = append(all, id)
			}
		}
		local := all[:rapid.IntRange(0, len(all)).Draw(t, "local")]
		localDocs := map[Ref]Document{}
		isLocal := map[string]bool{}
		for _, id := range local {
			localDocs[id.Service] = docs[id.Service]
			isLocal[id.Key()] = true
		}
		want := map[string]bool{}
		for _, a := range all {
			for _, b := range all {
				if isLocal[a.Key()] || isLocal[b.Key()] {
					for _, gr := range Grants(a, docs[a.Service], b) {
						want[gr.Contract.String()+"|"+a.Key()+"|"+b.Key()] = true
					}
				}
			}
		}
		got := map[string]bool{}
		for _, gr := range GrantsAmong(local, all, localDocs) {
			key := gr.Contract.String() + "|" + gr.Originator.Key() + "|" + gr.Responder.Key()
			must.False(t, got[key])
			got[key] = true
		}
		must.Eq(t, want, got)
	})
}

// Contracts only allow: adding one never removes a permission.
func TestGraphIsMonotone(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		g := drawGraph(t)
		src, dst := drawIdentity(t, g, "src"), drawIdentity(t, g, "dst")
		port := rapid.Uint16Range(1, 9).Draw(t, "port")
		_, before := Allow(src, documents(g)[src.Service], dst, TCP, port)
		d := g.Domains["d0"]
		every := func() (refs []Ref) {
			for _, s := range d.Services {
				refs = append(refs, Ref{d.Name, s.Name})
			}
			return refs
		}()
		d.Contracts = append(d.Contracts, Contract{Name: "more", Originators: every, Responders: every, Rules: []Rule{{Protocol: TCP, Ports: []PortRange{{1, 65535}}}}})
		_, after := Allow(src, documents(g)[src.Service], dst, TCP, port)
		must.True(t, after || !before)
	})
}

func TestCompileIsDeterministicAndLocal(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		g := drawGraph(t)
		one, two := Compile(g), Compile(g)
		must.Eq(t, one.Root, two.Root)
		var root Root
		byHash := map[Hash]Object{}
		for _, o := range one.Objects {
			byHash[o.Hash] = o
		}
		must.NoError(t, DecodeObject(byHash[one.Root].Data, one.Root, &root))
		for _, d := range Documents(g) {
			var shard Shard
			h := root.Shards[ShardOf(d.Service)]
			must.NoError(t, DecodeObject(byHash[h].Data, h, &shard))
			var got Document
			h = shard[d.Service.String()]
			must.NoError(t, DecodeObject(byHash[h].Data, h, &got))
			must.Eq(t, d, got)
		}
	})
}

func TestRequestNarrowsRoles(t *testing.T) {
	c1, c2 := Ref{"d", "c1"}, Ref{"d", "c2"}
	doc := Document{Service: Ref{"d", "s"}, Originates: []Edge{{Contract: c1}}, Responds: []Edge{{Contract: c2}}}
	cases := []struct {
		name    string
		want    Roles
		have    Roles
		problem string
	}{
		{"nothing asked: every role", Roles{}, Roles{Originate: []Ref{c1}, Respond: []Ref{c2}}, ""},
		{"one asked: that one", Roles{Originate: []Ref{c1}}, Roles{Originate: []Ref{c1}}, ""},
		{"a role that the graph does not give", Roles{Originate: []Ref{c2}}, Roles{}, "d/s is not an originator of contract d/c2"},
		{"a responder's role that the graph does not give", Roles{Respond: []Ref{c1}}, Roles{}, "d/s is not a responder of contract d/c1"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			got, err := doc.Request(c.want)
			if c.problem != "" {
				must.ErrorContains(t, err, c.problem)
				return
			}
			must.NoError(t, err)
			must.Eq(t, c.have.Canonical(), got.Canonical())
		})
	}
}

func TestExternalGrants(t *testing.T) {
	web, users, contract := Ref{"d", "web"}, Ref{"d", "users"}, Ref{"d", "users"}
	prefix := netip.MustParsePrefix("10.99.0.0/24")
	g := &Graph{Domains: map[string]*Domain{"d": {
		Name: "d", Services: []Service{{Name: "web"}}, Externals: []External{{Name: "users", Prefixes: []netip.Prefix{prefix}}},
		Contracts: []Contract{{Name: "users", Originators: []Ref{users}, Responders: []Ref{web}, Rules: []Rule{{Protocol: TCP, Ports: []PortRange{{8080, 8080}}}}}},
	}}}
	doc := documents(g)[web]
	grants := ExternalGrants(Identity{Service: web, Roles: doc.Roles()}, doc)
	must.Len(t, 1, grants)
	must.Eq(t, contract, grants[0].Contract)
	must.Eq(t, []netip.Prefix{prefix}, grants[0].Prefixes)
	must.Len(t, 0, ExternalGrants(Identity{Service: web}, doc)) // without the role
}

// Who lists a gateway from IPv6 to IPv4 reaches no reserved address behind it.
func TestReservedBehindTranslation(t *testing.T) {
	known := Outside{Ranges: []netip.Prefix{netip.MustParsePrefix("100.64.0.0/10")}, Reserved: []netip.Prefix{netip.MustParsePrefix("10.0.0.5/32")}}
	x := Peer{Listed: []netip.Prefix{netip.MustParsePrefix("64:ff9b::/96"), netip.MustParsePrefix("2002::/16")}}
	for address, reserved := range map[string]bool{
		"64:ff9b::8.8.8.8": false, "64:ff9b::169.254.169.254": true, "64:ff9b::10.0.0.5": true, "64:ff9b::10.0.0.6": false, "64:ff9b::100.64.0.1": true,
		"2002:808:808::1": false, "2002:a9fe:a9fe::1": true, "2002:a00:5::1": true,
	} {
		_, is := known.ReservedBy(x, netip.PrefixFrom(netip.MustParseAddr(address), 128))
		must.Eq(t, reserved, is, must.Sprint(address))
	}
}
