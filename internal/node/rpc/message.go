// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package rpc

import (
	"github.com/sif-project/sif/fabric"
)

// The methods of the protocol. Params and replies are the types of the same
// name.
const (
	MethodConnect  = "connect"  // agent to engine of its zone: a connectivity request
	MethodForward  = "forward"  // engine to engine: a connectivity request of the sender's zone
	MethodAnnounce = "announce" // engine to agent: requests of counterparts
	MethodWithdraw = "withdraw" // these endpoints are gone
	MethodSync     = "sync"     // all endpoints that the sender has for the receiver
)

// ConnectParams asks an engine to bring an endpoint's connectivity in force.
type ConnectParams struct {
	Request fabric.Request `json:"request"`
}

// ConnectReply is sent once the endpoint's connectivity is in force, or the
// time for that is up. The counterparts were announced before.
type ConnectReply struct {
	Pending []string `json:"pending,omitempty"` // "zone/node: reason", not in force within the time
}

// ForwardParams hands a request on to the engine of another zone.
type ForwardParams struct {
	Request fabric.Request `json:"request"`
}

// ForwardReply is the other zone's part of a ConnectReply, with its endpoints
// that may talk to the new one.
type ForwardReply struct {
	Counterparts []fabric.Request `json:"counterparts,omitempty"`
	Pending      []string         `json:"pending,omitempty"`
}

// AnnounceParams are requests of counterparts of the receiver's endpoints.
type AnnounceParams struct {
	Requests []fabric.Request `json:"requests"`
}

// AnnounceReply is sent once what was announced is programmed.
type AnnounceReply struct {
	Refused map[string]string `json:"refused,omitempty"` // endpoint to reason
}

// WithdrawParams name endpoints that are gone. The receiver takes the sender's
// word only for endpoints that it owns: an agent those of its node, an engine
// those of its zone, and the own engine those that it announced.
type WithdrawParams struct {
	Endpoints []string `json:"endpoints"`
}

// SyncParams name all endpoints that the sender owns, or has announced: others
// are gone. It mends what was missed while the two were not connected.
type SyncParams struct {
	Endpoints []string `json:"endpoints"`
}
