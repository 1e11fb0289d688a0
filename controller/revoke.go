// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package controller

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/sif-project/sif/api"
	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/internal/clock"
	"github.com/sif-project/sif/internal/kvkey"
	"github.com/sif-project/sif/internal/logkey"
	"github.com/sif-project/sif/internal/setup"
	"github.com/sif-project/sif/internal/trust/identity"
)

// revokingTimeout bounds how long Vault is asked to list a revoked certificate, and vacantTimeout
// how long Consul is asked who leads before a controller that does not lead revokes.
const (
	revokingTimeout = 5 * time.Second
	vacantTimeout   = 500 * time.Millisecond
)

// revoke signs a list with a revocation, unless it is in force.
func (r *removal) revoke(ctx context.Context, v fabric.Revocation) (api.Revoked, error) {
	r.signing.Lock()
	defer r.signing.Unlock()
	list := r.list.List()
	for _, have := range list.Revoked {
		if have.Standing() && have.Subject() == v.Subject() {
			return api.Revoked{Revocation: have, Sequence: list.Sequence, Unchanged: true}, nil
		}
	}
	v.Revoked = clock.Now().UTC().Truncate(time.Millisecond)
	return r.record(ctx, v)
}

// reinstate signs a list in which a revocation is taken back.
func (r *removal) reinstate(ctx context.Context, subject fabric.Revocation) (api.Revoked, error) {
	r.signing.Lock()
	defer r.signing.Unlock()
	list := r.list.List()
	for _, v := range slices.Backward(list.Revoked) {
		if v.Subject() != subject.Subject() {
			continue
		}
		if !v.Standing() {
			return api.Revoked{Revocation: v, Sequence: list.Sequence, Unchanged: true}, nil
		}
		v.Reinstated = clock.Now().UTC().Truncate(time.Millisecond)
		if v.Reinstated.Before(v.Revoked) { // the clock was set back
			v.Reinstated = v.Revoked
		}
		// Nothing that was admitted comes back, also not what another clock has dated.
		for _, a := range r.table.admissions(func(a fabric.Admission) bool { return names(v, a) }) {
			if a.Issued.After(v.Reinstated) {
				v.Reinstated = a.Issued
			}
		}
		return r.record(ctx, v)
	}
	return api.Revoked{}, notFound("%s is not revoked; `sif revoke list` lists what is", subject.Subject())
}

// record publishes the list with a revocation and cleans up. The caller holds r.signing.
func (r *removal) record(ctx context.Context, v fabric.Revocation) (api.Revoked, error) {
	reply := api.Revoked{Revocation: v}
	for _, a := range r.table.admissions(func(a fabric.Admission) bool { return names(v, a) }) {
		reply.Endpoints = append(reply.Endpoints, a.Endpoint)
	}
	slices.Sort(reply.Endpoints)
	next := r.list.List().With(clock.Now(), fabric.Revocations{Revoked: []fabric.Revocation{v}})
	unstored, err := r.publish(ctx, next)
	if err != nil {
		return api.Revoked{}, err
	}
	reply.Sequence, reply.Unstored = next.Sequence, unstored
	r.tidy(ctx)
	r.log.Info("list of removals and revocations signed", logkey.Subject, v.Subject(), logkey.Revision, next.Sequence)
	return reply, nil
}

// names reports whether a revocation is of the endpoint or the service of an admission.
func names(v fabric.Revocation, a fabric.Admission) bool {
	return v.Endpoint != "" && v.Endpoint == a.Endpoint || v.Service != fabric.Ref{} && v.Service == a.Service
}

// refuseRevoked refuses to admit what is revoked.
func refuseRevoked(list fabric.Revocations, endpoint string, service fabric.Ref) error {
	now := clock.Now()
	if v, ended := list.RevokedEndpoint(endpoint, now); ended && v.Standing() {
		return revokedError(v)
	}
	if v, ended := list.RevokedService(service, now); ended && v.Standing() {
		return revokedError(v)
	}
	return nil
}

func revokedError(v fabric.Revocation) error {
	return api.Errorf(http.StatusForbidden, api.CodeRevoked, "%s; an operator takes that back with `sif reinstate`", v)
}

// revocationOf decodes what an operator's call names.
func revocationOf(service fabric.Ref, endpoint, serial, reason string) (fabric.Revocation, error) {
	v := fabric.Revocation{Service: service, Endpoint: strings.ToLower(endpoint), Reason: reason}
	given := 0
	for _, is := range []bool{service != fabric.Ref{}, endpoint != "", serial != ""} {
		if is {
			given++
		}
	}
	if given != 1 {
		return v, invalid("the call must name exactly one of a service, an endpoint and the serial number of a certificate")
	}
	if serial != "" {
		var err error
		if v.Serial, err = fabric.ParseSerial(serial); err != nil {
			return v, invalid("%v", err)
		}
	}
	if service != (fabric.Ref{}) {
		if err := errors.Join(fabric.CheckName(service.Domain), fabric.CheckName(service.Name)); err != nil {
			return v, invalid("service %s: %v", service, err)
		}
	}
	if err := fabric.CheckReason(reason); err != nil {
		return v, invalid("%v", err)
	}
	return v, nil
}

// identify completes what an operator named, and returns the domain that it belongs to; empty if
// that is not known. A controller that does not lead may not know all that there is.
func (c *Controller) identify(v *fabric.Revocation) (domain, unchecked string, err error) {
	knows := c.leads()
	switch {
	case v.Service != fabric.Ref{}:
		current := c.policy.current.Load()
		if _, known := current.documents[v.Service]; known {
			return v.Service.Domain, "", nil
		}
		if !knows {
			return v.Service.Domain, "no controller leads, and this one does not know whether there is such a service", nil
		}
		var list []string
		for ref := range current.documents {
			list = append(list, ref.String())
		}
		hint := ""
		if near := fabric.Nearest(v.Service.String(), list); near != "" {
			hint = fmt.Sprintf("; did you mean %q?", near)
		}
		return v.Service.Domain, "", notFound("the graph in force has no service %s%s", v.Service, hint)
	case v.Endpoint != "":
		found := c.table.admissions(func(a fabric.Admission) bool { return strings.HasPrefix(a.Endpoint, v.Endpoint) })
		switch {
		case len(found) == 1:
			v.Endpoint = found[0].Endpoint
			return found[0].Service.Domain, "", nil
		case len(found) > 1:
			var ids []string
			for _, a := range found {
				ids = append(ids, a.Endpoint)
			}
			return "", "", invalid("%q is the beginning of several endpoints: %s", v.Endpoint, strings.Join(ids, ", "))
		case !fabric.IsEndpointID(v.Endpoint):
			return "", "", notFound("no endpoint with a live admission has an ID that begins with %q; `sif endpoint list` lists them", v.Endpoint)
		}
		if before := c.table.known(func(a fabric.Admission) bool { return a.Endpoint == v.Endpoint }); len(before) > 0 {
			return before[0].Service.Domain, "", nil
		}
		return "", "no live admission of this endpoint is known; it cannot be admitted", nil
	}
	return "", "", nil
}

// mayRevoke refuses whoever is neither an operator nor may apply changes of the domain.
func (a access) mayRevoke(v fabric.Revocation, domain string) error {
	if domain != "" && a.applies(domain) {
		return nil
	}
	if domain == "" {
		return a.mayOperate("revoke " + v.Subject())
	}
	if !a.has() {
		return a.missing("revoke "+v.Subject(), setup.DomainPolicy(setup.ApplyPolicy, domain))
	}
	return nil
}

func (c *Controller) postRevocation(ctx context.Context, r request) (any, error) {
	req, err := decode[api.RevokeRequest](r)
	if err != nil {
		return nil, err
	}
	if len(req.Certificate) > 0 {
		leaf, err := x509.ParseCertificate(req.Certificate)
		if err != nil {
			return nil, invalid("the certificate: %v", err)
		}
		if req.Serial == "" {
			req.Serial = identity.Serial(leaf)
		}
		if serial, err := fabric.ParseSerial(req.Serial); err != nil || serial != identity.Serial(leaf) {
			return nil, invalid("the certificate has the serial number %s, not %s", identity.Serial(leaf), req.Serial)
		}
	}
	v, err := revocationOf(req.Service, req.Endpoint, req.Serial, req.Reason)
	r.entry.Target, r.entry.Message = v.Subject(), req.Reason
	if err != nil {
		return nil, err
	}
	domain, unchecked, err := c.identify(&v)
	r.entry.Target = v.Subject()
	if denied := r.operator.mayRevoke(v, domain); denied != nil {
		return nil, denied
	}
	if err != nil {
		return nil, err
	}
	c.intendRemoval(r)
	reply, err := c.removal.revoke(ctx, v)
	if err != nil {
		return nil, err
	}
	reply.Unchecked = unchecked
	if v.Serial != "" {
		reply.Vault = c.listInVault(ctx, v.Serial, req.Certificate)
	}
	return reply, nil
}

// listInVault has Vault put a certificate on its own list of revoked certificates, and says how
// that ended. Nothing of the fabric depends on it.
func (c *Controller) listInVault(ctx context.Context, serial string, certificate []byte) string {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), revokingTimeout)
	defer cancel()
	if err := c.cfg.Authority.RevokeCertificate(ctx, serial, certificate); err != nil {
		return fmt.Sprintf("Vault's own list of revoked certificates does not have it: %v", err)
	}
	return "Vault's own list of revoked certificates has it"
}

func (c *Controller) postReinstate(ctx context.Context, r request) (any, error) {
	req, err := decode[api.ReinstateRequest](r)
	if err != nil {
		return nil, err
	}
	v, err := revocationOf(req.Service, req.Endpoint, "", req.Reason)
	r.entry.Target, r.entry.Message = v.Subject(), req.Reason
	if denied := r.operator.mayOperate("reinstate " + v.Subject()); denied != nil {
		return nil, denied
	}
	if err != nil {
		return nil, err
	}
	if err := c.completeRevoked(&v); err != nil {
		return nil, err
	}
	r.entry.Target = v.Subject()
	if err := c.intend(r); err != nil {
		return nil, err
	}
	return c.removal.reinstate(ctx, v)
}

// completeRevoked completes the ID of a revoked endpoint.
func (c *Controller) completeRevoked(v *fabric.Revocation) error {
	var found []string
	for _, have := range c.removal.list.List().Revoked {
		if v.Endpoint != "" && strings.HasPrefix(have.Endpoint, v.Endpoint) {
			found = append(found, have.Endpoint)
		}
	}
	slices.Sort(found)
	if found = slices.Compact(found); len(found) > 1 {
		return invalid("%q is the beginning of several revoked endpoints: %s", v.Endpoint, strings.Join(found, ", "))
	} else if len(found) == 1 {
		v.Endpoint = found[0]
	}
	return nil
}

func (c *Controller) getRevocations(_ context.Context, r request) (any, error) {
	if err := r.operator.mayReadAll("list what is removed and revoked"); err != nil {
		return nil, err
	}
	list := c.removal.list.List()
	return api.RevocationList{Sequence: list.Sequence, Issued: list.Issued, Tombstones: list.Tombstones, Revoked: list.Revoked, Behind: c.behind(list.Sequence)}, nil
}

// behind returns the daemons that heed an earlier list than that of a sequence.
func (c *Controller) behind(sequence uint64) (list []api.ListBehind) {
	for _, n := range c.nodes.all() {
		for _, s := range c.reports.of(n) {
			if s.Revocations < sequence {
				list = append(list, api.ListBehind{Node: s.ID(), Kind: s.Kind, Sequence: s.Revocations, Reported: s.Reported})
			}
		}
	}
	return list
}

// getNodeRevocations gives the list to a node that has another one, when there is one.
func (c *Controller) getNodeRevocations(ctx context.Context, r request) (any, error) {
	known, wait, err := indexOf(r)
	if err != nil {
		return nil, err
	}
	has := fabric.ListID{Sequence: known}
	if text := r.URL.Query().Get("digest"); text != "" {
		if err := has.Digest.UnmarshalText([]byte(text)); err != nil {
			return nil, invalid("digest: %v", err)
		}
	}
	if s := r.URL.Query().Get("wait"); known == 0 && s != "" { // a node without a list waits for the first one
		if wait, err = waitOf(r, api.DefaultWait, api.MaxWait); err != nil {
			return nil, err
		}
	}
	ctx, cancel := r.untilStop(ctx)
	defer cancel()
	ctx, end := context.WithTimeout(ctx, wait)
	defer end()
	for {
		changed := c.removal.list.Changed()
		if _, _, err := c.caller(r.Request); err != nil {
			return nil, err // it may be the one
		}
		if now := c.removal.list.ID(); now != has {
			reply := api.ListReply{Has: now}
			if now.Sequence > 0 {
				signed := c.removal.list.Signed()
				reply.List = &signed
			}
			return reply, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return api.ListReply{Has: has}, nil
		}
	}
}

// markRevoked adds to a status why endpoints have no rights, as far as their nodes do not say it: a
// node that does not follow the list says nothing.
func (c *Controller) markRevoked(s *api.Status) {
	list := c.removal.list.List()
	s.Revocations = api.RevocationStatus{Sequence: list.Sequence, Removed: len(list.Tombstones), Behind: c.behind(list.Sequence)}
	for _, v := range list.Revoked {
		switch {
		case v.Serial != "":
			s.Revocations.Certificates++
		case !v.Standing():
		case v.Endpoint != "":
			s.Revocations.Endpoints++
		default:
			s.Revocations.Services++
		}
	}
	if len(list.Revoked) == 0 {
		return
	}
	for i := range s.Nodes {
		n := &s.Nodes[i]
		n.Endpoints = slices.Clone(n.Endpoints)
		for j := range n.Endpoints {
			e := &n.Endpoints[j]
			if e.Revoked != "" {
				continue
			}
			a := fabric.Admission{Zone: n.Zone, Node: n.Node, Endpoint: e.Endpoint, Service: e.Service, Issued: clock.Now()}
			if g := c.table.get(kvkey.Admission{Node: n.ID(), Endpoint: e.Endpoint}); g != nil {
				a.Issued = g.admission.Issued
			}
			e.Revoked = list.EndsAdmission(a)
		}
	}
}
