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
//	0 source       (port, source address)            -> reg0 = source class, its group and number
//	1 destination  destination address               -> reg1 = destination class, reg2 = port out,
//	                                                    its group and number; without a group 4
//	2, 3 bucket    both numbers, four bits a table   -> their exclusive or
//	4 track        ct, one zone for both directions
//	               a probe among health addresses    -> 11, untracked
//	5 state        the label names a living entry between these classes -> 11, else 6; SCTP -> 6
//	6 policy       (reg0, reg1, protocol, port)      -> the entry's number, 8
//	               an answer: the same, reversed     -> likewise, 10
//	               a later fragment: (reg0, reg1, protocol) -> no number, 8
//	               an answer of TCP on no connection -> 7
//	7 moved        (groups, class of the entry, bucket): the way changed just now -> 11
//	8 endpoint     new, source address               -> the meter of the endpoint, 9
//	9 zone         new, group of the source          -> the meter of its zone, 10
//	10 commit      the connection gets the label     -> 11
//	11 way         (groups, class of the entry, bucket) -> reg2; else as table 1 said
//	12 output      reg2                              -> both MACs, out
//
// A packet that matches no flow is dropped and counted by reason. The number of flows grows with
// endpoints + entries + ways, never with endpoints times endpoints.
//
// A connection's label is the number of the entry that admitted it. Its packets pass, in both
// directions, only while table 5 has that entry's flows and both ends have the entry's classes.
// Otherwise table 6 judges each packet as if it opened a connection, or, in reply direction, as if
// the packet that it answers did. So a connection goes on when another entry admits it, whoever
// sends next, and ends when none does.
//
// Several processors may serve two groups. All of them choose by the bucket which one a packet
// passes, in both directions; when the choice changes, connections go on at a switch that has not
// seen their beginning. What the originator sends next is judged as if it opened the connection,
// but nothing is that a responder sends: its answers pass table 7 for a moment, without becoming a
// connection.
package ovs
