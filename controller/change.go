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
	"slices"
	"strings"
	"time"

	"github.com/sif-project/sif/api"
	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/internal/logkey"
	"github.com/sif-project/sif/internal/trust/revision"
)

// edit is a change of the graph and what the history says of it.
type edit struct {
	// apply changes a copy of the graph. It puts other domains in the place of
	// those there, and changes none in place.
	apply func(*fabric.Graph) error

	cas    *uint64     // the sequence that it is meant for, if set
	expect fabric.Hash // the root that it must lead to, unless zero

	author, message string
	files           fabric.Hash
	rollback        uint64
}

// change puts in force what e makes of the graph. It is computed anew when
// somebody else moved the pointer meanwhile, so no change is lost.
func (p *policy) change(ctx context.Context, e edit) (api.GraphReply, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for range applyAttempts {
		index, err := p.examine(ctx)
		if err != nil {
			return api.GraphReply{}, err
		}
		held := p.current.Load()
		if e.cas != nil && *e.cas != held.pointer.Sequence {
			return api.GraphReply{}, conflict(
				"the graph is at sequence %d, not %d: somebody else applied a change; look at it and try again", held.pointer.Sequence, *e.cas)
		}
		graph, err := p.edited(held, e.apply)
		if err != nil {
			return api.GraphReply{}, err
		}
		compiled, fresh, touched := held.compiled.Next(graph)
		if !e.expect.IsZero() && compiled.Root != e.expect {
			return api.GraphReply{}, conflict(
				"the change leads to root %s, not to %s as planned; plan it again", compiled.Root, e.expect)
		}
		reply := api.GraphReply{Pointer: held.pointer, Graph: graph, Waiting: graph.Waiting()}
		if held.pointer.Sequence > 0 && compiled.Root == held.pointer.Root {
			return reply, p.repair(ctx, graph)
		}
		next, err := p.publish(ctx, held, compiled, fresh, touched, e, index)
		if errors.Is(err, revision.ErrConflict) {
			continue
		}
		if err != nil {
			return api.GraphReply{}, err
		}
		reply.Pointer, reply.Changed = next.pointer, true
		return reply, nil
	}
	return api.GraphReply{}, conflict(
		"the pointer was moved by others %d times while this change was computed; try again", applyAttempts)
}

// edited returns a checked copy of the graph in force that apply has changed.
func (p *policy) edited(held *inForce, apply func(*fabric.Graph) error) (*fabric.Graph, error) {
	next := &fabric.Graph{Domains: maps.Clone(held.graph.Domains), Guardrails: held.graph.Guardrails}
	if err := apply(next); err != nil {
		return nil, err
	}
	base := &fabric.Graph{}
	if held.sound {
		base = held.graph
	}
	if problems := next.CheckChange(base, p.now()); len(problems) > 0 {
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

func (p *policy) publish(ctx context.Context, held *inForce, compiled *fabric.Compiled, fresh []fabric.Object, touched []fabric.Ref, e edit, index uint64) (*inForce, error) {
	now := p.now().UTC().Truncate(time.Millisecond)
	change := fabric.Change{
		Sequence: held.pointer.Sequence + 1, Root: compiled.Root, Time: now, Author: e.author, Message: e.message,
		Files: e.files, Rollback: e.rollback, Previous: held.pointer.Change,
	}
	entry := fabric.NewObject(change)
	pointer := fabric.Pointer{
		Fabric: p.fabric, Sequence: change.Sequence, Root: compiled.Root, Previous: held.pointer.Root, Time: now, Change: entry.Hash,
	}
	if held.compiled != nil || held.pointer.Sequence == 0 { // else touched is not relative to Previous
		pointer.SetTouched(touched)
	}
	payload, err := json.Marshal(pointer)
	if err != nil {
		return nil, fmt.Errorf("encode the pointer: %w", err)
	}
	signed, err := p.signer.Sign(ctx, fabric.KindPointer, payload)
	if err != nil {
		return nil, unavailable("%v", err)
	}
	var check fabric.Pointer
	if err := p.keys().Verify(signed, fabric.KindPointer, &check); err != nil {
		return nil, fmt.Errorf("what Vault signed does not verify: %w", err) // nodes would refuse it too
	}
	// Once the pointer may be out, the answer must not be cut short.
	ctx = context.WithoutCancel(ctx)
	rev := fabric.Revision{Root: compiled.Root, Objects: append(slices.Clip(fresh), entry)}
	if err := revision.NewWriter(p.consul()).Publish(ctx, rev, signed, index); err != nil {
		if errors.Is(err, revision.ErrConflict) {
			return nil, err
		}
		return nil, unavailable("publish revision %d: %v", pointer.Sequence, err)
	}
	next := &inForce{signed: signed, pointer: pointer, graph: compiled.Graph, documents: compiled.Documents, compiled: compiled, sound: true}
	p.chain.put(entry.Hash, change)
	p.hold(next)
	objects := map[fabric.Hash][]byte{}
	for _, o := range fresh {
		objects[o.Hash] = o.Data
	}
	if err := p.memory.keep(signed, objects); err != nil {
		return nil, fmt.Errorf("revision %d is in force, but: %w", pointer.Sequence, err)
	}
	p.log.Info("revision published", logkey.Revision, pointer.Sequence)
	return next, nil
}

// repair writes again those objects of the graph in force that Consul has lost
// or that were altered there. Applying the same graph again is thus the way to
// mend it.
func (p *policy) repair(ctx context.Context, graph *fabric.Graph) error {
	repaired, err := revision.NewWriter(p.consul()).Repair(ctx, fabric.Compile(graph).Objects)
	for _, h := range repaired {
		p.log.Warn("object in Consul was missing or altered; writing it again", logkey.Object, h.String())
	}
	if err != nil {
		return unavailable("compare the graph with the objects in Consul: %v", err)
	}
	return nil
}

// apply makes the changes of a request.
func (p *policy) apply(ctx context.Context, req api.GraphRequest, author string) (api.GraphReply, error) {
	if empty(req) {
		return api.GraphReply{}, errEmpty
	}
	return p.change(ctx, edit{
		apply: func(g *fabric.Graph) error { return merge(g, req) },
		cas:   req.CAS, expect: req.Expect, author: author, message: req.Message, files: req.Files,
	})
}

var errEmpty = invalid("the request names no domain and no guardrail")

func empty(req api.GraphRequest) bool {
	return len(req.Domains)+len(req.Guardrails)+len(req.RemoveDomains)+len(req.RemoveGuardrails) == 0
}

// merge makes the changes of a request to a copy of the graph.
func merge(g *fabric.Graph, req api.GraphRequest) error {
	for name, d := range req.Domains {
		if d == nil || d.Name != name {
			return invalid("domain %q: its definition is missing or carries another name", name)
		}
		for _, c := range d.Contracts {
			if lacksProtocol(c.Rules) {
				return invalid("contract %q of domain %q: a rule names no protocol", c.Name, name)
			}
		}
		g.Domains[name] = d
	}
	for _, name := range req.RemoveDomains {
		if g.Domains[name] == nil || req.Domains[name] != nil {
			return notFound("the graph has no domain %q to remove", name)
		}
		delete(g.Domains, name)
	}
	g.Guardrails = slices.Clone(g.Guardrails)
	at := func(name string) int {
		return slices.IndexFunc(g.Guardrails, func(r fabric.Guardrail) bool { return r.Name == name })
	}
	for _, name := range req.RemoveGuardrails {
		i := at(name)
		if i < 0 {
			return notFound("the graph has no guardrail %q to remove", name)
		}
		g.Guardrails = slices.Delete(g.Guardrails, i, i+1)
	}
	given := map[string]bool{}
	for _, r := range req.Guardrails {
		for _, d := range r.Deny {
			if lacksProtocol(d.Rules) {
				return invalid("guardrail %q: a rule names no protocol", r.Name)
			}
		}
		if i := at(r.Name); i >= 0 && !given[r.Name] {
			g.Guardrails[i] = r
		} else {
			g.Guardrails = append(g.Guardrails, r)
		}
		given[r.Name] = true
	}
	slices.SortStableFunc(g.Guardrails, func(a, b fabric.Guardrail) int { return strings.Compare(a.Name, b.Name) })
	return nil
}

// lacksProtocol reports whether a rule leaves its protocol out, which JSON may
// and a graph file may not.
func lacksProtocol(rules []fabric.Rule) bool {
	return slices.ContainsFunc(rules, func(r fabric.Rule) bool { return r.Protocol == 0 })
}

// remove takes a domain out.
func (p *policy) remove(ctx context.Context, name, author string) (api.GraphReply, error) {
	return p.apply(ctx, api.GraphRequest{RemoveDomains: []string{name}, Message: "domain " + name + " removed"}, author)
}

// problems returns what apply would refuse.
func (p *policy) problems(req api.GraphRequest) ([]fabric.Problem, error) {
	_, err := p.edited(p.current.Load(), func(g *fabric.Graph) error { return merge(g, req) })
	return asProblems(err)
}

// asProblems returns the problems that an error is about; other errors stay.
func asProblems(err error) ([]fabric.Problem, error) {
	var e *api.Error
	if errors.As(err, &e) && e.Code == api.CodeProblems {
		return e.Details.Problems, nil
	}
	return nil, err
}
