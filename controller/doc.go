// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

// Package controller is the policy controller, the registration authority of the fabric. It
// compiles, signs and publishes the graphs of operators. It assigns address pools to nodes, and
// gives admissions to endpoints after it has asked the scheduler about them. Vault signs for it.
//
// The controller has no signing key. Its state is in Consul KV under sif/v1/ and is written by
// check-and-set. A copy of the last signed revision is on disk, so that somebody who alters Consul
// cannot make the controller build on an old one.
//
// One of several controllers leads. The others answer every call with the address of the leader.
// The package knows nothing about packets, kernels and switches.
package controller
