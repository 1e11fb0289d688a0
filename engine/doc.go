// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

// Package engine is the policy engine of a processor node. It validates connectivity requests of
// the agents of its zone, and announces them to one another's nodes. An engine with a switch also
// programs Open vSwitch at the zone's boundary, and exchanges requests with the engines of other
// zones. A zone without a switch may have any number of engines: each agent tells all of them, so
// each knows the same, and they need not know of one another.
//
// It knows leases (requests in force), the connected daemons, and what the switch must contain. It
// does not decide policy: fabric does, from the signed revision. It does not handle workloads:
// agents do.
//
// A lease arrives in one of two ways. An agent of the zone requests it ("connect" on the wire): the
// engine verifies, stores and programs it, forwards it to the engines of other zones, and announces
// it to the agents that host counterparts. Or the engine of another zone forwards it: then it is
// not forwarded again. A lease ends when its owner withdraws it, when it expires, or when its node
// leaves the roster. An unreachable daemon withdraws nothing. Daemons compare what they have
// ("sync"), so that what one has lost comes back and what one has missed ends.
package engine
