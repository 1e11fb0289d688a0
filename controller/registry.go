// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package controller

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"net/http"
	"net/netip"
	"reflect"
	"slices"
	"sync"
	"time"

	consulapi "github.com/hashicorp/consul/api"
	"github.com/hashicorp/go-hclog"

	"github.com/sif-project/sif/api"
	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/internal/kvkey"
	"github.com/sif-project/sif/internal/logkey"
	"github.com/sif-project/sif/internal/trust/identity"
)

const bits4, bits6 = 24, 64 // the size of a node's pools

// checkPools reports why node pools cannot be cut out of the two prefixes.
func checkPools(v4, v6 netip.Prefix) error {
	switch {
	case !v4.IsValid() || !v4.Addr().Is4() || v4.Bits() > bits4:
		return fmt.Errorf("pool of IPv4 addresses %v: it must be an IPv4 prefix of at most %d bits, for instance 100.64.0.0/10", v4, bits4)
	case !v6.IsValid() || !v6.Addr().Is6() || v6.Bits() > bits6:
		return fmt.Errorf("pool of IPv6 addresses %v: it must be an IPv6 prefix of at most %d bits, for instance fd5f::/32", v6, bits6)
	}
	return nil
}

// poolCount is how many nodes the two prefixes can serve.
func poolCount(v4, v6 netip.Prefix) int {
	return 1 << min(bits4-v4.Bits(), bits6-v6.Bits(), 30)
}

// pools returns the n-th pair of node pools.
func pools(v4, v6 netip.Prefix, n int) (netip.Prefix, netip.Prefix) {
	a4 := v4.Masked().Addr().As4()
	binary.BigEndian.PutUint32(a4[:], binary.BigEndian.Uint32(a4[:])+uint32(n)<<(32-bits4))
	a6 := v6.Masked().Addr().As16()
	binary.BigEndian.PutUint64(a6[:8], binary.BigEndian.Uint64(a6[:8])+uint64(n))
	return netip.PrefixFrom(netip.AddrFrom4(a4), bits4), netip.PrefixFrom(netip.AddrFrom16(a6), bits6)
}

// member is a registered node.
type member struct {
	record fabric.NodeRecord
	node   fabric.Node
	link   fabric.Link // zero without one
	index  uint64      // of the record in Consul
}

// registry is the nodes of the fabric and their pools.
type registry struct {
	cfg Config
	log hclog.Logger

	mu      sync.Mutex
	members map[fabric.NodeID]*member
	pools   map[int]string    // zone/node by number of the pool
	refused map[string]string // by key: why a record in Consul is not believed
}

func newRegistry(cfg Config) *registry {
	return &registry{cfg: cfg, log: cfg.Log.Named("registry"), members: map[fabric.NodeID]*member{}, pools: map[int]string{}, refused: map[string]string{}}
}

// load reads the records of nodes and pools. Records that do not verify are
// not believed, and reported.
func (r *registry) load(ctx context.Context) error {
	q := (&consulapi.QueryOptions{}).WithContext(ctx)
	owned, _, err := r.cfg.Consul().KV().List(kvkey.Pools, q)
	if err != nil {
		return fmt.Errorf("read the pools from Consul: %w", err)
	}
	records, _, err := r.cfg.Consul().KV().List(kvkey.Nodes, q)
	if err != nil {
		return fmt.Errorf("read the nodes from Consul: %w", err)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.members, r.pools, r.refused = map[fabric.NodeID]*member{}, map[int]string{}, map[string]string{}
	for _, kv := range owned {
		n, err := kvkey.ParsePool(kv.Key)
		if err != nil {
			r.refused[kv.Key] = fmt.Sprintf("%s: %v", kv.Key, err)
			continue
		}
		r.pools[int(n)] = string(kv.Value)
	}
	for _, kv := range records {
		m, err := r.verify(kv)
		if err != nil {
			r.refused[kv.Key] = fmt.Sprintf("%s: %v; the node mends it when it registers again", kv.Key, err)
			r.log.Error("node record refused", logkey.Key, kv.Key, logkey.Error, err)
			continue
		}
		r.members[m.node.ID()] = m
	}
	return nil
}

func (r *registry) verify(kv *consulapi.KVPair) (*member, error) {
	m := &member{index: kv.ModifyIndex}
	if err := json.Unmarshal(kv.Value, &m.record); err != nil {
		return nil, err
	}
	if err := r.cfg.Identity.Keys().Verify(m.record.Node, fabric.KindNode, &m.node); err != nil {
		return nil, err
	}
	if m.node.Fabric != r.cfg.Fabric {
		return nil, fmt.Errorf("it is of fabric %q", m.node.Fabric)
	}
	if kv.Key != kvkey.Node(m.node.ID()).String() {
		return nil, fmt.Errorf("it is the record of node %s", m.node.ID())
	}
	if len(m.record.Link) > 0 {
		if err := json.Unmarshal(m.record.Link, &m.link); err != nil {
			return nil, fmt.Errorf("link: %w", err)
		}
	}
	return m, nil
}

func (r *registry) degraded() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	var list []string
	for _, why := range r.refused {
		list = append(list, why)
	}
	slices.Sort(list)
	return list
}

// get returns a registered node.
func (r *registry) get(id fabric.NodeID) (fabric.Node, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	m, ok := r.members[id]
	if !ok {
		return fabric.Node{}, false
	}
	return m.node, true
}

// all returns the registered nodes ordered by zone and name.
func (r *registry) all() []fabric.Node {
	r.mu.Lock()
	defer r.mu.Unlock()
	list := make([]fabric.Node, 0, len(r.members))
	for _, m := range r.members {
		list = append(list, m.node)
	}
	slices.SortFunc(list, func(a, b fabric.Node) int { return fabric.CompareNodeIDs(a.ID(), b.ID()) })
	return list
}

// register writes the record of the calling node. The same request again
// returns the record that is there.
func (r *registry) register(ctx context.Context, who identity.Node, req api.NodeRequest) (fabric.NodeRecord, error) {
	if err := r.checkNode(who, req); err != nil {
		return fabric.NodeRecord{}, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	link, err := r.checkLink(who, req)
	if err != nil {
		return fabric.NodeRecord{}, err
	}
	known := r.members[who.NodeID]
	next := fabric.NodeRecord{Link: req.Link, Certificate: req.Certificate, Signature: req.Signature}
	if len(req.Link) == 0 && known != nil {
		next.Link, next.Certificate, next.Signature, link = known.record.Link, known.record.Certificate, known.record.Signature, known.link
	}
	node := fabric.Node{
		Fabric: r.cfg.Fabric, Zone: who.Zone, Name: who.Name, Kind: who.Kind,
		Underlay: req.Underlay, Engine: req.Engine, Ranges: []netip.Prefix{r.cfg.Pool4, r.cfg.Pool6}, Issued: time.Now().UTC().Truncate(time.Millisecond),
	}
	if node.Pool4, node.Pool6, err = r.poolOf(ctx, who.NodeID); err != nil {
		return fabric.NodeRecord{}, err
	}
	if known != nil && r.unchanged(known, node, next) {
		return known.record, nil
	}
	payload, err := json.Marshal(node)
	if err != nil {
		return fabric.NodeRecord{}, fmt.Errorf("encode the record of node %s: %w", who.NodeID, err)
	}
	if next.Node, err = r.cfg.Signer.Sign(ctx, fabric.KindNode, payload); err != nil {
		return fabric.NodeRecord{}, api.Errorf(http.StatusServiceUnavailable, api.CodeUnavailable, "%v", err)
	}
	index, err := r.write(ctx, node, next)
	if err != nil {
		return fabric.NodeRecord{}, err
	}
	r.members[who.NodeID] = &member{record: next, node: node, link: link, index: index}
	delete(r.refused, kvkey.Node(node.ID()).String())
	r.log.Info("node registered", logkey.Node, who.NodeID, logkey.Address, node.Underlay.String(), logkey.Pool, node.Pool4.String())
	return next, nil
}

// unchanged reports whether the record on file says what the new one would,
// and still is in Consul.
func (r *registry) unchanged(known *member, node fabric.Node, next fabric.NodeRecord) bool {
	node.Issued = known.node.Issued
	if !reflect.DeepEqual(node, known.node) || !bytes.Equal(next.Link, known.record.Link) || !bytes.Equal(next.Signature, known.record.Signature) {
		return false
	}
	kv, _, err := r.cfg.Consul().KV().Get(kvkey.Node(node.ID()).String(), nil)
	return err == nil && kv != nil && kv.ModifyIndex == known.index
}

// write stores the record. The leader alone writes records, under its lock,
// so whatever is there, altered or not, is to be replaced.
func (r *registry) write(ctx context.Context, node fabric.Node, record fabric.NodeRecord) (uint64, error) {
	value, err := json.Marshal(record)
	if err != nil {
		return 0, fmt.Errorf("encode the record of node %s: %w", node.ID(), err)
	}
	key := kvkey.Node(node.ID()).String()
	q := (&consulapi.QueryOptions{}).WithContext(ctx)
	for range 5 {
		old, _, err := r.cfg.Consul().KV().Get(key, q)
		if err != nil {
			return 0, api.Errorf(http.StatusServiceUnavailable, api.CodeUnavailable, "read the record of node %s: %v", node.ID(), err)
		}
		kv := &consulapi.KVPair{Key: key, Value: value}
		if old != nil {
			kv.ModifyIndex = old.ModifyIndex
		}
		ok, resp, _, err := r.cfg.Consul().KV().Txn(consulapi.KVTxnOps{{Verb: consulapi.KVCAS, Key: key, Value: value, Index: kv.ModifyIndex}}, q)
		if err != nil {
			return 0, api.Errorf(http.StatusServiceUnavailable, api.CodeUnavailable, "write the record of node %s: %v", node.ID(), err)
		}
		if ok {
			return resp.Results[0].ModifyIndex, nil
		}
	}
	return 0, api.Errorf(http.StatusConflict, api.CodeConflict, "the record of node %s keeps being changed by somebody else", node.ID())
}

func (r *registry) checkNode(who identity.Node, req api.NodeRequest) error {
	if !req.Underlay.IsValid() || req.Underlay.IsUnspecified() || req.Underlay.IsMulticast() {
		return api.Errorf(http.StatusBadRequest, api.CodeInvalid, "node %s: underlay address %q cannot be reached by other nodes", who.NodeID, req.Underlay)
	}
	for _, p := range []netip.Prefix{r.cfg.Pool4, r.cfg.Pool6} {
		if p.Contains(req.Underlay) {
			return api.Errorf(http.StatusBadRequest, api.CodeInvalid, "node %s: underlay address %s lies inside the fabric's own %s", who.NodeID, req.Underlay, p)
		}
	}
	if who.Kind != fabric.KindProcessor && req.Engine != 0 {
		return api.Errorf(http.StatusForbidden, api.CodeForbidden, "node %s is attested as a %s node, so it cannot offer an engine", who.NodeID, who.Kind)
	}
	return nil
}

// checkLink verifies a node's link statement: signed by a certificate of that
// very node, about that node, with a key that no other node uses.
func (r *registry) checkLink(who identity.Node, req api.NodeRequest) (fabric.Link, error) {
	var link fabric.Link
	if len(req.Link) == 0 {
		return link, nil
	}
	signer, _, err := identity.VerifyBy(r.cfg.Identity.Roots(), r.cfg.TrustDomain, req.Certificate, fabric.LinkSigningInput(req.Link), req.Signature)
	if err != nil {
		return link, api.Errorf(http.StatusBadRequest, api.CodeInvalid, "link of node %s: %v", who.NodeID, err)
	}
	if signer != (identity.Subject{Node: who}) {
		return link, api.Errorf(http.StatusForbidden, api.CodeForbidden, "link of node %s is signed by %s", who.NodeID, signer)
	}
	if err := json.Unmarshal(req.Link, &link); err != nil {
		return link, api.Errorf(http.StatusBadRequest, api.CodeInvalid, "link of node %s: %v", who.NodeID, err)
	}
	if link.Node != who.NodeID {
		return link, api.Errorf(http.StatusForbidden, api.CodeForbidden, "link of node %s claims to be of %s", who.NodeID, link.Node)
	}
	if len(link.PublicKey) != 32 {
		return link, api.Errorf(http.StatusBadRequest, api.CodeInvalid, "link of node %s: its public key has %d bytes, not 32", who.NodeID, len(link.PublicKey))
	}
	for id, m := range r.members {
		if id != who.NodeID && bytes.Equal(m.link.PublicKey, link.PublicKey) {
			return link, api.Errorf(http.StatusForbidden, api.CodeForbidden, "link of node %s: its public key is that of node %s", who.NodeID, id)
		}
	}
	return link, nil
}

// poolOf returns the node's pools: those of its signed record, else those
// noted for it, else the first that nobody has. The caller holds r.mu.
func (r *registry) poolOf(ctx context.Context, id fabric.NodeID) (netip.Prefix, netip.Prefix, error) {
	taken := map[netip.Prefix]bool{}
	for other, m := range r.members {
		if other == id && r.cfg.Pool4.Contains(m.node.Pool4.Addr()) && r.cfg.Pool6.Contains(m.node.Pool6.Addr()) {
			return m.node.Pool4, m.node.Pool6, nil
		}
		taken[m.node.Pool4], taken[m.node.Pool6] = true, true
	}
	count := poolCount(r.cfg.Pool4, r.cfg.Pool6)
	for n, owner := range r.pools {
		if v4, v6 := pools(r.cfg.Pool4, r.cfg.Pool6, n); owner == id.String() && n < count && !taken[v4] && !taken[v6] {
			return v4, v6, nil
		}
	}
	for n := range count {
		v4, v6 := pools(r.cfg.Pool4, r.cfg.Pool6, n)
		if r.pools[n] != "" || taken[v4] || taken[v6] {
			continue
		}
		kv := &consulapi.KVPair{Key: kvkey.Pool(n).String(), Value: []byte(id.String())} // index 0: only if absent
		ok, _, err := r.cfg.Consul().KV().CAS(kv, (&consulapi.WriteOptions{}).WithContext(ctx))
		if err != nil {
			return v4, v6, api.Errorf(http.StatusServiceUnavailable, api.CodeUnavailable, "note pool %s for node %s: %v", v4, id, err)
		}
		if !ok {
			r.pools[n] = "another controller's"
			continue
		}
		r.pools[n] = id.String()
		return v4, v6, nil
	}
	return netip.Prefix{}, netip.Prefix{}, api.Errorf(http.StatusInsufficientStorage, api.CodeAddress, "all %d pools of %s and %s are taken", count, r.cfg.Pool4, r.cfg.Pool6)
}
