// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

// Package fabric is the model of the Service Interconnection Fabric: the service graph, the
// documents that it compiles to, the identity of an endpoint, and the one rule that decides whether
// a packet may pass.
//
//	allow(packet) = there is an enabled contract c with
//	    src in originators(c)  and  dst in responders(c)  and
//	    (protocol, destination port) in rules(c)          and
//	    src's endpoint requested to originate c           and
//	    dst's endpoint requested to respond to c
//
// All functions are pure. The package imports no other package of SIF, does no I/O, and knows
// neither Consul, Vault, Nomad nor the kernel.
package fabric
