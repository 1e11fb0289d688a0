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
	"github.com/sif-project/sif/internal/outage"
)

// sweepInterval is how often grants that are over are deleted.
const sweepInterval = time.Minute

// table contains the grants of all endpoints. With it, no address is given to two endpoints, and a
// node gets certificates only for services of which it has an endpoint. The table is stored in
// Consul.
type table struct {
	fabric string
	consul func() *consulapi.Client
	fence  *fence
	keys   func() fabric.KeySet
	log    hclog.Logger
	now    func() time.Time
	outage *outage.Outage
	node   func(fabric.NodeID) (fabric.Node, bool) // the record of a registered node

	mu      sync.Mutex
	grants  map[kvkey.Admission]*grant     // the grants are replaced, never changed
	claims  map[netip.Addr]kvkey.Admission // addresses of admissions that are being made
	refused []string                       // what is wrong with keys in Consul, for people
}

func newTable(cfg Config, node func(fabric.NodeID) (fabric.Node, bool)) *table {
	return &table{
		fabric: cfg.Fabric, consul: cfg.Consul, fence: cfg.fence, keys: cfg.Identity.Keys, log: cfg.Log.Named("table"), now: clock.Now, outage: cfg.Outage, node: node,
		grants: map[kvkey.Admission]*grant{}, claims: map[netip.Addr]kvkey.Admission{},
	}
}

// judged returns the time by which it is judged what has ended: in an outage, the time when that
// began, because nobody could renew anything since.
func (t *table) judged() time.Time {
	if began := t.outage.Began(); !began.IsZero() {
		return began
	}
	return t.now()
}

// honoured returns the number of admissions that would have ended but for an outage.
func (t *table) honoured() (n int) {
	now, judged := t.now(), t.judged()
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, g := range t.grants {
		if g.live(judged) && !g.live(now) {
			n++
		}
	}
	return n
}

// load reads the table from Consul. A grant that does not verify is left out and reported.
func (t *table) load(ctx context.Context) error {
	list, _, err := t.consul().KV().List(kvkey.Admissions, (&consulapi.QueryOptions{RequireConsistent: true}).WithContext(ctx))
	if err != nil {
		return fmt.Errorf("read the admissions from Consul: %w", err)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	known := t.grants
	t.grants, t.refused = map[kvkey.Admission]*grant{}, nil
	for _, kv := range list {
		if id, err := kvkey.ParseAdmission(kv.Key); err == nil && known[id].readAt(kv, t.keys()) {
			t.grants[id] = known[id]
			continue
		}
		id, g, err := t.verify(kv)
		if err != nil {
			t.refused = append(t.refused, fmt.Sprintf("%s: %v", kv.Key, err))
			t.log.Error("admission in Consul refused", logkey.Key, kv.Key, logkey.Error, err)
			continue
		}
		t.grants[id] = g
	}
	return nil
}

// readAt reports whether g was read from this value of Consul, and is signed by a key that counts.
func (g *grant) readAt(kv *consulapi.KVPair, keys fabric.KeySet) bool {
	return g != nil && g.index == kv.ModifyIndex && !g.unread && keys.Accepts(g.Signed.Version)
}

// verify decodes a grant from Consul. Its admission must be signed, and be the one of the key.
func (t *table) verify(kv *consulapi.KVPair) (kvkey.Admission, *grant, error) {
	id, err := kvkey.ParseAdmission(kv.Key)
	if err != nil {
		return id, nil, err
	}
	g := &grant{index: kv.ModifyIndex}
	if err := json.Unmarshal(kv.Value, g); err != nil {
		return id, nil, err
	}
	if err := t.keys().Verify(g.Signed, fabric.KindAdmission, &g.admission); err != nil {
		return id, nil, err
	}
	if a := g.admission; a.Fabric != t.fabric || a.Host() != id.Node || a.Endpoint != id.Endpoint {
		return id, nil, fmt.Errorf("it is the admission of endpoint %s on node %s in fabric %s", a.Endpoint, a.Host(), a.Fabric)
	}
	node, _ := t.node(id.Node)
	g.bound(t.now(), node)
	return id, g, nil
}

// degraded returns what is wrong with the table, for people.
func (t *table) degraded() []string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return slices.Clone(t.refused)
}

// claim reserves addresses for an endpoint until release is called. It fails if another endpoint
// has one of them, or had it too recently.
func (t *table) claim(id kvkey.Admission, addresses ...netip.Addr) (release func(), err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	now := t.judged()
	for _, addr := range addresses {
		if other, ok := t.claims[addr]; ok && other != id {
			return nil, taken(addr, other)
		}
		for other, g := range t.grants {
			if other == id {
				continue
			}
			until, reserved := g.reserves(addr, now)
			switch {
			case reserved && g.live(now) && g.has(addr):
				return nil, taken(addr, other)
			case reserved:
				return nil, api.Errorf(http.StatusConflict, api.CodeAddress,
					"address %s was used by endpoint %s of node %s and rests until %s; take another address", addr, other.Endpoint, other.Node, until.UTC().Format(time.RFC3339))
			}
		}
	}
	for _, addr := range addresses {
		t.claims[addr] = id
	}
	return func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		for _, addr := range addresses {
			if t.claims[addr] == id {
				delete(t.claims, addr)
			}
		}
	}, nil
}

func taken(addr netip.Addr, by kvkey.Admission) error {
	return api.Errorf(http.StatusConflict, api.CodeAddress, "address %s is in use by endpoint %s of node %s; take another address", addr, by.Endpoint, by.Node)
}

// admit stores an endpoint's new admission. Addresses that only the admission before had rest.
func (t *table) admit(ctx context.Context, id kvkey.Admission, next *grant) error {
	now := t.now()
	if old := t.get(id); old != nil {
		next.index = old.index
		next.Resting = maps.Clone(old.Resting)
		for _, addr := range []netip.Addr{old.admission.IPv4, old.admission.IPv6} {
			if !next.has(addr) {
				if next.Resting == nil {
					next.Resting = map[netip.Addr]time.Time{}
				}
				next.Resting[addr] = now.Add(restTime)
			}
		}
		maps.DeleteFunc(next.Resting, func(_ netip.Addr, until time.Time) bool { return !now.Before(until) })
	}
	return t.put(ctx, id, next)
}

// release ends an endpoint's admission, if it has one.
func (t *table) release(ctx context.Context, id kvkey.Admission) error {
	old := t.get(id)
	if old == nil || !old.Released.IsZero() {
		return nil
	}
	next := *old
	next.Released = t.now().UTC()
	return t.put(ctx, id, &next)
}

// elsewhere returns another node that has an endpoint of that ID, or whose addresses of it rest.
func (t *table) elsewhere(endpoint string, node fabric.NodeID) (other fabric.NodeID, is bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	now := t.judged()
	for id, g := range t.grants {
		if id.Endpoint == endpoint && id.Node != node && !g.over(now) {
			return id.Node, true
		}
	}
	return other, false
}

// releaseSquatters ends what other nodes attached under the ID of an allocation.
func (t *table) releaseSquatters(ctx context.Context, allocation kvkey.Admission) error {
	var errs []error
	for _, id := range t.liveWhere(func(a fabric.Admission) bool {
		return a.Endpoint == allocation.Endpoint && a.Host() != allocation.Node && a.Origin.Attached != ""
	}) {
		t.log.Warn("a node attached a workload under the ID of an allocation", logkey.Endpoint, id.Endpoint, logkey.Node, id.Node.String())
		errs = append(errs, t.release(ctx, id))
	}
	return errors.Join(errs...)
}

// releaseEnded ends the admissions of nodes that were removed, and of what is revoked.
func (t *table) releaseEnded(ctx context.Context, removed fabric.Revocations) error {
	var errs []error
	for _, id := range t.liveWhere(func(a fabric.Admission) bool {
		return removed.EndsAdmission(a) != ""
	}) {
		errs = append(errs, t.release(ctx, id))
	}
	return errors.Join(errs...)
}

// liveOn returns how many endpoints of a node have a live admission.
func (t *table) liveOn(node fabric.NodeID) int {
	return len(t.liveWhere(func(a fabric.Admission) bool { return a.Host() == node }))
}

// liveWhere returns the endpoints with a live admission that matches.
func (t *table) liveWhere(match func(fabric.Admission) bool) []kvkey.Admission {
	t.mu.Lock()
	defer t.mu.Unlock()
	now := t.judged()
	var list []kvkey.Admission
	for id, g := range t.grants {
		if g.live(now) && match(g.admission) {
			list = append(list, id)
		}
	}
	return list
}

// admissions returns the live admissions that match.
func (t *table) admissions(match func(fabric.Admission) bool) (list []fabric.Admission) {
	for _, id := range t.liveWhere(match) {
		if g := t.get(id); g != nil {
			list = append(list, g.admission)
		}
	}
	return list
}

// known returns the last admissions that match, live or not, as far as they are kept.
func (t *table) known(match func(fabric.Admission) bool) (list []fabric.Admission) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, g := range t.grants {
		if match(g.admission) {
			list = append(list, g.admission)
		}
	}
	return list
}

// get returns the grant of an endpoint, or nil.
func (t *table) get(id kvkey.Admission) *grant {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.grants[id]
}

// of returns the admissions of a node that are in force, and its addresses that rest.
func (t *table) of(node fabric.NodeID) api.NodeAdmissions {
	t.mu.Lock()
	defer t.mu.Unlock()
	now := t.judged()
	var reply api.NodeAdmissions
	resting := map[netip.Addr]time.Time{}
	for id, g := range t.grants {
		if id.Node != node {
			continue
		}
		if g.live(now) {
			a := g.admission
			reply.Live = append(reply.Live, api.LiveAdmission{Endpoint: a.Endpoint, IPv4: a.IPv4, IPv6: a.IPv6, Issued: a.Issued})
		}
		for _, addr := range slices.AppendSeq([]netip.Addr{g.admission.IPv4, g.admission.IPv6}, maps.Keys(g.Resting)) {
			until, reserved := g.reserves(addr, now)
			if reserved && !(g.live(now) && g.has(addr)) && until.After(resting[addr]) {
				resting[addr] = until
			}
		}
	}
	slices.SortFunc(reply.Live, func(a, b api.LiveAdmission) int { return strings.Compare(a.Endpoint, b.Endpoint) })
	for _, addr := range slices.SortedFunc(maps.Keys(resting), netip.Addr.Compare) {
		reply.Resting = append(reply.Resting, api.RestingAddress{Address: addr, Until: resting[addr].UTC()})
	}
	return reply
}

// put stores a grant, unless the one before was changed in Consul since it was read.
func (t *table) put(ctx context.Context, id kvkey.Admission, g *grant) error {
	value, err := json.Marshal(g)
	if err != nil {
		return fmt.Errorf("encode the admission of endpoint %s: %w", id.Endpoint, err)
	}
	if err := storable("the admission of endpoint "+id.Endpoint, value); err != nil {
		return err
	}
	index, ok, err := t.fence.checkAndSet(ctx, t.consul(), id.String(), value, g.index)
	if err != nil {
		return unwritten(err, "write the admission of endpoint %s to Consul", id.Endpoint)
	}
	if !ok {
		t.refreshIndex(ctx, id)
		return conflict("the admission of endpoint %s was changed in Consul meanwhile; try again", id.Endpoint)
	}
	g.index = index
	t.mu.Lock()
	t.grants[id] = g
	t.mu.Unlock()
	return nil
}

// refreshIndex reads the modify index of a grant after a conflict, so that the next attempt to
// write it succeeds. The value in Consul is not read: only this controller writes grants, so what
// this process knows is newer.
func (t *table) refreshIndex(ctx context.Context, id kvkey.Admission) {
	kv, _, err := t.consul().KV().Get(id.String(), (&consulapi.QueryOptions{}).WithContext(ctx))
	if err != nil {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	known := t.grants[id] != nil
	next := grant{}
	if known {
		next = *t.grants[id]
	}
	next.index, next.unread = 0, true
	if kv != nil {
		next.index = kv.ModifyIndex
	}
	if known || kv != nil {
		t.grants[id] = &next
	}
}

// serves reports whether the node has a live admission of the service.
func (t *table) serves(node fabric.NodeID, service fabric.Ref) bool {
	return len(t.liveWhere(func(a fabric.Admission) bool { return a.Host() == node && a.Service == service })) > 0
}

// count returns how many admissions are live.
func (t *table) count() int { return len(t.liveWhere(func(fabric.Admission) bool { return true })) }

// sweep deletes grants that are over, until ctx ends.
func (t *table) sweep(ctx context.Context) error {
	tick := time.NewTicker(sweepInterval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
			t.sweepOnce(ctx)
		}
	}
}

func (t *table) sweepOnce(ctx context.Context) {
	t.mu.Lock()
	now := t.judged()
	var over []kvkey.Admission
	for id, g := range t.grants {
		if g.over(now) {
			over = append(over, id)
		}
	}
	t.mu.Unlock()
	for _, id := range over {
		g := t.get(id)
		if g == nil || !g.over(t.judged()) {
			continue // changed meanwhile
		}
		ok, err := t.fence.remove(ctx, t.consul(), id.String(), g.index)
		if err != nil {
			t.log.Warn("cannot delete an expired admission, retrying later", logkey.Endpoint, id.Endpoint, logkey.Error, err)
			return
		}
		if !ok {
			t.refreshIndex(ctx, id)
			continue
		}
		t.mu.Lock()
		if t.grants[id] == g {
			delete(t.grants, id)
		}
		t.mu.Unlock()
	}
}
