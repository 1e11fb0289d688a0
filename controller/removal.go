// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package controller

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
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
	"github.com/sif-project/sif/internal/trust/revocation"
)

// removalInterval is how often the leader compares the list in Consul with its own, and what is
// stored about nodes with the list.
const removalInterval = 5 * time.Second

// removal removes nodes, revokes services, endpoints and certificates, and keeps them so. The list
// that is in force is the newest one on the disk of this controller, in Consul, or in the hands of
// a node: whoever writes Consul, or restores a snapshot of it, cannot undo anything of it.
type removal struct {
	cfg     Config
	list    *revocation.Watcher
	nodes   *registry
	table   *table
	reports *reports
	bound   *bindings
	log     hclog.Logger

	signing sync.Mutex // held while a list is made, signed and published

	mu      sync.Mutex
	trouble error // of the last comparison
}

func newRemoval(c *Controller, list *revocation.Watcher) *removal {
	return &removal{
		cfg: c.cfg, list: list, nodes: c.nodes, table: c.table, reports: c.reports, bound: c.bound,
		log: c.cfg.Log.Named("removal"),
	}
}

// remove signs a tombstone for a node as it is now. It is answered when the list is in force here.
// leading says that this controller leads, so that it knows all nodes.
func (r *removal) remove(ctx context.Context, id fabric.NodeID, reason string, leading bool) (api.Removal, error) {
	r.signing.Lock()
	defer r.signing.Unlock()
	m, ok := r.nodes.member(id)
	switch {
	case !ok && leading:
		return api.Removal{}, r.nodes.unknown(id)
	case !ok: // a controller that does not lead may not know it; the name and the time are enough
		m = member{node: fabric.Node{Zone: id.Zone, Name: id.Name}}
	}
	now := clock.Now().Truncate(time.Millisecond)
	t := fabric.Tombstone{Node: id, Key: m.link.PublicKey, Pool4: m.node.Pool4, Pool6: m.node.Pool6, Removed: now, Reason: reason}
	if t.Removed.Before(m.node.Issued) { // the clock was set back
		t.Removed = m.node.Issued
	}
	endpoints := r.table.liveOn(id)
	next := r.list.List().With(now, fabric.Revocations{Tombstones: []fabric.Tombstone{t}})
	unstored, err := r.publish(ctx, next)
	if err != nil {
		return api.Removal{}, err
	}
	r.tidy(ctx)
	r.log.Info("node removed", logkey.Node, id, logkey.Revision, next.Sequence)
	return api.Removal{Tombstone: t, Endpoints: endpoints, Sequence: next.Sequence, Rests: t.Removed.Add(restTime), Unstored: unstored}, nil
}

// storeTimeout bounds how long a call waits for Consul after the list is in force: what it has not
// stored or cleaned up by then, it does later.
const storeTimeout = time.Second

// publish signs a list, puts it in force, by which nodes that wait for it get it, and writes it to
// Consul. It returns why the latter could not be done now. The caller holds r.signing.
func (r *removal) publish(ctx context.Context, list fabric.Revocations) (unstored string, err error) {
	list.Fabric = r.cfg.Fabric
	if err := list.Check(r.cfg.Fabric); err != nil {
		return "", conflict("the list of removals and revocations would not be valid: %v; removals and revoked certificates are kept for %s, and what is reinstated for as long after that", err, fabric.TombstoneLife)
	}
	payload, err := json.Marshal(list)
	if err != nil {
		return "", fmt.Errorf("encode the list of removals and revocations: %w", err)
	}
	if most := maxList * 3 / 4; len(payload) > most {
		return "", conflict("the list of removals and revocations would have %d bytes, at most %d are stored: give shorter reasons, or reinstate endpoints that have ended", len(payload), most)
	}
	signed, err := r.cfg.Signer.Sign(ctx, fabric.KindRevocations, payload)
	if err != nil {
		return "", unavailable("nothing was revoked, because it cannot be signed: %v; what an operator can do until Vault is back: docs/operations.md, \"Revoking while Vault is away\"", err)
	}
	// Once it is signed, a caller that gives up must not keep it from being in force.
	if err := r.list.Offer(signed); err != nil {
		return "", err
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), storeTimeout)
	defer cancel()
	if err := r.write(ctx, signed); err != nil {
		r.log.Warn("the list of removals and revocations is in force but not in Consul yet, retrying", logkey.Revision, list.Sequence, logkey.Error, err)
		return err.Error(), nil
	}
	return "", nil
}

// maxList is the largest value of Consul, of which base64 leaves three quarters.
const maxList = 500 << 10

// tidy ends everything of what the list names. What cannot be ended now is ended later: the list is
// in force without it.
func (r *removal) tidy(ctx context.Context) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), storeTimeout)
	defer cancel()
	if err := r.enforce(ctx); err != nil {
		r.log.Warn("cannot delete everything of what was removed or revoked, retrying", logkey.Error, err)
	}
}

// write stores a list in Consul, unless a newer one is there. It is not fenced: every controller
// may revoke while none leads, lists are signed and only grow, and what two of them lack of each
// other is put together.
func (r *removal) write(ctx context.Context, signed fabric.Signed) error {
	value, err := json.Marshal(signed)
	if err != nil {
		return fmt.Errorf("encode the list of removals and revocations: %w", err)
	}
	var ours fabric.Revocations
	if err := json.Unmarshal(signed.Payload, &ours); err != nil {
		return fmt.Errorf("decode the list of removals and revocations: %w", err)
	}
	for range replaceAttempts {
		old, _, err := r.cfg.Consul().KV().Get(kvkey.Revocations, (&consulapi.QueryOptions{}).WithContext(ctx))
		if err != nil {
			return unavailable("list of removals and revocations: read %s from Consul: %v", kvkey.Revocations, err)
		}
		next := &consulapi.KVPair{Key: kvkey.Revocations, Value: value}
		if old != nil {
			var stored fabric.Signed
			if json.Unmarshal(old.Value, &stored) == nil {
				if theirs, err := r.list.Verify(stored); err == nil && theirs.Sequence > ours.Sequence {
					return nil // what it lacks is put together with it at the next comparison
				}
			}
			next.ModifyIndex = old.ModifyIndex
		}
		ok, _, err := r.cfg.Consul().KV().CAS(next, (&consulapi.WriteOptions{}).WithContext(ctx))
		if err != nil {
			return unavailable("list of removals and revocations: write %s to Consul: %v", kvkey.Revocations, err)
		}
		if ok {
			return nil
		}
	}
	return conflict("list of removals and revocations: %s in Consul was changed %d times meanwhile", kvkey.Revocations, replaceAttempts)
}

// consider takes a signed list that is in Consul or that a node holds. If it and the list in force
// each have a tombstone that the other lacks, a list with both is signed.
func (r *removal) consider(ctx context.Context, signed fabric.Signed) error {
	theirs, err := r.list.Verify(signed)
	if err != nil {
		return err
	}
	r.signing.Lock()
	defer r.signing.Unlock()
	ours, now := r.list.List(), clock.Now()
	switch err := r.list.Offer(signed); {
	case err == nil:
		return nil
	case errors.Is(err, revocation.ErrOlder) && ours.Covers(theirs, now) && ours.Sequence > theirs.Sequence:
		return nil
	case errors.Is(err, revocation.ErrOlder), errors.Is(err, revocation.ErrLacks):
		r.log.Warn("two lists of removals and revocations lack entries of each other, signing one with all", logkey.Revision, max(ours.Sequence, theirs.Sequence)+1)
		_, err := r.publish(ctx, ours.With(now, theirs))
		return err
	default:
		return err
	}
}

// reconcile compares the list in Consul with the one in force, and what is stored about nodes with
// the list, and repairs what differs.
func (r *removal) reconcile(ctx context.Context) error {
	stored, err := r.stored(ctx)
	if err != nil {
		return err
	}
	var errs []error
	if ours := r.list.Signed(); len(ours.Payload) > 0 {
		errs = append(errs, r.renew(ctx))
		if ours = r.list.Signed(); !bytes.Equal(ours.Payload, stored.Payload) || ours.Version != stored.Version {
			errs = append(errs, r.write(ctx, ours))
		}
	}
	return errors.Join(append(errs, r.enforce(ctx))...)
}

// stored takes the list in Consul, and returns it.
func (r *removal) stored(ctx context.Context) (stored fabric.Signed, err error) {
	pair, _, err := r.cfg.Consul().KV().Get(kvkey.Revocations, (&consulapi.QueryOptions{}).WithContext(ctx))
	if err != nil {
		return stored, fmt.Errorf("read the list of removals and revocations from Consul: %w", err)
	}
	if pair != nil && json.Unmarshal(pair.Value, &stored) == nil {
		if err := r.consider(ctx, stored); err != nil {
			r.log.Warn("the list of removals and revocations in Consul is refused", logkey.Error, err)
		}
	}
	return stored, nil
}

// follow stores the list of a controller that does not lead until ctx ends: it may have revoked
// while nobody led, because Consul was away.
func (r *removal) follow(ctx context.Context, leading func() bool) error {
	for retry.Sleep(ctx, removalInterval) {
		if leading() || r.list.List().Sequence == 0 {
			continue
		}
		asking, cancel := context.WithTimeout(ctx, removalInterval)
		stored, err := r.stored(asking)
		if theirs, invalid := r.list.Verify(stored); err == nil && (invalid != nil || theirs.Sequence < r.list.List().Sequence) {
			err = r.write(asking, r.list.Signed())
		}
		cancel()
		if err != nil && ctx.Err() == nil {
			r.log.Debug("cannot compare the list of removals and revocations with Consul", logkey.Error, err)
		}
	}
	return nil
}

// renew signs the list again when a newer version of the fabric's key signs, so that it stays valid
// when the older one is retired.
func (r *removal) renew(ctx context.Context) error {
	r.signing.Lock()
	defer r.signing.Unlock()
	ours := r.list.Signed()
	if r.cfg.Identity.Signing() <= ours.Version {
		return nil
	}
	signed, err := r.cfg.Signer.Sign(ctx, fabric.KindRevocations, ours.Payload)
	if err != nil {
		return fmt.Errorf("sign the list of removed nodes again: %w", err)
	}
	return r.list.Offer(signed)
}

// enforce ends everything of removed nodes: their records, pools and bindings, their admissions and
// their reports; and the admissions of what is revoked. It repeats what failed, and does nothing
// otherwise.
func (r *removal) enforce(ctx context.Context) error {
	list := r.list.List()
	if len(list.Tombstones) == 0 {
		return r.table.releaseEnded(ctx, list)
	}
	gone, err := r.nodes.purge(ctx, list)
	errs := []error{err}
	for _, id := range gone {
		r.reports.drop(id)
		errs = append(errs, r.bound.unbind(ctx, id))
	}
	return errors.Join(append(errs, r.table.releaseEnded(ctx, list))...)
}

// keep reconciles until ctx ends.
func (r *removal) keep(ctx context.Context) error {
	tick := time.NewTicker(removalInterval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		err := r.reconcile(ctx)
		if ctx.Err() != nil {
			return nil
		}
		r.mu.Lock()
		if err != nil && (r.trouble == nil || r.trouble.Error() != err.Error()) {
			r.log.Warn("cannot clean up after removals, retrying", logkey.Error, err)
		}
		r.trouble = err
		r.mu.Unlock()
	}
}

// degraded returns what is wrong with the list, for people.
func (r *removal) degraded() []string {
	list := r.list.Degraded()
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.trouble != nil {
		list = append(list, fmt.Sprintf("cannot clean up after removals: %v", r.trouble))
	}
	return list
}

func (c *Controller) getNodes(_ context.Context, r request) (any, error) {
	if err := r.operator.mayReadAll("list the nodes"); err != nil {
		return nil, err
	}
	reply := api.NodeList{Nodes: []api.NodeInfo{}, Removed: c.removal.list.List().Tombstones}
	for _, n := range c.nodes.all() {
		m, ok := c.nodes.member(n.ID())
		if !ok {
			continue // removed meanwhile
		}
		info := api.NodeInfo{Node: m.node, PublicKey: m.link.PublicKey, Endpoints: c.table.liveOn(n.ID()), NomadNode: c.bound.of(n.ID()).ID}
		for _, report := range c.reports.of(n) {
			if !report.Reported.Before(info.Reported) { // the newest of its daemons
				info.Version, info.Reported = report.Version, report.Reported
			}
		}
		reply.Nodes = append(reply.Nodes, info)
	}
	return reply, nil
}

func (c *Controller) deleteNode(ctx context.Context, r request) (any, error) {
	id, err := operatedNode(r, "remove nodes")
	if err != nil {
		return nil, err
	}
	c.intendRemoval(r)
	return c.removal.remove(ctx, id, r.entry.Message, c.leads())
}

// putRevocations takes the list of removals and revocations that a node holds, when it is not the
// one of this controller.
func (c *Controller) putRevocations(ctx context.Context, r request) (any, error) {
	signed, err := decode[fabric.Signed](r)
	if err != nil {
		return nil, err
	}
	if err := c.removal.consider(ctx, signed); err != nil {
		var refused *api.Error
		if errors.As(err, &refused) {
			return nil, err
		}
		return nil, invalid("the list of removals and revocations that node %s holds is refused: %v", r.node.NodeID, err)
	}
	c.removal.tidy(ctx)
	return nil, nil
}

// unknown refuses a name that no node has.
func (r *registry) unknown(id fabric.NodeID) error {
	var names []string
	for _, n := range r.all() {
		names = append(names, n.ID().String())
	}
	near := fabric.Nearest(id.String(), names)
	if near != "" {
		near = fmt.Sprintf("; did you mean %q?", near)
	}
	if t, ended := r.removed().Ends(id, time.Time{}); ended {
		near = fmt.Sprintf(": %s", t)
	}
	return api.Errorf(http.StatusNotFound, api.CodeNotFound, "there is no node %q%s; `sif node list` lists the nodes", id, near)
}

// purge forgets the nodes that were removed, and deletes from Consul what is stored about them: a
// record that was put back, too. It returns the nodes of which something was there.
func (r *registry) purge(ctx context.Context, removed fabric.Revocations) ([]fabric.NodeID, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	var gone []fabric.NodeID
	for id, m := range r.members {
		if _, ended := removed.EndsMember(m.node, m.link); ended {
			gone = append(gone, id)
			delete(r.members, id)
		}
	}
	slices.SortFunc(gone, fabric.CompareNodeIDs)
	if len(gone) > 0 {
		r.save()
	}
	errs := []error{r.freePools(ctx, removed)}
	keys, _, err := r.cfg.Consul().KV().Keys(kvkey.Nodes, "", (&consulapi.QueryOptions{}).WithContext(ctx))
	if err != nil {
		return gone, errors.Join(append(errs, fmt.Errorf("list the node records in Consul: %w", err))...)
	}
	for _, key := range keys {
		id, err := kvkey.ParseNode(key)
		if err != nil || r.members[fabric.NodeID(id)] != nil {
			continue
		}
		if _, ended := removed.Ends(fabric.NodeID(id), time.Time{}); !ended {
			continue
		}
		deleted, err := r.deleteEnded(ctx, key, removed)
		errs = append(errs, err)
		if deleted && !slices.Contains(gone, fabric.NodeID(id)) {
			gone = append(gone, fabric.NodeID(id))
		}
	}
	return gone, errors.Join(errs...)
}

// deleteEnded deletes the record of a removed node from Consul, and reports whether there was one.
func (r *registry) deleteEnded(ctx context.Context, key string, removed fabric.Revocations) (bool, error) {
	kv, _, err := r.cfg.Consul().KV().Get(key, (&consulapi.QueryOptions{}).WithContext(ctx))
	if err != nil {
		return false, fmt.Errorf("read %s from Consul: %w", key, err)
	}
	if kv == nil {
		return false, nil
	}
	if m, err := r.verify(kv); err == nil {
		if _, ended := removed.EndsMember(m.node, m.link); !ended {
			return false, nil // of a node that came back, by another controller
		}
	}
	deleted, err := r.cfg.fence.remove(ctx, r.cfg.Consul(), kv.Key, kv.ModifyIndex)
	if err != nil {
		return false, fmt.Errorf("delete %s from Consul: %w", key, err)
	}
	delete(r.refused, key)
	return deleted, nil
}
