// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package controller

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	consulapi "github.com/hashicorp/consul/api"
	"github.com/hashicorp/go-hclog"
	"golang.org/x/sync/errgroup"

	"github.com/sif-project/sif/api"
	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/internal/logkey"
	"github.com/sif-project/sif/internal/revision"
)

// applyAttempts bounds how often an apply starts anew because the pointer was
// moved meanwhile.
const applyAttempts = 16

// inForce is a revision that verified, with the graph that it was made of.
type inForce struct {
	signed    fabric.Signed
	pointer   fabric.Pointer
	graph     *fabric.Graph
	documents map[fabric.Ref]fabric.Document
}

var noRevision = &inForce{graph: &fabric.Graph{Domains: map[string]*fabric.Domain{}}}

// policy is the graph in force and the only way to change it.
//
// Consul may be altered by those who can write to it, so a pointer found
// there is built upon only if the fabric signed it and it is no older than
// what this controller has seen: memory holds the last verified revision, and
// the disk keeps it over restarts.
type policy struct {
	fabric string
	consul func() *consulapi.Client
	keys   func() fabric.KeySet
	signer Signer
	memory memory
	log    hclog.Logger

	mu      sync.Mutex // held while the revision is looked at or changed
	current atomic.Pointer[inForce]
	refusal atomic.Pointer[string] // why the pointer in Consul is refused; nil: it is not
}

func newPolicy(cfg Config) *policy {
	p := &policy{
		fabric: cfg.Fabric, consul: cfg.Consul, keys: cfg.Identity.Keys, signer: cfg.Signer,
		memory: memory{dir: filepath.Join(cfg.DataDir, "revision")},
		log:    cfg.Log.Named("policy"),
	}
	p.current.Store(noRevision)
	return p
}

func (p *policy) pointer() fabric.Pointer { return p.current.Load().pointer }

func (p *policy) degraded() []string {
	if why := p.refusal.Load(); why != nil {
		return []string{*why}
	}
	return nil
}

// load recalls what this controller has seen and looks at what Consul holds.
// A pointer that is refused is no error: the controller then serves what it
// remembers, and says so.
func (p *policy) load(ctx context.Context) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.current.Load().pointer.Sequence == 0 {
		held, err := p.memory.recall(p.fabric, p.keys())
		if err != nil {
			return err
		}
		if held != nil {
			p.current.Store(held)
		}
	}
	_, err := p.examine(ctx)
	if api.IsCode(err, api.CodeRevision) {
		return nil
	}
	return err
}

// watch keeps examining the pointer as it changes in Consul.
func (p *policy) watch(ctx context.Context) error {
	var index uint64
	for ctx.Err() == nil {
		q := (&consulapi.QueryOptions{WaitIndex: index, WaitTime: time.Minute}).WithContext(ctx)
		_, meta, err := p.consul().KV().Get(revision.KeyCurrent, q)
		if err == nil {
			index = meta.LastIndex
			p.mu.Lock()
			_, err = p.examine(ctx)
			p.mu.Unlock()
		}
		if err != nil && ctx.Err() == nil && !api.IsCode(err, api.CodeRevision) {
			p.log.Warn("watch the revision", logkey.Error, err)
		}
		if err != nil {
			select {
			case <-ctx.Done():
			case <-time.After(time.Second):
			}
		}
	}
	return nil
}

// examine reads the pointer, adopts it if it is newer than what is held, and
// returns its modify index. A pointer that cannot be built upon is an
// *api.Error of CodeRevision. The caller holds p.mu.
func (p *policy) examine(ctx context.Context) (uint64, error) {
	index, err := p.adopt(ctx)
	var refusal *api.Error
	switch {
	case err == nil:
		if p.refusal.Swap(nil) != nil {
			p.log.Info("the pointer in Consul verifies again", logkey.Revision, p.pointer().Sequence)
		}
	case errors.As(err, &refusal) && refusal.Code == api.CodeRevision:
		if old := p.refusal.Swap(&refusal.Message); old == nil || *old != refusal.Message {
			p.log.Error("the revision in Consul is refused", logkey.Revision, p.pointer().Sequence, logkey.Error, err)
		}
	}
	return index, err
}

func (p *policy) adopt(ctx context.Context) (uint64, error) {
	held := p.current.Load()
	signed, index, err := revision.ReadCurrent(ctx, p.consul())
	switch {
	case errors.Is(err, revision.ErrNoRevision) && held.pointer.Sequence == 0:
		return 0, nil
	case errors.Is(err, revision.ErrNoRevision):
		return 0, p.refuse("it is gone, but this controller has seen sequence %d", held.pointer.Sequence)
	case err != nil && index > 0: // it was read, but is no signed statement
		return index, p.refuse("%v", err)
	case err != nil:
		return 0, api.Errorf(http.StatusServiceUnavailable, api.CodeUnavailable, "read the pointer from Consul: %v", err)
	}
	var pointer fabric.Pointer
	if err := p.keys().Verify(signed, fabric.KindPointer, &pointer); err != nil {
		return index, p.refuse("%v", err)
	}
	switch {
	case pointer.Fabric != p.fabric:
		return index, p.refuse("it is of fabric %q, not %q", pointer.Fabric, p.fabric)
	case pointer.Sequence < held.pointer.Sequence:
		return index, p.refuse("it has sequence %d, but this controller has seen %d: it was rolled back by hand", pointer.Sequence, held.pointer.Sequence)
	case pointer.Sequence == held.pointer.Sequence && pointer.Root == held.pointer.Root:
		return index, nil
	case pointer.Sequence == held.pointer.Sequence:
		return index, p.refuse("it has sequence %d like the one this controller has seen, but another root", pointer.Sequence)
	}
	next, objects, err := p.fetch(ctx, signed, pointer)
	if err != nil {
		return index, err
	}
	if err := p.memory.keep(next.signed, objects); err != nil {
		return index, err
	}
	p.current.Store(next)
	p.log.Info("revision adopted", logkey.Revision, pointer.Sequence)
	return index, nil
}

// refuse says what is wrong with the pointer in Consul and how to put it right.
func (p *policy) refuse(format string, args ...any) *api.Error {
	why := fmt.Sprintf(format, args...)
	remedy := "restore " + revision.KeyCurrent + " from a backup"
	if p.current.Load().pointer.Sequence > 0 {
		remedy = fmt.Sprintf("restore it on the controller's node with `consul kv put %s @%s`", revision.KeyCurrent, p.memory.pointerFile())
	}
	return api.Errorf(http.StatusConflict, api.CodeRevision, "the pointer %s in Consul is refused: %s; %s", revision.KeyCurrent, why, remedy)
}

// fetch reads the domains of a verified pointer. Objects that are missing or
// altered make an *api.Error of CodeRevision.
func (p *policy) fetch(ctx context.Context, signed fabric.Signed, pointer fabric.Pointer) (*inForce, map[fabric.Hash][]byte, error) {
	objects := map[fabric.Hash][]byte{}
	var storeErr error
	next, err := assemble(signed, pointer, func(h fabric.Hash) ([]byte, error) {
		kv, _, err := p.consul().KV().Get(revision.ObjectKey(h), (&consulapi.QueryOptions{}).WithContext(ctx))
		switch {
		case err != nil:
			storeErr = api.Errorf(http.StatusServiceUnavailable, api.CodeUnavailable, "read object %s from Consul: %v", h, err)
			return nil, storeErr
		case kv == nil:
			return nil, fmt.Errorf("object %s is missing", h)
		}
		objects[h] = kv.Value
		return kv.Value, nil
	})
	if storeErr != nil {
		return nil, nil, storeErr
	}
	if err != nil {
		return nil, nil, api.Errorf(http.StatusConflict, api.CodeRevision,
			"revision %d in Consul is refused: %v; restore the object from a backup of Consul", pointer.Sequence, err)
	}
	return next, objects, nil
}

// assemble builds the graph of a pointer from the objects that get returns,
// each of which is checked against its hash.
func assemble(signed fabric.Signed, pointer fabric.Pointer, get func(fabric.Hash) ([]byte, error)) (*inForce, error) {
	read := func(h fabric.Hash, v any) error {
		data, err := get(h)
		if err != nil {
			return err
		}
		return fabric.DecodeObject(data, h, v)
	}
	var root fabric.Root
	if err := read(pointer.Root, &root); err != nil {
		return nil, fmt.Errorf("root: %w", err)
	}
	graph := &fabric.Graph{Domains: map[string]*fabric.Domain{}}
	for name, h := range root.Domains {
		d := &fabric.Domain{}
		if err := read(h, d); err != nil {
			return nil, fmt.Errorf("domain %s: %w", name, err)
		}
		graph.Domains[name] = d
	}
	return enforce(signed, pointer, graph), nil
}

func enforce(signed fabric.Signed, pointer fabric.Pointer, graph *fabric.Graph) *inForce {
	r := &inForce{signed: signed, pointer: pointer, graph: graph, documents: map[fabric.Ref]fabric.Document{}}
	for _, d := range fabric.Documents(graph) {
		r.documents[d.Service] = d
	}
	return r
}

// change puts in force what edit makes of a copy of the graph. Changes are
// computed anew when somebody else moved the pointer meanwhile, so none is
// lost. cas, if set, is the sequence that edit is meant for.
func (p *policy) change(ctx context.Context, cas *uint64, edit func(*fabric.Graph) error) (api.GraphReply, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for range applyAttempts {
		index, err := p.examine(ctx)
		if err != nil {
			return api.GraphReply{}, err
		}
		held := p.current.Load()
		if cas != nil && *cas != held.pointer.Sequence {
			return api.GraphReply{}, api.Errorf(http.StatusConflict, api.CodeConflict,
				"the graph is at sequence %d, not %d: somebody else applied a change; look at it and try again", held.pointer.Sequence, *cas)
		}
		graph, err := edited(held.graph, edit)
		if err != nil {
			return api.GraphReply{}, err
		}
		rev := fabric.Compile(graph)
		if held.pointer.Sequence > 0 && rev.Root == held.pointer.Root {
			if err := p.repair(ctx, rev); err != nil {
				return api.GraphReply{}, err
			}
			return api.GraphReply{Pointer: held.pointer, Graph: graph}, nil
		}
		next, err := p.publish(ctx, held, graph, rev, index)
		if errors.Is(err, revision.ErrConflict) {
			continue
		}
		if err != nil {
			return api.GraphReply{}, err
		}
		return api.GraphReply{Pointer: next.pointer, Graph: graph, Changed: true}, nil
	}
	return api.GraphReply{}, api.Errorf(http.StatusConflict, api.CodeConflict,
		"the pointer was moved by others %d times while this change was computed; try again", applyAttempts)
}

// edited returns a checked copy of g that edit has changed.
func edited(g *fabric.Graph, edit func(*fabric.Graph) error) (*fabric.Graph, error) {
	next := &fabric.Graph{Domains: maps.Clone(g.Domains)}
	if err := edit(next); err != nil {
		return nil, err
	}
	if problems := next.Check(); len(problems) > 0 {
		e := api.Errorf(http.StatusUnprocessableEntity, api.CodeProblems, "the graph has %d problem(s) and was not applied", len(problems))
		e.Details.Problems = problems
		return nil, e
	}
	return next, nil
}

func (p *policy) publish(ctx context.Context, held *inForce, graph *fabric.Graph, rev fabric.Revision, index uint64) (*inForce, error) {
	pointer := fabric.Pointer{
		Fabric: p.fabric, Sequence: held.pointer.Sequence + 1, Root: rev.Root, Previous: held.pointer.Root,
		Time: time.Now().UTC().Truncate(time.Millisecond),
	}
	payload, err := json.Marshal(pointer)
	if err != nil {
		return nil, fmt.Errorf("encode the pointer: %w", err)
	}
	signed, err := p.signer.Sign(ctx, fabric.KindPointer, payload)
	if err != nil {
		return nil, api.Errorf(http.StatusServiceUnavailable, api.CodeUnavailable, "%v", err)
	}
	var check fabric.Pointer
	if err := p.keys().Verify(signed, fabric.KindPointer, &check); err != nil {
		return nil, fmt.Errorf("what Vault signed does not verify: %w", err) // nodes would refuse it too
	}
	// Once the pointer may be out, the answer must not be cut short.
	ctx = context.WithoutCancel(ctx)
	if err := revision.NewWriter(p.consul()).Publish(ctx, rev, signed, index); err != nil {
		if errors.Is(err, revision.ErrConflict) {
			return nil, err
		}
		return nil, api.Errorf(http.StatusServiceUnavailable, api.CodeUnavailable, "publish revision %d: %v", pointer.Sequence, err)
	}
	next := enforce(signed, pointer, graph)
	p.current.Store(next)
	objects := map[fabric.Hash][]byte{}
	for _, o := range rev.Objects {
		objects[o.Hash] = o.Data
	}
	if err := p.memory.keep(signed, objects); err != nil {
		return nil, fmt.Errorf("revision %d is in force, but: %w", pointer.Sequence, err)
	}
	p.log.Info("revision published", logkey.Revision, pointer.Sequence)
	return next, nil
}

// repair writes again those objects of a revision in force that Consul has
// lost or that were altered there. Applying the same graph again is thus the
// way to mend it.
func (p *policy) repair(ctx context.Context, rev fabric.Revision) error {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(8)
	for _, o := range rev.Objects {
		g.Go(func() error {
			kv, _, err := p.consul().KV().Get(revision.ObjectKey(o.Hash), (&consulapi.QueryOptions{}).WithContext(ctx))
			if err != nil {
				return api.Errorf(http.StatusServiceUnavailable, api.CodeUnavailable, "read object %s from Consul: %v", o.Hash, err)
			}
			if kv != nil && string(kv.Value) == string(o.Data) {
				return nil
			}
			p.log.Warn("object in Consul was missing or altered; writing it again", "object", o.Hash.String())
			if _, err := p.consul().KV().Put(&consulapi.KVPair{Key: revision.ObjectKey(o.Hash), Value: o.Data}, (&consulapi.WriteOptions{}).WithContext(ctx)); err != nil {
				return api.Errorf(http.StatusServiceUnavailable, api.CodeUnavailable, "write object %s to Consul: %v", o.Hash, err)
			}
			return nil
		})
	}
	return g.Wait()
}

// apply replaces the given domains.
func (p *policy) apply(ctx context.Context, req api.GraphRequest) (api.GraphReply, error) {
	if len(req.Domains) == 0 {
		return api.GraphReply{}, api.Errorf(http.StatusBadRequest, api.CodeInvalid, "the request names no domain")
	}
	return p.change(ctx, req.CAS, func(g *fabric.Graph) error { return merge(g, req.Domains) })
}

// merge puts domains in the place of those of the same name.
func merge(g *fabric.Graph, domains map[string]*fabric.Domain) error {
	for name, d := range domains {
		if d == nil || d.Name != name {
			return api.Errorf(http.StatusBadRequest, api.CodeInvalid, "domain %q: its definition is missing or carries another name", name)
		}
		g.Domains[name] = d
	}
	return nil
}

// remove takes a domain out.
func (p *policy) remove(ctx context.Context, name string) (api.GraphReply, error) {
	return p.change(ctx, nil, func(g *fabric.Graph) error {
		if g.Domains[name] == nil {
			return api.Errorf(http.StatusNotFound, api.CodeNotFound, "the graph has no domain %q", name)
		}
		delete(g.Domains, name)
		return nil
	})
}

// problems returns what apply would refuse.
func (p *policy) problems(req api.GraphRequest) ([]fabric.Problem, error) {
	_, err := edited(p.current.Load().graph, func(g *fabric.Graph) error { return merge(g, req.Domains) })
	var e *api.Error
	if errors.As(err, &e) && e.Code == api.CodeProblems {
		return e.Details.Problems, nil
	}
	return nil, err
}
