// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package agent

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"time"

	"github.com/containernetworking/cni/pkg/types"

	"github.com/sif-project/sif/api"
	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/internal/logkey"
	"github.com/sif-project/sif/internal/node/cnicall"
	"github.com/sif-project/sif/internal/trust/identity"
)

// releaseTimeout limits the call that tells the controller about a removed endpoint. Nomad blocks
// all other workloads of the node meanwhile.
const releaseTimeout = 2 * time.Second

// admissionHook asks the controller to admit the workload, and tells it when the endpoint is
// removed.
type admissionHook struct{ *Agent }

func (admissionHook) name() string { return "admission" }

func (h admissionHook) attach(ctx context.Context, at *attachment) error {
	return h.insist(ctx, at, func() error { return refusal(h.admitAnywhere(ctx, &at.endpoint)) })
}

func (h admissionHook) detach(ctx context.Context, d *detachment) error {
	ep := d.endpoint
	if !ep.admitted() {
		return nil
	}
	// The release runs beside the next hooks, so the engines do not wait for the controller. If the
	// controller cannot be reached, releaseLost releases the admission later.
	d.start(func() error {
		ctx, cancel := context.WithTimeout(ctx, releaseTimeout)
		defer cancel()
		if err := h.node.Controller.Release(ctx, ep.ID); err != nil && !api.IsCode(err, api.CodeNotFound) {
			h.releases.failed()
			return fmt.Errorf("tell the controller of the release: %w", err)
		}
		return nil
	})
	return nil
}

// refusal turns a refusal of the controller into an error that explains it in the allocation's
// events.
func refusal(err error) error {
	var e *api.Error
	switch {
	case err == nil:
		return nil
	case errors.As(err, &e) && !isAway(err):
		return types.NewError(cnicall.CodeRefused, "not admitted to the fabric: "+e.Message, "")
	}
	return fmt.Errorf("ask the controller to admit the workload: %w", err)
}

// addressTries is the number of addresses that the agent offers to the controller. The controller
// may know resting addresses that this node has forgotten.
const addressTries = 8

// renewTimeout limits one renewal.
const renewTimeout = 5 * time.Second

// admitAnywhere calls admit, with other addresses if the controller refuses the first ones.
func (a *Agent) admitAnywhere(ctx context.Context, ep *endpoint) error {
	for try := range addressTries - 1 {
		err := a.admit(ctx, ep)
		if !api.IsCode(err, api.CodeAddress) {
			return err
		}
		if try == 0 {
			// Many releases may have been lost, and each of their addresses would be refused.
			if err := a.releaseLost(ctx); err != nil {
				a.log.Warn("cannot release what was lost, trying other addresses", logkey.Error, err)
			}
		}
		a.log.Warn("the controller refused the address, trying another one", logkey.Endpoint, ep.ID, logkey.Address, ep.IPv4, logkey.Error, err)
		v4, v6, err := a.addresses.take(a.now())
		if err != nil {
			return err
		}
		a.addresses.release(ep.IPv4, a.now())
		ep.IPv4, ep.IPv6 = v4, v6
	}
	return a.admit(ctx, ep)
}

// admit asks the controller to admit the workload at its addresses, requests a certificate for the
// service if the node has none, and signs the connectivity request.
func (a *Agent) admit(ctx context.Context, ep *endpoint) error {
	reply, err := a.node.Controller.Admit(ctx, api.AdmissionRequest{Allocation: ep.ID, IPv4: ep.IPv4, IPv6: ep.IPv6, VM: ep.VM, Attached: ep.Attached})
	if err != nil {
		return missing(err)
	}
	var adm fabric.Admission
	if err := a.node.Identity.Keys().Verify(reply.Admission, fabric.KindAdmission, &adm); err != nil {
		return err
	}
	ep.Admission = adm
	if err := a.certify(ctx, adm.Service); err != nil {
		return err
	}
	sig, chain, err := a.services.Sign(adm.Service, fabric.RequestSigningInput(reply.Admission.Payload))
	if err != nil {
		return err
	}
	ep.Request = fabric.Request{Admission: reply.Admission, Certificate: chain, Signature: sig}
	return nil
}

// certify requests a certificate for a service if this node has none, or one that is past two
// thirds of its life or revoked.
func (a *Agent) certify(ctx context.Context, service fabric.Ref) error {
	a.keys.Lock()
	defer a.keys.Unlock()
	if err := a.discardRevoked(); err != nil {
		return err
	}
	if !a.services.NeedsRenewal(service) {
		return nil
	}
	csr, err := a.services.Key(service)
	if err != nil {
		return err
	}
	chain, err := a.node.Controller.Certificate(ctx, api.CertificateRequest{Service: service, CSR: csr})
	if err != nil {
		return fmt.Errorf("get a certificate for service %s: %w", service, missing(err))
	}
	return a.services.Put(service, chain)
}

// leave cleans up services that have no endpoint on this node. It stops following their documents,
// and deletes their keys when they are due for renewal; until then the next endpoint can use them.
func (a *Agent) leave() error {
	a.node.Revision.Retain(a.endpoints.services)
	a.keys.Lock() // nobody is getting a certificate
	defer a.keys.Unlock()
	here := a.endpoints.services()
	var errs []error
	for _, service := range a.services.Services() {
		if !here[service] && a.services.NeedsRenewal(service) {
			errs = append(errs, a.services.Drop(service))
		}
	}
	return errors.Join(errs...)
}

// due returns when a request must be renewed: at two thirds of the life of its admission, or when
// the certificate that signed it must be, whichever is earlier; at once if that is superseded.
// Other nodes check both when they learn of the endpoint.
func due(ep endpoint, superseded func(*x509.Certificate) bool) time.Time {
	at := ep.Admission.Issued.Add(ep.Admission.Expires.Sub(ep.Admission.Issued) * 2 / 3)
	if len(ep.Request.Certificate) == 0 {
		return time.Time{}
	}
	leaf, err := x509.ParseCertificate(ep.Request.Certificate[0])
	if err != nil {
		return time.Time{}
	}
	if superseded(leaf) {
		return time.Time{}
	}
	if signed := identity.RenewalTime(leaf); signed.Before(at) {
		return signed
	}
	return at
}

// canaryInterval is how often the admission of a canary is renewed of which nothing else is known:
// after its promotion it may be an instance of another service.
const canaryInterval = 15 * time.Second

// mustRenew reports whether the admission of an endpoint is due, the controller has lost it, it was
// a canary's that has been promoted, or it is void and another one is not. What stands revoked is
// not asked for.
func (a *Agent) mustRenew(ep endpoint) bool {
	if a.standsRevoked(ep) {
		return false
	}
	if ep.admitted() && a.revoked(ep) != nil {
		return true
	}
	return !a.now().Before(due(ep, a.node.Identity.Superseded)) || a.releases.lacks(ep.ID) || a.wasPromoted(ep) || a.outdated(ep)
}

// outdatedRest is how old an admission must be to be renewed because another version of the
// fabric's key signs. It keeps admissions from being renewed in a loop while a controller sees that
// later than this node.
const outdatedRest = 2 * time.Minute

// outdated reports whether the admission of an endpoint is signed with an older version of the
// fabric's key than the one that signs, so that it is renewed before its time.
func (a *Agent) outdated(ep endpoint) bool {
	return ep.Request.Admission.Version < a.node.Identity.Signing() && a.now().Sub(ep.Admission.Issued) > outdatedRest
}

func (a *Agent) wasPromoted(ep endpoint) bool {
	if !ep.Admission.Origin.Canary {
		return false
	}
	promoted, known := a.lives.promoted(ep.ID)
	if !known {
		return !a.now().Before(ep.Admission.Issued.Add(canaryInterval))
	}
	return promoted
}

// renew renews the admissions that are due, and those that the controller has lost.
func (a *Agent) renew(ctx context.Context) {
	for _, ep := range a.endpoints.all() {
		if !a.mustRenew(ep) {
			continue
		}
		err := a.renewOne(ctx, ep)
		a.node.Degrade(renewing(ep), err)
		var refused *api.Error
		if err != nil && !errors.As(err, &refused) {
			return // the controller cannot be reached, so the other renewals would fail as well
		}
	}
}

func (a *Agent) renewOne(ctx context.Context, ep endpoint) error {
	unlock := a.locks.Lock(ep.Attachment)
	defer unlock()
	ep, still := a.endpoints.get(ep.Attachment)
	if !still || !a.mustRenew(ep) {
		return nil // removed, or attached again
	}
	ctx, cancel := context.WithTimeout(ctx, renewTimeout)
	defer cancel()
	if err := a.admit(ctx, &ep); err != nil {
		return err
	}
	a.releases.renewed(ep.ID)
	kept := a.endpoints.put(ep)
	// The renewed request is not in force until the engines have it. retryPending sends it.
	a.engines.setPending(ep, []string{"renewed, not announced yet"})
	storing := kept()
	// The renewal may have changed the service or the roles.
	if _, err := a.node.Revision.Document(ctx, ep.Admission.Service); err != nil {
		a.log.Warn("the revision in force has no document of the service, so the service has no rights", logkey.Service, ep.Admission.Service, logkey.Error, err)
	}
	a.refreshCatalog()
	return errors.Join(storing, a.reprogram.Call())
}

// signed counts the admissions of endpoints on this node and of their counterparts by the version
// of the fabric's key that signed them.
func (a *Agent) signed() map[int]int {
	counts := a.counterparts.Signed(a.now())
	for _, ep := range a.endpoints.all() {
		if ep.admitted() {
			counts[ep.Request.Admission.Version]++
		}
	}
	return counts
}

// issuers counts the certificates of services, requests and applications on this node by who issued
// them.
func (a *Agent) issuers() map[string]int {
	counts := a.services.Issuers()
	for id, n := range a.workloadAPI.Issuers() {
		counts[id] += n
	}
	for _, ep := range a.endpoints.all() {
		if len(ep.Request.Certificate) == 0 {
			continue
		}
		if leaf, err := x509.ParseCertificate(ep.Request.Certificate[0]); err == nil {
			counts[identity.IssuedBy(leaf)]++
		}
	}
	return counts
}
