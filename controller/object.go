// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package controller

import (
	"context"
	"fmt"
	"net/http"
	"time"

	"github.com/sif-project/sif/api"
	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/internal/trust/revision"
)

// fetch reads the graph of a verified pointer. Objects that are missing or
// altered make an *api.Error of CodeRevision.
func (p *policy) fetch(ctx context.Context, signed fabric.Signed, pointer fabric.Pointer) (*inForce, map[fabric.Hash][]byte, error) {
	graph, objects, err := p.fetchGraph(ctx, pointer.Root)
	if err != nil {
		return nil, nil, fmt.Errorf("revision %d: %w", pointer.Sequence, err)
	}
	return enforce(signed, pointer, graph), objects, nil
}

// fetchGraph reads the graph of a root, and returns the objects that it is
// made of.
func (p *policy) fetchGraph(ctx context.Context, root fabric.Hash) (*fabric.Graph, map[fabric.Hash][]byte, error) {
	objects := map[fabric.Hash][]byte{}
	var storeErr error
	graph, err := assemble(root, func(hashes []fabric.Hash) (map[fabric.Hash][]byte, error) {
		var found map[fabric.Hash][]byte
		if found, storeErr = revision.Fetch(ctx, p.consul(), hashes); storeErr != nil {
			return nil, storeErr
		}
		for h, data := range found {
			objects[h] = data
		}
		return found, nil
	})
	switch {
	case storeErr != nil:
		return nil, nil, unavailable("read the graph from Consul: %v", storeErr)
	case err != nil:
		return nil, nil, api.Errorf(http.StatusConflict, api.CodeRevision,
			"the graph in Consul is refused: %v; restore the object from a backup of Consul", err)
	}
	return graph, objects, nil
}

// assemble builds the graph of a root from the objects that get returns, each
// of which is checked against its hash.
func assemble(root fabric.Hash, get func([]fabric.Hash) (map[fabric.Hash][]byte, error)) (*fabric.Graph, error) {
	read := func(h fabric.Hash, v any) error {
		found, err := get([]fabric.Hash{h})
		if err != nil {
			return err
		}
		data, ok := found[h]
		if !ok {
			return fmt.Errorf("object %s is missing", h)
		}
		return fabric.DecodeObject(data, h, v)
	}
	var r fabric.Root
	if err := read(root, &r); err != nil {
		return nil, fmt.Errorf("root: %w", err)
	}
	graph := &fabric.Graph{Domains: map[string]*fabric.Domain{}}
	var index fabric.DomainIndex
	if !r.Domains.IsZero() {
		if err := read(r.Domains, &index); err != nil {
			return nil, fmt.Errorf("index of domains: %w", err)
		}
	}
	hashes := make([]fabric.Hash, 0, len(index))
	for _, h := range index {
		hashes = append(hashes, h)
	}
	found, err := get(hashes)
	if err != nil {
		return nil, err
	}
	for name, h := range index {
		data, ok := found[h]
		if !ok {
			return nil, fmt.Errorf("domain %s: object %s is missing", name, h)
		}
		d := &fabric.Domain{}
		if err := fabric.DecodeObject(data, h, d); err != nil {
			return nil, fmt.Errorf("domain %s: %w", name, err)
		}
		graph.Domains[name] = d
	}
	if !r.Guardrails.IsZero() {
		if err := read(r.Guardrails, &graph.Guardrails); err != nil {
			return nil, fmt.Errorf("guardrails: %w", err)
		}
	}
	return graph, nil
}

// enforce compiles the graph of a revision that was read. If it compiles to
// another root, because another version of SIF made it, nothing of what it
// compiles to is known to be in the store.
func enforce(signed fabric.Signed, pointer fabric.Pointer, graph *fabric.Graph) *inForce {
	var none *fabric.Compiled
	compiled, _, _ := none.Next(graph)
	r := &inForce{signed: signed, pointer: pointer, graph: graph, documents: compiled.Documents, sound: len(graph.Check(time.Now())) == 0}
	if compiled.Root == pointer.Root {
		r.compiled = compiled
	}
	return r
}
