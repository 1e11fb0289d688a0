// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

// Package query answers a service's question about an outside name that a contract grants it: it
// leaves out of what was resolved the addresses that no name may have and what else would lead
// around policy, brings the rest in force, and only then answers. Engines do this for the nodes of
// their zone, and agents with what an engine, or resolvers, told them.
//
// It does not know how names are resolved, nor what it means for an address to be in force, nor
// which contract grants what.
package query
