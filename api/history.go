// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package api

import (
	"context"
	"net/http"

	"github.com/sif-project/sif/fabric"
)

// History lists the kept revisions.
type History struct {
	Pointer fabric.Pointer  `json:"pointer,omitzero"`
	Signed  fabric.Signed   `json:"signed,omitzero"` // the pointer, as the fabric signed it
	Changes []fabric.Change `json:"changes"`         // newest first
}

// History returns the kept revisions.
func (c *Client) History(ctx context.Context) (History, error) {
	reply, _, err := c.WatchHistory(ctx, Query{})
	return reply, err
}

// WatchHistory is History as a blocking query, like WatchGraph.
func (c *Client) WatchHistory(ctx context.Context, q Query) (History, uint64, error) {
	var reply History
	index, err := c.read(ctx, withQuery("/v1/history", q.values()), &reply)
	return reply, index, err
}

// RollbackRequest applies the domains of a kept revision again, as a new revision.
type RollbackRequest struct {
	Revision uint64 `json:"revision"` // sequence
	// OperatorBlocks also restores what only operators may declare: guardrails, bindings and links.
	OperatorBlocks bool    `json:"operatorBlocks,omitempty"`
	Message        string  `json:"message,omitempty"`
	CAS            *uint64 `json:"cas,omitempty"` // as in GraphRequest
	DryRun         bool    `json:"dryRun,omitempty"`
}

// RollbackReply is what a rollback changed or, after a dry run, would change.
type RollbackReply struct {
	Pointer fabric.Pointer `json:"pointer"`
	Changed bool           `json:"changed"`
	Delta   fabric.Delta   `json:"delta"`
}

// Rollback applies the domains of a kept revision again.
func (c *Client) Rollback(ctx context.Context, req RollbackRequest) (RollbackReply, error) {
	var reply RollbackReply
	err := c.call(ctx, http.MethodPost, "/v1/graph/rollback", req, &reply)
	return reply, err
}
