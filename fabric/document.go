// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package fabric

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"time"
)

// Hash is the SHA-256 of an object's canonical bytes, and the object's address in the store. Its
// text form is lower-case hexadecimal.
type Hash [sha256.Size]byte

func (h Hash) String() string { return hex.EncodeToString(h[:]) }

// IsZero reports whether h is unset.
func (h Hash) IsZero() bool { return h == Hash{} }

// MarshalText implements encoding.TextMarshaler.
func (h Hash) MarshalText() ([]byte, error) { return []byte(h.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (h *Hash) UnmarshalText(b []byte) error {
	raw, err := hex.DecodeString(string(b))
	if err != nil || len(raw) != len(h) {
		return fmt.Errorf("%q is not a SHA-256 hash in hexadecimal", b)
	}
	copy(h[:], raw)
	return nil
}

// Object is an immutable part of a revision: its canonical bytes and their hash.
type Object struct {
	Hash Hash
	Data []byte
}

// HashOf returns the hash of data.
func HashOf(data []byte) Hash { return sha256.Sum256(data) }

// NewObject encodes v canonically. The keys of all maps in stored types are strings in JSON, so
// encoding/json, which sorts keys and does not indent, is canonical.
func NewObject(v any) Object {
	data, err := json.Marshal(v)
	if err != nil {
		panic(fmt.Sprintf("fabric: %T cannot be encoded: %v", v, err)) // cannot happen: v is one of our plain types
	}
	return Object{Hash: HashOf(data), Data: data}
}

// DecodeObject checks that the hash of data is want, and decodes data into v.
func DecodeObject(data []byte, want Hash, v any) error {
	if got := HashOf(data); got != want {
		return fmt.Errorf("object %s: the hash of its content is %s: it was altered", want, got)
	}
	if err := json.Unmarshal(data, v); err != nil {
		return fmt.Errorf("decode object %s: %w", want, err)
	}
	return nil
}

// Document is everything that enforcement needs to know about one service: what it may reach and
// what may reach it. It omits contracts that are disabled or wait for another domain's consent.
// Contracts that expire are included, with the time.
type Document struct {
	Service Ref `json:"service"`
	// Silent is set if endpoints of the service are not told that their flows are refused.
	Silent     bool   `json:"silent,omitempty"`
	Originates []Edge `json:"originates,omitempty"`
	Responds   []Edge `json:"responds,omitempty"`
}

// Edge is a contract from the point of view of one of its services.
type Edge struct {
	Contract Ref    `json:"contract"`
	Rules    []Rule `json:"rules"`
	Peers    []Peer `json:"peers"`
	Path     Path   `json:"path,omitzero"`

	Expires time.Time `json:"expires,omitzero"`
	Audit   bool      `json:"audit,omitempty"` // flows pass, and are reported
	// Unrequested is set for domains in audit mode: the edge applies to every endpoint of the
	// service, whatever roles the endpoint requested.
	Unrequested bool `json:"unrequested,omitempty"`
}

// At returns the document without the edges that have expired at now. Nodes apply expiry by
// themselves: no new revision is needed.
func (d Document) At(now time.Time) Document {
	live := func(e Edge) bool { return e.Expires.IsZero() || now.Before(e.Expires) }
	keep := func(edges []Edge) []Edge {
		if !slices.ContainsFunc(edges, func(e Edge) bool { return !live(e) }) {
			return edges
		}
		var kept []Edge
		for _, e := range edges {
			if live(e) {
				kept = append(kept, e)
			}
		}
		return kept
	}
	d.Originates, d.Responds = keep(d.Originates), keep(d.Responds)
	return d
}

// DocumentsAt returns the documents without the edges that have expired at now.
func DocumentsAt(docs map[Ref]Document, now time.Time) map[Ref]Document {
	at := make(map[Ref]Document, len(docs))
	for r, d := range docs {
		at[r] = d.At(now)
	}
	return at
}

// NextExpiry returns the earliest time after now at which an edge of the documents expires; zero if
// none does.
func NextExpiry(docs map[Ref]Document, now time.Time) time.Time {
	var next time.Time
	for _, d := range docs {
		for _, edges := range [][]Edge{d.Originates, d.Responds} {
			for _, e := range edges {
				if e.Expires.After(now) && (next.IsZero() || e.Expires.Before(next)) {
					next = e.Expires
				}
			}
		}
	}
	return next
}

// Peer is what is at the other end of an edge: a service, or an external with what of it the
// binding of its domain admits.
type Peer struct {
	Name     Ref              `json:"name"`
	Prefixes []netip.Prefix   `json:"prefixes,omitempty"`
	Names    []string         `json:"names,omitempty"`
	Consul   *ConsulInstances `json:"consul,omitempty"`
	// NodePorts are the ports of the workload's own node that an external "node" may have.
	NodePorts []PortRange `json:"nodePorts,omitempty"`
	Exit      Exit        `json:"exit,omitempty"`
	// Listed are the prefixes of the binding that can list reserved addresses exactly: an address
	// in a reserved prefix is the external's only if one of them lies within that prefix and has
	// it.
	Listed []netip.Prefix `json:"listed,omitempty"`
}

// IsExternal reports whether the peer is outside the fabric.
func (p Peer) IsExternal() bool {
	return len(p.Prefixes) > 0 || len(p.Names) > 0 || p.Consul != nil || p.IsNode()
}

// HasName reports whether the external has a DNS name, in lower case and without a final dot.
func (p Peer) HasName(name string) bool {
	return slices.ContainsFunc(p.Names, func(pattern string) bool { return MatchName(pattern, name) })
}

// IsNode reports whether the peer is the workload's own node.
func (p Peer) IsNode() bool { return len(p.NodePorts) > 0 }

// Roles returns all roles that the graph gives to the service.
func (d Document) Roles() Roles {
	var r Roles
	for _, e := range d.Originates {
		if !e.Unrequested {
			r.Originate = append(r.Originate, e.Contract)
		}
	}
	for _, e := range d.Responds {
		if !e.Unrequested {
			r.Respond = append(r.Respond, e.Contract)
		}
	}
	return r.Canonical()
}

// ShardOf returns the index shard of a service: the first byte of the SHA-256 of "domain/service".
func ShardOf(service Ref) int {
	sum := sha256.Sum256([]byte(service.String()))
	return int(sum[0])
}

// Documents returns the document of every service of g, ordered by name.
func Documents(g *Graph) []Document {
	all := map[Ref]bool{}
	for name, d := range g.Domains {
		for _, s := range d.Services {
			all[Ref{name, s.Name}] = true
		}
	}
	return documentsOf(g, all)
}

// documentsOf returns the documents of those names that are services of g, ordered by name.
func documentsOf(g *Graph, names map[Ref]bool) []Document {
	x := newIndex(g)
	docs, domains := map[Ref]*Document{}, map[string]bool{}
	for r := range names {
		if x.node(r).service != nil {
			docs[r], domains[r.Domain] = &Document{Service: r, Silent: g.Domains[r.Domain].Silent}, true
		}
	}
	add := func(edge Edge, originators, responders []Ref) {
		from, to := x.peers(originators), x.peers(responders)
		for _, p := range from {
			if doc := docs[p.Name]; doc != nil {
				edge.Peers = to
				doc.Originates = append(doc.Originates, edge)
			}
		}
		for _, p := range to {
			if doc := docs[p.Name]; doc != nil {
				edge.Peers = from
				doc.Responds = append(doc.Responds, edge)
			}
		}
	}
	for _, d := range g.sortedDomains() {
		there := d.among(domains)
		takesPart := func(r Ref) bool { return there(r) && docs[r] != nil }
		for i := range d.Contracts {
			c := &d.Contracts[i]
			if !c.names(takesPart) || c.Disabled || len(x.missingConsent(d.Name, c)) > 0 {
				continue
			}
			add(Edge{Contract: Ref{d.Name, c.Name}, Rules: c.Rules, Path: c.Path, Expires: c.Expires, Audit: c.Mode == ModeAudit},
				c.Originators, c.Responders)
		}
		if d.Mode == ModeAudit {
			var all []Ref
			for _, s := range d.Services {
				all = append(all, Ref{d.Name, s.Name})
			}
			add(Edge{Contract: Ref{d.Name, AuditContract}, Rules: everything, Audit: true, Unrequested: true}, all, all)
		}
	}
	list := make([]Document, 0, len(docs))
	for _, d := range docs {
		byContract := func(a, b Edge) int { return CompareRefs(a.Contract, b.Contract) }
		slices.SortFunc(d.Originates, byContract)
		slices.SortFunc(d.Responds, byContract)
		list = append(list, *d)
	}
	slices.SortFunc(list, func(a, b Document) int { return CompareRefs(a.Service, b.Service) })
	return list
}

// peers returns one side of a contract as documents list it: without duplicates, in order.
func (x *index) peers(refs []Ref) []Peer {
	peers := make([]Peer, 0, len(refs))
	for _, r := range refs {
		p := Peer{Name: r}
		if ext := x.node(r).external; ext != nil {
			if p = x.external(r, ext); !p.IsExternal() {
				continue
			}
		}
		peers = append(peers, p)
	}
	slices.SortFunc(peers, func(a, b Peer) int { return CompareRefs(a.Name, b.Name) })
	return slices.CompactFunc(peers, func(a, b Peer) bool { return a.Name == b.Name })
}

// everything are the rules that cover every flow that a rule can name.
var everything = func() (rules []Rule) {
	for _, p := range Protocols {
		ports := AllPorts
		if !p.HasPorts() {
			ports = AllTypes
		}
		rules = append(rules, Rule{Protocol: p, Ports: []PortRange{ports}})
	}
	return rules
}()
