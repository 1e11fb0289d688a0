// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package bpf

import "fmt"

// Reason is why a packet passed or was dropped. The numbers are those of enum reason in
// headers/maps.h. The names are stable, because metrics and logs use them.
type Reason uint8

// The reasons. Packets pass with those named Allowed.
const (
	AllowedContract    Reason = iota + 1 // it opens a flow that a contract allows
	AllowedConnection                    // it belongs to an allowed flow
	AllowedCheck                         // this node's health check of its own endpoint
	AllowedDNS                           // the workload queries the node's resolver
	AllowedError                         // an ICMP error about an allowed flow
	NoEndpoint                           // the interface has no endpoint
	NotIP                                // neither IPv4 nor IPv6: ARP, VLAN tags and the like
	Malformed                            // headers are truncated or inconsistent
	IPOption                             // an IPv4 header with options
	ExtensionHeader                      // an IPv6 extension header that is not allowed
	Fragment                             // a fragment without the whole transport header, that overlaps the first, or that no host sends
	Protocol                             // not TCP, UDP, SCTP or ICMP, or an ICMP message for routers and neighbours
	Multicast                            // to a multicast or broadcast address
	SpoofedSource                        // the workload sent from an address that is not its own
	UnknownSource                        // no peer or external has this source address
	UnknownDestination                   // the destination address is the fabric's or an external's, and of nobody known
	WrongInterface                       // the source address is known, but at another interface
	NoContract                           // no contract allows source to call destination
	NoCheck                              // this node called its endpoint on a port without a check
	NoConnection                         // an answer to a flow that does not exist
	StaleConnection                      // the flow was allowed and no longer is
	TableFull                            // the connection table has no room
	EndpointFull                         // the endpoint has as many connections as it may have
	TooFast                              // more new flows at the endpoint than it may have in a second
	Outside                              // the destination is outside the fabric, and no external contains it
	PeerGone                             // the address has no endpoint any more, by the word of its owner
	NoExit                               // a contract allows the flow to an external, and no exit is there
	NoFirstFragment                      // a later fragment of a datagram whose first did not pass, or did not come before it
	StaleFragment                        // a later fragment; something changed since the first passed
	NoWay                                // a contract allows the flow with a peer that is reached by ways, and none is there
)

// reasonCount is the number after the last reason.
const reasonCount = Reason(endpointReasonREASON_COUNT)

var reasonNames = map[Reason]string{
	AllowedContract:    "allowed-contract",
	AllowedConnection:  "allowed-connection",
	AllowedCheck:       "allowed-check",
	AllowedDNS:         "allowed-dns",
	AllowedError:       "allowed-error",
	NoEndpoint:         "no-endpoint",
	NotIP:              "not-ip",
	Malformed:          "malformed",
	IPOption:           "ip-option",
	ExtensionHeader:    "extension-header",
	Fragment:           "fragment",
	Protocol:           "protocol",
	Multicast:          "multicast",
	SpoofedSource:      "spoofed-source",
	UnknownSource:      "unknown-source",
	UnknownDestination: "unknown-destination",
	WrongInterface:     "wrong-interface",
	NoContract:         "no-contract",
	NoCheck:            "no-check",
	NoConnection:       "no-connection",
	StaleConnection:    "stale-connection",
	TableFull:          "table-full",
	EndpointFull:       "endpoint-full",
	TooFast:            "too-fast",
	Outside:            "outside",
	PeerGone:           "peer-gone",
	NoExit:             "no-exit",
	NoFirstFragment:    "no-first-fragment",
	StaleFragment:      "stale-fragment",
	NoWay:              "no-way",
}

// String returns the reason's stable name.
func (r Reason) String() string {
	if name, ok := reasonNames[r]; ok {
		return name
	}
	return fmt.Sprintf("reason-%d", uint8(r))
}

// Allowed reports whether packets pass with this reason.
func (r Reason) Allowed() bool { return r >= AllowedContract && r <= AllowedError }

// Direction is the direction of a packet, as seen by the workload.
type Direction uint8

// The directions, with the numbers of enum direction in headers/maps.h.
const (
	FromWorkload Direction = iota
	ToWorkload
)

// String returns the direction's stable name.
func (d Direction) String() string {
	if d == FromWorkload {
		return "from-workload"
	}
	return "to-workload"
}
