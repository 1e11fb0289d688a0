// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package ovs

import (
	"cmp"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/sif-project/sif/internal/portrange"
)

// MAC is an Ethernet address. It compares with ==.
type MAC [6]byte

func (m MAC) String() string { return net.HardwareAddr(m[:]).String() }

// Port is a port of the bridge.
type Port struct {
	// No is the OpenFlow port number.
	No uint32
	// MAC is the source address of packets that leave by the port. Peer is their destination
	// address: that of the device at the far end.
	MAC, Peer MAC
	// Routers says that routers beyond the port may report, from any address, that a packet of an
	// admitted connection was too big, or that its hops were used up.
	Routers bool
	// Outside says that the port leads out of the fabric: all errors about admitted connections may
	// come by it, from any address.
	Outside bool
}

// Endpoint is a set of addresses with one class. A running instance has host prefixes; a party
// outside the fabric may have wider ones, of which the longest match counts.
type Endpoint struct {
	// ID is the caller's number, from 1 to 2^56-1.
	ID uint64
	// Prefixes are its addresses. Two endpoints must not have the same prefix.
	Prefixes []netip.Prefix
	// SourcePorts are the ports by which packets from it may arrive.
	SourcePorts []uint32
	// OutPort is the port by which packets to it leave. It is 0 if the ways of its group say that.
	OutPort uint32
	// Class is the caller's number for its identity, from 1 to 2^32-3, or ProbeClass.
	Class uint32
	// Group is the caller's number for the endpoints to which the same ways lead, or 0. Number is
	// that of the endpoint within all of them: the bucket of a packet is the exclusive or of both
	// ends' numbers. An endpoint without a group has number 0.
	Group  uint16
	Number uint8
	// Limited says that the connections which it opens are limited by Rates.Endpoint.
	Limited bool
	// Hole says that nobody has the prefixes, although wider prefixes of other endpoints contain
	// them: packets from and to them are dropped as of an unknown source or destination. A hole has
	// neither ports nor a class.
	Hole bool
}

// Entry lets endpoints of class Src open connections to those of class Dst.
type Entry struct {
	// ID is the caller's number, from 1 to 2^56-1. It labels connections, which pass as long as an
	// entry has their label: an entry with other ports, protocol or classes needs another ID, and
	// an ID must not be reused while connections of its former entry may exist.
	ID       uint64
	Src, Dst uint32
	// Class is the caller's number for the ways that its connections may take, or 0. It may change
	// while the ID stays.
	Class uint16
	// Protocol is 1 (ICMP), 6 (TCP), 17 (UDP), 58 (ICMPv6) or 132 (SCTP).
	Protocol uint8
	// Ports are destination ports. For ICMP and ICMPv6 they are the types of messages that begin an
	// exchange.
	Ports []PortRange
}

// PortRange is the ports from First to Last, both included.
type PortRange struct{ First, Last uint16 }

// Bucket is a 256th of all pairs of endpoints, or AllBuckets.
type Bucket int16

// AllBuckets is every bucket.
const AllBuckets Bucket = -1

// Course is packets that take the same way: those from endpoints of one group to endpoints of
// another one, in a bucket, of connections of entries with a class. Reports of routers have no
// group that they come from, nor a class: of both, 0.
type Course struct {
	From, To, Class uint16
	Bucket          Bucket
}

// Way is the port by which the packets of a course leave. A way of one bucket counts before that of
// all buckets, and both before the port of the endpoint.
type Way struct {
	Course
	Port uint32
}

// State is everything that a pipeline enforces.
type State struct {
	Ports     []Port
	Endpoints []Endpoint
	Entries   []Entry
	Ways      []Way
	Gates     []Gate
	Rates     Rates
	// Moved are courses whose packets took another way moments ago. Of those, answers of TCP pass
	// although this switch has not seen the connection's beginning.
	Moved []Course
}

// LeftOutError names the parts of a state that a switch cannot have. They were left out, and
// everything else was applied.
type LeftOutError struct{ Parts []LeftOut }

// LeftOut is a part of a state that was left out.
type LeftOut struct {
	Endpoint uint64 // the number, or 0 if the part is not an endpoint
	Err      error
}

func (e *LeftOutError) Error() string {
	var errs []error
	for _, p := range e.Parts {
		errs = append(errs, p.Err)
	}
	return "left out: " + errors.Join(errs...).Error()
}

const (
	// ProbeClass is the class of addresses among which probes pass and nothing else: UDP packets
	// from and to the port for probes. The switch does not track them. No entry can name the class.
	ProbeClass = 0xfffffffe

	// routerClass is the source class of errors that routers report.
	routerClass = 0xffffffff
)

// reserved reports whether no entry can name a class.
func reserved(class uint32) bool { return class == 0 || class >= ProbeClass }

const maxID = 1<<56 - 1

func byPort(a, b Port) int         { return cmp.Compare(a.No, b.No) }
func byEndpoint(a, b Endpoint) int { return cmp.Compare(a.ID, b.ID) }
func byEntry(a, b Entry) int       { return cmp.Compare(a.ID, b.ID) }
func byWay(a, b Way) int           { return byCourse(a.Course, b.Course) }

func byCourse(a, b Course) int {
	return cmp.Or(cmp.Compare(a.From, b.From), cmp.Compare(a.To, b.To), cmp.Compare(a.Class, b.Class), cmp.Compare(a.Bucket, b.Bucket))
}

func byGate(a, b Gate) int { return cmp.Compare(a.Group, b.Group) }

func (p *Port) name() string     { return fmt.Sprintf("port %d", p.No) }
func (e *Endpoint) name() string { return fmt.Sprintf("endpoint %d", e.ID) }
func (e *Entry) name() string    { return fmt.Sprintf("entry %d", e.ID) }
func (w *Way) name() string      { return "way of " + w.Course.String() }
func (g *Gate) name() string     { return fmt.Sprintf("gate of group %d", g.Group) }
func (c *Course) name() string   { return "move of " + c.String() }

func (c Course) String() string {
	text := fmt.Sprintf("group %d to group %d, class %d", c.From, c.To, c.Class)
	if c.Bucket != AllBuckets {
		text += fmt.Sprintf(", bucket %d", c.Bucket)
	}
	return text
}

func (p *Port) endpoint() uint64     { return 0 }
func (e *Endpoint) endpoint() uint64 { return e.ID }
func (e *Entry) endpoint() uint64    { return 0 }
func (w *Way) endpoint() uint64      { return 0 }
func (g *Gate) endpoint() uint64     { return 0 }
func (c *Course) endpoint() uint64   { return 0 }

func (p *Port) equal(o *Port) bool     { return *p == *o }
func (w *Way) equal(o *Way) bool       { return *w == *o }
func (g *Gate) equal(o *Gate) bool     { return *g == *o }
func (c *Course) equal(o *Course) bool { return *c == *o }

func (e *Endpoint) equal(o *Endpoint) bool {
	return e.ID == o.ID && e.Class == o.Class && e.OutPort == o.OutPort && e.Hole == o.Hole &&
		e.Group == o.Group && e.Number == o.Number && e.Limited == o.Limited &&
		same(e.Prefixes, o.Prefixes) && same(e.SourcePorts, o.SourcePorts)
}

func (e *Entry) equal(o *Entry) bool {
	return e.ID == o.ID && e.Src == o.Src && e.Dst == o.Dst && e.Class == o.Class &&
		e.Protocol == o.Protocol && same(e.Ports, o.Ports)
}

// same is slices.Equal, but does not read an array that both slices share.
func same[T comparable](a, b []T) bool {
	return len(a) == len(b) && (len(a) == 0 || &a[0] == &b[0] || slices.Equal(a, b))
}

func (p *Port) check() error {
	if p.No == 0 || p.No >= 0xffffff00 {
		return fmt.Errorf("%s: the number is not that of a device", p.name())
	}
	return nil
}

func (e *Endpoint) check() error {
	if e.ID == 0 || e.ID > maxID {
		return fmt.Errorf("%s: the number is out of range", e.name())
	}
	switch {
	case e.Hole && (e.Class != 0 || e.OutPort != 0 || len(e.SourcePorts) > 0 || e.Group != 0 || e.Limited):
		return fmt.Errorf("%s: a hole has a class, a port, a group or a limit", e.name())
	case e.Group == 0 && e.Number != 0:
		return fmt.Errorf("%s: an endpoint without a group has number %d", e.name(), e.Number)
	case !e.Hole && (e.Class == 0 || e.Class == routerClass):
		return fmt.Errorf("%s: class %d is reserved", e.name(), e.Class)
	}
	for _, p := range e.Prefixes {
		if !p.IsValid() || p != p.Masked() || p.Addr().Is4In6() {
			return fmt.Errorf("%s: %v is not a prefix in its shortest form", e.name(), p)
		}
	}
	return nil
}

func (e *Entry) check() error {
	if e.ID == 0 || e.ID > maxID {
		return fmt.Errorf("%s: the number is out of range", e.name())
	}
	if reserved(e.Src) || reserved(e.Dst) {
		return fmt.Errorf("%s: class %d or %d is reserved", e.name(), e.Src, e.Dst)
	}
	_, ports := portFields[e.Protocol]
	_, types := typeFields[e.Protocol]
	if !ports && !types {
		return fmt.Errorf("%s: a switch cannot match ports or message types of protocol %d", e.name(), e.Protocol)
	}
	for _, r := range e.Ports {
		if types && r.Last > allTypes.Last {
			return fmt.Errorf("%s: %d is not a message type", e.name(), r.Last)
		}
		if r.First > r.Last {
			return fmt.Errorf("%s: the port range %d-%d is backwards", e.name(), r.First, r.Last)
		}
	}
	return nil
}

func (w *Way) check() error {
	if w.Port == 0 || w.Port >= 0xffffff00 {
		return fmt.Errorf("%s: port %d is not that of a device", w.name(), w.Port)
	}
	return w.checkCourse(w.name())
}

func (g *Gate) check() error {
	if g.Zone == 0 {
		return fmt.Errorf("%s: zone 0 is no zone", g.name())
	}
	return nil
}

func (c *Course) check() error { return c.checkCourse(c.name()) }

func (c *Course) checkCourse(name string) error {
	if c.To == 0 {
		return fmt.Errorf("%s: group 0 is no group", name)
	}
	if c.Bucket < AllBuckets || c.Bucket > 255 {
		return fmt.Errorf("%s: there are buckets 0 to 255", name)
	}
	return nil
}

// maskedPort is the set of ports that equal Value in the bits of Mask.
type maskedPort struct{ Value, Mask uint16 }

// masks returns the fewest masked ports that cover the range exactly.
func (r PortRange) masks() []maskedPort {
	var out []maskedPort
	for _, b := range portrange.Split(r.First, r.Last) {
		out = append(out, maskedPort{Value: b.First, Mask: b.Mask()})
	}
	return out
}

func (m maskedPort) ports() PortRange { return PortRange{First: m.Value, Last: m.Value | ^m.Mask} }

// tidy returns s in order of numbers, with ranges in their shortest form.
func (s State) tidy() State {
	var t State
	t.Ports = slices.SortedFunc(slices.Values(s.Ports), byPort)
	for _, e := range s.Endpoints {
		e.Prefixes = slices.SortedFunc(slices.Values(e.Prefixes), netip.Prefix.Compare)
		e.SourcePorts = slices.Sorted(slices.Values(e.SourcePorts))
		t.Endpoints = append(t.Endpoints, e)
	}
	slices.SortFunc(t.Endpoints, byEndpoint)
	for _, e := range s.Entries {
		e.Ports = join(e.Ports)
		t.Entries = append(t.Entries, e)
	}
	slices.SortFunc(t.Entries, byEntry)
	t.Ways = slices.SortedFunc(slices.Values(s.Ways), byWay)
	t.Gates, t.Rates = slices.SortedFunc(slices.Values(s.Gates), byGate), s.Rates
	t.Moved = slices.SortedFunc(slices.Values(s.Moved), byCourse)
	return t
}

// join merges adjacent and overlapping ranges.
func join(ranges []PortRange) []PortRange {
	sorted := slices.SortedFunc(slices.Values(ranges), func(a, b PortRange) int { return int(a.First) - int(b.First) })
	var out []PortRange
	for _, r := range sorted {
		if n := len(out); n > 0 && int(r.First) <= int(out[n-1].Last)+1 {
			out[n-1].Last = max(out[n-1].Last, r.Last)
			continue
		}
		out = append(out, r)
	}
	return out
}
