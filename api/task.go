// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package api

import (
	"context"
	"net/http"
	"net/netip"
	"time"

	"github.com/sif-project/sif/fabric"
)

// TaskKind says what a node shall do.
type TaskKind string

// The kinds of tasks.
const (
	// TaskObserve: watch in the endpoint's namespace for a packet that carries
	// the nonce. The node reports Ready when it watches, and the result when
	// the packet came or the time is over.
	TaskObserve TaskKind = "observe"
	// TaskSend: from the endpoint's namespace send to Peer a packet that
	// carries the nonce. No answer is waited for.
	TaskSend TaskKind = "send"
	// TaskRequest: from the endpoint's namespace open a flow to Peer and
	// complete a request (TCP: connect; UDP: send, wait for an answer).
	TaskRequest TaskKind = "request"
	// TaskListening: report whether anything listens in the endpoint's
	// namespace on Peer's port.
	TaskListening TaskKind = "listening"
	// TaskDump: read back what the node's data path enforces. Endpoint, Peer
	// and Protocol do not matter. It is no probe: only the controller itself
	// makes such tasks, for those who may read; see Client.Dumps.
	TaskDump TaskKind = "dump"
)

// Task is a small piece of diagnosis that a node does, most of them in the
// network namespace of one of its endpoints.
type Task struct {
	ID       string          `json:"id"` // set by the controller
	Node     fabric.NodeID   `json:"node"`
	Kind     TaskKind        `json:"kind"`
	Endpoint string          `json:"endpoint"`
	Peer     netip.AddrPort  `json:"peer"` // observe, listening: the endpoint's own address and port
	Protocol fabric.Protocol `json:"protocol,omitzero"`
	Nonce    uint64          `json:"nonce,omitempty"`
	Timeout  time.Duration   `json:"timeout"` // nanoseconds; how long the node may take
}

// TaskResult is what came of a task. A task that could not be carried out has
// an Error; one that was, and found nothing, has not.
type TaskResult struct {
	ID       string        `json:"id"`
	Ready    bool          `json:"ready,omitempty"` // interim: the observation has begun
	Done     bool          `json:"done"`            // observe: seen; send: sent; request: completed; listening: yes
	Source   netip.Addr    `json:"source,omitzero"` // observe: where the packet came from
	Reason   string        `json:"reason,omitempty"`
	Error    string        `json:"error,omitempty"`
	Duration time.Duration `json:"duration,omitempty"` // nanoseconds
	Dump     *Dump         `json:"dump,omitempty"`     // dump only
}

// ProbeRequest is a batch of tasks. The observations among them are begun
// first; the others start when all of those are ready or have failed.
type ProbeRequest struct {
	Tasks []Task `json:"tasks"` // at most MaxProbeTasks
}

// MaxProbeTasks is the largest batch that a controller takes.
const MaxProbeTasks = 4096

// ProbeReply has one result for each task of the request, in its order.
type ProbeReply struct {
	Results []TaskResult `json:"results"`
}

// Probe has nodes carry out tasks and returns their results in order. A node
// that does not answer makes the Error of its tasks' results, not of the call.
func (c *Client) Probe(ctx context.Context, tasks []Task) ([]TaskResult, error) {
	var reply ProbeReply
	err := c.call(ctx, http.MethodPost, "/v1/probe", ProbeRequest{Tasks: tasks}, &reply)
	return reply.Results, err
}
