// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

// Package workloadapi serves the SPIFFE Workload API to the workloads of a node, on a unix socket:
// what an application needs to prove to others which service it is, and to judge what others prove
// to it. Who asks is known by where its connection was made and where its process is, never by what
// it says.
//
// The package knows connections, processes, keys and tokens. It does not know what an endpoint is
// connected to, nor how the fabric admits it.
package workloadapi
