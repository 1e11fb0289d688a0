// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package api

import (
	"context"
	"errors"
	"fmt"
	"net/http"

	"github.com/sif-project/sif/fabric"
)

// PlanFormat is the format of plans that this version writes and understands.
const PlanFormat = 1

// Plan is what a change of the graph would do. It can be kept in a file and
// applied later; then it does exactly this, or is refused because the state
// moved on.
type Plan struct {
	Format int    `json:"format"`
	Fabric string `json:"fabric"`
	// Sequence and Base are the revision that the plan is made against.
	Sequence uint64      `json:"sequence"`
	Base     fabric.Hash `json:"base"`
	// Root is the root of the graph after the change; zero if there are
	// Problems.
	Root    fabric.Hash  `json:"root,omitzero"`
	Changed bool         `json:"changed"` // whether Root differs from Base
	Request GraphRequest `json:"request"`

	Delta   fabric.Delta `json:"delta"`
	Touched []Touched    `json:"touched,omitempty"`
	Cut     []CutFlow    `json:"cut,omitempty"`
	// Problems are what stands against the plan: applying it is refused.
	Problems []fabric.Problem `json:"problems,omitempty"`
	// Warnings are parts of the graph that no data path can enforce yet.
	Warnings []string `json:"warnings,omitempty"`

	Digest fabric.Hash `json:"digest"` // of all the above
}

// Touched is a live endpoint whose service gains or loses something.
type Touched struct {
	Endpoint string     `json:"endpoint"`
	Node     string     `json:"node"` // zone/node
	Service  fabric.Ref `json:"service"`
	// Effect is "rules" if what it may reach, or what may reach it, changes;
	// "selectors" if its service selects other workloads than before, which
	// counts when its admission is renewed; "removed" if its service goes.
	Effect string `json:"effect"`
}

// CutFlow is connections that a node reported and that would be dropped.
type CutFlow struct {
	Node string `json:"node"` // zone/node
	FlowStatus
}

// Seal sets the plan's digest.
func (p *Plan) Seal() { p.Digest = p.digest() }

func (p *Plan) digest() fabric.Hash {
	c := *p
	c.Digest = fabric.Hash{}
	return fabric.NewObject(c).Hash
}

// Check reports why a plan that was kept cannot be applied: it is of another
// format, or no longer what the controller made. A digest is no signature; the
// controller decides anew whether whoever applies the plan may do so.
func (p *Plan) Check() error {
	switch {
	case p.Format != PlanFormat:
		return fmt.Errorf("the plan has format %d; this version understands %d", p.Format, PlanFormat)
	case p.Digest != p.digest():
		return errors.New("the plan was altered after it was made: its digest does not agree with its content")
	}
	return nil
}

// Apply returns the request that applies the plan and nothing else.
func (p *Plan) Apply() GraphRequest {
	req := p.Request
	req.CAS, req.Expect = &p.Sequence, p.Root
	return req
}

// Plan returns what Apply would do, and changes nothing. A graph with problems
// is a plan with Problems, no error.
func (c *Client) Plan(ctx context.Context, req GraphRequest) (Plan, error) {
	var reply Plan
	err := c.call(ctx, http.MethodPost, "/v1/graph/plan", req, &reply)
	return reply, err
}

// DiffRequest names two kept revisions by their sequences; 0 is the one in
// force.
type DiffRequest struct {
	From uint64 `json:"from"`
	To   uint64 `json:"to"`
}

// DiffReply is the difference between two revisions, as it is now: contracts
// that have expired are off in both.
type DiffReply struct {
	From  uint64       `json:"from"`
	To    uint64       `json:"to"`
	Delta fabric.Delta `json:"delta"`
}

// Diff returns the difference between two kept revisions.
func (c *Client) Diff(ctx context.Context, req DiffRequest) (DiffReply, error) {
	var reply DiffReply
	err := c.call(ctx, http.MethodPost, "/v1/graph/diff", req, &reply)
	return reply, err
}
