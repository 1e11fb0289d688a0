// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

// Package api is the client of the controller's HTTP API, with the wire types. The sif command
// line, the agent, the engine and programs outside this repository use it. It knows the model
// (package fabric) and HTTP, but not how the controller works.
//
// There are two kinds of callers. Operators authenticate with a Consul ACL token or a Vault token,
// nodes with the certificate of their SPIFFE ID. A call that the caller is not allowed to make
// fails with an *Error of code CodeForbidden.
package api
