// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package fabric

import (
	"fmt"
	"slices"
	"strings"
)

// Roles is the set of contracts that an endpoint requested to originate and
// to respond to. The order of a canonical Roles is CompareRefs; see Canonical.
type Roles struct {
	Originate []Ref `json:"originate,omitempty"`
	Respond   []Ref `json:"respond,omitempty"`
}

// Canonical returns r sorted and without repetitions.
func (r Roles) Canonical() Roles {
	set := func(refs []Ref) []Ref {
		refs = slices.Clone(refs)
		slices.SortFunc(refs, CompareRefs)
		return slices.Compact(refs)
	}
	return Roles{Originate: set(r.Originate), Respond: set(r.Respond)}
}

// Identity is what policy knows of an endpoint: its service and the roles it
// requested. Endpoints of equal identity are treated alike.
type Identity struct {
	Service Ref   `json:"service"`
	Roles   Roles `json:"roles"`
}

// Key returns a text that is equal for equal identities and for no others,
// fit to be a map key.
func (id Identity) Key() string {
	var b strings.Builder
	b.WriteString(id.Service.String())
	r := id.Roles.Canonical()
	for _, c := range r.Originate {
		b.WriteString(" >" + c.String())
	}
	for _, c := range r.Respond {
		b.WriteString(" <" + c.String())
	}
	return b.String()
}

// Request narrows the roles that the graph gives to a service to those that
// the instance asks for. Empty lists in want request every role. A contract
// that gives the service no such role is an error that names it.
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
