// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

// Package health measures the ways from a node to others by packets of its own: loss, round-trip
// time, and the largest packet that passes, for IPv4 and IPv6. Nodes exchange these probes among
// their health addresses, over UDP from and to one port.
//
// The package knows sockets, targets and what came back. It must not know Consul, the roster, how a
// way is encrypted, or what follows from what it finds.
//
// A probe counts as a node's only if it comes by the interface that leads to the node: what others
// could send in its name changes nothing.
//
// Besides, a node that is one of several for the same purpose gets a pulse several times a second,
// so that its death is known within a second (pulse.go). Processors send one to each processor of
// other zones by each tunnel, and to each workload node of their zone, and full-size ones besides.
//
// # Rate
//
// Measuring takes at most 1 kB/s of a link, in both directions together, with all headers
// (WireGuard, UDP and IPv6 below it). Pulses take more: small ones 2*6.7*160 B/s = 2.1 kB/s, and
// full-size ones 2.5*(1500+160) B/s = 4.2 kB/s. The link between a workload node and a processor of
// its zone has the small ones from both ends and the full-size ones of the processor, 8.4 kB/s; a
// tunnel between two processors has both from both ends, 12.6 kB/s. All that a processor sends and
// gets for its own pulses is at most 256*2.1 + 64*4.2 kB/s = 810 kB/s, however many nodes there
// are: the more, the fewer for each. With S = 160 B for a small packet and F = 1500 B for a
// full-size one, measuring itself:
//
//   - A node sends over each link a small packet each 2 s and a full-size one each 20 s; the
//     answers are small: 2*S/2 + (F+S)/20 = 243 B/s, and 486 B/s from both ends.
//   - The nodes of a zone together send to all other zones a small packet each 2.5 s, and a
//     full-size one each 30 s: 2*S/2.5 + (F+S)/30 = 183 B/s, 367 B/s with those of the other zone.
//     So each node's intervals are those, times the nodes of its zone and the zones.
//
// That is 853 B/s for a link between two processors, or of a zone's only node, and less for
// others. What is sent early after a loss is saved afterwards; any three minutes keep the limit.
package health
