// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

// Package admission decides whether a connectivity request may be believed.
// Engines and agents each ask it, independently, before they program
// anything. It knows signatures, certificates and the roster of nodes; it
// does not know who sent the request or what will be programmed.
package admission

import (
	"crypto/x509"
	"fmt"
	"time"

	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/internal/trust/identity"
)

// Verifier holds what a request is checked against. The functions are asked
// anew each time, because keys, roots and nodes change.
type Verifier struct {
	Fabric      string
	TrustDomain string
	Keys        func() fabric.KeySet
	Roots       func() *x509.CertPool
	Node        func(fabric.NodeID) (fabric.Node, bool)
}

// Verify returns the admission that r carries if all of this holds: the
// fabric signed it, it has not expired, its addresses lie in the pool of the
// node on which it was admitted, and r was signed by the key of the service
// itself. That the roles are still in the graph is not asked here: the one
// rule applies the newest revision to them whenever it is evaluated.
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
	if err := a.PlacedOn(node); err != nil {
		return a, err
	}
	signer, _, err := identity.VerifyBy(v.Roots(), v.TrustDomain, r.Certificate, fabric.RequestSigningInput(r.Admission.Payload), r.Signature)
	if err != nil {
		return a, fmt.Errorf("request of endpoint %s: %w", a.Endpoint, err)
	}
	if signer != (identity.Subject{Service: a.Service}) {
		return a, fmt.Errorf("endpoint %s was admitted as service %s, but the request is signed by %s", a.Endpoint, a.Service, signer)
	}
	return a, nil
}
