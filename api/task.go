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

// TaskKind is what a task does.
type TaskKind string

// The kinds of tasks.
const (
	// TaskObserve watches in the endpoint's namespace for a packet with the nonce. The node reports
	// Ready when it watches, and the result when the packet arrives or the time is over.
	TaskObserve TaskKind = "observe"
	// TaskSend sends a packet with the nonce from the endpoint's namespace to Peer. It does not
	// wait for an answer.
	TaskSend TaskKind = "send"
	// TaskRequest opens a flow from the endpoint's namespace to Peer and completes a request (TCP:
	// connect; UDP: send, and wait for an answer).
	TaskRequest TaskKind = "request"
	// TaskListening reports whether a program listens on Peer's port in the endpoint's namespace.
	TaskListening TaskKind = "listening"
	// TaskDump reads back what the node's data path enforces. Endpoint, Peer and Protocol are not
	// used. Only the controller makes such tasks, for Client.Dumps; Client.Probe does not accept
	// them.
	TaskDump TaskKind = "dump"
	// TaskFlows sends the records of flows that Flows selects, in several results of which all but
	// the last are Ready. Only the controller makes such tasks, for Client.Flows.
	TaskFlows TaskKind = "flows"
)

// Task is a diagnostic task of a node. All but TaskDump and TaskFlows run in the network namespace
// of one of its endpoints.
type Task struct {
	ID       string          `json:"id"` // set by the controller
	Node     fabric.NodeID   `json:"node"`
	Kind     TaskKind        `json:"kind"`
	Endpoint string          `json:"endpoint"`
	Peer     netip.AddrPort  `json:"peer"` // observe, listening: the address and port of the endpoint itself
	Protocol fabric.Protocol `json:"protocol,omitzero"`
	Nonce    uint64          `json:"nonce,omitempty"`
	// Name, for requests, is a DNS name that the endpoint's resolver resolves first. The request
	// then goes to an address of the name, of the IP version and on the port of Peer.
	Name    string        `json:"name,omitempty"`
	Timeout time.Duration `json:"timeout"`         // nanoseconds; the time limit of the node
	Flows   *FlowQuery    `json:"flows,omitempty"` // flows only
}

// TaskResult is the result of a task. Error is set if the task could not be carried out, not if it
// found nothing.
type TaskResult struct {
	ID       string        `json:"id"`
	Ready    bool          `json:"ready,omitempty"` // interim: the observation has begun, or more records follow
	Done     bool          `json:"done"`            // observe: seen; send: sent; request: completed; listening: yes
	Source   netip.Addr    `json:"source,omitzero"` // observe: the source address of the packet
	Reason   string        `json:"reason,omitempty"`
	Guest    bool          `json:"guest,omitempty"` // request, listening: not tried, because the endpoint is a virtual machine
	Error    string        `json:"error,omitempty"`
	Duration time.Duration `json:"duration,omitempty"` // nanoseconds
	Dump     *Dump         `json:"dump,omitempty"`     // dump only
	Flows    *FlowBatch    `json:"flows,omitempty"`    // flows only
}

// ProbeRequest is a batch of tasks. The observations start first; the other tasks start when all
// observations are ready or have failed.
type ProbeRequest struct {
	Tasks []Task `json:"tasks"` // at most MaxProbeTasks
}

// MaxProbeTasks is the largest number of tasks in a ProbeRequest.
const MaxProbeTasks = 4096

// ProbeReply has one result per task of the request, in the same order.
type ProbeReply struct {
	Results []TaskResult `json:"results"`
}

// Probe makes nodes carry out tasks, and returns the results in the order of the tasks. If a node
// does not answer, the results of its tasks have an Error; that is not an error of the call.
func (c *Client) Probe(ctx context.Context, tasks []Task) ([]TaskResult, error) {
	var reply ProbeReply
	err := c.call(ctx, http.MethodPost, "/v1/probe", ProbeRequest{Tasks: tasks}, &reply)
	return reply.Results, err
}
