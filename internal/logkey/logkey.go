// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

// Package logkey is the vocabulary of keys under which the daemons log.
// An operator can rely on one thing having one name in every daemon's log.
// It knows nothing but the words.
package logkey

const (
	Endpoint  = "endpoint"  // an endpoint's ID: the allocation's, for Nomad workloads
	Service   = "service"   // domain/service
	Identity  = "identity"  // service and roles, as fabric.Identity.Key prints them
	Zone      = "zone"      // a zone's name
	Node      = "node"      // zone/node
	Contract  = "contract"  // domain/contract
	Revision  = "revision"  // the sequence of the signed pointer
	Error     = "error"     // an error, wrapped with what was being done
	Address   = "address"   // an IP address, with or without a port
	Interface = "interface" // a network interface's name
	Duration  = "duration"  // how long something took
)
