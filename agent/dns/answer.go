// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package dns

import (
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"

	miekg "github.com/miekg/dns"

	"github.com/sif-project/sif/fabric"
)

// ttl is how long an answer may be cached, in seconds, also an empty one. It is short so that
// changes of connectivity take effect quickly.
const ttl = 1

// Record is an endpoint of a service.
type Record struct {
	Endpoint   string // its ID, a label of DNS; may be empty
	Zone       string
	IPv4, IPv6 netip.Addr // either may be zero
	Healthy    bool
	Ports      []Port // that the asker may reach, if they were asked for
}

// Port is a port of an endpoint that has a name.
type Port struct {
	Name     string // a label of DNS without its underscore, in lower case
	Protocol fabric.Protocol
	Number   uint16
}

// Reach is what an asker may know about a service.
type Reach struct {
	// Allowed says that a contract lets the asker open flows to the service.
	Allowed bool
	// Endpoints are the service's endpoints that the asker may reach, healthy or not. They are used
	// only if Allowed.
	Endpoints []Record
}

// View is the agent's knowledge of its endpoints and their counterparts. It is called for every
// query and must not block.
type View interface {
	// Known reports whether asker is the address of one of the node's endpoints.
	Known(asker netip.Addr) bool
	// Reach returns what asker, which is Known, may know about a service, with the ports of its
	// endpoints if so wanted.
	Reach(asker netip.Addr, service fabric.Ref, ports bool) Reach
	// Owner returns the service and zone of the endpoint with an address, if asker, which is Known,
	// may open flows to it or is that endpoint itself.
	Owner(asker, address netip.Addr) (service fabric.Ref, zone string, ok bool)
}

// Outcome is the result of a query, for metrics.
type Outcome string

// The outcomes.
const (
	Answered Outcome = "answered" // with addresses
	Empty    Outcome = "empty"    // the name exists but has no such records now
	NoName   Outcome = "no-name"  // the name does not exist for this asker
	Refused  Outcome = "refused"  // the asker is not an endpoint of the node, or the query is not supported
	Limited  Outcome = "limited"  // the asker asks too much

	NotGranted Outcome = "not-granted" // the name is outside .sif, and no contract of the asker names it
	Resolved   Outcome = "resolved"    // the name is outside .sif, and was resolved
	Failed     Outcome = "failed"      // the same, but nobody answered
)

// authority answers queries under the apex, and for the names of the fabric's addresses.
type authority struct {
	zone   string         // the node's
	ranges []netip.Prefix // of addresses whose names are answered here
	view   View
}

// answer returns the response to a query under the apex.
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
	name, records, exists := a.lookup(asker, q.Name)
	if !exists {
		resp.Rcode = miekg.RcodeNameError
		resp.Ns = []miekg.RR{soa()}
		return resp, NoName
	}
	rand.Shuffle(len(records), func(i, j int) { records[i], records[j] = records[j], records[i] })
	for _, r := range records {
		if name.port.asked {
			services(resp, q, name, r)
		} else {
			resp.Answer = append(resp.Answer, r.addresses(q.Name, q.Qtype)...)
		}
	}
	if len(resp.Answer) == 0 {
		return empty()
	}
	return resp, Answered
}

// addresses returns the records of a type with the addresses of an endpoint.
func (r Record) addresses(name string, qtype uint16) (list []miekg.RR) {
	if r.IPv4.Is4() && (qtype == miekg.TypeA || qtype == miekg.TypeANY) {
		list = append(list, &miekg.A{Hdr: header(name, miekg.TypeA), A: r.IPv4.AsSlice()})
	}
	if r.IPv6.Is6() && (qtype == miekg.TypeAAAA || qtype == miekg.TypeANY) {
		list = append(list, &miekg.AAAA{Hdr: header(name, miekg.TypeAAAA), AAAA: r.IPv6.AsSlice()})
	}
	return list
}

// services adds to an answer where an endpoint has the ports of a name, and its addresses. All have
// the same priority and weight: any of them will do.
func services(resp *miekg.Msg, q miekg.Question, name serviceName, r Record) {
	if q.Qtype != miekg.TypeSRV && q.Qtype != miekg.TypeANY || r.Endpoint == "" || name.port.name == "" {
		return
	}
	target := strings.Join([]string{r.Endpoint, r.Zone, name.service.Name, name.service.Domain, apex}, ".")
	some := false
	for _, p := range r.Ports {
		if name.port.matches(p) {
			resp.Answer = append(resp.Answer, &miekg.SRV{Hdr: header(q.Name, miekg.TypeSRV), Priority: 1, Weight: 1, Port: p.Number, Target: target})
			some = true
		}
	}
	if some {
		resp.Extra = append(resp.Extra, r.addresses(target, miekg.TypeANY)...)
	}
}

// lookup returns the healthy endpoints that a name stands for, and whether the name exists for the
// asker. The caller may modify the slice.
func (a authority) lookup(asker netip.Addr, qname string) (serviceName, []Record, bool) {
	name, ok := parseName(qname)
	if !ok {
		return name, nil, false
	}
	reach := a.view.Reach(asker, name.service, name.port.asked)
	if !reach.Allowed {
		return name, nil, false
	}
	endpoints := reach.Endpoints
	if name.port.asked {
		endpoints = slices.DeleteFunc(slices.Clone(endpoints), func(r Record) bool { return !slices.ContainsFunc(r.Ports, name.port.matches) })
	}
	zone, exists := name.zone, name.zone == "" && (!name.port.asked || len(endpoints) > 0)
	if zone == "" {
		zone = a.nearest(endpoints)
	}
	var records []Record
	for _, r := range endpoints {
		if r.Zone != zone || name.endpoint != "" && name.endpoint != r.Endpoint {
			continue
		}
		exists = true
		if r.Healthy {
			records = append(records, r)
		}
	}
	return name, records, exists
}

// nearest returns the nearest zone with a healthy endpoint: the node's own, else the first by name.
// It returns "" if there is none.
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
	return miekg.RR_Header{Name: name, Rrtype: rrtype, Class: miekg.ClassINET, Ttl: ttl}
}

// soa returns the record that lets resolvers cache an empty answer (RFC 2308).
func soa() miekg.RR {
	return &miekg.SOA{
		Hdr: header(apex, miekg.TypeSOA), Ns: "ns." + apex, Mbox: "hostmaster." + apex,
		Serial: 1, Refresh: 3600, Retry: 600, Expire: 86400, Minttl: ttl,
	}
}

// reply returns an empty response to req.
func reply(req *miekg.Msg, rcode int) *miekg.Msg {
	resp := new(miekg.Msg)
	resp.SetRcode(req, rcode)
	resp.RecursionAvailable = true
	return resp
}
