// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package api

import (
	"context"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/sif-project/sif/fabric"
)

// GraphRequest changes the graph: each domain given takes the place of the
// one of its name, and each guardrail likewise; what is listed for removal
// goes; everything else stays.
type GraphRequest struct {
	Domains          map[string]*fabric.Domain `json:"domains,omitempty"`
	Guardrails       []fabric.Guardrail        `json:"guardrails,omitempty"`
	RemoveDomains    []string                  `json:"removeDomains,omitempty"`
	RemoveGuardrails []string                  `json:"removeGuardrails,omitempty"`

	Message string      `json:"message,omitempty"` // why, for the history and the audit log
	Files   fabric.Hash `json:"files,omitzero"`    // digest of the files that it comes from

	// CAS, when set, is the sequence that the caller saw last (0 for a fabric
	// without a graph). If another apply was faster, the call fails with
	// CodeConflict and changes nothing.
	CAS *uint64 `json:"cas,omitempty"`
	// Expect, when set, is the root that the graph must have after the change,
	// as Plan.Root names it; otherwise the call fails with CodeConflict.
	Expect fabric.Hash `json:"expect,omitzero"`
}

// GraphReply is the graph and the pointer under which it is in force.
type GraphReply struct {
	Pointer  fabric.Pointer   `json:"pointer,omitzero"`  // zero while no graph was ever applied
	Signed   fabric.Signed    `json:"signed,omitzero"`   // the pointer, as the fabric signed it
	Graph    *fabric.Graph    `json:"graph,omitempty"`   // of an old revision: that one's
	Partial  bool             `json:"partial,omitempty"` // there are domains that the token may not read
	Problems []fabric.Problem `json:"problems,omitempty"`
	Changed  bool             `json:"changed"` // whether an apply moved the pointer
	// Waiting are the contracts that are not in force for want of another
	// domain's consent.
	Waiting []fabric.Waiting `json:"waiting,omitempty"`
	// Change is the entry of the history that an old revision was asked by.
	Change *fabric.Change `json:"change,omitempty"`
}

// Query makes a read wait until its answer is newer than an index that the
// controller gave before. The zero Query answers at once.
type Query struct {
	Index uint64
	Wait  time.Duration // at most MaxWait; zero: DefaultWait
}

// Bounds of Query.Wait.
const (
	DefaultWait = time.Minute
	MaxWait     = 10 * time.Minute
)

// IndexHeader carries the index of an answer.
const IndexHeader = "X-Sif-Index"

func (q Query) values() url.Values {
	v := url.Values{}
	if q.Index > 0 {
		v.Set("index", strconv.FormatUint(q.Index, 10))
		if q.Wait > 0 {
			v.Set("wait", q.Wait.String())
		}
	}
	return v
}

func withQuery(path string, v url.Values) string {
	if len(v) == 0 {
		return path
	}
	return path + "?" + v.Encode()
}

// Graph returns the graph in force.
func (c *Client) Graph(ctx context.Context) (GraphReply, error) {
	reply, _, err := c.WatchGraph(ctx, Query{})
	return reply, err
}

// WatchGraph returns the graph in force once it is newer than q.Index, or when
// q.Wait is over, and the index of the answer.
func (c *Client) WatchGraph(ctx context.Context, q Query) (GraphReply, uint64, error) {
	var reply GraphReply
	index, err := c.read(ctx, withQuery("/v1/graph", q.values()), &reply)
	return reply, index, err
}

// GraphAt returns the graph of a kept revision.
func (c *Client) GraphAt(ctx context.Context, sequence uint64) (GraphReply, error) {
	var reply GraphReply
	err := c.call(ctx, http.MethodGet, "/v1/graph?revision="+strconv.FormatUint(sequence, 10), nil, &reply)
	return reply, err
}

// Apply puts the given domains in force. A graph with problems changes
// nothing and is an *Error of CodeProblems.
func (c *Client) Apply(ctx context.Context, req GraphRequest) (GraphReply, error) {
	var reply GraphReply
	err := c.call(ctx, http.MethodPut, "/v1/graph", req, &reply)
	return reply, err
}

// Validate returns the problems that Apply would refuse, and changes nothing.
func (c *Client) Validate(ctx context.Context, req GraphRequest) ([]fabric.Problem, error) {
	var reply GraphReply
	err := c.call(ctx, http.MethodPost, "/v1/graph/validate", req, &reply)
	return reply.Problems, err
}

// DeleteDomain takes a domain and all its contracts out of the graph.
func (c *Client) DeleteDomain(ctx context.Context, name string) (GraphReply, error) {
	var reply GraphReply
	err := c.call(ctx, http.MethodDelete, "/v1/graph/domain/"+url.PathEscape(name), nil, &reply)
	return reply, err
}
