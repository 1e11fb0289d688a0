// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package controller

import (
	"context"
	"errors"
	"maps"
	"net/http"
	"sync"

	"github.com/sif-project/sif/api"
	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/internal/trust/revision"
)

// DefaultHistory is how many revisions the history keeps, unless configured otherwise.
const DefaultHistory = 100

// changeCache caches entries of the history by their hashes.
type changeCache struct {
	mu      sync.Mutex
	entries map[fabric.Hash]fabric.Change
}

func (c *changeCache) get(h fabric.Hash) (fabric.Change, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	change, ok := c.entries[h]
	return change, ok
}

func (c *changeCache) put(h fabric.Hash, change fabric.Change) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.entries == nil {
		c.entries = map[fabric.Hash]fabric.Change{}
	}
	c.entries[h] = change
}

// retain removes all entries but those in keep.
func (c *changeCache) retain(keep map[fabric.Hash]bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	maps.DeleteFunc(c.entries, func(h fabric.Hash, _ fabric.Change) bool { return !keep[h] })
}

// history returns the entries of the history up to a verified pointer, newest first. Each contains
// the hash of the one before, so none can be altered or left out. The list ends at the first entry
// that was collected.
func (p *policy) history(ctx context.Context, pointer fabric.Pointer) ([]fabric.Change, error) {
	changes := []fabric.Change{}
	sequence := pointer.Sequence
	for h := pointer.Change; !h.IsZero() && len(changes) < p.keep; {
		change, err := p.entry(ctx, h)
		if errors.Is(err, errNoEntry) {
			break
		}
		if err != nil {
			return nil, err
		}
		if change.Sequence != sequence || len(changes) == 0 && change.Root != pointer.Root {
			return nil, api.Errorf(http.StatusConflict, api.CodeRevision, "the history in Consul is refused: the entry of revision %d is about revision %d or has another root", sequence, change.Sequence)
		}
		changes = append(changes, change)
		h = change.Previous
		sequence--
	}
	return changes, nil
}

// errNoEntry is the error for an entry that was collected.
var errNoEntry = errors.New("the entry of the history was deleted")

// entry returns an entry of the history.
func (p *policy) entry(ctx context.Context, h fabric.Hash) (fabric.Change, error) {
	change, known := p.changes.get(h)
	if known {
		return change, nil
	}
	found, err := revision.Fetch(ctx, p.consul(), []fabric.Hash{h})
	if err != nil {
		return change, unavailable("read the history from Consul: %v", err)
	}
	data, ok := found[h]
	if !ok {
		return change, errNoEntry
	}
	if err := fabric.DecodeObject(data, h, &change); err != nil {
		return change, api.Errorf(http.StatusConflict, api.CodeRevision, "the history in Consul is refused: entry %s: %v", h, err)
	}
	p.changes.put(h, change)
	return change, nil
}

// past is a revision of the history.
type past struct {
	change fabric.Change
	graph  *fabric.Graph
}

// at returns a revision of the history by its sequence; 0 is the revision in force.
func (p *policy) at(ctx context.Context, sequence uint64) (past, error) {
	current := p.current.Load()
	changes, err := p.history(ctx, current.pointer)
	if err != nil {
		return past{}, err
	}
	if sequence == 0 {
		sequence = current.pointer.Sequence
	}
	for _, change := range changes {
		switch {
		case change.Sequence != sequence:
			continue
		case change.Root == current.pointer.Root:
			return past{change, current.graph}, nil
		}
		graph, _, err := p.fetchGraph(ctx, sequence, change.Root)
		return past{change, graph}, err
	}
	if current.pointer.Sequence == 0 {
		return past{}, notFound("no graph has been applied yet")
	}
	oldest := current.pointer.Sequence
	if len(changes) > 0 {
		oldest = changes[len(changes)-1].Sequence
	}
	return past{}, notFound("revision %d is not kept; the history reaches from %d to %d", sequence, oldest, current.pointer.Sequence)
}

// rollback puts the domains of a revision of the history in force again, or compares the graph that
// this makes with the one in force. Guardrails, bindings and links stay, unless the request names
// them: an operator who restores an old application must not restore by it what applications could
// do then.
func (p *policy) rollback(ctx context.Context, req api.RollbackRequest, author, request string) (api.RollbackReply, error) {
	if req.Revision == 0 {
		return api.RollbackReply{}, invalid("the request must name a revision")
	}
	old, err := p.at(ctx, req.Revision)
	if err != nil {
		return api.RollbackReply{}, err
	}
	current := p.current.Load()
	e := edit{cas: req.CAS, rollback: req.Revision, author: author, request: request, message: req.Message}
	e.apply = func(g *fabric.Graph) error {
		g.Domains = old.graph.Domains
		if req.OperatorBlocks {
			g.Guardrails, g.Bindings, g.Links = old.graph.Guardrails, old.graph.Bindings, old.graph.Links
		}
		return nil
	}
	if req.OperatorBlocks {
		e.expect = old.change.Root
	}
	restored, err := p.edited(current, e.apply)
	if err != nil {
		return api.RollbackReply{Pointer: current.pointer}, err
	}
	compiled, _, _ := current.compiled.Next(restored)
	reply := api.RollbackReply{Pointer: current.pointer, Changed: compiled.Root != current.pointer.Root, Delta: fabric.Compare(current.graph, restored, p.now())}
	if req.DryRun {
		return reply, nil
	}
	done, err := p.change(ctx, e)
	reply.Pointer, reply.Changed = done.Pointer, done.Changed
	return reply, err
}
