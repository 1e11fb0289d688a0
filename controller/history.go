// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package controller

import (
	"context"
	"fmt"
	"net/http"
	"sync"

	"github.com/sif-project/sif/api"
	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/internal/trust/revision"
)

// DefaultHistory is how many revisions are kept.
const DefaultHistory = 100

// changeCache remembers entries of the history, which never change.
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

// only forgets all other entries.
func (c *changeCache) only(keep map[fabric.Hash]bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for h := range c.entries {
		if !keep[h] {
			delete(c.entries, h)
		}
	}
}

// history returns the kept changes up to a pointer that verified, the newest
// first. Each names the hash of the one before, so none can be altered or left
// out; what was collected ends the list.
func (p *policy) history(ctx context.Context, pointer fabric.Pointer) ([]fabric.Change, error) {
	changes := []fabric.Change{}
	sequence := pointer.Sequence
	for h := pointer.Change; !h.IsZero() && len(changes) < p.keep; {
		change, known := p.chain.get(h)
		if !known {
			found, err := revision.Fetch(ctx, p.consul(), []fabric.Hash{h})
			if err != nil {
				return nil, unavailable("read the history from Consul: %v", err)
			}
			data, ok := found[h]
			if !ok {
				break
			}
			if err := fabric.DecodeObject(data, h, &change); err != nil {
				return nil, api.Errorf(http.StatusConflict, api.CodeRevision, "the history in Consul is refused: entry %d: %v", sequence, err)
			}
			p.chain.put(h, change)
		}
		if change.Sequence != sequence || len(changes) == 0 && change.Root != pointer.Root {
			return nil, api.Errorf(http.StatusConflict, api.CodeRevision, "the history is refused: its entry %d claims to be that of revision %d", sequence, change.Sequence)
		}
		changes = append(changes, change)
		h = change.Previous
		sequence--
	}
	return changes, nil
}

// past is a revision of the history.
type past struct {
	change fabric.Change
	graph  *fabric.Graph
}

// at returns a kept revision by its sequence; 0 is the one in force.
func (p *policy) at(ctx context.Context, sequence uint64) (past, error) {
	held := p.current.Load()
	changes, err := p.history(ctx, held.pointer)
	if err != nil {
		return past{}, err
	}
	if sequence == 0 {
		sequence = held.pointer.Sequence
	}
	for _, change := range changes {
		switch {
		case change.Sequence != sequence:
			continue
		case change.Root == held.pointer.Root:
			return past{change, held.graph}, nil
		}
		graph, _, err := p.fetchGraph(ctx, change.Root)
		if err != nil {
			return past{}, fmt.Errorf("revision %d: %w", sequence, err)
		}
		return past{change, graph}, nil
	}
	if held.pointer.Sequence == 0 {
		return past{}, notFound("no graph has been applied yet")
	}
	oldest := held.pointer.Sequence
	if len(changes) > 0 {
		oldest = changes[len(changes)-1].Sequence
	}
	return past{}, notFound("revision %d is not kept; the history reaches from %d to %d", sequence, oldest, held.pointer.Sequence)
}

// rollback takes up the graph of a kept revision again.
func (p *policy) rollback(ctx context.Context, req api.RollbackRequest, author string) (api.RollbackReply, error) {
	if req.Revision == 0 {
		return api.RollbackReply{}, invalid("the request names no revision")
	}
	old, err := p.at(ctx, req.Revision)
	if err != nil {
		return api.RollbackReply{}, err
	}
	held := p.current.Load()
	reply := api.RollbackReply{Pointer: held.pointer, Changed: old.change.Root != held.pointer.Root, Delta: fabric.Compare(held.graph, old.graph, p.now())}
	again := func(g *fabric.Graph) error {
		g.Domains, g.Guardrails = old.graph.Domains, old.graph.Guardrails
		return nil
	}
	if req.DryRun {
		_, err := p.edited(held, again)
		return reply, err
	}
	done, err := p.change(ctx, edit{
		apply: again, cas: req.CAS, expect: old.change.Root, rollback: req.Revision, author: author, message: req.Message,
	})
	reply.Pointer, reply.Changed = done.Pointer, done.Changed
	return reply, err
}
