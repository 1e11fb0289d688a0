// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

// Package catalog registers the node's endpoints in the Consul catalog, for people and tools, and
// reads the health of endpoints from it.
//
// A Registrar keeps the registrations in the local Consul agent equal to the node's endpoints. Each
// record carries the signed admission and the node's signed word about the endpoint's health, so
// that readers need not trust the catalog. For Consul's users it also mirrors the checks of the
// Nomad services of the same allocation. Health watches the records of a set of services.
//
// What is enforced never depends on the catalog, and the package does not know what is: an
// unreachable or empty catalog neither withdraws endpoints nor makes them unhealthy.
package catalog
