// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package controller

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"time"

	consulapi "github.com/hashicorp/consul/api"
	"github.com/hashicorp/go-hclog"

	"github.com/sif-project/sif/api"
	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/internal/clock"
	"github.com/sif-project/sif/internal/kvkey"
	"github.com/sif-project/sif/internal/logkey"
	"github.com/sif-project/sif/internal/retry"
	"github.com/sif-project/sif/internal/statefile"
)

// bindingsInterval is how often the leader compares the bindings in Consul with its own.
const bindingsInterval = 30 * time.Second

// binding says which node of the scheduler a node of the fabric is.
type binding struct {
	fabric.NomadNode
	signed fabric.Signed
}

// bindings knows which node of the scheduler each node of the fabric is. They are signed, and the
// newest ones are kept on disk as well: whoever writes Consul can neither bind a node to another
// machine nor have its workloads refused.
type bindings struct {
	cfg     Config
	removed func() fabric.Revocations
	log     hclog.Logger
	file    statefile.File[map[string]fabric.Signed] // by zone/node

	mu      sync.Mutex
	bound   map[fabric.NodeID]binding
	claims  map[fabric.NodeID]string // what is wrong with what a node says of itself, for people
	trouble map[string]error         // by what could not be stored
}

func newBindings(cfg Config, removed func() fabric.Revocations) *bindings {
	return &bindings{
		cfg: cfg, removed: removed, log: cfg.Log.Named("bindings"),
		file:  statefile.File[map[string]fabric.Signed]{Path: filepath.Join(cfg.DataDir, "bindings.json"), What: "which Nomad node each node is"},
		bound: map[fabric.NodeID]binding{}, claims: map[fabric.NodeID]string{}, trouble: map[string]error{},
	}
}

// load reads the bindings from the disk and from Consul. The newest one of each node counts. The
// leader puts back what was altered or deleted in Consul.
func (b *bindings) load(ctx context.Context) error {
	stored, _, err := b.file.Read()
	if err != nil {
		return err
	}
	b.mu.Lock()
	b.bound, b.claims = map[fabric.NodeID]binding{}, map[fabric.NodeID]string{}
	for name, signed := range stored {
		if err := b.take(name, signed); err != nil { // by a version of the key that was retired, perhaps
			b.log.Warn("binding on disk not used", logkey.Node, name, logkey.Error, err)
		}
	}
	b.mu.Unlock()
	return b.reconcile(ctx)
}

// take takes a signed binding of the node with that name, unless a newer one is known, or the node
// was removed since. The caller holds b.mu.
func (b *bindings) take(name string, signed fabric.Signed) error {
	var n binding
	if id, err := fabric.ParseNodeID(name); err == nil {
		n = b.bound[id]
	}
	if keys := b.cfg.Identity.Keys(); !reflect.DeepEqual(n.signed, signed) || !keys.Accepts(signed.Version) {
		n = binding{signed: signed}
		if err := keys.Verify(signed, fabric.KindNomadNode, &n.NomadNode); err != nil {
			return err
		}
	}
	switch {
	case n.Fabric != b.cfg.Fabric:
		return fmt.Errorf("it is of fabric %q, not %q", n.Fabric, b.cfg.Fabric)
	case n.Node.String() != name:
		return fmt.Errorf("it is of node %s", n.Node)
	}
	if _, ended := b.removed().Ends(n.Node, n.Issued); ended {
		return fmt.Errorf("node %s was removed since", n.Node)
	}
	if known, ok := b.bound[n.Node]; !ok || n.Issued.After(known.Issued) || signedAgain(known.signed, n.signed) {
		b.bound[n.Node] = n
	}
	return nil
}

// reconcile takes what is newer in Consul, and puts back there what was altered or deleted.
func (b *bindings) reconcile(ctx context.Context) error {
	pairs, _, err := b.cfg.Consul().KV().List(kvkey.Bindings, (&consulapi.QueryOptions{RequireConsistent: true}).WithContext(ctx))
	if err != nil {
		return fmt.Errorf("read which Nomad node each node is from Consul: %w", err)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	there := map[fabric.NodeID]fabric.Signed{}
	var errs []error
	for _, kv := range pairs {
		id, err := kvkey.ParseBinding(kv.Key)
		var signed fabric.Signed
		if err == nil {
			err = json.Unmarshal(kv.Value, &signed)
		}
		if err == nil {
			err = b.take(fabric.NodeID(id).String(), signed)
		}
		if err != nil {
			b.log.Warn("binding in Consul refused", logkey.Key, kv.Key, logkey.Error, err)
			if _, known := b.bound[fabric.NodeID(id)]; !known && b.cfg.fence.open() {
				_, err := b.cfg.fence.remove(ctx, b.cfg.Consul(), kv.Key, kv.ModifyIndex)
				errs = append(errs, err)
			}
			continue
		}
		there[fabric.NodeID(id)] = signed
	}
	for id, n := range b.bound {
		if b.cfg.fence.open() && (!bytes.Equal(there[id].Payload, n.signed.Payload) || signedAgain(there[id], n.signed)) {
			errs = append(errs, b.publish(ctx, n))
		}
	}
	b.trouble["disk"] = b.save()
	return errors.Join(errs...)
}

// keep reconciles until ctx ends.
func (b *bindings) keep(ctx context.Context) error {
	for retry.Sleep(ctx, bindingsInterval) {
		err := b.reconcile(ctx)
		if ctx.Err() != nil {
			return nil
		}
		b.mu.Lock()
		b.trouble["consul"] = err
		b.mu.Unlock()
	}
	return nil
}

// save stores the bindings on disk. The caller holds b.mu.
func (b *bindings) save() error {
	all := make(map[string]fabric.Signed, len(b.bound))
	for id, n := range b.bound {
		all[id.String()] = n.signed
	}
	return b.file.Update(all)
}

// publish writes a binding to Consul, whatever is there.
func (b *bindings) publish(ctx context.Context, n binding) error {
	value, err := json.Marshal(n.signed)
	if err != nil {
		return fmt.Errorf("encode the binding of node %s: %w", n.Node, err)
	}
	_, err = b.cfg.fence.replace(ctx, b.cfg.Consul(), kvkey.Binding(n.Node).String(), value)
	return err
}

// of returns the binding of a node, which is zero if it has none.
func (b *bindings) of(id fabric.NodeID) fabric.NomadNode {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.bound[id].NomadNode
}

// check refuses an allocation that is on another machine than the node. A node that is not bound
// yet is bound to the machine if that has the node's address.
func (b *bindings) check(ctx context.Context, node fabric.Node, allocation string, m Machine) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	bound, ok := b.bound[node.ID()]
	if ok && bound.ID == m.ID {
		return nil
	}
	refuse := func(format string, args ...any) error {
		return api.Errorf(http.StatusForbidden, api.CodeNotPlaced, "allocation %s was not placed on node %s: Nomad placed it on Nomad node %s%s",
			allocation, node.ID(), m, fmt.Sprintf(format, args...))
	}
	if ok {
		return refuse(", but node %s is Nomad node %s; if its Nomad client was set up again, run `sif node bind %s`", node.ID(), bound.ID, node.ID())
	}
	if err := b.fits(node, m); err != nil {
		return refuse(": %v", err)
	}
	return b.set(ctx, node.ID(), m)
}

// fits returns an error if the machine cannot be the node. The caller holds b.mu.
func (b *bindings) fits(node fabric.Node, m Machine) error {
	for id, other := range b.bound {
		if id != node.ID() && other.ID == m.ID {
			return fmt.Errorf("Nomad node %s is node %s of the fabric already; `sif node remove %s` frees it", m.ID, id, id)
		}
	}
	if !slices.Contains(m.Addresses, node.Underlay) {
		return fmt.Errorf("its addresses are %v, but the address of node %s is %s; if it is the same machine, run `sif node bind -nomad-node=%s %s`",
			m.Addresses, node.ID(), node.Underlay, m.ID, node.ID())
	}
	return nil
}

// set binds a node to a machine. The caller holds b.mu.
func (b *bindings) set(ctx context.Context, id fabric.NodeID, m Machine) error {
	n := binding{NomadNode: fabric.NomadNode{Fabric: b.cfg.Fabric, Node: id, ID: m.ID, Issued: clock.Now().Truncate(time.Millisecond)}}
	if before, ok := b.bound[id]; ok && !n.Issued.After(before.Issued) { // the clock was set back
		n.Issued = before.Issued.Add(time.Millisecond)
	}
	if t, ended := b.removed().Ends(id, n.Issued); ended {
		n.Issued = t.Removed.Add(time.Millisecond)
	}
	payload, err := json.Marshal(n.NomadNode)
	if err != nil {
		return fmt.Errorf("encode the binding of node %s: %w", id, err)
	}
	if n.signed, err = b.cfg.Signer.Sign(ctx, fabric.KindNomadNode, payload); err != nil {
		return unavailable("%v", err)
	}
	// Once it is in Consul, a caller that gives up must not keep it from being in force.
	if err := b.publish(context.WithoutCancel(ctx), n); err != nil {
		return err
	}
	b.bound[id] = n
	delete(b.claims, id)
	b.trouble["disk"] = b.save()
	b.log.Info("node bound to its Nomad node", logkey.Node, id, logkey.Machine, m.String())
	return nil
}

// claim binds a node that registers to the Nomad node that it says it is, if it has none and Nomad
// agrees. What does not agree is reported, and keeps no node from registering.
func (b *bindings) claim(ctx context.Context, node fabric.Node, id string) {
	bound := b.of(node.ID())
	if id == "" || bound.ID == id {
		b.object(node.ID(), nil)
		return
	}
	m, err := b.cfg.Scheduler.Machine(ctx, id)
	b.mu.Lock()
	defer b.mu.Unlock()
	switch {
	case err != nil && !errors.Is(err, ErrNoMachine):
		b.log.Warn("cannot ask Nomad which node it is", logkey.Node, node.ID(), logkey.Error, err)
		return
	case bound.ID != "" && (err != nil || m.Down): // what the node was before
		err = nil
	case err != nil:
		err = errors.New("it is unknown to Nomad's servers")
	case bound.ID != "":
		err = fmt.Errorf("but it is bound to Nomad node %s; if its Nomad client was set up again, run `sif node bind %s`", bound.ID, node.ID())
	default:
		if err = b.fits(node, m); err == nil {
			err = b.set(ctx, node.ID(), m)
		}
	}
	b.objectLocked(node.ID(), err, id)
}

func (b *bindings) object(id fabric.NodeID, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.objectLocked(id, err, "")
}

// objectLocked notes what is wrong with the Nomad node that a node says it is. The caller holds
// b.mu.
func (b *bindings) objectLocked(id fabric.NodeID, err error, nomad string) {
	if err == nil {
		delete(b.claims, id)
		return
	}
	b.claims[id] = fmt.Sprintf("node %s says that it is Nomad node %s: %v", id, nomad, err)
	b.log.Warn("node is not bound to the Nomad node that it names", logkey.Node, id, logkey.Error, err)
}

// bind binds a node to a Nomad node, whichever it had before. Without an ID it is the one with the
// node's address.
func (b *bindings) bind(ctx context.Context, node fabric.Node, id string) (api.BindReply, error) {
	m, err := b.find(ctx, node, id)
	if err != nil {
		return api.BindReply{}, err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	for other, n := range b.bound {
		if other != node.ID() && n.ID == m.ID {
			return api.BindReply{}, conflict("Nomad node %s is node %s of the fabric; remove that node first, or bind it to another Nomad node", m, other)
		}
	}
	before := b.bound[node.ID()].ID
	if before != m.ID {
		if err := b.set(ctx, node.ID(), m); err != nil {
			return api.BindReply{}, err
		}
	}
	return api.BindReply{Node: node.ID(), NomadNode: m.ID, Name: m.Name, Datacenter: m.Datacenter, Before: before}, nil
}

// find returns the Nomad node with an ID, or the only one at the node's address.
func (b *bindings) find(ctx context.Context, node fabric.Node, id string) (Machine, error) {
	if id != "" {
		m, err := b.cfg.Scheduler.Machine(ctx, id)
		if errors.Is(err, ErrNoMachine) {
			return m, api.Errorf(http.StatusNotFound, api.CodeNotFound, "Nomad knows no node with the ID %q; `nomad node status -verbose` lists the whole IDs", id)
		}
		if err != nil {
			return m, api.Errorf(http.StatusServiceUnavailable, api.CodeNomad, "%v", err)
		}
		return m, nil
	}
	list, err := b.cfg.Scheduler.MachinesAt(ctx, node.Underlay)
	if err != nil {
		return Machine{}, api.Errorf(http.StatusServiceUnavailable, api.CodeNomad, "%v", err)
	}
	if up := slices.DeleteFunc(slices.Clone(list), func(m Machine) bool { return m.Down }); len(up) > 0 {
		list = up // the one that was there before is down
	}
	var texts []string
	for _, m := range list {
		texts = append(texts, m.String())
	}
	switch len(list) {
	case 0:
		return Machine{}, api.Errorf(http.StatusNotFound, api.CodeNotFound,
			"Nomad has no node with the address %s of node %s; is its Nomad client running? If it has another address, name it: -nomad-node=<ID>", node.Underlay, node.ID())
	case 1:
		return list[0], nil
	}
	return Machine{}, conflict("Nomad has several nodes with the address %s of node %s: %s; name one: -nomad-node=<ID>", node.Underlay, node.ID(), strings.Join(texts, ", "))
}

// unbind forgets the Nomad node of a node that was removed.
func (b *bindings) unbind(ctx context.Context, id fabric.NodeID) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.claims, id)
	if n, ok := b.bound[id]; ok {
		if _, ended := b.removed().Ends(id, n.Issued); !ended {
			return nil // it has come back
		}
		delete(b.bound, id)
		b.trouble["disk"] = b.save()
	}
	key := kvkey.Binding(id).String()
	if err := b.cfg.fence.removeAny(ctx, b.cfg.Consul(), key); err != nil {
		return fmt.Errorf("delete %s from Consul: %w", key, err)
	}
	return nil
}

// degraded returns what is wrong with the bindings, for people.
func (b *bindings) degraded() []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	list := slices.Sorted(maps.Values(b.claims))
	for _, what := range slices.Sorted(maps.Keys(b.trouble)) {
		if err := b.trouble[what]; err != nil {
			list = append(list, err.Error())
		}
	}
	return list
}
