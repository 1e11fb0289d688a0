// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

// Package engine is the policy engine of a processor node: it validates the
// connectivity requests of its zone's agents, programs Open vSwitch at the
// zone's boundary, and carries requests to and from the engines of the other
// zones.
//
// It knows leases (requests in force), who is connected, and what the switch
// should hold. It does not decide policy: fabric does, from the signed
// revision. It does not touch a workload: agents do.
//
// A lease comes in by one of two ways. From an agent of the zone ("connect"):
// it is verified, kept, programmed, carried to the other zones' engines, and
// announced to the agents that host counterparts. From another zone's engine
// ("forward"): the same, but carried no further. It ends by withdrawal of its
// owner, by expiry, or when its node leaves the roster; a daemon that cannot
// be reached withdraws nothing.
package engine
