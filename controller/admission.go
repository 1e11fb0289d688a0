// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package controller

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/netip"
	"regexp"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/sif-project/sif/api"
	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/internal/keylock"
	"github.com/sif-project/sif/internal/kvkey"
	"github.com/sif-project/sif/internal/trust/identity"
)

var allocationID = regexp.MustCompile(`^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$`)

// admitter decides about admissions, from the caller's certificate, what others attest of the
// workload, and the graph. From the request of an allocation it takes only the allocation's ID, the
// addresses, and the key of the signing request.
type admitter struct {
	cfg    Config
	policy *policy
	nodes  *registry
	table  *table

	bound     *bindings
	tokens    *tokens
	endpoints keylock.Locks[string] // by ID
}

// admit admits a workload of the calling node.
func (a *admitter) admit(ctx context.Context, who identity.Node, req api.AdmissionRequest) (fabric.Admission, api.AdmissionReply, error) {
	if err := a.checkRequest(who, req); err != nil {
		return fabric.Admission{}, api.AdmissionReply{}, err
	}
	defer a.endpoints.Lock(req.Allocation)()
	admission, registered, err := a.decide(ctx, who, req)
	if err != nil {
		return fabric.Admission{}, api.AdmissionReply{}, err
	}
	id := kvkey.Admission{Node: who.NodeID, Endpoint: req.Allocation}
	release, err := a.table.claim(id, req.IPv4, req.IPv6)
	if err != nil {
		return fabric.Admission{}, api.AdmissionReply{}, err
	}
	defer release()
	admission.Issued = a.issueTime(id, admission.Service)
	admission.Expires = admission.Issued.Add(a.cfg.AdmissionLife)
	reply, err := a.sign(ctx, admission, req.CSR)
	if err != nil {
		return fabric.Admission{}, api.AdmissionReply{}, err
	}
	// Once Vault has signed it, a caller that gives up must not leave the table without it.
	ctx = context.WithoutCancel(ctx)
	if err := a.table.admit(ctx, id, &grant{Signed: reply.Admission, Registered: registered, admission: admission}); err != nil {
		return fabric.Admission{}, api.AdmissionReply{}, err
	}
	if req.Attached == nil {
		err = a.table.releaseSquatters(ctx, id)
	}
	return admission, reply, err
}

// checkRequest refuses what is wrong whatever the scheduler says.
func (a *admitter) checkRequest(who identity.Node, req api.AdmissionRequest) error {
	node, err := a.workloadNode(who)
	if err != nil {
		return err
	}
	if !allocationID.MatchString(req.Allocation) {
		return invalid("%q is not the ID of an endpoint, which has the form of the ID of a Nomad allocation", req.Allocation)
	}
	if err := refuseRevoked(a.nodes.removed(), req.Allocation, fabric.Ref{}); err != nil {
		return err
	}
	return checkAddresses(node, req.IPv4, req.IPv6)
}

// decide returns the admission of a workload without its times: its service, its roles, its ports
// and its health checks; and what Consul has of one outside Nomad.
func (a *admitter) decide(ctx context.Context, who identity.Node, req api.AdmissionRequest) (fabric.Admission, *registration, error) {
	node, err := a.workloadNode(who)
	if err != nil {
		return fabric.Admission{}, nil, err
	}
	said, err := a.attesterOf(req).attest(ctx, node, req)
	if err != nil {
		return fabric.Admission{}, nil, err
	}
	said.workload.Zone, said.workload.Node = who.Zone, who.Name // as the certificate attests them
	service, roles, err := a.policy.current.Load().role(said)
	if err == nil {
		err = refuseRevoked(a.nodes.removed(), req.Allocation, service)
	}
	if err != nil {
		return fabric.Admission{}, nil, err
	}
	return fabric.Admission{
		Fabric: a.cfg.Fabric, Endpoint: req.Allocation, Zone: who.Zone, Node: who.Name,
		IPv4: req.IPv4, IPv6: req.IPv6, Service: service, Roles: roles,
		Checks: said.checks, HealthChecked: said.healthChecked, Ports: said.ports, Origin: said.origin,
		Registration: said.registered.hash(),
	}, said.registered, nil
}

// role returns the service of a workload and the roles that it has.
func (f *inForce) role(said attested) (fabric.Ref, fabric.Roles, error) {
	service, err := choose(f.graph, said.workload, said.wanted)
	if said.unknown != nil && (api.IsCode(err, api.CodeBeyond) || api.IsCode(err, api.CodeNoSelector)) {
		return service, fabric.Roles{}, api.Errorf(http.StatusServiceUnavailable, api.CodeNomad, "%v; more is not known: %v", err, said.unknown)
	}
	if err != nil {
		return service, fabric.Roles{}, err
	}
	if err := mayPublish(f.graph, said.workload, service); err != nil {
		return service, fabric.Roles{}, err
	}
	roles, err := requested(f.graph, f.documents[service], said.workload, said.wanted)
	return service, roles, err
}

// issueTime returns the time at which a new admission of an endpoint is issued: now, but later than
// the one before, than a removal of its node, and than a revocation that was taken back. Engines
// and agents use the admission with the latest time, and the clock may have been set back, or be
// another controller's.
func (a *admitter) issueTime(id kvkey.Admission, service fabric.Ref) time.Time {
	now := a.table.now().Truncate(time.Millisecond)
	if old := a.table.get(id); old != nil && !now.After(old.admission.Issued) {
		now = old.admission.Issued.Add(time.Millisecond)
	}
	list := a.nodes.removed()
	if t, ended := list.Ends(id.Node, now); ended {
		now = t.Removed.Add(time.Millisecond)
	}
	if v, ended := list.RevokedEndpoint(id.Endpoint, now); ended && !v.Standing() {
		now = v.Reinstated.Add(time.Millisecond)
	}
	if v, ended := list.RevokedService(service, now); ended && !v.Standing() {
		now = v.Reinstated.Add(time.Millisecond)
	}
	return now
}

// sign has the admission signed, and a certificate issued if there is a signing request.
func (a *admitter) sign(ctx context.Context, admission fabric.Admission, csr []byte) (api.AdmissionReply, error) {
	payload, err := json.Marshal(admission)
	if err != nil {
		return api.AdmissionReply{}, fmt.Errorf("encode the admission of endpoint %s: %w", admission.Endpoint, err)
	}
	var reply api.AdmissionReply
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() (err error) {
		reply.Admission, err = a.cfg.Signer.Sign(ctx, fabric.KindAdmission, payload)
		return err
	})
	if len(csr) > 0 {
		g.Go(func() (err error) {
			reply.Certificate, err = a.cfg.Authority.SignWorkload(ctx, csr, admission.Service)
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return api.AdmissionReply{}, unavailable("%v", err)
	}
	return reply, nil
}

// release ends the admission of an endpoint of the calling node.
func (a *admitter) release(ctx context.Context, who identity.Node, endpoint string) error {
	defer a.endpoints.Lock(endpoint)()
	return a.table.release(ctx, kvkey.Admission{Node: who.NodeID, Endpoint: endpoint})
}

// admissions returns what the table has of the calling node.
func (a *admitter) admissions(who identity.Node) (api.NodeAdmissions, error) {
	if _, err := a.workloadNode(who); err != nil {
		return api.NodeAdmissions{}, err
	}
	return a.table.of(who.NodeID), nil
}

// maxReleases bounds the endpoints of one request, above the addresses of the largest pool.
const maxReleases = 5000

// releaseLost ends the admissions of endpoints that the calling node does not have any more. An
// admission that was issued later than the node says stays: the endpoint has come back meanwhile.
func (a *admitter) releaseLost(ctx context.Context, who identity.Node, req api.ReleaseRequest) error {
	if len(req.Issued) > maxReleases {
		return invalid("the request releases %d endpoints, at most %d are allowed", len(req.Issued), maxReleases)
	}
	var errs []error
	for _, endpoint := range slices.Sorted(maps.Keys(req.Issued)) {
		errs = append(errs, func() error {
			defer a.endpoints.Lock(endpoint)()
			id := kvkey.Admission{Node: who.NodeID, Endpoint: endpoint}
			if g := a.table.get(id); g == nil || g.admission.Issued.After(req.Issued[endpoint]) {
				return nil
			}
			return a.table.release(ctx, id)
		}())
	}
	return errors.Join(errs...)
}

// certificate has a certificate issued for a service, if the calling node has a live admission of
// it.
func (a *admitter) certificate(ctx context.Context, who identity.Node, req api.CertificateRequest) ([][]byte, error) {
	if _, err := a.workloadNode(who); err != nil {
		return nil, err
	}
	if err := refuseRevoked(a.nodes.removed(), "", req.Service); err != nil {
		return nil, err
	}
	if !a.table.serves(who.NodeID, req.Service) {
		return nil, forbidden("node %s has no live admission of service %s", who.NodeID, req.Service)
	}
	chain, err := a.cfg.Authority.SignWorkload(ctx, req.CSR, req.Service)
	if err != nil {
		return nil, unavailable("%v", err)
	}
	return chain, nil
}

// workloadNode returns the record of the calling node, which must be a workload node.
func (a *admitter) workloadNode(who identity.Node) (fabric.Node, error) {
	if !who.Kind.Has(fabric.KindWorkload) {
		return fabric.Node{}, forbidden("the certificate of node %s is of a %s node; only a %s node has endpoints", who.NodeID, who.Kind, fabric.KindWorkload)
	}
	node, ok := a.nodes.get(who.NodeID)
	if !ok {
		return node, api.Errorf(http.StatusConflict, api.CodeNotRegistered, "node %s is not registered yet", who.NodeID)
	}
	return node, nil
}

// checkAddresses refuses addresses that an endpoint of the node cannot have.
func checkAddresses(node fabric.Node, v4, v6 netip.Addr) error {
	for _, c := range []struct {
		addr, health netip.Addr
		pool         netip.Prefix
	}{{v4, node.Health4(), node.Pool4}, {v6, node.Health6(), node.Pool6}} {
		switch {
		case !c.pool.Contains(c.addr):
			return api.Errorf(http.StatusForbidden, api.CodeAddress, "address %s is not in pool %s of node %s", c.addr, c.pool, node.ID())
		case c.addr == c.pool.Addr() || c.addr == c.health:
			return api.Errorf(http.StatusForbidden, api.CodeAddress, "address %s of pool %s is reserved for node %s itself", c.addr, c.pool, node.ID())
		}
	}
	return nil
}
