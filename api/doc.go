// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

// Package api is the client of the controller's HTTP API and its wire types.
// It is what the sif command line, the agent, the engine and programs outside
// this repository use. It knows the model (package fabric) and HTTP, and
// nothing of how the controller does its work.
//
// There are two sorts of callers. Operators show a Consul ACL token; nodes
// show the certificate of their SPIFFE ID. A call that the caller may not make
// fails with an *Error of code CodeForbidden.
package api
