// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

// Package controller is the policy controller: the fabric's registration
// authority. It takes graphs from operators, compiles, signs and publishes
// them; it gives nodes their pools and endpoints their admissions, after
// asking the scheduler itself; it has Vault sign whatever it says.
//
// It holds no key. What it keeps lives in Consul KV under sif/v1/ and is
// written by check-and-set; of the pointer it has signed last it keeps a copy
// on disk, so that altering Consul cannot make it build on another past.
//
// Of several controllers one leads; the others answer every call with the
// leader's address. The package knows nothing of packets, kernels and
// switches.
package controller
