// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package signal

import (
	"github.com/sif-project/sif/fabric"
)

// The methods of the protocol. Params and replies are the types of the same
// name.
const (
	MethodConnect  = "connect"  // agent to engine of its zone: a connectivity request
	MethodForward  = "forward"  // engine to engine: a connectivity request of the sender's zone
	MethodAnnounce = "announce" // engine to agent, engine to engine: requests of counterparts
	MethodWithdraw = "withdraw" // the owner of endpoints: they are gone
)

// ConnectParams asks an engine to bring an endpoint's connectivity in force.
type ConnectParams struct {
	Request fabric.Request `json:"request"`
}

// ConnectReply tells what the endpoint may talk to.
type ConnectReply struct {
	Counterparts []fabric.Request `json:"counterparts,omitempty"`
	Pending      []string         `json:"pending,omitempty"` // "zone/node: reason", not in force within the time
}

// ForwardParams hands a request on to the engine of another zone.
type ForwardParams struct {
	Request fabric.Request `json:"request"`
}

// ForwardReply is the other zone's part of a ConnectReply.
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

// WithdrawParams name endpoints that are gone. The receiver checks that the
// sender owns them: an agent those of its node, an engine those of its zone.
type WithdrawParams struct {
	Zone      string   `json:"zone"`
	Node      string   `json:"node"`
	Endpoints []string `json:"endpoints"`
}

