// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package dns

import (
	"math/rand/v2"
	"net/netip"

	miekg "github.com/miekg/dns"

	"github.com/sif-project/sif/fabric"
)

// lifetime, in seconds, is how long an answer may be cached, an empty one
// included: a change of connectivity must show.
const lifetime = 1

// Record is an endpoint as the resolver's view has it.
type Record struct {
	Zone       string
	IPv4, IPv6 netip.Addr // either may be the zero Addr
	Healthy    bool
}

// Reach is what an asker may know of a service.
type Reach struct {
	// Allowed says that a contract lets the asker open flows to the service.
	Allowed bool
	// Endpoints are the service's endpoints that the asker may reach, healthy
	// or not. They count only if Allowed.
	Endpoints []Record
}

// View is what the agent knows of its endpoints and their counterparts. It is
// called for every question and must not block.
type View interface {
	// Known reports whether asker is the address of one of the node's endpoints.
	Known(asker netip.Addr) bool
	// Reach returns what asker, a known one, may know of a service.
	Reach(asker netip.Addr, service fabric.Ref) Reach
}

// Outcome says what became of a question, for metrics.
type Outcome string

// The outcomes.
const (
	Answered  Outcome = "answered"  // with addresses
	Empty     Outcome = "empty"     // the name exists and has no such records now
	NoName    Outcome = "no-name"   // no such name for this asker
	Refused   Outcome = "refused"   // the asker is no endpoint of the node, or asks what is not served
	Forwarded Outcome = "forwarded" // a resolver of the node answered
	Failed    Outcome = "failed"    // no resolver of the node answered
)

// authority answers questions under the apex.
type authority struct {
	zone string // the node's own
	view View
}

// answer returns the response to a question under the apex.
func (a authority) answer(asker netip.Addr, req *miekg.Msg) (*miekg.Msg, Outcome) {
	q := req.Question[0]
	resp := reply(req, miekg.RcodeSuccess)
	resp.Authoritative = true
	empty := func() (*miekg.Msg, Outcome) {
		resp.Ns = []miekg.RR{soa()}
		return resp, Empty
	}
	if miekg.CanonicalName(q.Name) == apex {
		if q.Qtype != miekg.TypeSOA && q.Qtype != miekg.TypeANY {
			return empty()
		}
		resp.Answer = []miekg.RR{soa()}
		return resp, Answered
	}
	records, exists := a.lookup(asker, q.Name)
	if !exists {
		resp.Rcode = miekg.RcodeNameError
		resp.Ns = []miekg.RR{soa()}
		return resp, NoName
	}
	rand.Shuffle(len(records), func(i, j int) { records[i], records[j] = records[j], records[i] })
	for _, r := range records {
		if r.IPv4.Is4() && (q.Qtype == miekg.TypeA || q.Qtype == miekg.TypeANY) {
			resp.Answer = append(resp.Answer, &miekg.A{Hdr: header(q.Name, miekg.TypeA), A: r.IPv4.AsSlice()})
		}
		if r.IPv6.Is6() && (q.Qtype == miekg.TypeAAAA || q.Qtype == miekg.TypeANY) {
			resp.Answer = append(resp.Answer, &miekg.AAAA{Hdr: header(q.Name, miekg.TypeAAAA), AAAA: r.IPv6.AsSlice()})
		}
	}
	if len(resp.Answer) == 0 {
		return empty()
	}
	return resp, Answered
}

// lookup returns the healthy endpoints that a name stands for, in a slice of
// the caller's own, and whether the name exists for the asker.
func (a authority) lookup(asker netip.Addr, qname string) ([]Record, bool) {
	name, ok := parseName(qname)
	if !ok {
		return nil, false
	}
	reach := a.view.Reach(asker, name.service)
	if !reach.Allowed {
		return nil, false
	}
	zone, exists := name.zone, name.zone == ""
	if zone == "" {
		zone = a.nearest(reach.Endpoints)
	}
	var records []Record
	for _, r := range reach.Endpoints {
		if r.Zone != zone {
			continue
		}
		exists = true
		if r.Healthy {
			records = append(records, r)
		}
	}
	return records, exists
}

// nearest returns the nearest zone that has a healthy endpoint: the node's
// own, else the first by name. It returns "" if none has.
func (a authority) nearest(endpoints []Record) string {
	var best string
	for _, r := range endpoints {
		switch {
		case !r.Healthy:
		case r.Zone == a.zone:
			return r.Zone
		case best == "" || r.Zone < best:
			best = r.Zone
		}
	}
	return best
}

func header(name string, rrtype uint16) miekg.RR_Header {
	return miekg.RR_Header{Name: name, Rrtype: rrtype, Class: miekg.ClassINET, Ttl: lifetime}
}

// soa is the record that lets resolvers cache an empty answer (RFC 2308).
func soa() miekg.RR {
	return &miekg.SOA{
		Hdr: header(apex, miekg.TypeSOA), Ns: "ns." + apex, Mbox: "hostmaster." + apex,
		Serial: 1, Refresh: 3600, Retry: 600, Expire: 86400, Minttl: lifetime,
	}
}

// reply makes an empty response to req.
func reply(req *miekg.Msg, rcode int) *miekg.Msg {
	resp := new(miekg.Msg)
	resp.SetRcode(req, rcode)
	resp.RecursionAvailable = true
	return resp
}
