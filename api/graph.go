// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package api

import (
	"context"
	"net/http"
	"net/url"

	"github.com/sif-project/sif/fabric"
)

// GraphRequest changes the graph: each domain given takes the place of the
// one of its name, the others stay.
type GraphRequest struct {
	Domains map[string]*fabric.Domain `json:"domains"`
	Message string                    `json:"message,omitempty"` // why, for the audit log
	// CAS, when set, is the sequence that the caller saw last (0 for a fabric
	// without a graph). If another apply was faster, the call fails with
	// CodeConflict and changes nothing.
	CAS *uint64 `json:"cas,omitempty"`
}

// GraphReply is the graph and the pointer under which it is in force.
type GraphReply struct {
	Pointer  fabric.Pointer   `json:"pointer,omitzero"` // zero while no graph was ever applied
	Graph    *fabric.Graph    `json:"graph,omitempty"`
	Problems []fabric.Problem `json:"problems,omitempty"`
	Changed  bool             `json:"changed"` // whether an apply moved the pointer
}

// Graph returns the graph in force.
func (c *Client) Graph(ctx context.Context) (GraphReply, error) {
	var reply GraphReply
	err := c.call(ctx, http.MethodGet, "/v1/graph", nil, &reply)
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
