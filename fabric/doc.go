// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

// Package fabric is the model of the Service Interconnection Fabric: the
// service graph, what it compiles to, who an endpoint is, and the one rule
// that decides whether a packet may pass.
//
//	allow(packet) = there is an enabled contract c with
//	    src in originators(c)  and  dst in responders(c)  and
//	    (protocol, destination port) in rules(c)          and
//	    src's endpoint requested to originate c           and
//	    dst's endpoint requested to respond to c
//
// Everything here is a pure function of its arguments. The package imports
// nothing of ours, does no I/O, and knows neither Consul, Vault and Nomad nor
// the kernel.
package fabric
