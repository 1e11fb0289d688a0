// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

// Package dns answers the DNS questions of a node's endpoints.
//
// What a name means depends on who asks: the asker is known by its source
// address, which the data path has verified, and a service that its contracts
// do not let it reach does not exist for it.
//
//	<service>.<domain>.sif         the healthy endpoints of the nearest zone that has any
//	<zone>.<service>.<domain>.sif  the healthy endpoints of that zone
//
// The asker's own zone is the nearest; the others follow in the order of their
// names. All endpoints of the zone are in the answer, in random order, as A
// and AAAA records that live for a second, so that changes show.
//
// A name of a service that the asker may reach exists even while no endpoint
// of it is healthy; the answer is then empty (NOERROR without records). A
// zone's name exists while the zone has an endpoint, healthy or not. Any other
// name under .sif is NXDOMAIN. So a workload's operator can tell "no contract
// leads there" from "nobody is there now". Empty answers may be cached for a
// second too.
//
// Names outside .sif go to the node's own resolvers. Nothing under .sif ever
// leaves the node. Whoever is no endpoint of the node is refused.
//
// The package does not know contracts, the catalog, or the data path.
package dns
