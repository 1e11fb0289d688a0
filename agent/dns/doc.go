// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

// Package dns answers the DNS queries of a node's endpoints.
//
// The answer depends on the asker, which is known by its source address, as verified by the data
// path. For an asker, only services exist that its contracts let it reach:
//
//	<service>.<domain>.sif         the healthy endpoints of the nearest zone that has any
//	<zone>.<service>.<domain>.sif  the healthy endpoints of that zone
//
//	<endpoint>.<zone>.<service>.<domain>.sif      one endpoint, by its ID, while it is healthy
//	_<port>._tcp.[<zone>.]<service>.<domain>.sif  where these have a port of that name, as SRV
//	                                              records with the names above; _udp likewise
//
// Ports have the names that the workload's job gives them. They exist as far as a contract lets the
// asker reach them, by the protocol that is asked for. All have the same priority and weight.
//
// The nearest zone is the asker's own; the others follow in the order of their names. The answer
// has all healthy endpoints of the zone in random order, as A and AAAA records with a TTL of one
// second, so that changes take effect quickly.
//
// The name of a service that the asker may reach exists even if none of its endpoints is healthy;
// the answer is then empty (NOERROR without records, TTL one second too). The name with a zone
// exists while the zone has an endpoint, healthy or not. Any other name under .sif is NXDOMAIN. So
// an operator can tell "no contract allows it" from "no healthy endpoint".
//
// The name of an address is <zone>.<service>.<domain>.sif, for those who may open flows to the
// endpoint that has it, and for that endpoint itself; for others it is NXDOMAIN.
//
// Queries under .sif, also with a search suffix, and for names of the fabric's addresses never
// leave the node. Other names are outside names: which of them an asker may resolve is policy,
// which Outside knows. Queries from addresses that are not endpoints of the node are refused, and
// so is what an endpoint asks beyond its limit.
//
// The package does not know contracts, the catalog or the data path, nor who resolves outside
// names.
package dns
