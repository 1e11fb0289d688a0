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

// PlanFormat is the format of plans that this version writes and reads.
const PlanFormat = 1

// Plan is what a change of the graph would do. It can be stored in a file and applied later:
// applying it does exactly this, or fails if the graph has changed since.
type Plan struct {
	Format int    `json:"format"`
	Fabric string `json:"fabric"`
	// Sequence and Base are the sequence and the root of the revision that the plan changes.
	Sequence uint64      `json:"sequence"`
	Base     fabric.Hash `json:"base"`
	// Root is the root of the graph after the change; zero if there are Problems.
	Root    fabric.Hash  `json:"root,omitzero"`
	Changed bool         `json:"changed"` // whether Root differs from Base
	Request GraphRequest `json:"request"`

	Delta   fabric.Delta `json:"delta"`
	Touched []Touched    `json:"touched,omitempty"`
	Cut     []CutFlow    `json:"cut,omitempty"`
	// Problems are why the controller would refuse to apply the plan.
	Problems []fabric.Problem `json:"problems,omitempty"`
	// Warnings are about parts of the graph that have no effect, and about flows that no way
	// carries.
	Warnings []string `json:"warnings,omitempty"`

	Digest fabric.Hash `json:"digest"` // of all other fields
}

// Touched is a live endpoint that a plan affects.
type Touched struct {
	Endpoint string     `json:"endpoint"`
	Node     string     `json:"node"` // zone/node
	Service  fabric.Ref `json:"service"`
	// Effect is "rules" if the flows that it may open or accept change; "selectors" if its service
	// selects different workloads, which takes effect when its admission is renewed; "binding" if
	// its service selects beyond a binding, so that this may be refused then; "removed" if its
	// service is removed.
	Effect string `json:"effect"`
}

// CutFlow is a group of connections that a node last reported and that a plan would drop.
type CutFlow struct {
	Node string `json:"node"` // zone/node
	FlowStatus
}

// Seal sets the digest of the plan.
func (p *Plan) Seal() { p.Digest = p.digest() }

func (p *Plan) digest() fabric.Hash {
	c := *p
	c.Digest = fabric.Hash{}
	return fabric.NewObject(c).Hash
}

// Check returns an error if a stored plan has another format or was altered. The digest is not a
// signature: the controller authorises the caller when the plan is applied.
func (p *Plan) Check() error {
	switch {
	case p.Format != PlanFormat:
		return fmt.Errorf("the plan has format %d, this version of sif reads format %d: make a new plan", p.Format, PlanFormat)
	case p.Digest != p.digest():
		return errors.New("the plan was altered after it was made: its digest does not match its content")
	}
	return nil
}

// Apply returns the request that applies exactly this plan.
func (p *Plan) Apply() GraphRequest {
	req := p.Request
	req.CAS, req.Expect = &p.Sequence, p.Root
	return req
}

// Plan returns what Apply would do. It changes nothing. If the graph would be refused, the reasons
// are in Plan.Problems; that is not an error.
func (c *Client) Plan(ctx context.Context, req GraphRequest) (Plan, error) {
	var reply Plan
	err := c.call(ctx, http.MethodPost, "/v1/graph/plan", req, &reply)
	return reply, err
}

// DiffRequest names two kept revisions by their sequences; 0 is the revision in force.
type DiffRequest struct {
	From uint64 `json:"from"`
	To   uint64 `json:"to"`
}

// DiffReply is the difference between two revisions at this time: contracts that have expired are
// disabled in both.
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
