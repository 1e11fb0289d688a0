// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package api

import (
	"context"
	"net/http"

	"github.com/sif-project/sif/fabric"
)

// History is the revisions that are kept, the newest first.
type History struct {
	Pointer fabric.Pointer  `json:"pointer,omitzero"`
	Signed  fabric.Signed   `json:"signed,omitzero"` // the pointer, as the fabric signed it
	Changes []fabric.Change `json:"changes"`
}

// History returns the revisions that are kept.
func (c *Client) History(ctx context.Context) (History, error) {
	reply, _, err := c.WatchHistory(ctx, Query{})
	return reply, err
}

// WatchHistory is History once it is newer than q.Index, or when q.Wait is
// over, and the index of the answer.
func (c *Client) WatchHistory(ctx context.Context, q Query) (History, uint64, error) {
	var reply History
	index, err := c.read(ctx, withQuery("/v1/history", q.values()), &reply)
	return reply, index, err
}

// RollbackRequest puts the graph of a kept revision in force again, guardrails
// included, under a new sequence.
type RollbackRequest struct {
	Revision uint64  `json:"revision"` // sequence
	Message  string  `json:"message,omitempty"`
	CAS      *uint64 `json:"cas,omitempty"` // as in GraphRequest
	DryRun   bool    `json:"dryRun,omitempty"`
}

// RollbackReply is what a rollback does, or would do.
type RollbackReply struct {
	Pointer fabric.Pointer `json:"pointer"`
	Changed bool           `json:"changed"`
	Delta   fabric.Delta   `json:"delta"`
}

// Rollback takes up the graph of a kept revision again.
func (c *Client) Rollback(ctx context.Context, req RollbackRequest) (RollbackReply, error) {
	var reply RollbackReply
	err := c.call(ctx, http.MethodPost, "/v1/graph/rollback", req, &reply)
	return reply, err
}
