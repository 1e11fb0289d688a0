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
	"reflect"
	"slices"
	"time"

	"github.com/sif-project/sif/api"
	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/internal/logkey"
	"github.com/sif-project/sif/internal/trust/revision"
)

// edit is a change of the graph, and what the history records of it.
type edit struct {
	// apply changes a copy of the graph. It may replace domains, but must not change one in place.
	apply func(*fabric.Graph) error

	cas    *uint64     // the sequence to which the change applies; nil: any
	expect fabric.Hash // the root to which the change must lead; zero: any

	author, message string
	request         string // the ID of the call; it may have been carried out before
	files           fabric.Hash
	rollback        uint64
}

// candidate is a compiled graph that may become the next revision.
type candidate struct {
	base     *inForce // the revision on which it is based
	compiled *fabric.Compiled
	fresh    []fabric.Object // objects that base does not have
	touched  []fabric.Ref    // services whose documents differ from those of base
}

// change applies e to the graph and puts the result in force. If somebody else moves the pointer
// meanwhile, it starts again from the new graph, so that no change is lost.
func (p *policy) change(ctx context.Context, e edit) (api.GraphReply, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for range applyAttempts {
		index, err := p.examine(ctx)
		if err != nil {
			return api.GraphReply{}, err
		}
		base := p.current.Load()
		if done, reply := p.made(ctx, base, e.request); done {
			return reply, nil
		}
		if e.cas != nil && *e.cas != base.pointer.Sequence {
			return api.GraphReply{}, conflict("the graph is at sequence %d, not %d: somebody else applied a change; plan yours again", base.pointer.Sequence, *e.cas)
		}
		graph, err := p.edited(base, e.apply)
		if err != nil {
			return api.GraphReply{}, err
		}
		next := candidate{base: base}
		next.compiled, next.fresh, next.touched = base.compiled.Next(graph)
		if !e.expect.IsZero() && next.compiled.Root != e.expect {
			return api.GraphReply{}, conflict("the change leads to root %s, not to the planned root %s; plan it again", next.compiled.Root, e.expect)
		}
		reply := api.GraphReply{Pointer: base.pointer, Graph: graph, Waiting: graph.Waiting()}
		if base.pointer.Sequence > 0 && next.compiled.Root == base.pointer.Root {
			return reply, p.repair(ctx, graph)
		}
		if err := next.compiled.CheckObjects(next.fresh); err != nil {
			return api.GraphReply{}, invalid("the graph cannot be stored: %v", err)
		}
		published, err := p.publish(ctx, next, e, index)
		if errors.Is(err, revision.ErrConflict) {
			continue
		}
		if err != nil {
			return api.GraphReply{}, err
		}
		reply.Pointer, reply.Changed = published.pointer, true
		return reply, nil
	}
	return api.GraphReply{}, conflict("somebody else moved the pointer %d times while this change was computed; try again", applyAttempts)
}

// madeWithin is how many of the newest revisions are looked at for one that a call has made before.
const madeWithin = 8

// made reports whether a call has made one of the newest revisions already: its answer was lost, as
// when the leader ends in the middle of it, and its caller makes it again.
func (p *policy) made(ctx context.Context, base *inForce, request string) (bool, api.GraphReply) {
	if request == "" {
		return false, api.GraphReply{}
	}
	h := base.pointer.Change
	for range madeWithin {
		if h.IsZero() {
			break
		}
		change, err := p.entry(ctx, h)
		if err != nil {
			break
		}
		if change.Request == request {
			reply := api.GraphReply{Pointer: base.pointer, Graph: base.graph, Waiting: base.graph.Waiting(), Changed: true}
			reply.Pointer.Sequence, reply.Pointer.Root, reply.Pointer.Time = change.Sequence, change.Root, change.Time
			return true, reply
		}
		h = change.Previous
	}
	return false, api.GraphReply{}
}

// edited returns a copy of the graph of base that apply has changed. It fails if the copy does not
// pass the checks.
func (p *policy) edited(base *inForce, apply func(*fabric.Graph) error) (*fabric.Graph, error) {
	next := &fabric.Graph{Domains: maps.Clone(base.graph.Domains), Guardrails: base.graph.Guardrails, Bindings: base.graph.Bindings, Links: base.graph.Links}
	if err := apply(next); err != nil {
		return nil, err
	}
	checked := &fabric.Graph{}
	if base.sound {
		checked = base.graph
	}
	if problems := slices.Concat(next.CheckChange(checked, p.now()), next.CheckGrants(base.graph)); len(problems) > 0 {
		noun := "problems"
		if len(problems) == 1 {
			noun = "problem"
		}
		e := api.Errorf(http.StatusUnprocessableEntity, api.CodeProblems, "the graph has %d %s and was not applied", len(problems), noun)
		e.Details.Problems = problems
		return next, e
	}
	return next, nil
}

// publish signs the pointer to a candidate, stores its objects and the pointer in Consul and on
// disk, and puts it in force. index is the modify index of the pointer before. If somebody else
// moved that pointer, the error is revision.ErrConflict.
func (p *policy) publish(ctx context.Context, next candidate, e edit, index uint64) (*inForce, error) {
	base, compiled := next.base, next.compiled
	now := p.now().UTC().Truncate(time.Millisecond)
	change := fabric.Change{
		Sequence: base.pointer.Sequence + 1, Root: compiled.Root, Time: now, Author: e.author, Message: e.message,
		Files: e.files, Rollback: e.rollback, Previous: base.pointer.Change, Request: e.request,
	}
	entry := fabric.NewObject(change)
	pointer := fabric.Pointer{
		Fabric: p.fabric, Sequence: change.Sequence, Root: compiled.Root, Previous: base.pointer.Root, Time: now, Change: entry.Hash,
	}
	sameLinks := reflect.DeepEqual(base.graph.Links, compiled.Graph.Links) // every node reads them
	if sameLinks && (base.compiled != nil || base.pointer.Sequence == 0) { // otherwise touched does not compare with Previous
		pointer.SetTouched(next.touched)
	}
	signed, err := p.sign(ctx, pointer)
	if err != nil {
		return nil, err
	}
	// Once the pointer may be in Consul, the revision must be put in force here too, even if the
	// caller gives up.
	ctx = context.WithoutCancel(ctx)
	rev := fabric.Revision{Root: compiled.Root, Objects: append(slices.Clip(next.fresh), entry)}
	if err := revision.NewWriter(p.consul(), p.transact).Publish(ctx, rev, signed, index); err != nil {
		if errors.Is(err, revision.ErrConflict) {
			return nil, err
		}
		return nil, unwritten(err, "publish revision %d", pointer.Sequence)
	}
	published := &inForce{signed: signed, pointer: pointer, graph: compiled.Graph, documents: compiled.Documents, compiled: compiled, sound: true}
	p.changes.put(entry.Hash, change)
	p.use(published)
	objects := map[fabric.Hash][]byte{}
	for _, o := range next.fresh {
		objects[o.Hash] = o.Data
	}
	p.remember(signed, objects)
	p.log.Info("revision published", logkey.Revision, pointer.Sequence)
	return published, nil
}

// sign has the pointer signed.
func (p *policy) sign(ctx context.Context, pointer fabric.Pointer) (fabric.Signed, error) {
	payload, err := json.Marshal(pointer)
	if err != nil {
		return fabric.Signed{}, fmt.Errorf("encode the pointer: %w", err)
	}
	signed, err := p.signer.Sign(ctx, fabric.KindPointer, payload)
	if err != nil {
		return fabric.Signed{}, unavailable("%v", err)
	}
	var verified fabric.Pointer
	if err := p.keys().Verify(signed, fabric.KindPointer, &verified); err != nil { // nodes would refuse it too
		return fabric.Signed{}, fmt.Errorf("verify the pointer that Vault signed: %w", err)
	}
	return signed, nil
}

// repair writes the objects of the graph in force that are missing from Consul or were altered
// there. So an operator repairs them by applying the same graph again.
func (p *policy) repair(ctx context.Context, graph *fabric.Graph) error {
	repaired, err := revision.NewWriter(p.consul(), p.transact).Repair(ctx, fabric.Compile(graph).Objects)
	for _, h := range repaired {
		p.log.Warn("missing or altered object in Consul, writing it again", logkey.Object, h.String())
	}
	if err != nil {
		return unwritten(err, "compare the graph with the objects in Consul")
	}
	return nil
}

// apply makes the changes of a request and puts the result in force.
func (p *policy) apply(ctx context.Context, req api.GraphRequest, author, request string) (api.GraphReply, error) {
	if empty(req) {
		return api.GraphReply{}, errEmpty
	}
	return p.change(ctx, edit{
		apply: func(g *fabric.Graph) error { return merge(g, req) },
		cas:   req.CAS, expect: req.Expect, author: author, request: request, message: req.Message, files: req.Files,
	})
}

// remove removes a domain from the graph.
func (p *policy) remove(ctx context.Context, name, author, request string) (api.GraphReply, error) {
	return p.apply(ctx, api.GraphRequest{RemoveDomains: []string{name}, Message: "domain " + name + " removed"}, author, request)
}

// problems returns the problems because of which apply would refuse a request.
func (p *policy) problems(req api.GraphRequest) ([]fabric.Problem, error) {
	_, err := p.edited(p.current.Load(), func(g *fabric.Graph) error { return merge(g, req) })
	return asProblems(err)
}

// asProblems returns the problems of an error of CodeProblems, and any other error as it is.
func asProblems(err error) ([]fabric.Problem, error) {
	var e *api.Error
	if errors.As(err, &e) && e.Code == api.CodeProblems {
		return e.Details.Problems, nil
	}
	return nil, err
}
