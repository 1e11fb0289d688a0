// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package fabric

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

// How long a tombstone must be kept: until nothing that it ended could be believed without it.
const (
	// MaxCertificateLife is the longest life of a node's certificate. A record whose certificate
	// has ended is not believed by a node that sees it for the first time.
	MaxCertificateLife = 72 * time.Hour
	// MaxDegraded is the longest time for which a node that reaches nobody may honour what was in
	// force before, beyond its end.
	MaxDegraded = 96 * time.Hour
	// MinAdmissionLife and MaxAdmissionLife bound the life of an admission that is not renewed.
	MinAdmissionLife = time.Minute
	MaxAdmissionLife = MaxCertificateLife
	// TombstoneLife is how long a tombstone is kept.
	TombstoneLife = MaxCertificateLife + MaxDegraded
)

// MaxTombstones limits how many tombstones a list has, so that it fits into one value in Consul.
const MaxTombstones = 1000

// MaxReason is the maximum length of the reason of a removal in characters.
const MaxReason = 200

// Revocations is the fabric's signed list (KindRevocations) of the nodes that were removed, and of
// the services, endpoints and certificates that were revoked. Its sequence only grows. Whoever has
// seen a list accepts no older one, so that neither a missing nor an old value in Consul brings
// anything back. The zero value is the list before the first removal.
type Revocations struct {
	Fabric     string      `json:"fabric"`
	Sequence   uint64      `json:"sequence"`
	Issued     time.Time   `json:"issued"`
	Tombstones []Tombstone `json:"tombstones"` // ordered by node, then time
	// Revoked are ordered by what they name, then time. A node of an earlier version does not know
	// them.
	Revoked []Revocation `json:"revoked,omitempty"`
}

// ListID says which list somebody has: the zero value is the list before the first removal.
type ListID struct {
	Sequence uint64 `json:"sequence"`
	Digest   Hash   `json:"digest,omitzero"` // of the signed text: two controllers may have signed one each
}

// Tombstone ends one incarnation of a node: the node of that name with that public key, and all
// that was issued to the name until then. A machine may come back under the name with another key
// and with a certificate that was issued afterwards.
type Tombstone struct {
	Node    NodeID       `json:"node"`
	Key     []byte       `json:"key,omitempty"`  // public key of its links; empty: it had published none
	Pool4   netip.Prefix `json:"pool4,omitzero"` // its pools, which rest after the removal
	Pool6   netip.Prefix `json:"pool6,omitzero"`
	Removed time.Time    `json:"removed"`
	Reason  string       `json:"reason,omitempty"` // as the operator gave it
}

// Over reports whether the tombstone need not be kept any longer.
func (t Tombstone) Over(now time.Time) bool { return now.After(t.Removed.Add(TombstoneLife)) }

// Holds reports whether the removed node had an address of the pools.
func (t Tombstone) Holds(pool4, pool6 netip.Prefix) bool {
	return t.Pool4.Overlaps(pool4) || t.Pool6.Overlaps(pool6)
}

func (t Tombstone) String() string {
	s := fmt.Sprintf("node %s was removed at %s", t.Node, t.Removed.UTC().Format(time.RFC3339))
	if t.Reason != "" {
		s += fmt.Sprintf(" (%s)", t.Reason)
	}
	return s
}

func (t Tombstone) compare(other Tombstone) int {
	return cmp.Or(t.compareNode(other.Node), t.Removed.Compare(other.Removed))
}

func (t Tombstone) compareNode(node NodeID) int { return CompareNodeIDs(t.Node, node) }

// having returns those elements of an ordered list of which compare returns 0. The lists are long,
// and are asked for each endpoint of a node whenever its data path is programmed.
func having[E, K any](list []E, key K, compare func(E, K) int) []E {
	from, _ := slices.BinarySearchFunc(list, key, compare)
	to := from
	for to < len(list) && compare(list[to], key) == 0 {
		to++
	}
	return list[from:to]
}

// Ends returns the tombstone that ends what was issued to a node at the given time: a record, an
// admission, or a certificate, by the begin of its validity.
func (r Revocations) Ends(node NodeID, issued time.Time) (Tombstone, bool) {
	for _, t := range slices.Backward(having(r.Tombstones, node, Tombstone.compareNode)) {
		if !issued.After(t.Removed) {
			return t, true
		}
	}
	return Tombstone{}, false
}

// EndsKey returns the tombstone of the node that had the public key.
func (r Revocations) EndsKey(node NodeID, key []byte) (Tombstone, bool) {
	for _, t := range having(r.Tombstones, node, Tombstone.compareNode) {
		if len(key) > 0 && bytes.Equal(t.Key, key) {
			return t, true
		}
	}
	return Tombstone{}, false
}

// EndsMember returns the tombstone that ends a node with its link.
func (r Revocations) EndsMember(n Node, l Link) (Tombstone, bool) {
	if t, ended := r.Ends(n.ID(), n.Issued); ended {
		return t, true
	}
	return r.EndsKey(n.ID(), l.PublicKey)
}

// Has reports whether the list contains the tombstone.
func (r Revocations) Has(t Tombstone) bool {
	return slices.ContainsFunc(r.Tombstones, func(have Tombstone) bool { return have.compare(t) == 0 })
}

// Covers reports whether the list contains everything of another one that is not over at now.
func (r Revocations) Covers(other Revocations, now time.Time) bool {
	return !slices.ContainsFunc(other.Tombstones, func(t Tombstone) bool { return !t.Over(now) && !r.Has(t) }) &&
		!slices.ContainsFunc(other.Revoked, func(v Revocation) bool { return !v.Over(now) && !r.keeps(v) })
}

// With returns the next list: everything of r and of others, without what is over at now.
func (r Revocations) With(now time.Time, others ...Revocations) Revocations {
	next := Revocations{Fabric: r.Fabric, Sequence: r.Sequence, Issued: now.UTC().Truncate(time.Millisecond)}
	for _, list := range append([]Revocations{r}, others...) {
		next.Sequence = max(next.Sequence, list.Sequence)
		for _, t := range list.Tombstones {
			if !t.Over(now) && !next.Has(t) {
				next.Tombstones = append(next.Tombstones, t)
			}
		}
	}
	next.Sequence++
	slices.SortFunc(next.Tombstones, Tombstone.compare)
	revoked := [][]Revocation{r.Revoked}
	for _, list := range others {
		revoked = append(revoked, list.Revoked)
	}
	next.Revoked = mergeRevoked(now, revoked...)
	return next
}

// Check returns an error if the list cannot be one of the fabric.
func (r Revocations) Check(fabric string) error {
	switch {
	case r.Fabric != fabric:
		return fmt.Errorf("it is of fabric %q, not %q", r.Fabric, fabric)
	case r.Sequence == 0:
		return errors.New("it has no sequence")
	case len(r.Tombstones) > MaxTombstones:
		return fmt.Errorf("it has %d tombstones; at most %d are allowed", len(r.Tombstones), MaxTombstones)
	case !slices.IsSortedFunc(r.Tombstones, Tombstone.compare):
		return errors.New("its tombstones are not in order")
	}
	if err := checkTime("issued", r.Issued); err != nil {
		return err
	}
	for i, t := range r.Tombstones {
		if err := t.check(); err != nil {
			return fmt.Errorf("tombstone of node %s: %w", t.Node, err)
		}
		if i > 0 && t.compare(r.Tombstones[i-1]) == 0 {
			return fmt.Errorf("node %s has the same tombstone twice", t.Node)
		}
	}
	return checkRevoked(r.Revoked)
}

func (t Tombstone) check() error {
	if err := errors.Join(CheckName(t.Node.Zone), CheckName(t.Node.Name)); err != nil {
		return err
	}
	if err := checkTime("removed", t.Removed); err != nil {
		return err
	}
	none := netip.Prefix{}
	switch {
	case len(t.Key) > 0 && len(t.Key) != publicKeySize:
		return fmt.Errorf("its public key has %d bytes, expected %d", len(t.Key), publicKeySize)
	case t.Pool4 != none && !t.Pool4.Addr().Is4() || t.Pool6 != none && !t.Pool6.Addr().Is6():
		return fmt.Errorf("its pools %s and %s are not an IPv4 and an IPv6 prefix", t.Pool4, t.Pool6)
	}
	return CheckReason(t.Reason)
}

// CheckReason returns an error if s cannot be the reason of a removal: people read it in tables.
func CheckReason(s string) error {
	if utf8.RuneCountInString(s) > MaxReason || strings.ContainsFunc(s, func(r rune) bool { return r == utf8.RuneError || !unicode.IsPrint(r) }) {
		return fmt.Errorf("the reason %.20q is not one line of text of at most %d characters", s, MaxReason)
	}
	return nil
}

// checkTime refuses a time that is not set, or that has no timestamp.
func checkTime(what string, t time.Time) error {
	if year := t.UTC().Year(); t.IsZero() || year < 1 || year > 9999 {
		return fmt.Errorf("the time %q is not set", what)
	}
	return nil
}
