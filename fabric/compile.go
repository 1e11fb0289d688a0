// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package fabric

import (
	"errors"
	"fmt"
	"maps"
	"reflect"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
)

// Shard maps the services of one index shard to their documents.
type Shard map[string]Hash

// ShardCount is the number of index shards.
const ShardCount = 256

// DomainIndex maps domain names to the hashes of their objects. Each object is the Domain as
// declared.
type DomainIndex map[string]Hash

// Root lists the top-level objects of a revision. Every node reads it, so its size does not depend
// on the size of the graph.
type Root struct {
	Shards     []Hash `json:"shards"`              // ShardCount hashes; zero for an empty shard
	Domains    Hash   `json:"domains"`             // the DomainIndex
	Guardrails Hash   `json:"guardrails,omitzero"` // the []Guardrail
	Bindings   Hash   `json:"bindings,omitzero"`   // the []Binding
	Links      Hash   `json:"links,omitzero"`      // the []LinkRule, which every node reads
}

// Revision is a compiled graph: the hash of its root, and its objects.
type Revision struct {
	Root    Hash
	Objects []Object
}

// Compile compiles a graph that has passed Check into a revision with all of its objects. Equal
// graphs compile to equal revisions.
func Compile(g *Graph) Revision {
	var none *Compiled
	c, fresh, _ := none.Next(g)
	return Revision{Root: c.Root, Objects: fresh}
}

// Compiled is a graph with its compiled form, without the bytes of the objects. The next revision
// can be compiled from it at the cost of what differs. It is immutable, and so is what it refers
// to. A nil *Compiled stands for no graph.
type Compiled struct {
	Graph     *Graph
	Root      Hash
	Documents map[Ref]Document

	root    Root
	shards  []Shard
	domains DomainIndex
}

// Next compiles g, which must have passed Check. Domains that are the same object in both graphs
// are taken to be equal. fresh are the objects of g that c lacks. touched are the services whose
// document was added, removed or changed, in order.
func (c *Compiled) Next(g *Graph) (next *Compiled, fresh []Object, touched []Ref) {
	if c == nil {
		c = &Compiled{Graph: &Graph{}, shards: make([]Shard, ShardCount), root: Root{Shards: make([]Hash, ShardCount)}}
	}
	next = &Compiled{
		Graph: g, Documents: maps.Clone(c.Documents), domains: maps.Clone(c.domains),
		shards: slices.Clone(c.shards), root: Root{Shards: slices.Clone(c.root.Shards)},
	}
	if next.Documents == nil {
		next.Documents, next.domains = map[Ref]Document{}, DomainIndex{}
	}
	add := func(o Object, old Hash) Hash {
		if o.Hash != old {
			fresh = append(fresh, o)
		}
		return o.Hash
	}
	changed := c.changedDomains(g, next.domains, add)
	if !reflect.DeepEqual(c.Graph.Bindings, g.Bindings) { // they say which prefixes externals may have
		for name, d := range g.Domains {
			changed[name] = changed[name] || len(d.Externals) > 0
		}
		maps.DeleteFunc(changed, func(_ string, is bool) bool { return !is })
	}
	if len(changed) > 0 {
		touched = next.replaceDocuments(c, changed, add)
		next.root.Domains = add(NewObject(next.domains), c.root.Domains)
	} else {
		next.root.Domains = c.root.Domains
	}
	if len(g.Guardrails) > 0 {
		next.root.Guardrails = add(NewObject(g.Guardrails), c.root.Guardrails)
	}
	if len(g.Bindings) > 0 {
		next.root.Bindings = add(NewObject(g.Bindings), c.root.Bindings)
	}
	if len(g.Links) > 0 {
		next.root.Links = add(NewObject(g.Links), c.root.Links)
	}
	next.Root = add(NewObject(next.root), c.Root)
	return next, fresh, touched
}

// changedDomains returns the names of the domains that differ, and updates index.
func (c *Compiled) changedDomains(g *Graph, index DomainIndex, add func(Object, Hash) Hash) map[string]bool {
	changed := map[string]bool{}
	for name := range c.Graph.Domains {
		if g.Domains[name] == nil {
			changed[name] = true
			delete(index, name)
		}
	}
	var candidates []*Domain
	for _, d := range g.sortedDomains() {
		if c.Graph.Domains[d.Name] != d {
			candidates = append(candidates, d)
		}
	}
	for i, o := range newObjects(candidates) {
		name := candidates[i].Name
		if old, known := c.domains[name]; !known || old != o.Hash {
			changed[name] = true
		}
		index[name] = add(o, c.domains[name])
	}
	return changed
}

// replaceDocuments recompiles the documents that involve the changed domains, and the shards that
// list them. It returns the services whose document differs.
func (c *Compiled) replaceDocuments(old *Compiled, changed map[string]bool, add func(Object, Hash) Hash) (touched []Ref) {
	concerned := map[Ref]bool{}
	for _, d := range c.Graph.Domains {
		d.concerned(changed, concerned)
	}
	for name := range changed {
		if d := old.Graph.Domains[name]; d != nil {
			d.concerned(changed, concerned)
		}
	}
	docs := documentsOf(c.Graph, concerned)
	copied := map[int]bool{}
	shard := func(r Ref) (n int, s Shard) {
		n = ShardOf(r)
		if !copied[n] {
			copied[n] = true
			if c.shards[n] = maps.Clone(c.shards[n]); c.shards[n] == nil {
				c.shards[n] = Shard{}
			}
		}
		return n, c.shards[n]
	}
	for i, o := range newObjects(docs) {
		r := docs[i].Service
		delete(concerned, r)
		c.Documents[r] = docs[i]
		key := r.String()
		if before := c.shards[ShardOf(r)][key]; before != o.Hash {
			_, s := shard(r)
			s[key] = add(o, before)
			touched = append(touched, r)
		}
	}
	for r := range concerned { // these have no document in the new graph
		if _, had := c.Documents[r]; had {
			delete(c.Documents, r)
			_, s := shard(r)
			delete(s, r.String())
			touched = append(touched, r)
		}
	}
	numbers := slices.Sorted(maps.Keys(copied))
	var shards []Shard
	for _, n := range numbers {
		shards = append(shards, c.shards[n])
	}
	for i, o := range newObjects(shards) {
		n := numbers[i]
		if len(c.shards[n]) == 0 {
			c.shards[n], c.root.Shards[n] = nil, Hash{}
			continue
		}
		c.root.Shards[n] = add(o, old.root.Shards[n])
	}
	slices.SortFunc(touched, CompareRefs)
	return touched
}

// concerned adds to into the services and externals whose documents may depend on the changed
// domains: those of these domains, and those named by contracts that are declared in a changed
// domain or name something there.
func (d *Domain) concerned(changed map[string]bool, into map[Ref]bool) {
	if changed[d.Name] {
		for _, s := range d.Services {
			into[Ref{d.Name, s.Name}] = true
		}
	}
	there := d.among(changed)
	for i := range d.Contracts {
		c := &d.Contracts[i]
		if changed[d.Name] || c.names(there) {
			for _, r := range c.Originators {
				into[r] = true
			}
			for _, r := range c.Responders {
				into[r] = true
			}
		}
	}
}

// among returns a function that reports whether a name belongs to one of the domains. Most names in
// d are d's own, so it looks d up only once.
func (d *Domain) among(domains map[string]bool) func(Ref) bool {
	own := domains[d.Name]
	return func(r Ref) bool {
		if r.Domain == d.Name {
			return own
		}
		return domains[r.Domain]
	}
}

// names reports whether an originator or responder of c is wanted.
func (c *Contract) names(wanted func(Ref) bool) bool {
	return slices.ContainsFunc(c.Originators, wanted) || slices.ContainsFunc(c.Responders, wanted)
}

// CheckObjects decodes the objects of the revision that are among fresh, as nodes and the next
// controller will, and returns an error if one cannot be decoded or has another meaning then.
// Values such as the zero Ref can be encoded, but not decoded; a revision with one would stop every
// reader.
func (c *Compiled) CheckObjects(fresh []Object) error {
	data := make(map[Hash][]byte, len(fresh))
	for _, o := range fresh {
		data[o.Hash] = o.Data
	}
	var errs []error
	check := func(what string, h Hash, decode func([]byte, Hash) (Object, error)) {
		text, isFresh := data[h]
		if !isFresh {
			return
		}
		back, err := decode(text, h)
		if err == nil && back.Hash != h {
			err = errors.New("it has another content when it is decoded")
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", what, err))
		}
	}
	check("root", c.Root, again[Root])
	check("list of domains", c.root.Domains, again[DomainIndex])
	check("guardrails", c.root.Guardrails, again[[]Guardrail])
	check("bindings", c.root.Bindings, again[[]Binding])
	check("links", c.root.Links, again[[]LinkRule])
	for name, h := range c.domains {
		check(fmt.Sprintf("domain %q", name), h, again[Domain])
	}
	for i, shard := range c.shards {
		if _, isFresh := data[c.root.Shards[i]]; !isFresh {
			continue
		}
		check(fmt.Sprintf("index shard %d", i), c.root.Shards[i], again[Shard])
		for service, h := range shard {
			check("document of service "+service, h, again[Document])
		}
	}
	return errors.Join(errs...)
}

// again decodes an object and encodes the result.
func again[T any](data []byte, h Hash) (Object, error) {
	var v T
	if err := DecodeObject(data, h, &v); err != nil {
		return Object{}, err
	}
	return NewObject(v), nil
}

// newObjects calls NewObject for many values, on all cores.
func newObjects[T any](values []T) []Object {
	objects := make([]Object, len(values))
	var next atomic.Int64
	var workers sync.WaitGroup
	for range min(runtime.GOMAXPROCS(0), len(values)) {
		workers.Go(func() {
			for {
				i := int(next.Add(1)) - 1
				if i >= len(values) {
					return
				}
				objects[i] = NewObject(values[i])
			}
		})
	}
	workers.Wait()
	return objects
}
