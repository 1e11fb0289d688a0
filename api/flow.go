// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package api

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"slices"

	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/fabric/flow"
)

// MaxFlows is the most records that a call may ask for with Last.
const MaxFlows = 100_000

// FlowsRequest asks for the records of flows that nodes keep.
type FlowsRequest struct {
	Filter flow.Filter `json:"filter"`
	// Last selects the newest so many of each node, at most MaxFlows. 0: all that nodes keep, or
	// with Follow, and neither After nor Filter.Since, those from now on.
	Last int `json:"last,omitempty"`
	// Follow also selects the records that nodes make until the call ends, at the latest after a
	// minute. Another call with After goes on.
	Follow bool `json:"follow,omitempty"`
	// After says which records of a node the caller has, by FlowsMessage.Next.
	After map[fabric.NodeID]string `json:"after,omitempty"`
}

// FlowsMessage is one line of the answer: records of a node, or why there are none.
type FlowsMessage struct {
	Node  fabric.NodeID `json:"node"`
	Flows []flow.Flow   `json:"flows,omitempty"` // in the order in which the node made them
	Next  string        `json:"next,omitempty"`  // see FlowsRequest.After
	// Missed is how many records were made and are gone, because the caller, or the way to it, was
	// slower than they came.
	Missed uint64 `json:"missed,omitempty"`
	Error  string `json:"error,omitempty"` // why the node does not answer
	// Old is set if the node runs a version that records no flows.
	Old bool `json:"old,omitempty"`
}

// FlowQuery is what a node is asked for.
type FlowQuery struct {
	Filter flow.Filter `json:"filter"`
	Last   int         `json:"last,omitempty"`
	Follow bool        `json:"follow,omitempty"`
	After  string      `json:"after,omitempty"`
	// Everything says that the caller reads all domains. Otherwise Domains are those that he reads.
	Everything bool     `json:"everything,omitempty"`
	Domains    []string `json:"domains,omitempty"`
}

// Reads returns which domains the caller reads; nil, which means all, is never returned.
func (q FlowQuery) Reads() func(domain string) bool {
	return func(domain string) bool { return q.Everything || slices.Contains(q.Domains, domain) }
}

// FlowBatch is what a node sends of its records.
type FlowBatch struct {
	Flows  []flow.Flow `json:"flows,omitempty"`
	Next   string      `json:"next"`
	Missed uint64      `json:"missed,omitempty"`
}

// RecordedStatus is what a node records of flows.
type RecordedStatus struct {
	Kept int `json:"kept"` // records
	Size int `json:"size"` // the most that it keeps
	// What was not recorded, because there was too much of it: packets that were refused, flows
	// that opened, and records for which the ring of the kernel had no room.
	UnrecordedRefused uint64 `json:"unrecordedRefused,omitempty"`
	UnrecordedOpened  uint64 `json:"unrecordedOpened,omitempty"`
	Lost              uint64 `json:"lost,omitempty"`
	// Exported are the records that were written to the file of flows, and NotExported those that
	// could not be, or were gone before they were.
	Exported    uint64 `json:"exported,omitempty"`
	NotExported uint64 `json:"notExported,omitempty"`
}

// maxFlowLine is the longest line of the answer, in bytes.
const maxFlowLine = 16 << 20

// Flows calls each with what nodes answer, until the answer ends or each returns an error.
func (c *Client) Flows(ctx context.Context, req FlowsRequest, each func(FlowsMessage) error) error {
	_, err := c.do(ctx, http.MethodPost, "/v1/flows", req, sink(func(r io.Reader) error {
		lines := bufio.NewScanner(r)
		lines.Buffer(nil, maxFlowLine)
		for lines.Scan() {
			var m FlowsMessage
			if err := json.Unmarshal(lines.Bytes(), &m); err != nil {
				return fmt.Errorf("decode the answer of the controller: %w", err)
			}
			if err := each(m); err != nil {
				return err
			}
		}
		return lines.Err()
	}))
	return err
}
