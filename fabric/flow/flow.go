// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

// Package flow is the model of what nodes record of flows, and of how records are selected. It
// knows the names of the fabric. It must not know how flows are recorded, kept or sent; it does no
// I/O.
package flow

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"

	"github.com/sif-project/sif/fabric"
)

// Event is what happened to a flow.
type Event string

// The events. The first record of a flow is that it opened or was refused; the others follow if
// packets did.
const (
	Opened  Event = "opened"
	Refused Event = "refused"
	GoesOn  Event = "goes-on"
	Ended   Event = "ended"
)

// Events are all events.
var Events = []Event{Opened, Refused, GoesOn, Ended}

// Verdict is what the layer that recorded the flow decided.
type Verdict string

// The verdicts.
const (
	Allow  Verdict = "allowed"
	Audit  Verdict = "audited" // allowed only because of audit mode
	Refuse Verdict = "refused"
)

// Verdicts are all verdicts.
var Verdicts = []Verdict{Allow, Audit, Refuse}

// Layer is who recorded the flow.
type Layer string

// EBPF is the programs at the interface of an endpoint.
const EBPF Layer = "ebpf"

// Side is at which end of the flow it was recorded.
type Side string

// The sides. A flow between two endpoints is recorded at both.
const (
	Sender   Side = "sender"   // the recording endpoint sent the first packet
	Receiver Side = "receiver" // it was sent to the recording endpoint
)

// Flow is one record of a flow.
type Flow struct {
	Time    time.Time `json:"time"`
	Event   Event     `json:"event"`
	Verdict Verdict   `json:"verdict"`
	Reason  string    `json:"reason"` // the stable name of why, such as "no-contract"
	// Overridden is set if the packets passed all the same, because a test let everything pass.
	Overridden bool `json:"overridden,omitempty"`

	Node  fabric.NodeID `json:"node"` // where it was recorded
	Layer Layer         `json:"layer"`
	Side  Side          `json:"side,omitempty"`
	// Number is the same in all records of a flow on one node; 0: it was refused, or no record
	// tells of its end.
	Number uint32    `json:"number,omitempty"`
	Opened time.Time `json:"opened,omitzero"` // when the first record of it was made

	Protocol    string `json:"protocol"` // a name such as "tcp", or a number
	Source      End    `json:"source"`
	Destination End    `json:"destination"`

	Contract fabric.Ref `json:"contract,omitzero"` // which allows it
	Place    string     `json:"place,omitempty"`   // where the contract is declared, as file:line
	Revision uint64     `json:"revision,omitempty"`

	Sent     Traffic `json:"sent"`     // from the source; of a refused flow what was refused
	Received Traffic `json:"received"` // by the source
}

// End is one end of a flow.
type End struct {
	Name     fabric.Ref    `json:"name,omitzero"`      // of the service or the external; zero: not known
	External bool          `json:"external,omitempty"` // Name is an external, the first of those that have the address
	Host     bool          `json:"host,omitempty"`     // it is the node itself
	Endpoint string        `json:"endpoint,omitempty"`
	Node     fabric.NodeID `json:"node,omitzero"` // of the endpoint, or where the node is the end
	DNSName  string        `json:"dnsName,omitempty"`
	Address  netip.Addr    `json:"address,omitzero"`
	Port     uint16        `json:"port,omitempty"` // of the destination for ICMP: the type
	// Withheld is set if the reader may not read the domain of the end: there is a name.
	Withheld bool `json:"withheld,omitempty"`
}

// Traffic is what passed in one direction.
type Traffic struct {
	Packets uint64 `json:"packets"` // segments that the kernel handles together count one by one
	Bytes   uint64 `json:"bytes"`   // from the IP header on, which such segments have once
}

// ProtocolName returns the name of a protocol that rules can name, or the number.
func ProtocolName(number uint8) string {
	if p := fabric.Protocol(number); slices.Contains(fabric.Protocols, p) {
		return p.String()
	}
	return strconv.Itoa(int(number))
}

// Compare orders records by time, and those of one time by node and number.
func Compare(a, b Flow) int {
	return cmp.Or(a.Time.Compare(b.Time), strings.Compare(a.Node.String(), b.Node.String()), cmp.Compare(a.Number, b.Number))
}

// For returns the record as somebody may see it who reads only some domains, and whether he may see
// it: he reads the domain of one end. Of the other end he sees what its packets show.
func (f Flow) For(reads func(domain string) bool) (Flow, bool) {
	ends, visible := [2]*End{&f.Source, &f.Destination}, false
	for _, e := range ends {
		visible = visible || !e.Name.IsZero() && reads(e.Name.Domain)
	}
	if !visible {
		return Flow{}, false
	}
	for _, e := range ends {
		if !e.Name.IsZero() && !reads(e.Name.Domain) {
			*e = End{Withheld: true, External: e.External, Address: e.Address, Port: e.Port}
		}
	}
	return f, true
}

// String returns the record in one line, without its time.
func (f Flow) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s -> %s %s", f.Source, f.Destination, f.Protocol)
	switch {
	case f.Verdict == Refuse:
		fmt.Fprintf(&b, " refused: %s", f.Reason)
	case f.Contract.IsZero():
		fmt.Fprintf(&b, " %s: %s", f.Event, f.Reason)
	default:
		by := "by"
		if f.Verdict == Audit {
			by = "only by audit mode of"
		}
		fmt.Fprintf(&b, " %s, allowed %s %s", f.Event, by, f.Contract)
		if f.Place != "" {
			fmt.Fprintf(&b, " at %s", f.Place)
		}
	}
	if f.Overridden {
		b.WriteString(", but passed (test override)")
	}
	switch f.Event {
	case GoesOn, Ended:
		fmt.Fprintf(&b, "; %s", f.Traffic())
		if f.Verdict == Refuse && f.Event == Ended {
			b.WriteString(" in all")
		}
	}
	fmt.Fprintf(&b, " [%s", f.Node)
	if f.Side != "" {
		fmt.Fprintf(&b, " %s", f.Side)
	}
	b.WriteString("]")
	return Printable(b.String())
}

// Printable returns a text of a record without what could confuse a terminal: other nodes wrote it.
func Printable(s string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return -1
	}, s)
}

// Traffic returns what passed, for people.
func (f Flow) Traffic() string {
	sent := fmt.Sprintf("%d packets %d bytes", f.Sent.Packets, f.Sent.Bytes)
	if f.Verdict == Refuse {
		return sent
	}
	return fmt.Sprintf("%s sent, %d packets %d bytes received", sent, f.Received.Packets, f.Received.Bytes)
}

// Label returns who the end is, without its address.
func (e End) Label() string {
	switch {
	case e.Withheld:
		return "(withheld)"
	case e.Host:
		return "node"
	case e.Name.IsZero():
		return "(unknown)"
	case e.DNSName != "":
		return e.Name.String() + "=" + e.DNSName
	}
	return e.Name.String()
}

// AddressPort returns the address and port of the end; "-" if it has none.
func (e End) AddressPort() string {
	switch {
	case !e.Address.IsValid():
		return "-"
	case e.Port == 0:
		return e.Address.String()
	}
	return netip.AddrPortFrom(e.Address, e.Port).String()
}

func (e End) String() string { return e.Label() + " (" + e.AddressPort() + ")" }
