// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

// Package admission verifies connectivity requests. Engines and agents each do so, independently,
// before they program anything. It knows signatures, certificates and the roster; it does not know
// who sent the request or what will be programmed.
package admission

import (
	"crypto/x509"
	"fmt"
	"slices"
	"time"

	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/internal/trust/identity"
)

// Verifier is what a request is checked against. The functions are called each time, because keys,
// roots and nodes change.
type Verifier struct {
	Fabric      string
	TrustDomain string
	Keys        func() fabric.KeySet
	Roots       func() *x509.CertPool
	Node        func(fabric.NodeID) (fabric.Node, bool)
	Removed     func() fabric.Revocations
}

// Ended reports whether an admission has lost its rights: its node was removed after it was issued,
// or its service or endpoint is revoked.
func (v Verifier) Ended(a fabric.Admission) bool { return v.Removed().EndsAdmission(a) != "" }

// Void returns why a request that was verified has no rights any more, or nil: its admission has
// lost them, the version of the fabric's key that signed that was retired, or the certificate that
// signed the request is revoked.
func (v Verifier) Void(r fabric.Request, a fabric.Admission) error {
	if s, keys := r.Admission, v.Keys(); len(s.Signature) > 0 && s.Version < keys.Min {
		return fmt.Errorf("the admission of endpoint %s is signed with version %d of the fabric's key, which was retired; the lowest accepted is %d", a.Endpoint, s.Version, keys.Min)
	}
	list := v.Removed()
	if why := list.EndsAdmission(a); why != "" {
		return fmt.Errorf("endpoint %s has no rights: %s", a.Endpoint, why)
	}
	if !list.RevokesCertificates() || len(r.Certificate) == 0 {
		return nil
	}
	serial, err := identity.SerialOf(r.Certificate[0])
	if err != nil {
		return fmt.Errorf("parse the certificate of endpoint %s: %w", a.Endpoint, err)
	}
	if why, ended := list.RevokedCertificate(serial); ended {
		return fmt.Errorf("the request of endpoint %s: %s", a.Endpoint, why)
	}
	return nil
}

// Verify returns the admission in r if the fabric signed it, it has not expired, its addresses are
// in the pool of the node on which it was admitted, neither that node nor the endpoint, its service
// or its certificate has lost its rights since, and r was signed with the key of the service. It
// does not check that the graph still has the roles: the one rule does, with the newest revision,
// whenever it is evaluated.
func (v Verifier) Verify(r fabric.Request, now time.Time) (fabric.Admission, error) {
	var a fabric.Admission
	if err := v.Keys().Verify(r.Admission, fabric.KindAdmission, &a); err != nil {
		return a, err
	}
	if err := a.Current(v.Fabric, now); err != nil {
		return a, err
	}
	node, ok := v.Node(a.Host())
	if !ok {
		return a, fmt.Errorf("endpoint %s was admitted on %s, which is not a node of the fabric", a.Endpoint, a.Host())
	}
	if err := v.Void(r, a); err != nil {
		return a, err
	}
	if err := a.PlacedOn(node); err != nil {
		return a, err
	}
	signer, leaf, err := identity.VerifyBy(v.Roots(), v.TrustDomain, r.Certificate, fabric.RequestSigningInput(r.Admission.Payload), r.Signature)
	if err != nil {
		return a, fmt.Errorf("request of endpoint %s: %w", a.Endpoint, err)
	}
	if signer != (identity.Subject{Service: a.Service}) {
		return a, fmt.Errorf("endpoint %s was admitted as service %s, but the request is signed by %s", a.Endpoint, a.Service, signer)
	}
	if slices.Contains(leaf.Subject.OrganizationalUnit, fabric.UnitApplication) {
		return a, fmt.Errorf("the request of endpoint %s is signed with the key of an application, and only the key of its node counts", a.Endpoint)
	}
	return a, nil
}
