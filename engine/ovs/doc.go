// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

// Package ovs controls the Open vSwitch of one processor: Switch manages its bridge and ports,
// Pipeline the flows that decide which packet passes between the ports.
//
// It knows numbers: ports, address prefixes, classes, entries. It must not know services,
// contracts, revisions, Consul or leases: the engine translates them into numbers.
//
// # The pipeline
//
//	0 source       (port, source address)            -> reg0 = source class
//	1 destination  destination address               -> reg1 = destination class, reg2 = port out
//	2 track        ct, one zone for both directions
//	               a probe among health addresses    -> 5, untracked
//	3 state        the label names a living entry between these classes -> 5, else 4; SCTP -> 4
//	4 policy       (reg0, reg1, protocol, port)      -> commit with the entry's label, 5
//	               an answer: the same, reversed     -> likewise
//	               a later fragment: (reg0, reg1, protocol) -> commit without a label, 5
//	5 output       reg2                              -> both MACs, out
//
// A packet that matches no flow is dropped and counted by reason. The number of flows grows with
// endpoints + entries, never with endpoints times endpoints.
//
// A connection's label is the number of the entry that admitted it. Its packets pass, in both
// directions, only while table 3 has that entry's flows and both ends have the entry's classes.
// Otherwise table 4 judges each packet as if it opened a connection, or, in reply direction, as if
// the packet that it answers did. So a connection goes on when another entry admits it, whoever
// sends next, and ends when none does.
package ovs
