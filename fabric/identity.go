// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package fabric

import (
	"fmt"
	"slices"
	"strings"
)

// Roles are the contracts that an endpoint requested to originate and to respond to. Canonical
// orders them by CompareRefs.
type Roles struct {
	Originate []Ref `json:"originate,omitempty"`
	Respond   []Ref `json:"respond,omitempty"`
}

// Canonical returns r sorted and without duplicates.
func (r Roles) Canonical() Roles {
	set := func(refs []Ref) []Ref {
		if isSet(refs) {
			return refs
		}
		refs = slices.Clone(refs)
		slices.SortFunc(refs, CompareRefs)
		return slices.Compact(refs)
	}
	return Roles{Originate: set(r.Originate), Respond: set(r.Respond)}
}

// isSet reports whether refs are sorted and have no repetitions, as those of an admission are.
func isSet(refs []Ref) bool {
	for i := 1; i < len(refs); i++ {
		if CompareRefs(refs[i-1], refs[i]) >= 0 {
			return false
		}
	}
	return true
}

// Identity is what policy knows about an endpoint: its service and the roles that it requested.
// Policy treats endpoints of equal identity alike.
type Identity struct {
	Service Ref   `json:"service"`
	Roles   Roles `json:"roles"`
}

// Key returns a string that is equal for equal identities only, for use as a map key.
func (id Identity) Key() string {
	r := id.Roles.Canonical()
	size := len(id.Service.Domain) + 1 + len(id.Service.Name)
	for _, list := range [][]Ref{r.Originate, r.Respond} {
		for _, c := range list {
			size += len(" >") + len(c.Domain) + 1 + len(c.Name)
		}
	}
	var b strings.Builder
	b.Grow(size) // a single allocation: engines compute the keys of all endpoints at each change
	write := func(prefix string, ref Ref) {
		b.WriteString(prefix)
		b.WriteString(ref.Domain)
		b.WriteByte('/')
		b.WriteString(ref.Name)
	}
	write("", id.Service)
	for _, c := range r.Originate {
		write(" >", c)
	}
	for _, c := range r.Respond {
		write(" <", c)
	}
	return b.String()
}

// Request returns the roles that an instance of the service gets if it asks for want. Empty want
// asks for every role that the graph gives the service. It is an error to ask for a role that the
// graph does not give.
func (d Document) Request(want Roles) (Roles, error) {
	have := d.Roles()
	if len(want.Originate) == 0 && len(want.Respond) == 0 {
		return have, nil
	}
	want = want.Canonical()
	for _, c := range want.Originate {
		if !slices.Contains(have.Originate, c) {
			return Roles{}, fmt.Errorf("service %s is not an originator of contract %s", d.Service, c)
		}
	}
	for _, c := range want.Respond {
		if !slices.Contains(have.Respond, c) {
			return Roles{}, fmt.Errorf("service %s is not a responder of contract %s", d.Service, c)
		}
	}
	return want, nil
}
