// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

// Package desired computes what each node must enforce. It is a pure function of the signed
// documents, the admissions in force and the roster:
//
//	documents + admissions + topology
//	        |
//	        +- ForWorkload(node)     endpoints, peers, externals, rules, ways
//	        +- ForProcessor(node)    endpoints, nodes' health addresses, rules, ways
//
// The results are in words: identities, contracts, and by which way an endpoint is reached. The
// agent and the engine give the words numbers and write them to maps and flow tables; verify and
// explain compare them with what was read back. Nobody else decides who is a counterpart, which
// processor carries a pair of endpoints, or how externals overlap.
//
// Packets between zones go by ways: each pair of endpoints has a bucket, and each bucket, between
// two groups of nodes and for one class of contracts, a route of processors and links. It follows
// from the nodes, the declared links, and the numbered states that engines publish, so all hops
// that know the same states choose the same route, in both directions.
//
// The package knows the model. It must not know numbers, interfaces, maps, flows or any server.
package desired
