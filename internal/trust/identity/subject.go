// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package identity

import (
	"crypto/x509"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"

	"github.com/sif-project/sif/fabric"
)

// Node is a node with its kind, as its certificate attests them.
type Node struct {
	fabric.NodeID
	Kind fabric.NodeKind
}

// Subject is whom a certificate was issued to. Exactly one field is set.
type Subject struct {
	Node       Node
	Service    fabric.Ref
	Controller bool
}

// OfNode returns the subject of the certificates of a node of the fabric.
func OfNode(n fabric.Node) Subject { return Subject{Node: Node{NodeID: n.ID(), Kind: n.Kind}} }

// IsNode reports whether s is a node.
func (s Subject) IsNode() bool { return s.Node != Node{} }

// SPIFFE returns the path of the SPIFFE ID of s.
func (s Subject) SPIFFE() string {
	switch {
	case s.Controller:
		return fabric.ControllerSPIFFE
	case s.IsNode():
		return s.Node.SPIFFE()
	}
	return s.Service.SPIFFE()
}

func (s Subject) String() string {
	switch {
	case s.Controller:
		return "the controller"
	case s.IsNode():
		return fmt.Sprintf("%s node %s", s.Node.Kind, s.Node.NodeID)
	}
	return "service " + s.Service.String()
}

// maxLife is the longest life of a certificate, which begins some time before it is issued. Vault
// lets who may use a role ask for any end (not_after), and removals of nodes are forgotten when no
// certificate from before them can be valid.
const maxLife = fabric.MaxCertificateLife + 10*time.Minute

// Read returns whom a certificate was issued to. It is the only place where certificates are taken
// apart, so that all of them are judged alike: the leaf has exactly one URI, which is a SPIFFE ID
// of the trust domain; the ID is that of a node, a service or the controller; a node's certificate
// has an organizational unit for each kind that the node is of, and perhaps one for the size of its
// address pool; its life is bounded. By the
// X.509-SVID standard the leaf cannot sign certificates. Read does not verify the chain.
func Read(leaf *x509.Certificate, trustDomain string) (Subject, error) {
	id, err := x509svid.IDFromCert(leaf)
	if err != nil {
		return Subject{}, fmt.Errorf("certificate: %w", err)
	}
	td, err := spiffeid.TrustDomainFromString(trustDomain)
	if err != nil {
		return Subject{}, fmt.Errorf("trust domain %q: %w", trustDomain, err)
	}
	switch {
	case !id.MemberOf(td):
		return Subject{}, fmt.Errorf("certificate of %s: its trust domain is not %s", id, td)
	case leaf.NotAfter.Sub(leaf.NotBefore) > maxLife:
		return Subject{}, fmt.Errorf("certificate of %s: it is valid for %s, and the fabric permits %s", id, leaf.NotAfter.Sub(leaf.NotBefore), fabric.MaxCertificateLife)
	case leaf.IsCA, leaf.KeyUsage&(x509.KeyUsageCertSign|x509.KeyUsageCRLSign) != 0:
		return Subject{}, fmt.Errorf("certificate of %s: it is the certificate of an authority", id)
	}
	s, err := parsePath(id.Path())
	if err == nil && s.IsNode() {
		s.Node.Kind, err = kind(leaf.Subject.OrganizationalUnit)
		if _, failed := NodePrefix(leaf); err == nil {
			err = failed
		}
	}
	if err != nil {
		return Subject{}, fmt.Errorf("certificate of %s: %w", id, err)
	}
	return s, nil
}

// parsePath is the inverse of Subject.SPIFFE, except for the kind of a node, which the path does
// not contain.
func parsePath(path string) (Subject, error) {
	if path == fabric.ControllerSPIFFE {
		return Subject{Controller: true}, nil
	}
	name := strings.TrimPrefix(path, "/")
	if node, ok := strings.CutPrefix(name, fabric.ReservedDomain+"/"); ok {
		id, err := fabric.ParseNodeID(node)
		return Subject{Node: Node{NodeID: id}}, err
	}
	service, err := fabric.ParseRef(name)
	return Subject{Service: service}, err
}

// unitPool begins the organizational unit that says how large a node's address pool is.
const unitPool = "pool-"

// PoolUnit is the organizational unit of the certificate of a node whose IPv4 pool is to have so
// many bits.
func PoolUnit(bits int) string { return unitPool + strconv.Itoa(bits) }

// NodePrefix returns how many bits the IPv4 pool of a node is to have, as its certificate attests
// it, or 0 if that is the fabric's business.
func NodePrefix(leaf *x509.Certificate) (int, error) {
	found := 0
	for _, unit := range leaf.Subject.OrganizationalUnit {
		text, ok := strings.CutPrefix(unit, unitPool)
		if !ok {
			continue
		}
		bits, err := strconv.Atoi(text)
		if err != nil || PoolUnit(bits) != unit || found != 0 {
			return 0, fmt.Errorf("its organizational units %q do not say once how large its pool is", leaf.Subject.OrganizationalUnit)
		}
		if err := fabric.CheckNodePrefix(bits); err != nil {
			return 0, fmt.Errorf("its organizational unit %q: %w", unit, err)
		}
		found = bits
	}
	return found, nil
}

// kind returns the kind of a node from the organizational units of its certificate.
func kind(units []string) (fabric.NodeKind, error) {
	kinds := slices.DeleteFunc(slices.Clone(units), func(unit string) bool { return strings.HasPrefix(unit, unitPool) })
	k, err := fabric.NodeKindOf(kinds)
	if err != nil {
		return "", fmt.Errorf("its organizational units are %q, expected %q, %q or both", units, fabric.KindWorkload, fabric.KindProcessor)
	}
	return k, nil
}
