// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package rpc

import (
	"github.com/sif-project/sif/fabric"
)

// Methods of the protocol. Their params and replies are the types of the same name.
const (
	MethodConnect  = "connect"  // agent to engine of its zone: a connectivity request
	MethodForward  = "forward"  // engine to engine: a connectivity request of the sender's zone
	MethodAnnounce = "announce" // engine to agent: requests of counterparts
	MethodWithdraw = "withdraw" // these endpoints have ended
	MethodSync     = "sync"     // all endpoints of the sender that concern the receiver
)

// ConnectParams requests an endpoint's connectivity from an engine.
type ConnectParams struct {
	Request fabric.Request `json:"request"`
}

// ConnectReply is sent when the endpoint's connectivity is in force, or after a time limit. The
// counterparts were announced before.
type ConnectReply struct {
	Pending []string `json:"pending,omitempty"` // "zone/node: reason", for nodes where it is not in force yet
}

// ForwardParams forwards a request to the engine of another zone.
type ForwardParams struct {
	Request fabric.Request `json:"request"`
}

// ForwardReply is the other zone's part of a ConnectReply, with the requests of its endpoints that
// are counterparts of the new one.
type ForwardReply struct {
	Counterparts []fabric.Request `json:"counterparts,omitempty"`
	Pending      []string         `json:"pending,omitempty"`
}

// AnnounceParams contains the requests of counterparts of the receiver's endpoints.
type AnnounceParams struct {
	Requests []fabric.Request `json:"requests"`
}

// AnnounceReply is sent when the announced counterparts are programmed.
type AnnounceReply struct {
	Refused map[string]string `json:"refused,omitempty"` // endpoint to reason
}

// WithdrawParams names endpoints that have ended. The receiver accepts it only for endpoints of the
// sender: those of its node from an agent, those of its zone from an engine, and those that it
// announced from the own engine.
type WithdrawParams struct {
	Endpoints []string `json:"endpoints"`
}

// SyncParams names all endpoints that the sender owns or has announced; others have ended. It
// repairs what was missed while the two were not connected.
type SyncParams struct {
	Endpoints []string `json:"endpoints"`
}
