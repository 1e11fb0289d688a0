// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package fabric

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/agext/levenshtein"
)

// MaxNameLength is the maximum length of a name in bytes. A catalog name "sif-<domain>--<service>"
// must be a DNS label, which has at most 63 bytes.
const MaxNameLength = 28

// ReservedDomain is the first path segment of node identities in SPIFFE IDs, so no domain may have
// this name.
const ReservedDomain = "node"

// CheckName returns an error if s cannot name a domain, service, external, contract, zone or node.
// Names are lower-case RFC 1123 labels of at most MaxNameLength bytes without "--".
func CheckName(s string) error {
	switch {
	case s == "":
		return fmt.Errorf("name must not be empty")
	case len(s) > MaxNameLength:
		return fmt.Errorf("name %q is %d characters long; at most %d are allowed", s, len(s), MaxNameLength)
	case strings.Contains(s, "--"):
		return fmt.Errorf("name %q contains \"--\", which separates domain and service in the Consul catalog", s)
	case s[0] == '-' || s[len(s)-1] == '-':
		return fmt.Errorf("name %q must start and end with a letter or digit", s)
	}
	for _, c := range []byte(s) {
		if c != '-' && (c < '0' || c > '9') && (c < 'a' || c > 'z') {
			return fmt.Errorf("name %q contains %q; only lower-case letters, digits and '-' are allowed", s, c)
		}
	}
	return nil
}

// Ref names a service, external or contract together with its domain. Its text form is
// "domain/name".
type Ref struct {
	Domain string
	Name   string
}

// ParseRef parses "domain/name".
func ParseRef(s string) (Ref, error) {
	domain, name, ok := strings.Cut(s, "/")
	if !ok {
		return Ref{}, fmt.Errorf("%q is not of the form domain/name", s)
	}
	r := Ref{Domain: domain, Name: name}
	if err := r.Check(); err != nil {
		return Ref{}, err
	}
	return r, nil
}

// Check returns an error if the domain or the name is not a valid name, as in the zero Ref.
func (r Ref) Check() error {
	if err := CheckName(r.Domain); err != nil {
		return fmt.Errorf("domain of %q: %w", r, err)
	}
	if err := CheckName(r.Name); err != nil {
		return fmt.Errorf("%q: %w", r, err)
	}
	return nil
}

func (r Ref) String() string { return r.Domain + "/" + r.Name }

// IsZero reports whether r is unset.
func (r Ref) IsZero() bool { return r == Ref{} }

// MarshalText implements encoding.TextMarshaler.
func (r Ref) MarshalText() ([]byte, error) {
	b := make([]byte, 0, len(r.Domain)+1+len(r.Name)) // a single allocation, because revisions have many refs
	return append(append(append(b, r.Domain...), '/'), r.Name...), nil
}

// UnmarshalText implements encoding.TextUnmarshaler.
func (r *Ref) UnmarshalText(b []byte) error {
	v, err := ParseRef(string(b))
	if err != nil {
		return err
	}
	*r = v
	return nil
}

// CompareRefs orders refs by domain, then name.
func CompareRefs(a, b Ref) int {
	return cmp.Or(cmp.Compare(a.Domain, b.Domain), cmp.Compare(a.Name, b.Name))
}

// Nearest returns the element of names that name most likely misspells, or "" if none is close
// enough.
func Nearest(name string, names []string) string {
	distance := func(s string) int {
		if sortedBytes(s) == sortedBytes(name) {
			return 1 // swapped letters are one mistake
		}
		return levenshtein.Distance(name, s, nil)
	}
	near := slices.DeleteFunc(slices.Clone(names), func(s string) bool {
		return len(s) < 2 || distance(s) > max(1, min(3, len(s)/3))
	})
	if len(near) == 0 {
		return ""
	}
	commonPrefix := func(s string) int {
		n := 0
		for n < min(len(s), len(name)) && s[n] == name[n] {
			n++
		}
		return n
	}
	return slices.MinFunc(near, func(a, b string) int {
		return cmp.Or(distance(a)-distance(b), commonPrefix(b)-commonPrefix(a), cmp.Compare(a, b))
	})
}

func sortedBytes(s string) string {
	b := []byte(s)
	slices.Sort(b)
	return string(b)
}
