// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package controller

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"net/netip"
	"slices"
	"sync"
	"time"

	consulapi "github.com/hashicorp/consul/api"
	"github.com/hashicorp/go-hclog"

	"github.com/sif-project/sif/api"
	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/internal/kvkey"
	"github.com/sif-project/sif/internal/logkey"
)

// restTime is how long an address is given to nobody else after its endpoint
// is gone: until every cache of it has been corrected.
const restTime = 10 * time.Minute

// seat is the place of an endpoint in the table: its admission while it
// lives, and the addresses that rest after it.
type seat struct {
	Signed   fabric.Signed            `json:"signed"`
	Released time.Time                `json:"released,omitzero"`
	Resting  map[netip.Addr]time.Time `json:"resting,omitempty"` // until when

	admission fabric.Admission
	index     uint64 // of the seat in Consul
}

func (s *seat) live(now time.Time) bool {
	return s.Released.IsZero() && now.Before(s.admission.Expires)
}

// holds reports until when addr may not be given to another endpoint.
func (s *seat) holds(addr netip.Addr, now time.Time) (until time.Time, held bool) {
	if addr == s.admission.IPv4 || addr == s.admission.IPv6 {
		until = s.admission.Expires
		if !s.Released.IsZero() {
			until = s.Released
		}
		until = until.Add(restTime)
	}
	if t, ok := s.Resting[addr]; ok && t.After(until) {
		until = t
	}
	return until, now.Before(until)
}

// over reports whether nothing of the seat matters any more.
func (s *seat) over(now time.Time) bool {
	if s.live(now) {
		return false
	}
	for _, addr := range []netip.Addr{s.admission.IPv4, s.admission.IPv6} {
		if _, held := s.holds(addr, now); held {
			return false
		}
	}
	for _, until := range s.Resting {
		if now.Before(until) {
			return false
		}
	}
	return true
}

// table is the admissions that were given, so that no address has two
// holders and no certificate goes to a node without an endpoint of the
// service. It is kept in Consul.
type table struct {
	fabric string
	consul func() *consulapi.Client
	keys   func() fabric.KeySet
	log    hclog.Logger
	now    func() time.Time

	mu      sync.Mutex
	seats   map[kvkey.Admission]*seat
	claims  map[netip.Addr]kvkey.Admission // addresses of admissions that are being made
	refused []string
}

func newTable(cfg Config) *table {
	return &table{
		fabric: cfg.Fabric, consul: cfg.Consul, keys: cfg.Identity.Keys, log: cfg.Log.Named("table"), now: time.Now,
		seats: map[kvkey.Admission]*seat{}, claims: map[netip.Addr]kvkey.Admission{},
	}
}

// load reads the table. A seat whose admission does not verify is left out,
// and reported.
func (t *table) load(ctx context.Context) error {
	list, _, err := t.consul().KV().List(kvkey.Admissions, (&consulapi.QueryOptions{}).WithContext(ctx))
	if err != nil {
		return fmt.Errorf("read the admissions from Consul: %w", err)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.seats, t.refused = map[kvkey.Admission]*seat{}, nil
	for _, kv := range list {
		id, s, err := t.verify(kv)
		if err != nil {
			t.refused = append(t.refused, fmt.Sprintf("%s: %v", kv.Key, err))
			t.log.Error("admission in Consul refused", logkey.Key, kv.Key, logkey.Error, err)
			continue
		}
		t.seats[id] = s
	}
	return nil
}

// verify reads a seat from Consul.
func (t *table) verify(kv *consulapi.KVPair) (kvkey.Admission, *seat, error) {
	id, err := kvkey.ParseAdmission(kv.Key)
	if err != nil {
		return id, nil, err
	}
	s := &seat{index: kv.ModifyIndex}
	if err := json.Unmarshal(kv.Value, s); err != nil {
		return id, nil, err
	}
	if err := t.keys().Verify(s.Signed, fabric.KindAdmission, &s.admission); err != nil {
		return id, nil, err
	}
	if a := s.admission; a.Fabric != t.fabric || a.Host() != id.Node || a.Endpoint != id.Endpoint {
		return id, nil, fmt.Errorf("it is the admission of endpoint %s on node %s in fabric %s", a.Endpoint, a.Host(), a.Fabric)
	}
	return id, s, nil
}

func (t *table) degraded() []string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return slices.Clone(t.refused)
}

// claim reserves addresses for an endpoint until the returned function is
// called. They must be free, or the endpoint's own.
func (t *table) claim(id kvkey.Admission, addresses ...netip.Addr) (release func(), err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	now := t.now()
	for _, addr := range addresses {
		if other, ok := t.claims[addr]; ok && other != id {
			return nil, taken(addr, other)
		}
		for other, s := range t.seats {
			if other == id {
				continue
			}
			until, held := s.holds(addr, now)
			switch {
			case held && s.live(now) && (addr == s.admission.IPv4 || addr == s.admission.IPv6):
				return nil, taken(addr, other)
			case held:
				return nil, api.Errorf(http.StatusConflict, api.CodeAddress,
					"address %s rests until %s after endpoint %s of node %s; take another", addr, until.UTC().Format(time.RFC3339), other.Endpoint, other.Node)
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
	return api.Errorf(http.StatusConflict, api.CodeAddress, "address %s is that of endpoint %s of node %s; take another", addr, by.Endpoint, by.Node)
}

// admit writes an endpoint's admission. Addresses that it had before rest.
func (t *table) admit(ctx context.Context, id kvkey.Admission, a fabric.Admission, signed fabric.Signed) error {
	now := t.now()
	next := &seat{Signed: signed, admission: a}
	if old := t.get(id); old != nil {
		next.index = old.index
		next.Resting = maps.Clone(old.Resting)
		for _, addr := range []netip.Addr{old.admission.IPv4, old.admission.IPv6} {
			if addr != a.IPv4 && addr != a.IPv6 {
				if next.Resting == nil {
					next.Resting = map[netip.Addr]time.Time{}
				}
				next.Resting[addr] = now.Add(restTime)
			}
		}
		maps.DeleteFunc(next.Resting, func(addr netip.Addr, until time.Time) bool { return !now.Before(until) })
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

func (t *table) get(id kvkey.Admission) *seat {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.seats[id]
}

// put writes a seat if Consul still holds the one it takes the place of.
func (t *table) put(ctx context.Context, id kvkey.Admission, s *seat) error {
	value, err := json.Marshal(s)
	if err != nil {
		return fmt.Errorf("encode the admission of endpoint %s: %w", id.Endpoint, err)
	}
	ops := consulapi.KVTxnOps{{Verb: consulapi.KVCAS, Key: id.String(), Value: value, Index: s.index}}
	ok, resp, _, err := t.consul().KV().Txn(ops, (&consulapi.QueryOptions{}).WithContext(ctx))
	if err != nil {
		return api.Errorf(http.StatusServiceUnavailable, api.CodeUnavailable, "write the admission of endpoint %s to Consul: %v", id.Endpoint, err)
	}
	if !ok {
		// Somebody else wrote it: learn what is there, so that the caller's
		// next attempt builds on it.
		t.reread(ctx, id)
		return api.Errorf(http.StatusConflict, api.CodeConflict, "the admission of endpoint %s was changed in Consul meanwhile; try again", id.Endpoint)
	}
	s.index = resp.Results[0].ModifyIndex
	t.mu.Lock()
	t.seats[id] = s
	t.mu.Unlock()
	return nil
}

func (t *table) reread(ctx context.Context, id kvkey.Admission) {
	kv, _, err := t.consul().KV().Get(id.String(), (&consulapi.QueryOptions{}).WithContext(ctx))
	if err != nil {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	old := t.seats[id]
	if old == nil {
		old = &seat{}
	}
	next := *old
	next.index = 0
	if kv != nil {
		next.index = kv.ModifyIndex
	}
	if next.admission.Endpoint != "" || kv != nil {
		t.seats[id] = &next
	}
}

// serves reports whether the node holds a live admission of the service.
func (t *table) serves(node fabric.NodeID, service fabric.Ref) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	now := t.now()
	for id, s := range t.seats {
		if id.Node == node && s.admission.Service == service && s.live(now) {
			return true
		}
	}
	return false
}

// count returns how many admissions are live.
func (t *table) count() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	now, n := t.now(), 0
	for _, s := range t.seats {
		if s.live(now) {
			n++
		}
	}
	return n
}

// sweep removes seats that are over until ctx ends.
func (t *table) sweep(ctx context.Context) error {
	tick := time.NewTicker(time.Minute)
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
	now := t.now()
	var done []kvkey.Admission
	for id, s := range t.seats {
		if s.over(now) {
			done = append(done, id)
		}
	}
	t.mu.Unlock()
	for _, id := range done {
		s := t.get(id)
		if s == nil || !s.over(t.now()) {
			continue
		}
		ok, _, err := t.consul().KV().DeleteCAS(&consulapi.KVPair{Key: id.String(), ModifyIndex: s.index}, (&consulapi.WriteOptions{}).WithContext(ctx))
		if err != nil {
			t.log.Warn("remove an admission that is over", logkey.Endpoint, id.Endpoint, logkey.Error, err)
			return
		}
		if !ok {
			t.reread(ctx, id)
			continue
		}
		t.mu.Lock()
		if t.seats[id] == s {
			delete(t.seats, id)
		}
		t.mu.Unlock()
	}
}
