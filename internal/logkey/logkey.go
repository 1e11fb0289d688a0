// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

// Package logkey lists the keys with which the daemons log, so that the same thing has the same key
// in the log of each daemon. There are no other keys; style_test.go checks this. The package knows
// only the keys.
package logkey

// The fabric.
const (
	Endpoint = "endpoint" // an endpoint's ID: the allocation's, for Nomad workloads
	Service  = "service"  // domain/service
	Identity = "identity" // service and roles, as fabric.Identity.Key prints them
	Zone     = "zone"     // a zone's name
	Node     = "node"     // zone/node
	Machine  = "machine"  // Nomad's ID, name and datacenter of a node
	Contract = "contract" // domain/contract
	Revision = "revision" // the sequence of the signed pointer
	Object   = "object"   // the hash of an object of a revision, which is its key in Consul
	Pool     = "pool"     // the address pool of a node
	Phase    = "phase"    // of the replacement of a key
	Task     = "task"     // the ID of a task from the controller
	Pending  = "pending"  // nodes and zones where the connectivity of an endpoint is not in force yet
	Name     = "name"     // a DNS name outside the fabric
	Attached = "attached" // the name of a workload outside Nomad on its node
	Life     = "life"     // the state of an allocation in Nomad, and why it cannot be called
	Services = "services" // number of services with a document in force on this node
)

// Packets and flows. A packet's destination is logged as Address.
const (
	From      = "from"      // source address of a packet
	To        = "to"        // the domain/service or external to which a flow is opened
	Protocol  = "protocol"  // tcp, udp, icmp
	Port      = "port"      // a destination port
	Ports     = "ports"     // UDP ports of the node's links
	Direction = "direction" // direction of a packet, as seen from the workload
	Reason    = "reason"    // why a packet was dropped: a name of bpf.Reason
)

// The machine.
const (
	Address   = "address"   // an IP address, with or without a port
	Interface = "interface" // a network interface's name
	Mechanism = "mechanism" // how eBPF programs are attached to interfaces: tcx, clsact
	Namespace = "namespace" // the path of a network namespace
	MTU       = "mtu"       // in bytes
)

// Consul and the controller's API.
const (
	Key    = "key"    // a key in Consul's key-value store
	Record = "record" // a service's ID in Consul's catalog
	Checks = "checks" // the names of a catalog record's health checks
	Call   = "call"   // method and path of a call to the controller's API
	Action = "action" // what the caller asked for, as in the audit log
	Actor  = "actor"  // the caller, as in the audit log
	Target = "target" // what a call is about, as in the audit log
)

// The daemon.
const (
	Error    = "error"    // an error, which says what was being done
	Version  = "version"  // of sif
	Commit   = "commit"   // that it was built from
	Subject  = "subject"  // the part of a daemon that is degraded, as in its status
	State    = "state"    // of a processor, as it publishes it
	Finding  = "finding"  // what of the host stands against the fabric, with the remedy
	Repaired = "repaired" // differences from the declared state that were repaired
	Duration = "duration" // how long something took
	Parts    = "parts"    // how long the parts of something took: name=duration, separated by commas
	Count    = "count"    // number of the things that the message names
	Expires  = "expires"  // when a certificate expires
	Until    = "until"    // when an outage ends what is honoured beyond its end
	Process  = "process"  // the ID of a process
	Stack    = "stack"    // stack of the goroutine after a panic
)
