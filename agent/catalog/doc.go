// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

// Package catalog keeps the node's endpoints in the Consul catalog, for people
// and tools to see, and reads from it which endpoints are healthy.
//
// A Registrar makes the local Consul agent's registrations equal to what the
// node has. Its records carry the signed admission, so that a reader need not
// trust the catalog, and mirror the checks of the Nomad services of the same
// allocation. Health follows the records of some services.
//
// The catalog never decides what is enforced, and the package does not know
// what is: an unreachable or emptied catalog withdraws nothing and makes
// nothing unhealthy.
package catalog
