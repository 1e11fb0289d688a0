// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

// Package desired computes what each node must enforce. It is a pure function of the signed
// documents, the admissions in force and the roster:
//
//	documents + admissions + topology
//	        |
//	        +- ForWorkload(node)     endpoints, peers, externals, rules
//	        +- ForProcessor(zone)    endpoints, nodes' health addresses, rules
//
// The results are in words: identities, contracts, and by which way an endpoint is reached. The
// agent and the engine give the words numbers and write them to maps and flow tables; verify and
// explain compare them with what was read back. Nobody else decides who is a counterpart, which
// processor carries a pair of endpoints, or how externals overlap.
//
// The package knows the model. It must not know numbers, interfaces, maps, flows or any server.
package desired
