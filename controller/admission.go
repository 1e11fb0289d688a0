// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package controller

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"regexp"
	"strings"
	"sync"
	"time"

	consulapi "github.com/hashicorp/consul/api"
	"golang.org/x/sync/errgroup"

	"github.com/sif-project/sif/api"
	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/internal/keylock"
	"github.com/sif-project/sif/internal/kvkey"
	"github.com/sif-project/sif/internal/logkey"
	"github.com/sif-project/sif/internal/trust/identity"
)

var allocationID = regexp.MustCompile(`^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$`)

// admitter decides about admissions. What it believes comes from the
// caller's certificate, from the scheduler and from the graph; of the
// request only the allocation's ID and the choice of addresses count.
type admitter struct {
	cfg    Config
	policy *policy
	nodes  *registry
	table  *table

	endpoints keylock.Locks[string] // by ID
	bindings  sync.Map              // fabric.NodeID -> scheduler's node ID, as pinned in Consul
}

// admit admits an allocation that the scheduler placed on the calling node.
func (a *admitter) admit(ctx context.Context, who identity.Node, req api.AdmissionRequest) (api.AdmissionReply, fabric.Admission, error) {
	var reply api.AdmissionReply
	var none fabric.Admission
	node, err := a.workloadNode(who)
	if err != nil {
		return reply, none, err
	}
	if !allocationID.MatchString(req.Allocation) {
		return reply, none, api.Errorf(http.StatusBadRequest, api.CodeInvalid, "%q is not the ID of an allocation", req.Allocation)
	}
	if err := checkAddresses(node, req.IPv4, req.IPv6); err != nil {
		return reply, none, err
	}
	defer a.endpoints.Lock(req.Allocation)()

	place, err := a.placement(ctx, who, req.Allocation)
	if err != nil {
		return reply, none, err
	}
	held := a.policy.current.Load()
	wanted := stanzaOf(place.Meta)
	place.Workload.Zone, place.Workload.Node = who.Zone, who.Name // the certificate's word
	service, err := choose(held.graph, place.Workload, wanted)
	if err != nil {
		return reply, none, err
	}
	roles, err := requested(held.graph, held.documents[service], wanted)
	if err != nil {
		return reply, none, err
	}
	id := kvkey.Admission{Node: who.NodeID, Endpoint: req.Allocation}
	done, err := a.table.claim(id, req.IPv4, req.IPv6)
	if err != nil {
		return reply, none, err
	}
	defer done()

	now := time.Now().UTC().Truncate(time.Millisecond)
	// Engines and agents keep the youngest: a clock that was set back, or that of
	// another controller, must not make this one the older.
	if old := a.table.get(id); old != nil && !now.After(old.admission.Issued) {
		now = old.admission.Issued.Add(time.Millisecond)
	}
	admission := fabric.Admission{
		Fabric: a.cfg.Fabric, Endpoint: req.Allocation, Zone: who.Zone, Node: who.Name,
		IPv4: req.IPv4, IPv6: req.IPv6, Service: service, Roles: roles, Checks: place.Checks,
		Issued: now, Expires: now.Add(a.cfg.AdmissionLife),
	}
	payload, err := json.Marshal(admission)
	if err != nil {
		return reply, none, fmt.Errorf("encode the admission of endpoint %s: %w", req.Allocation, err)
	}
	g, sub := errgroup.WithContext(ctx)
	g.Go(func() (err error) {
		reply.Admission, err = a.cfg.Signer.Sign(sub, fabric.KindAdmission, payload)
		return err
	})
	if len(req.CSR) > 0 {
		g.Go(func() (err error) {
			reply.Certificate, err = a.cfg.Authority.SignWorkload(sub, req.CSR, service)
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return reply, none, api.Errorf(http.StatusServiceUnavailable, api.CodeUnavailable, "%v", err)
	}
	if err := a.table.admit(context.WithoutCancel(ctx), id, admission, reply.Admission); err != nil {
		return reply, none, err
	}
	return reply, admission, nil
}

// release ends the admission of an endpoint of the calling node.
func (a *admitter) release(ctx context.Context, who identity.Node, endpoint string) error {
	defer a.endpoints.Lock(endpoint)()
	return a.table.release(ctx, kvkey.Admission{Node: who.NodeID, Endpoint: endpoint})
}

// certificate has a certificate issued for a service of which the calling
// node holds a live admission.
func (a *admitter) certificate(ctx context.Context, who identity.Node, req api.CertificateRequest) ([][]byte, error) {
	if _, err := a.workloadNode(who); err != nil {
		return nil, err
	}
	if !a.table.serves(who.NodeID, req.Service) {
		return nil, api.Errorf(http.StatusForbidden, api.CodeForbidden, "node %s holds no live admission of service %s", who.NodeID, req.Service)
	}
	chain, err := a.cfg.Authority.SignWorkload(ctx, req.CSR, req.Service)
	if err != nil {
		return nil, api.Errorf(http.StatusServiceUnavailable, api.CodeUnavailable, "%v", err)
	}
	return chain, nil
}

func (a *admitter) workloadNode(who identity.Node) (fabric.Node, error) {
	if who.Kind != fabric.KindWorkload {
		return fabric.Node{}, api.Errorf(http.StatusForbidden, api.CodeForbidden, "node %s is attested as a %s node: no workload runs there", who.NodeID, who.Kind)
	}
	node, ok := a.nodes.get(who.NodeID)
	if !ok {
		return node, api.Errorf(http.StatusConflict, api.CodeNotRegistered, "node %s is not registered yet", who.NodeID)
	}
	return node, nil
}

// checkAddresses reports addresses that no endpoint of the node may have.
func checkAddresses(node fabric.Node, v4, v6 netip.Addr) error {
	for _, c := range []struct {
		addr, gateway netip.Addr
		pool          netip.Prefix
	}{{v4, node.Gateway4(), node.Pool4}, {v6, node.Gateway6(), node.Pool6}} {
		switch {
		case !c.pool.Contains(c.addr):
			return api.Errorf(http.StatusForbidden, api.CodeAddress, "address %s lies outside the pool %s of node %s", c.addr, c.pool, node.ID())
		case c.addr == c.pool.Addr() || c.addr == c.gateway:
			return api.Errorf(http.StatusForbidden, api.CodeAddress, "address %s of pool %s is the node's own", c.addr, c.pool)
		}
	}
	return nil
}

// placement asks the scheduler, and refuses what it did not place on the
// caller.
func (a *admitter) placement(ctx context.Context, who identity.Node, allocation string) (Placement, error) {
	likely, _ := a.bindings.Load(who.NodeID)
	node, _ := likely.(string)
	place, err := a.cfg.Scheduler.Placement(ctx, allocation, node)
	if errors.Is(err, ErrNoAllocation) {
		return place, api.Errorf(http.StatusForbidden, api.CodeNotPlaced, "Nomad knows no allocation %s", allocation)
	}
	if err != nil {
		return place, api.Errorf(http.StatusServiceUnavailable, api.CodeNomad, "%v", err)
	}
	if place.NodeName != who.Name || place.Datacenter != who.Zone {
		return place, api.Errorf(http.StatusForbidden, api.CodeNotPlaced,
			"allocation %s was not placed on node %s: Nomad placed it on node %q of datacenter %q", allocation, who.NodeID, place.NodeName, place.Datacenter)
	}
	if err := a.bound(ctx, who, place.NodeID); err != nil {
		return place, err
	}
	if place.Stopped != "" {
		return place, api.Errorf(http.StatusForbidden, api.CodeNotPlaced, "allocation %s is not to run: %s", allocation, place.Stopped)
	}
	return place, nil
}

// bound pins the scheduler's node to ours on first use. A Nomad client that
// later comes under the same name is another one until the operator says
// otherwise by deleting the key.
func (a *admitter) bound(ctx context.Context, who identity.Node, nodeID string) error {
	if id, ok := a.bindings.Load(who.NodeID); ok && id == nodeID {
		return nil
	}
	key := kvkey.Binding(who.NodeID).String()
	kv := a.cfg.Consul().KV()
	// Index 0: written only if the key is absent.
	if _, _, err := kv.CAS(&consulapi.KVPair{Key: key, Value: []byte(nodeID)}, (&consulapi.WriteOptions{}).WithContext(ctx)); err != nil {
		return api.Errorf(http.StatusServiceUnavailable, api.CodeUnavailable, "pin the Nomad node of %s: %v", who.NodeID, err)
	}
	pinned, _, err := kv.Get(key, (&consulapi.QueryOptions{RequireConsistent: true}).WithContext(ctx))
	if err != nil || pinned == nil {
		return api.Errorf(http.StatusServiceUnavailable, api.CodeUnavailable, "read which Nomad node %s is bound to: %v", who.NodeID, err)
	}
	if got := strings.TrimSpace(string(pinned.Value)); got != nodeID {
		return api.Errorf(http.StatusForbidden, api.CodeNotPlaced,
			"node %s is bound to Nomad node %s, but the allocation is on %s of the same name; if Nomad's client was set up anew, `consul kv delete %s`", who.NodeID, got, nodeID, key)
	}
	a.bindings.Store(who.NodeID, nodeID)
	return nil
}

// logAdmission says what was admitted.
func (c *Controller) logAdmission(a fabric.Admission, took time.Duration) {
	c.log.Info("endpoint admitted", logkey.Endpoint, a.Endpoint, logkey.Node, a.Zone+"/"+a.Node,
		logkey.Identity, a.Identity().Key(), logkey.Address, a.IPv4.String(), logkey.Duration, took)
}
