// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

// Package logkey is the vocabulary of keys under which the daemons log: the same thing has the
// same key in every daemon's log, and there are no other keys (style_test.go checks it).
// It knows nothing but the words.
package logkey

// The fabric.
const (
	Endpoint = "endpoint" // an endpoint's ID: the allocation's, for Nomad workloads
	Service  = "service"  // domain/service
	Identity = "identity" // service and roles, as fabric.Identity.Key prints them
	Zone     = "zone"     // a zone's name
	Node     = "node"     // zone/node
	Contract = "contract" // domain/contract
	Revision = "revision" // the sequence of the signed pointer
	Object   = "object"   // the hash of a part of a revision, under which Consul stores it
	Pool     = "pool"     // the addresses that a node gives to its endpoints
	Task     = "task"     // the ID of a task that the controller gave to a node
	Pending  = "pending"  // where an endpoint's connectivity is not in force yet
	Services = "services" // how many services have a document in force on this node
)

// Packets and flows. A packet's destination is logged as Address.
const (
	From      = "from"      // the address that a packet came from
	To        = "to"        // domain/service or external that a flow goes to
	Protocol  = "protocol"  // tcp, udp, icmp
	Port      = "port"      // a destination port
	Direction = "direction" // of a packet, as seen from the workload
	Reason    = "reason"    // why a packet was dropped: a name of bpf.Reason
)

// The machine.
const (
	Address   = "address"   // an IP address, with or without a port
	Interface = "interface" // a network interface's name
	Namespace = "namespace" // the path of a network namespace
	MTU       = "mtu"       // in bytes
)

// Consul and the controller's API.
const (
	Key    = "key"    // a key in Consul's key-value store
	Record = "record" // a service's ID in Consul's catalog
	Checks = "checks" // the names of a catalog record's health checks
	Call   = "call"   // method and path of a call of the controller's API
	Action = "action" // what an operator asked for, as in the audit log
	Actor  = "actor"  // who asked for it, as in the audit log
)

// The daemon.
const (
	Error    = "error"    // an error, wrapped with what was being done
	Subject  = "subject"  // which part of a daemon is degraded, as in its status
	Repaired = "repaired" // what differed from the declared state
	Duration = "duration" // how long something took
	Parts    = "parts"    // how long the parts of something took: name=duration, with commas between
	Count    = "count"    // how many there are of what the message names
	Expires  = "expires"  // when a certificate ends
	Stack    = "stack"    // the goroutine's stack, after a panic
)
