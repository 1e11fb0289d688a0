// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package agent

import (
	"context"
	"crypto/x509"

	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/internal/logkey"
	"github.com/sif-project/sif/internal/trust/identity"
	"github.com/sif-project/sif/internal/trust/revocation"
)

// revoked returns why an endpoint of this node has no rights, or nil.
func (a *Agent) revoked(ep endpoint) error {
	if !ep.admitted() {
		return nil
	}
	return a.node.Verifier().Void(ep.Request, ep.Admission)
}

// whyRevoked is revoked, in words for the status.
func (a *Agent) whyRevoked(ep endpoint) string {
	if why := a.revoked(ep); why != nil {
		return why.Error()
	}
	return ""
}

// standsRevoked reports whether the controller would refuse to admit an endpoint again.
func (a *Agent) standsRevoked(ep endpoint) bool {
	list := a.node.Removals.List()
	if _, removed := list.Ends(ep.Admission.Host(), ep.Admission.Issued); removed {
		return true
	}
	endpoint, ended := list.RevokedEndpoint(ep.ID, ep.Admission.Issued)
	if ended && endpoint.Standing() {
		return true
	}
	service, ended := list.RevokedService(ep.Admission.Service, ep.Admission.Issued)
	return ended && service.Standing()
}

// discardRevoked removes the keys of services that are revoked, or whose certificates are. The
// caller must hold keys.
func (a *Agent) discardRevoked() error {
	list := a.node.Removals.List()
	return a.services.Discard(func(service fabric.Ref, leaf *x509.Certificate) bool {
		return revocation.Certificate(list, identity.Subject{Service: service}, leaf) != nil
	})
}

// heed brings the node to a list of removals and revocations that changed. What was revoked loses
// its rights here first; then what was reinstated, or lost only its certificate, asks for others.
func (a *Agent) heed(ctx context.Context) {
	a.node.Degrade("counterparts", a.forget(a.departed()))
	a.node.Degrade("data path", a.reprogram.Call())
	a.keys.Lock()
	err := a.discardRevoked()
	a.keys.Unlock()
	a.node.Degrade("keys of revoked services", err)
	for _, ep := range a.endpoints.all() {
		if why := a.revoked(ep); why != nil {
			a.log.Warn("endpoint has lost its rights", logkey.Endpoint, ep.ID, logkey.Service, ep.Admission.Service, logkey.Error, why)
			a.engines.setPending(ep, []string{why.Error()})
		}
	}
	a.refreshCatalog()
	a.renew(ctx)
	a.retryPending(ctx)
}
