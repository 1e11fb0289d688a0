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
	"sync"
	"time"

	consulapi "github.com/hashicorp/consul/api"

	"github.com/sif-project/sif/api"
	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/internal/kvkey"
	"github.com/sif-project/sif/internal/logkey"
	"github.com/sif-project/sif/internal/retry"
	"github.com/sif-project/sif/internal/trust/identity"
	"github.com/sif-project/sif/internal/trust/revision"
)

const (
	// resignInterval is how often a controller looks which version of the fabric's key signs, and
	// the leader what older ones have signed.
	resignInterval = 2 * time.Second
	// renewedWithin is how long the leader leaves admissions in force to their nodes, which renew
	// them when another version signs.
	renewedWithin = 3 * time.Minute
)

// What a controller records of itself: that another version of the fabric's key signs, and that
// older ones do not count any more.
const actionSign, actionRetire = "key.sign", "key.retire"

// resigner has signed again what older versions of the fabric's key have signed than the one that
// signs, with the same content, so that the older ones can be retired. What is to be done follows
// from what is there: the next leader goes on where one stopped.
type resigner struct {
	c *Controller

	mu      sync.Mutex
	signs   int         // as it was last seen
	lowest  int         // version that counts, likewise
	since   time.Time   // when the leader began with it
	heads   map[int]int // ends of audit logs, by the version that signed them
	trouble error
}

// watch records changes of the version that signs, and of the lowest one that counts, until ctx
// ends, whoever leads.
func (r *resigner) watch(ctx context.Context) error {
	for {
		signs, lowest := r.c.cfg.Identity.Signing(), r.c.cfg.Identity.Keys().Min
		r.mu.Lock()
		other, retired := r.signs != 0 && signs != r.signs, r.lowest != 0 && lowest > r.lowest
		if other || r.signs == 0 {
			r.since = time.Now()
		}
		r.signs, r.lowest = signs, lowest
		r.mu.Unlock()
		if other {
			r.record(actionSign, fmt.Sprintf("version %d of the fabric's key signs", signs))
		}
		if retired {
			r.record(actionRetire, fmt.Sprintf("version %d of the fabric's key is the lowest one that counts", lowest))
		}
		if !retry.Sleep(ctx, resignInterval) {
			return nil
		}
	}
}

func (r *resigner) record(action, message string) {
	r.c.log.Info(message)
	if err := r.c.audit.write(auditEntry{Actor: actorSelf, Remote: r.c.cfg.Address, Action: action, Target: r.c.peers.id, Message: message}); err != nil {
		r.c.disk.failed(err)
	}
}

// run has the leader sign again until ctx ends.
func (r *resigner) run(ctx context.Context) error {
	for retry.Sleep(ctx, resignInterval) {
		err := r.pass(ctx)
		if ctx.Err() != nil {
			return nil
		}
		r.mu.Lock()
		if err != nil && (r.trouble == nil || r.trouble.Error() != err.Error()) {
			r.c.log.Warn("cannot have everything signed again, retrying", logkey.Error, err)
		}
		r.trouble = err
		r.mu.Unlock()
	}
	return nil
}

// degraded returns what is wrong, for people.
func (r *resigner) degraded() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.trouble == nil {
		return nil
	}
	return []string{fmt.Sprintf("what an older version of the fabric's key has signed cannot be signed again: %v", r.trouble)}
}

// pass has signed again what older versions have signed than the one that signs.
func (r *resigner) pass(ctx context.Context) error {
	version := r.c.cfg.Identity.Signing()
	if version < 2 {
		return nil // there is no older one
	}
	r.mu.Lock()
	patient := time.Since(r.since) < renewedWithin
	known, looked := r.heads, r.heads != nil
	r.mu.Unlock()
	errs := []error{
		r.c.policy.resign(ctx, version),
		r.c.nodes.resign(ctx, version),
		r.c.bound.resign(ctx, version),
		r.c.admitter.resign(ctx, version, patient),
	}
	if !looked || older(known, version) > 0 {
		heads, err := r.resignHeads(ctx, version)
		errs = append(errs, err)
		r.mu.Lock()
		r.heads = heads
		r.mu.Unlock()
	}
	return errors.Join(errs...)
}

// older counts the statements that older versions than one have signed.
func older(counts map[int]int, version int) (n int) {
	for v, count := range counts {
		if v < version {
			n += count
		}
	}
	return n
}

// resignHeads has the ends of the audit logs of all controllers signed again, those included that
// are away. It returns how many of them each version has signed.
func (r *resigner) resignHeads(ctx context.Context, version int) (map[int]int, error) {
	cfg := r.c.cfg
	pairs, _, err := cfg.Consul().KV().List(kvkey.Audit, (&consulapi.QueryOptions{}).WithContext(ctx))
	if err != nil {
		return nil, fmt.Errorf("read the ends of the audit logs from Consul: %w", err)
	}
	counts := map[int]int{}
	var errs []error
	for _, kv := range pairs {
		id, err := kvkey.ParseAuditHead(kv.Key)
		if err != nil || kv.Key != kvkey.AuditHead(id) {
			continue
		}
		var signed fabric.Signed
		var head api.AuditHead
		if json.Unmarshal(kv.Value, &signed) != nil || cfg.Identity.Keys().Verify(signed, fabric.KindAudit, &head) != nil {
			continue // `sif audit verify` says so
		}
		if signed.Version < version {
			next, err := cfg.Signer.Sign(ctx, fabric.KindAudit, signed.Payload)
			var value []byte
			if err == nil {
				value, err = json.Marshal(next)
			}
			wrote := false
			if err == nil {
				_, wrote, err = cfg.fence.checkAndSet(ctx, cfg.Consul(), kv.Key, value, kv.ModifyIndex)
			}
			if err != nil {
				errs = append(errs, fmt.Errorf("the end of the audit log of controller %s: %w", id, err))
			} else if wrote { // otherwise its controller has written a newer one
				signed = next
			}
		}
		counts[signed.Version]++
	}
	return counts, errors.Join(errs...)
}

// resign has the pointer signed again. It is only done with the pointer that is in Consul.
func (p *policy) resign(ctx context.Context, version int) error {
	if s := p.current.Load(); s.pointer.Sequence == 0 || s.signed.Version >= version {
		return nil
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	index, err := p.examine(ctx)
	current := p.current.Load()
	if err != nil || index == 0 || current.pointer.Sequence == 0 || current.signed.Version >= version {
		return err
	}
	signed, err := p.signer.Sign(ctx, fabric.KindPointer, current.signed.Payload)
	if err != nil {
		return err
	}
	var verified fabric.Pointer
	if err := p.keys().Verify(signed, fabric.KindPointer, &verified); err != nil { // nodes would refuse it too
		return fmt.Errorf("verify the pointer that Vault signed again: %w", err)
	}
	ctx = context.WithoutCancel(ctx) // see publish
	if err := revision.NewWriter(p.consul(), p.transact).Publish(ctx, fabric.Revision{Root: current.pointer.Root}, signed, index); err != nil {
		if errors.Is(err, revision.ErrConflict) {
			return nil // another one is in force, or the next pass does it
		}
		return unwritten(err, "write the pointer that was signed again")
	}
	p.again(signed)
	return nil
}

// again takes the signature of a newer key of the pointer in force. The caller holds p.mu.
func (p *policy) again(signed fabric.Signed) {
	next := *p.current.Load()
	next.signed = signed
	p.current.Store(&next)
	p.remember(signed, nil)
	p.log.Info("the revision in force is signed with another version of the fabric's key", logkey.Revision, next.pointer.Sequence)
}

// resign has the records of nodes and the assignments of pools signed again.
func (r *registry) resign(ctx context.Context, version int) error {
	r.mu.Lock()
	var nodes []fabric.NodeID
	var pools []int
	for id, m := range r.members {
		if m.record.Node.Version < version {
			nodes = append(nodes, id)
		}
	}
	for n, a := range r.pools {
		if a.signed.Version < version && !a.pool.Node.IsZero() {
			pools = append(pools, n)
		}
	}
	r.mu.Unlock()
	var errs []error
	for _, id := range nodes { // calls of nodes come between
		errs = append(errs, r.resignNode(ctx, id, version))
	}
	for _, n := range pools {
		errs = append(errs, r.resignPool(ctx, n, version))
	}
	if len(nodes) > 0 {
		r.mu.Lock()
		r.save()
		r.mu.Unlock()
	}
	return errors.Join(errs...)
}

func (r *registry) resignNode(ctx context.Context, id fabric.NodeID, version int) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	m := r.members[id]
	if m == nil || m.record.Node.Version >= version {
		return nil
	}
	next := *m
	var err error
	if next.record.Node, err = r.cfg.Signer.Sign(ctx, fabric.KindNode, m.record.Node.Payload); err != nil {
		return err
	}
	if next.index, err = r.write(ctx, next.node, next.record); err != nil {
		return fmt.Errorf("the record of node %s: %w", id, err)
	}
	r.members[id] = &next
	return nil
}

func (r *registry) resignPool(ctx context.Context, n, version int) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	a, assigned := r.pools[n]
	if !assigned || a.signed.Version >= version || a.pool.Node.IsZero() {
		return nil
	}
	signed, err := r.cfg.Signer.Sign(ctx, fabric.KindPool, a.signed.Payload)
	if err != nil {
		return err
	}
	value, err := json.Marshal(signed)
	if err != nil {
		return fmt.Errorf("encode the assignment of pool %s: %w", a.pool.Pool4, err)
	}
	index, ok, err := r.cfg.fence.checkAndSet(ctx, r.cfg.Consul(), kvkey.Pool(n).String(), value, a.index)
	if err != nil {
		return unwritten(err, "write the assignment of pool %s to Consul", a.pool.Pool4)
	}
	if !ok { // it was altered in Consul
		return r.reread(ctx, n)
	}
	r.pools[n] = assignment{pool: a.pool, signed: signed, index: index}
	return nil
}

// resign has the bindings signed again.
func (b *bindings) resign(ctx context.Context, version int) error {
	b.mu.Lock()
	var nodes []fabric.NodeID
	for id, n := range b.bound {
		if n.signed.Version < version {
			nodes = append(nodes, id)
		}
	}
	b.mu.Unlock()
	var errs []error
	for _, id := range nodes { // calls of nodes come between
		if err := b.resignNode(ctx, id, version); err != nil {
			errs = append(errs, fmt.Errorf("the binding of node %s: %w", id, err))
		}
	}
	if len(nodes) > 0 {
		b.mu.Lock()
		b.trouble["disk"] = b.save()
		b.mu.Unlock()
	}
	return errors.Join(errs...)
}

func (b *bindings) resignNode(ctx context.Context, id fabric.NodeID, version int) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	n, bound := b.bound[id]
	if !bound || n.signed.Version >= version {
		return nil
	}
	var err error
	if n.signed, err = b.cfg.Signer.Sign(ctx, fabric.KindNomadNode, n.signed.Payload); err != nil {
		return err
	}
	if err := b.publish(ctx, n); err != nil {
		return err
	}
	b.bound[id] = n
	return nil
}

// resign has the admissions signed again that the controller keeps. patient leaves those in force
// to their nodes.
func (a *admitter) resign(ctx context.Context, version int, patient bool) error {
	now := a.table.now()
	var errs []error
	for _, id := range a.table.signedBefore(version) {
		errs = append(errs, func() error {
			defer a.endpoints.Lock(id.Endpoint)()
			g := a.table.get(id)
			if g == nil || g.Signed.Version >= version || g.over(now) || patient && g.live(now) || !a.cfg.Identity.Keys().Accepts(g.Signed.Version) {
				return nil
			}
			next := *g
			var err error
			if next.Signed, err = a.cfg.Signer.Sign(ctx, fabric.KindAdmission, g.Signed.Payload); err != nil {
				return err
			}
			return a.table.put(ctx, id, &next)
		}())
		if ctx.Err() != nil {
			break
		}
	}
	return errors.Join(errs...)
}

// signedBefore returns the endpoints whose grant an older version of the fabric's key has signed.
func (t *table) signedBefore(version int) (list []kvkey.Admission) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for id, g := range t.grants {
		if g.Signed.Version < version {
			list = append(list, id)
		}
	}
	return list
}

// statements counts what this controller relies on by the version of the fabric's key that signed
// it.
func (c *Controller) statements() map[int]int {
	counts := map[int]int{}
	if s := c.policy.current.Load(); s.pointer.Sequence > 0 {
		counts[s.signed.Version]++
	}
	c.nodes.mu.Lock()
	for _, m := range c.nodes.members {
		counts[m.record.Node.Version]++
	}
	for _, a := range c.nodes.pools {
		if !a.pool.Node.IsZero() {
			counts[a.signed.Version]++
		}
	}
	c.nodes.mu.Unlock()
	c.bound.mu.Lock()
	for _, n := range c.bound.bound {
		counts[n.signed.Version]++
	}
	c.bound.mu.Unlock()
	now := c.table.now()
	c.table.mu.Lock()
	for _, g := range c.table.grants {
		if !g.over(now) {
			counts[g.Signed.Version]++
		}
	}
	c.table.mu.Unlock()
	if list := c.removal.list.Signed(); len(list.Payload) > 0 {
		counts[list.Version]++
	}
	c.resigner.mu.Lock()
	for v, n := range c.resigner.heads {
		counts[v] += n
	}
	c.resigner.mu.Unlock()
	return counts
}

// authorities is what this controller has of the fabric's authorities and keys.
func (c *Controller) authorities() *api.AuthorityStatus {
	keys := c.cfg.Identity.Keys()
	return &api.AuthorityStatus{
		Trusted: c.cfg.Identity.Authorities(), Issued: map[string]int{identity.IssuedBy(c.cfg.Identity.Certificate().Leaf): 1},
		Keys: keys.Accepted(), Lowest: keys.Min, Statements: c.statements(),
	}
}

// signedAgain reports whether two signed statements have the same content, and the second one has
// the signature of a newer key.
func signedAgain(was, now fabric.Signed) bool {
	return bytes.Equal(was.Payload, now.Payload) && was.Version < now.Version
}

// tokens knows until when the tokens of applications live that this controller had signed with each
// key. It is safe for concurrent use.
type tokens struct {
	began time.Time // those of an earlier process live no longer than from then on

	mu    sync.Mutex
	until map[string]time.Time // by the ID of the key
}

// signed notes that a token was signed with a key.
func (t *tokens) signed(id string, until time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if until.After(t.until[id]) {
		t.until[id] = until
	}
}

// left returns for how long tokens still live, by the ID of the key. "" are those of other keys.
func (t *tokens) left(now time.Time) map[string]time.Duration {
	t.mu.Lock()
	defer t.mu.Unlock()
	maps.DeleteFunc(t.until, func(_ string, until time.Time) bool { return !now.Before(until) })
	list := map[string]time.Duration{}
	for id, until := range t.until {
		list[id] = until.Sub(now)
	}
	if earlier := t.began.Add(fabric.JWTSVIDLife).Sub(now); earlier > 0 {
		list[""] = earlier
	}
	return list
}
