// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package resolve

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	miekg "github.com/miekg/dns"
)

// Types are the types of records about which an exit asks. Questions of other types have an empty
// answer.
var Types = []uint16{
	miekg.TypeA, miekg.TypeAAAA, miekg.TypeCNAME, miekg.TypeHTTPS, miekg.TypeSVCB, miekg.TypeSRV, miekg.TypeMX, miekg.TypeTXT,
}

// MaxTTL limits how long an answer holds, whatever its records say.
const MaxTTL = time.Hour

const (
	// maxRecords limits the records of an answer: those beyond are left out.
	maxRecords = 256
	// How long an answer without records holds, at most and if the resolver does not say.
	maxNegative     = time.Minute
	defaultNegative = 5 * time.Second
)

// Answer is what resolvers say to a question about a name.
type Answer struct {
	NoName  bool       // the name does not exist
	Chain   []miekg.RR // the CNAME records that lead from the name to that of Records, in order
	Records []miekg.RR // of the type that was asked for
	Expires time.Time  // when the first of the records ends
	// Why explains an answer that lacks something, and Extended is its number among the extended
	// errors of DNS (RFC 8914).
	Why      string
	Extended uint16
}

// Known returns an answer of addresses that are known.
func Known(name string, addrs []netip.Addr, expires time.Time) Answer {
	a := Answer{Expires: expires}
	for _, addr := range addrs {
		h := miekg.RR_Header{Name: miekg.Fqdn(name), Class: miekg.ClassINET}
		if addr.Is4() {
			h.Rrtype = miekg.TypeA
			a.Records = append(a.Records, &miekg.A{Hdr: h, A: addr.AsSlice()})
		} else {
			h.Rrtype = miekg.TypeAAAA
			a.Records = append(a.Records, &miekg.AAAA{Hdr: h, AAAA: addr.AsSlice()})
		}
	}
	return a
}

// Addresses returns the addresses of A and AAAA records.
func (a Answer) Addresses() []netip.Addr {
	var list []netip.Addr
	for _, rr := range a.Records {
		if addr, ok := AddressOf(rr); ok {
			list = append(list, addr)
		}
	}
	return list
}

// AddressOf returns the address of an A or AAAA record. An IPv4 address in the form of an IPv6
// address, which an AAAA record may have, stays in that form: it is another kind of address to a
// workload.
func AddressOf(rr miekg.RR) (netip.Addr, bool) {
	switch rr := rr.(type) {
	case *miekg.A:
		addr, ok := netip.AddrFromSlice(rr.A)
		return addr.Unmap(), ok
	case *miekg.AAAA:
		return netip.AddrFromSlice(rr.AAAA.To16())
	}
	return netip.Addr{}, false
}

// ParseName returns a name in the form that policy has: lower case, without the final dot. It
// returns false for the root, and for names with anything but letters, digits, hyphens and
// underscores in their labels, which no host has, and whose text form could look like another name.
func ParseName(qname string) (string, bool) {
	name := strings.ToLower(strings.TrimSuffix(qname, "."))
	if len(name) > 253 {
		return "", false
	}
	for label := range strings.SplitSeq(name, ".") {
		if len(label) == 0 || len(label) > 63 {
			return "", false
		}
		for _, c := range []byte(label) {
			if (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' && c != '_' {
				return "", false
			}
		}
	}
	return name, true
}

// Errors of answers.
var (
	errLoop   = errors.New("the chain of names leads back to itself")
	errLong   = errors.New("the chain of names is too long")
	errInside = errors.New("the chain of names leads into the fabric")
)

// maxChain limits the CNAME records of an answer.
const maxChain = 16

// Read takes from a message what answers a question, and nothing else.
func Read(m *miekg.Msg, q Question, now time.Time) (Answer, error) {
	a, next, err := Answer{}.read(m, miekg.Fqdn(q.Name), q.Type, now)
	if least := now.Add(defaultNegative); next != "" && a.Expires.After(least) {
		a.Expires = least // nothing says how long there are no records
	}
	return a, err
}

// read continues an answer whose chain ends at name with what m says about that name. next is the
// name about which to ask further, because the chain leaves the message there.
func (a Answer) read(m *miekg.Msg, name string, qtype uint16, now time.Time) (_ Answer, next string, err error) {
	ttl := MaxTTL
	if !a.Expires.IsZero() {
		ttl = a.Expires.Sub(now)
	}
	lower := func(rr miekg.RR) { ttl = min(ttl, time.Duration(rr.Header().Ttl)*time.Second) }
	at := func(rr miekg.RR, rrtype uint16) bool {
		h := rr.Header()
		return h.Rrtype == rrtype && h.Class == miekg.ClassINET && strings.EqualFold(h.Name, name)
	}
	moved := false
	for {
		for _, rr := range m.Answer {
			if at(rr, qtype) && len(a.Records) < maxRecords {
				a.Records = append(a.Records, rr)
				lower(rr)
			}
		}
		if len(a.Records) > 0 {
			break
		}
		i := slices.IndexFunc(m.Answer, func(rr miekg.RR) bool { return at(rr, miekg.TypeCNAME) })
		if i < 0 {
			break
		}
		link, ok := m.Answer[i].(*miekg.CNAME)
		if !ok {
			return a, "", fmt.Errorf("the record of %s cannot be read", name)
		}
		if a.passes(link.Target) || strings.EqualFold(link.Target, link.Hdr.Name) {
			return a, "", fmt.Errorf("%s: %w", link.Target, errLoop)
		}
		if len(a.Chain) == maxChain {
			return a, "", fmt.Errorf("%s: %w", name, errLong)
		}
		if miekg.IsSubDomain("sif.", link.Target) {
			return a, "", fmt.Errorf("%s: %w", link.Target, errInside)
		}
		a.Chain = append(a.Chain, link)
		lower(link)
		name, moved = link.Target, true
	}
	if len(a.Records) == 0 {
		if moved && m.Rcode == miekg.RcodeSuccess && !hasSOA(m) {
			next = name
		} else {
			ttl = min(ttl, negativeTTL(m))
			a.NoName = m.Rcode == miekg.RcodeNameError
		}
	}
	a.Expires = now.Add(max(ttl, 0))
	return a, next, nil
}

// passes reports whether the chain has come from a name.
func (a Answer) passes(name string) bool {
	return slices.ContainsFunc(a.Chain, func(rr miekg.RR) bool { return strings.EqualFold(rr.Header().Name, name) })
}

func hasSOA(m *miekg.Msg) bool {
	return slices.ContainsFunc(m.Ns, func(rr miekg.RR) bool { return rr.Header().Rrtype == miekg.TypeSOA })
}

// negativeTTL returns how long an answer without records holds (RFC 2308, section 5).
func negativeTTL(m *miekg.Msg) time.Duration {
	for _, rr := range m.Ns {
		if soa, ok := rr.(*miekg.SOA); ok {
			return min(time.Duration(min(soa.Hdr.Ttl, soa.Minttl))*time.Second, maxNegative)
		}
	}
	return defaultNegative
}
