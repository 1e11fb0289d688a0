// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

// Package roster is the list of the fabric's nodes, from their records in Consul KV. A record has
// two signed parts: the controller's says where the node is and which addresses it has, the node's
// own has the public key of its links. The package does not know what a node is used for.
package roster

import (
	"bytes"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"time"

	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/internal/kvkey"
	"github.com/sif-project/sif/internal/trust/identity"
	"github.com/sif-project/sif/internal/trust/revocation"
)

// Member is a node with a verified record. Link is zero until the node has published one.
type Member struct {
	fabric.Node
	Link fabric.Link `json:"link"`
}

// entry is a member and the record that it was read from.
type entry struct {
	member  Member
	record  []byte    // as in Consul
	version int       // of the fabric's key that signed it
	ends    time.Time // of the certificate that signed the link; without a link, of any of that time
	serial  string    // of that certificate
}

// signedAgain reports whether a record differs from the one that e was read from only in the
// fabric's signature.
func (e entry) signedAgain(r fabric.NodeRecord) bool {
	var was fabric.NodeRecord
	if json.Unmarshal(e.record, &was) != nil || !bytes.Equal(was.Node.Payload, r.Node.Payload) {
		return false
	}
	was.Node = r.Node
	return reflect.DeepEqual(was, r)
}

// over reports whether nobody can still believe the record, even in degraded mode.
func (e entry) over(now time.Time) bool { return now.After(e.ends.Add(fabric.MaxDegraded)) }

// verifier verifies records.
type verifier struct {
	fabric      string
	trustDomain string
	keys        func() fabric.KeySet
	roots       func() *x509.CertPool
	removed     func() fabric.Revocations
}

// node verifies the controller's part of the record of node id.
func (v verifier) node(id fabric.NodeID, r fabric.NodeRecord, keys fabric.KeySet) (fabric.Node, error) {
	var n fabric.Node
	if err := keys.Verify(r.Node, fabric.KindNode, &n); err != nil {
		return fabric.Node{}, err
	}
	switch {
	case n.Fabric != v.fabric:
		return n, fmt.Errorf("it is of fabric %q, not %q", n.Fabric, v.fabric)
	case n.ID() != id:
		return n, fmt.Errorf("it is about node %s", n.ID())
	case n.Kind.Check() != nil:
		return n, fmt.Errorf("the node is of unknown kind %q", n.Kind)
	case !n.Underlay.IsValid():
		return n, errors.New("the node has no underlay address")
	case !n.Pool4.IsValid() || !n.Pool4.Addr().Is4() || !n.Pool6.IsValid() || !n.Pool6.Addr().Is6():
		return n, fmt.Errorf("the node's pools %s and %s are not an IPv4 and an IPv6 prefix", n.Pool4, n.Pool6)
	}
	return n, errors.Join(fabric.CheckName(n.Zone), fabric.CheckName(n.Name))
}

// link verifies the node's part of a record. It also returns the end of the certificate that signed
// it, and its serial number.
func (v verifier) link(n fabric.Node, r fabric.NodeRecord) (l fabric.Link, ends time.Time, serial string, err error) {
	if len(r.Link) == 0 {
		return fabric.Link{}, n.Issued.Add(fabric.MaxCertificateLife), "", nil
	}
	signer, leaf, err := identity.VerifyBy(v.roots(), v.trustDomain, r.Certificate, fabric.LinkSigningInput(r.Link), r.Signature)
	if err != nil {
		return fabric.Link{}, time.Time{}, "", err
	}
	if signer != identity.OfNode(n) {
		return fabric.Link{}, time.Time{}, "", fmt.Errorf("its key was signed by %s of kind %q, expected %s of kind %q", signer.SPIFFE(), signer.Node.Kind, n.ID().SPIFFE(), n.Kind)
	}
	if err := revocation.Certificate(v.removed(), signer, leaf); err != nil {
		return fabric.Link{}, time.Time{}, "", fmt.Errorf("its key was signed with a certificate that is revoked: %w", err)
	}
	l, err = decodeLink(n, r)
	return l, leaf.NotAfter, identity.Serial(leaf), err
}

func decodeLink(n fabric.Node, r fabric.NodeRecord) (fabric.Link, error) {
	var l fabric.Link
	if err := json.Unmarshal(r.Link, &l); err != nil {
		return fabric.Link{}, fmt.Errorf("decode its link: %w", err)
	}
	if err := l.Check(n.ID()); err != nil {
		return fabric.Link{}, fmt.Errorf("link: %w", err)
	}
	return l, nil
}

// judge verifies a record. known is the entry of the node so far, or nil.
func (v verifier) judge(id fabric.NodeID, record []byte, known *entry) (entry, error) {
	var r fabric.NodeRecord
	if err := json.Unmarshal(record, &r); err != nil {
		return entry{}, fmt.Errorf("decode it: %w", err)
	}
	n, err := v.node(id, r, v.keys())
	if err != nil {
		return entry{}, err
	}
	if t, ended := v.removed().Ends(id, n.Issued); ended {
		return entry{}, errors.New(t.String())
	}
	if known != nil && known.signedAgain(r) {
		// The node's certificate may have ended since: its link was verified before.
		return entry{known.member, record, r.Node.Version, known.ends, known.serial}, nil
	}
	l, ends, serial, err := v.link(n, r)
	if err != nil {
		return entry{}, err
	}
	if t, ended := v.removed().EndsKey(id, l.PublicKey); ended {
		return entry{}, errors.New(t.String())
	}
	if known != nil {
		switch was := known.member; {
		case n.Issued.Before(was.Issued):
			return entry{}, errors.New("it is older than the one that was seen before")
		case l.Issued.Before(was.Link.Issued):
			return entry{}, errors.New("its link is older than the one that was seen before")
		}
	}
	return entry{Member{Node: n, Link: l}, record, r.Node.Version, ends, serial}, nil
}

// restore reads a record that was verified before it was saved. It checks only the controller's
// signature again, because the node's certificate may have expired.
func (v verifier) restore(id fabric.NodeID, record []byte) (entry, error) {
	var r fabric.NodeRecord
	if err := json.Unmarshal(record, &r); err != nil {
		return entry{}, fmt.Errorf("decode it: %w", err)
	}
	n, err := v.node(id, r, v.keys().Kept())
	if err != nil {
		return entry{}, err
	}
	e := entry{member: Member{Node: n}, record: record, version: r.Node.Version, ends: n.Issued.Add(fabric.MaxCertificateLife)}
	if len(r.Link) == 0 {
		return e, nil
	}
	if e.member.Link, err = decodeLink(n, r); err != nil {
		return entry{}, err
	}
	if len(r.Certificate) == 0 {
		return entry{}, errors.New("its link has no certificate")
	}
	leaf, err := x509.ParseCertificate(r.Certificate[0])
	if err != nil {
		return entry{}, fmt.Errorf("parse the certificate of its link: %w", err)
	}
	e.ends, e.serial = leaf.NotAfter, identity.Serial(leaf)
	return e, nil
}

// merge verifies all records in Consul against the entries so far. It returns the new entries, and
// the problems. If a record is refused, the entry so far stays. A record that is missing removes
// nobody: whoever writes Consul, or restores a snapshot of it, could remove nodes otherwise. An
// entry ends with a tombstone, or if its record is missing when nobody could believe it any more.
func (v verifier) merge(known map[fabric.NodeID]entry, records map[fabric.NodeID][]byte, now time.Time) (map[fabric.NodeID]entry, []string) {
	next := v.living(known)
	var missing, changed []fabric.NodeID
	for id, e := range next {
		if _, there := records[id]; there {
			continue
		}
		if e.over(now) {
			delete(next, id)
			continue
		}
		missing = append(missing, id)
	}
	for id, record := range records {
		if e, ok := next[id]; !ok || !bytes.Equal(e.record, record) {
			changed = append(changed, id)
		}
	}
	slices.SortFunc(changed, fabric.CompareNodeIDs)
	wrong := describeMissing(missing)
	for _, id := range changed {
		var before *entry
		if e, ok := next[id]; ok {
			before = &e
		}
		e, err := v.judge(id, records[id], before)
		if err == nil {
			err = distinct(e.member, next)
		}
		if err != nil {
			wrong = append(wrong, fmt.Sprintf("the record of node %s is refused: %v", id, err))
			continue
		}
		next[id] = e
	}
	return next, wrong
}

// living returns the entries of nodes that were not removed, and whose links were not signed with a
// certificate that is revoked: such a node is back when it has published its links with another.
func (v verifier) living(known map[fabric.NodeID]entry) map[fabric.NodeID]entry {
	removed := v.removed()
	next := maps.Clone(known)
	maps.DeleteFunc(next, func(_ fabric.NodeID, e entry) bool {
		_, ended := removed.EndsMember(e.member.Node, e.member.Link)
		_, revoked := removed.RevokedCertificate(e.serial)
		return ended || revoked
	})
	return next
}

// maxMissing is how many missing records are listed one by one.
const maxMissing = 3

func describeMissing(missing []fabric.NodeID) []string {
	slices.SortFunc(missing, fabric.CompareNodeIDs)
	if len(missing) > maxMissing {
		return []string{fmt.Sprintf("the records of %d nodes are missing in Consul under %s, of %s first; the nodes are kept, and put their records back", len(missing), kvkey.Nodes, missing[0])}
	}
	var list []string
	for _, id := range missing {
		list = append(list, fmt.Sprintf("the record of node %s is missing in Consul; the node is kept, and puts it back; `sif node remove %s` removes it", id, id))
	}
	return list
}

// distinct returns an error if m has a public key or addresses of another member. To WireGuard, two
// peers with the same key are one peer, and a packet goes to one of two peers with its address: a
// node could receive the traffic of another.
func distinct(m Member, others map[fabric.NodeID]entry) error {
	for id, e := range others {
		other := e.member
		switch {
		case id == m.ID():
		case m.Link.SharesKey(other.Link):
			return fmt.Errorf("its public key is that of node %s", id)
		case m.Pool4.Overlaps(other.Pool4) || m.Pool6.Overlaps(other.Pool6):
			return fmt.Errorf("its pools %s and %s overlap those of node %s, %s and %s", m.Pool4, m.Pool6, id, other.Pool4, other.Pool6)
		}
	}
	return nil
}
