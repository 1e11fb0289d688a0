// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package flow

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/sif-project/sif/fabric"
)

// Field is what of a record a term of a filter is about.
type Field string

// The fields.
const (
	From      Field = "from"    // the source, by a party
	To        Field = "to"      // the destination, by a party
	Party     Field = "service" // either end, by a party
	Domain    Field = "domain"  // of either end, or of the contract
	Zone      Field = "zone"    // of either end, or where it was recorded
	OnNode    Field = "node"    // where it was recorded
	ByVerdict Field = "verdict"
	ByEvent   Field = "event"
	Reason    Field = "reason"
	Contract  Field = "contract"
	Port      Field = "port" // of the destination: 443, 8000-8080, 53/udp
	Protocol  Field = "protocol"
)

// Fields are all fields.
var Fields = []Field{From, To, Party, Domain, Zone, OnNode, ByVerdict, ByEvent, Reason, Contract, Port, Protocol}

// Term is a condition: the field has the value, or with Not, it has not.
type Term struct {
	Field Field  `json:"field"`
	Value string `json:"value"`
	Not   bool   `json:"not,omitempty"`
}

// Filter selects records. Of several terms of one field, one must hold; those of different fields,
// and those with Not, must all hold. The zero value selects everything.
type Filter struct {
	Since time.Time `json:"since,omitzero"`
	Until time.Time `json:"until,omitzero"`
	Terms []Term    `json:"terms,omitempty"` // at most MaxTerms
}

// The bounds of a filter.
const (
	MaxTerms = 64
	maxValue = 256 // bytes
)

// Matcher is a filter that was checked.
type Matcher struct {
	since, until time.Time
	any          map[Field][]test // one of each field must hold
	all          []test
}

type test func(*Flow) bool

// Compile checks a filter. Its errors name the field, the value, and what would be right.
func (f Filter) Compile() (*Matcher, error) {
	if len(f.Terms) > MaxTerms {
		return nil, fmt.Errorf("the filter has %d terms; it may have %d", len(f.Terms), MaxTerms)
	}
	if !f.Since.IsZero() && !f.Until.IsZero() && f.Until.Before(f.Since) {
		return nil, fmt.Errorf("until %s is before since %s, so nothing can be selected; give until a later time", f.Until.Format(time.RFC3339), f.Since.Format(time.RFC3339))
	}
	m := &Matcher{since: f.Since, until: f.Until, any: map[Field][]test{}}
	for _, t := range f.Terms {
		holds, err := t.compile()
		if err != nil {
			return nil, fmt.Errorf("%s: %w", t.Field, err)
		}
		if t.Not {
			m.all = append(m.all, func(f *Flow) bool { return !holds(f) })
		} else {
			m.any[t.Field] = append(m.any[t.Field], holds)
		}
	}
	return m, nil
}

// Match reports whether the filter selects a record.
func (m *Matcher) Match(f *Flow) bool {
	if f.Time.Before(m.since) || !m.until.IsZero() && f.Time.After(m.until) {
		return false
	}
	holds := func(t test) bool { return t(f) }
	for _, tests := range m.any {
		if !slices.ContainsFunc(tests, holds) {
			return false
		}
	}
	return !slices.ContainsFunc(m.all, func(t test) bool { return !t(f) })
}

// Check returns an error if the term is none.
func (t Term) Check() error {
	_, err := t.compile()
	return err
}

func (t Term) compile() (test, error) {
	v := t.Value
	if v == "" || len(v) > maxValue {
		return nil, fmt.Errorf("%q: must have from 1 to %d characters", v, maxValue)
	}
	switch t.Field {
	case From, To, Party:
		end, err := parseParty(v)
		if err != nil {
			return nil, err
		}
		switch t.Field {
		case From:
			return func(f *Flow) bool { return end(f.Source) }, nil
		case To:
			return func(f *Flow) bool { return end(f.Destination) }, nil
		}
		return func(f *Flow) bool { return end(f.Source) || end(f.Destination) }, nil
	case Domain:
		if err := fabric.CheckName(v); err != nil {
			return nil, fmt.Errorf("%q is not the name of a domain: %w", v, err)
		}
		return func(f *Flow) bool {
			return f.Source.Name.Domain == v || f.Destination.Name.Domain == v || f.Contract.Domain == v
		}, nil
	case Zone:
		if err := fabric.CheckName(v); err != nil {
			return nil, fmt.Errorf("%q is not the name of a zone: %w", v, err)
		}
		return func(f *Flow) bool {
			return f.Node.Zone == v || f.Source.Node.Zone == v || f.Destination.Node.Zone == v
		}, nil
	case OnNode:
		id, err := fabric.ParseNodeID(v)
		if err != nil {
			return nil, err
		}
		return func(f *Flow) bool { return f.Node == id }, nil
	case ByVerdict:
		return oneOf(v, Verdicts, func(f *Flow) Verdict { return f.Verdict })
	case ByEvent:
		return oneOf(v, Events, func(f *Flow) Event { return f.Event })
	case Reason:
		if strings.Trim(v, "abcdefghijklmnopqrstuvwxyz0123456789- ") != "" {
			return nil, fmt.Errorf("%q is not the name of a reason, such as no-contract", v)
		}
		return func(f *Flow) bool { return f.Reason == v }, nil
	case Contract:
		r, err := fabric.ParseRef(v)
		if err != nil {
			return nil, err
		}
		return func(f *Flow) bool { return f.Contract == r }, nil
	case Port:
		return parsePort(v)
	case Protocol:
		if _, err := fabric.ParseProtocol(v); err != nil {
			if _, err := strconv.ParseUint(v, 10, 8); err != nil {
				return nil, fmt.Errorf("%q is neither one of tcp, udp, sctp, icmp, icmpv6 nor the number of a protocol", v)
			}
		}
		return func(f *Flow) bool { return f.Protocol == v }, nil
	}
	names := make([]string, len(Fields))
	for i, f := range Fields {
		names[i] = string(f)
	}
	return nil, fmt.Errorf("there is no such field; there are %s", strings.Join(names, ", "))
}

// oneOf returns the test for a value of which there are few.
func oneOf[T ~string](v string, all []T, of func(*Flow) T) (test, error) {
	if !slices.Contains(all, T(v)) {
		names := make([]string, len(all))
		for i, x := range all {
			names[i] = string(x)
		}
		return nil, fmt.Errorf("%q is not one of %s", v, strings.Join(names, ", "))
	}
	return func(f *Flow) bool { return of(f) == T(v) }, nil
}

// parseParty parses who an end is: a service or external (domain/name, or domain/* for all of a
// domain), an address or a prefix, "node", a DNS name, or an endpoint by its ID or a prefix of it.
func parseParty(v string) (func(End) bool, error) {
	if v == "node" {
		return func(e End) bool { return e.Host }, nil
	}
	if a, err := netip.ParseAddr(v); err == nil {
		a = a.Unmap()
		return func(e End) bool { return e.Address == a }, nil
	}
	if domain, ok := strings.CutSuffix(v, "/*"); ok {
		if err := fabric.CheckName(domain); err != nil {
			return nil, fmt.Errorf("%q: %w", v, err)
		}
		return func(e End) bool { return e.Name.Domain == domain }, nil
	}
	if strings.Contains(v, "/") {
		if p, err := netip.ParsePrefix(v); err == nil {
			p = p.Masked()
			return func(e End) bool { return e.Address.IsValid() && p.Contains(e.Address) }, nil
		}
		r, err := fabric.ParseRef(v)
		if err != nil {
			return nil, fmt.Errorf("%q is neither a service or external (domain/name, or domain/*) nor a prefix of addresses: %w", v, err)
		}
		return func(e End) bool { return e.Name == r }, nil
	}
	if strings.Contains(v, ".") {
		name := strings.ToLower(strings.TrimSuffix(v, "."))
		return func(e End) bool { return e.DNSName == name }, nil
	}
	if len(v) < 4 || strings.Trim(strings.ToLower(v), "abcdefghijklmnopqrstuvwxyz0123456789-") != "" {
		return nil, fmt.Errorf("%q is none of domain/name, domain/*, an address, a prefix, node, a DNS name, or at least 4 characters of an endpoint's ID", v)
	}
	return func(e End) bool { return strings.HasPrefix(e.Endpoint, v) }, nil
}

// parsePort parses "443", "8000-8080", "53/udp" and "8/icmp".
func parsePort(v string) (test, error) {
	numbers, protocol, named := strings.Cut(v, "/")
	if named {
		if _, err := fabric.ParseProtocol(protocol); err != nil {
			return nil, fmt.Errorf("%q: %w", v, err)
		}
	}
	first, last, isRange := strings.Cut(numbers, "-")
	if !isRange {
		last = first
	}
	from, err := strconv.ParseUint(first, 10, 16)
	to, err2 := strconv.ParseUint(last, 10, 16)
	if err != nil || err2 != nil || from > to {
		return nil, fmt.Errorf("%q must be a port such as 443, a range such as 8000-8080, or one with its protocol such as 53/udp", v)
	}
	return func(f *Flow) bool {
		p := uint64(f.Destination.Port)
		return p >= from && p <= to && (!named || f.Protocol == protocol)
	}, nil
}
