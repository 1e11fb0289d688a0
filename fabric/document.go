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
)

// Hash is the SHA-256 of an object's canonical bytes; it is the object's
// address in the store. Its text form is lower-case hexadecimal.
type Hash [sha256.Size]byte

func (h Hash) String() string { return hex.EncodeToString(h[:]) }

// IsZero reports whether h addresses nothing.
func (h Hash) IsZero() bool { return h == Hash{} }

// MarshalText implements encoding.TextMarshaler.
func (h Hash) MarshalText() ([]byte, error) { return []byte(h.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (h *Hash) UnmarshalText(b []byte) error {
	raw, err := hex.DecodeString(string(b))
	if err != nil || len(raw) != len(h) {
		return fmt.Errorf("%q is not a SHA-256 in hexadecimal", b)
	}
	copy(h[:], raw)
	return nil
}

// Object is an immutable piece of a revision: its canonical bytes and their
// hash.
type Object struct {
	Hash Hash
	Data []byte
}

// NewObject encodes v canonically. Every type that is stored has no maps with
// other than string-like keys, so encoding/json (sorted keys, no indentation)
// is canonical.
func NewObject(v any) Object {
	data, err := json.Marshal(v)
	if err != nil {
		panic(fmt.Sprintf("fabric: %T cannot be encoded: %v", v, err)) // our own plain types
	}
	return Object{Hash: sha256.Sum256(data), Data: data}
}

// DecodeObject checks that data hashes to want and decodes it into v.
func DecodeObject(data []byte, want Hash, v any) error {
	if got := Hash(sha256.Sum256(data)); got != want {
		return fmt.Errorf("object %s: its content hashes to %s: it was altered", want, got)
	}
	if err := json.Unmarshal(data, v); err != nil {
		return fmt.Errorf("object %s: %w", want, err)
	}
	return nil
}

// Document is all that enforcement needs to know of one service: what it may
// reach and what may reach it. Disabled contracts are not in it.
type Document struct {
	Service    Ref    `json:"service"`
	Originates []Edge `json:"originates,omitempty"`
	Responds   []Edge `json:"responds,omitempty"`
}

// Edge is one contract seen from one of its services.
type Edge struct {
	Contract Ref    `json:"contract"`
	Rules    []Rule `json:"rules"`
	Peers    []Peer `json:"peers"`
	Path     Path   `json:"path,omitzero"`
}

// Peer is the service, or the external with its prefixes, at the other end of
// an edge.
type Peer struct {
	Name     Ref            `json:"name"`
	Prefixes []netip.Prefix `json:"prefixes,omitempty"` // externals only
}

// IsExternal reports whether the peer lies outside the fabric.
func (p Peer) IsExternal() bool { return len(p.Prefixes) > 0 }

// Roles returns every role that the graph gives to the service.
func (d Document) Roles() Roles {
	var r Roles
	for _, e := range d.Originates {
		r.Originate = append(r.Originate, e.Contract)
	}
	for _, e := range d.Responds {
		r.Respond = append(r.Respond, e.Contract)
	}
	return r.Canonical()
}

// Shard maps the services of one index shard to their documents.
type Shard map[string]Hash

// ShardCount is the number of index shards.
const ShardCount = 256

// ShardOf returns the index shard of a service: the first byte of the SHA-256
// of "domain/service".
func ShardOf(service Ref) int {
	sum := sha256.Sum256([]byte(service.String()))
	return int(sum[0])
}

// Root lists what a revision consists of. Empty shards have the zero hash.
type Root struct {
	Shards  []Hash          `json:"shards"`  // ShardCount of them
	Domains map[string]Hash `json:"domains"` // each domain as declared (a Domain)
}

// Revision is a compiled graph: the hash of its root and every object that it
// consists of.
type Revision struct {
	Root    Hash
	Objects []Object
}

// Compile turns a graph that has passed Check into a revision. Equal graphs
// compile to equal revisions.
func Compile(g *Graph) Revision {
	var rev Revision
	add := func(v any) Hash {
		o := NewObject(v)
		rev.Objects = append(rev.Objects, o)
		return o.Hash
	}
	root := Root{Shards: make([]Hash, ShardCount), Domains: map[string]Hash{}}
	shards := make([]Shard, ShardCount)
	for _, d := range Documents(g) {
		n := ShardOf(d.Service)
		if shards[n] == nil {
			shards[n] = Shard{}
		}
		shards[n][d.Service.String()] = add(d)
	}
	for n, s := range shards {
		if s != nil {
			root.Shards[n] = add(s)
		}
	}
	for _, d := range g.sortedDomains() {
		root.Domains[d.Name] = add(d)
	}
	rev.Root = add(root)
	return rev
}

// Documents returns the document of every service of g, ordered by name.
func Documents(g *Graph) []Document {
	docs := map[Ref]*Document{}
	for _, d := range g.Domains {
		for _, s := range d.Services {
			r := Ref{d.Name, s.Name}
			docs[r] = &Document{Service: r}
		}
	}
	peers := func(refs []Ref) []Peer {
		refs = slices.Clone(refs)
		slices.SortFunc(refs, CompareRefs)
		var ps []Peer
		for _, r := range slices.Compact(refs) {
			p := Peer{Name: r}
			if _, ext := g.node(r); ext != nil {
				p.Prefixes = ext.Prefixes
			}
			ps = append(ps, p)
		}
		return ps
	}
	for _, d := range g.sortedDomains() {
		for _, c := range d.Contracts {
			if c.Disabled {
				continue
			}
			edge := Edge{Contract: Ref{d.Name, c.Name}, Rules: c.Rules, Path: c.Path}
			for _, p := range peers(c.Originators) {
				if doc := docs[p.Name]; doc != nil {
					e := edge
					e.Peers = peers(c.Responders)
					doc.Originates = append(doc.Originates, e)
				}
			}
			for _, p := range peers(c.Responders) {
				if doc := docs[p.Name]; doc != nil {
					e := edge
					e.Peers = peers(c.Originators)
					doc.Responds = append(doc.Responds, e)
				}
			}
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
