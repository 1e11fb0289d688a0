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

// GraphRequest changes the graph: each domain, guardrail, binding and link replaces the one of the
// same name, those listed for removal are removed, and everything else stays.
type GraphRequest struct {
	Domains          map[string]*fabric.Domain `json:"domains,omitempty"`
	Guardrails       []fabric.Guardrail        `json:"guardrails,omitempty"`
	RemoveDomains    []string                  `json:"removeDomains,omitempty"`
	RemoveGuardrails []string                  `json:"removeGuardrails,omitempty"`
	Bindings         []fabric.Binding          `json:"bindings,omitempty"`
	RemoveBindings   []string                  `json:"removeBindings,omitempty"` // by domain
	Links            []fabric.LinkRule         `json:"links,omitempty"`
	RemoveLinks      []string                  `json:"removeLinks,omitempty"`

	Message string      `json:"message,omitempty"` // the reason, for the history and the audit log
	Files   fabric.Hash `json:"files,omitzero"`    // digest of the files of the graph

	// CAS, when set, is the sequence that the graph must have before the change, 0 for a fabric
	// without a graph. Otherwise the call fails with CodeConflict and changes nothing.
	CAS *uint64 `json:"cas,omitempty"`
	// Expect, when set, is the root that the graph must have after the change, from Plan.Root.
	// Otherwise the call fails with CodeConflict and changes nothing.
	Expect fabric.Hash `json:"expect,omitzero"`
}

// GraphReply is a graph and the pointer in force.
type GraphReply struct {
	Pointer  fabric.Pointer   `json:"pointer,omitzero"`  // zero if no graph was applied yet
	Signed   fabric.Signed    `json:"signed,omitzero"`   // the pointer, as the fabric signed it
	Graph    *fabric.Graph    `json:"graph,omitempty"`   // GraphAt: of the old revision
	Partial  bool             `json:"partial,omitempty"` // domains that the token may not read are missing
	Problems []fabric.Problem `json:"problems,omitempty"`
	Changed  bool             `json:"changed"` // whether an apply moved the pointer
	// Waiting are the contracts that are not in force because another domain has not accepted them.
	Waiting []fabric.Waiting `json:"waiting,omitempty"`
	// Change is the entry of the old revision in the history; set by GraphAt only.
	Change *fabric.Change `json:"change,omitempty"`
}

// Query makes a read block until its answer is newer than the index of an earlier answer. The zero
// Query does not block.
type Query struct {
	Index uint64
	Wait  time.Duration // at most MaxWait; 0: DefaultWait
}

// Default and maximum of Query.Wait.
const (
	DefaultWait = time.Minute
	MaxWait     = 10 * time.Minute
)

// IndexHeader is the HTTP header with the index of an answer.
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

// WatchGraph is Graph as a blocking query: it returns when the graph is newer than q.Index, or
// after q.Wait. It also returns the index of the answer.
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

// Apply changes the graph in force. If the resulting graph has problems, nothing is changed and the
// error is an *Error of CodeProblems.
func (c *Client) Apply(ctx context.Context, req GraphRequest) (GraphReply, error) {
	var reply GraphReply
	err := c.call(ctx, http.MethodPut, "/v1/graph", req, &reply)
	return reply, err
}

// Validate returns the problems for which Apply would refuse the request. It changes nothing.
func (c *Client) Validate(ctx context.Context, req GraphRequest) ([]fabric.Problem, error) {
	var reply GraphReply
	err := c.call(ctx, http.MethodPost, "/v1/graph/validate", req, &reply)
	return reply.Problems, err
}

// DeleteDomain removes a domain and its contracts from the graph.
func (c *Client) DeleteDomain(ctx context.Context, name string) (GraphReply, error) {
	var reply GraphReply
	err := c.call(ctx, http.MethodDelete, "/v1/graph/domain/"+url.PathEscape(name), nil, &reply)
	return reply, err
}
