// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package controller

import (
	"context"
	"fmt"
	"maps"
	"net/http"
	"slices"

	"github.com/sif-project/sif/api"
	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/internal/clock"
	"github.com/sif-project/sif/internal/trust/revision"
)

// manifest lists the objects from which the declared graph of a root is read.
type manifest struct {
	root    fabric.Hash
	index   fabric.Hash        // of the domains; zero: there are none
	domains fabric.DomainIndex // the decoded index
	rails   fabric.Hash        // the guardrails; zero: there are none
	bound   fabric.Hash        // the bindings; zero: there are none
	links   fabric.Hash        // the links; zero: there are none
}

// readManifest reads the manifest of a root. read decodes the object with a hash into v, and
// verifies it.
func readManifest(root fabric.Hash, read func(h fabric.Hash, v any) error) (manifest, error) {
	var r fabric.Root
	if err := read(root, &r); err != nil {
		return manifest{}, fmt.Errorf("root: %w", err)
	}
	m := manifest{root: root, index: r.Domains, rails: r.Guardrails, bound: r.Bindings, links: r.Links}
	if !m.index.IsZero() {
		if err := read(m.index, &m.domains); err != nil {
			return manifest{}, fmt.Errorf("index of domains: %w", err)
		}
	}
	return m, nil
}

// objects returns the hashes of all objects of the manifest.
func (m manifest) objects() map[fabric.Hash]bool {
	set := map[fabric.Hash]bool{m.root: true}
	for _, h := range []fabric.Hash{m.index, m.rails, m.bound, m.links} {
		if !h.IsZero() {
			set[h] = true
		}
	}
	for _, h := range m.domains {
		set[h] = true
	}
	return set
}

// assemble builds the graph of a root from the objects that get returns. Each is verified against
// its hash.
func assemble(root fabric.Hash, get func([]fabric.Hash) (map[fabric.Hash][]byte, error)) (*fabric.Graph, error) {
	decode := func(found map[fabric.Hash][]byte, h fabric.Hash, v any) error {
		data, ok := found[h]
		if !ok {
			return fmt.Errorf("object %s is missing", h)
		}
		return fabric.DecodeObject(data, h, v)
	}
	read := func(h fabric.Hash, v any) error {
		found, err := get([]fabric.Hash{h})
		if err != nil {
			return err
		}
		return decode(found, h, v)
	}
	m, err := readManifest(root, read)
	if err != nil {
		return nil, err
	}
	found, err := get(slices.Collect(maps.Values(m.domains)))
	if err != nil {
		return nil, err
	}
	graph := &fabric.Graph{Domains: map[string]*fabric.Domain{}}
	for name, h := range m.domains {
		d := &fabric.Domain{}
		if err := decode(found, h, d); err != nil {
			return nil, fmt.Errorf("domain %s: %w", name, err)
		}
		graph.Domains[name] = d
	}
	if !m.rails.IsZero() {
		if err := read(m.rails, &graph.Guardrails); err != nil {
			return nil, fmt.Errorf("guardrails: %w", err)
		}
	}
	if !m.bound.IsZero() {
		if err := read(m.bound, &graph.Bindings); err != nil {
			return nil, fmt.Errorf("bindings: %w", err)
		}
	}
	if !m.links.IsZero() {
		if err := read(m.links, &graph.Links); err != nil {
			return nil, fmt.Errorf("links: %w", err)
		}
	}
	return graph, nil
}

// fetchGraph reads the graph of a revision from Consul. It also returns the objects from which the
// graph was read. Objects that are missing or altered are an *api.Error of CodeRevision.
func (p *policy) fetchGraph(ctx context.Context, sequence uint64, root fabric.Hash) (*fabric.Graph, map[fabric.Hash][]byte, error) {
	objects := map[fabric.Hash][]byte{}
	var storeErr error
	graph, err := assemble(root, func(hashes []fabric.Hash) (map[fabric.Hash][]byte, error) {
		var found map[fabric.Hash][]byte
		if found, storeErr = revision.Fetch(ctx, p.consul(), hashes); storeErr != nil {
			return nil, storeErr
		}
		maps.Copy(objects, found)
		return found, nil
	})
	switch {
	case storeErr != nil:
		return nil, nil, unavailable("read the graph of revision %d from Consul: %v", sequence, storeErr)
	case err != nil:
		return nil, nil, api.Errorf(http.StatusConflict, api.CodeRevision,
			"the graph of revision %d in Consul is refused: %v; restore the object from a backup of Consul", sequence, err)
	}
	return graph, objects, nil
}

// compile returns the revision of a verified pointer and its graph. The graph may compile to
// another root, if another version of SIF made the pointer. Then Consul may lack the objects to
// which this version compiles it, and the result has no compiled form on which the next revision
// could be based.
func compile(signed fabric.Signed, pointer fabric.Pointer, graph *fabric.Graph) *inForce {
	var none *fabric.Compiled
	compiled, _, _ := none.Next(graph)
	r := &inForce{signed: signed, pointer: pointer, graph: graph, documents: compiled.Documents, sound: len(graph.Check(clock.Now())) == 0}
	if compiled.Root == pointer.Root {
		r.compiled = compiled
	}
	return r
}
