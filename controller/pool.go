// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package controller

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"slices"
	"time"

	consulapi "github.com/hashicorp/consul/api"

	"github.com/sif-project/sif/api"
	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/internal/clock"
	"github.com/sif-project/sif/internal/kvkey"
	"github.com/sif-project/sif/internal/logkey"
)

// Each node has a pool of IPv4 and one of IPv6 addresses for its endpoints. The pairs of pools are
// numbered in the order in which they follow one another in the fabric's two prefixes.
const (
	bits4 = 24 // prefix length of a node's IPv4 pool
	bits6 = 64 // prefix length of a node's IPv6 pool
)

// checkPools checks that the fabric's prefixes can be divided into pools of nodes.
func checkPools(v4, v6 netip.Prefix) error {
	switch {
	case !v4.IsValid() || !v4.Addr().Is4() || v4.Bits() > bits4:
		return fmt.Errorf("IPv4 pool %v must be an IPv4 prefix of at most %d bits, for instance 100.64.0.0/10", v4, bits4)
	case !v6.IsValid() || !v6.Addr().Is6() || v6.Bits() > bits6:
		return fmt.Errorf("IPv6 pool %v must be an IPv6 prefix of at most %d bits, for instance fd5f::/32", v6, bits6)
	}
	return nil
}

// poolCount returns how many pairs of pools the fabric's prefixes contain.
func poolCount(v4, v6 netip.Prefix) int {
	return 1 << min(bits4-v4.Bits(), bits6-v6.Bits(), 30)
}

// poolPair returns the pair of pools with the number n.
func poolPair(v4, v6 netip.Prefix, n int) (netip.Prefix, netip.Prefix) {
	a4 := v4.Masked().Addr().As4()
	binary.BigEndian.PutUint32(a4[:], binary.BigEndian.Uint32(a4[:])+uint32(n)<<(32-bits4))
	a6 := v6.Masked().Addr().As16()
	binary.BigEndian.PutUint64(a6[:8], binary.BigEndian.Uint64(a6[:8])+uint64(n))
	return netip.PrefixFrom(netip.AddrFrom4(a4), bits4), netip.PrefixFrom(netip.AddrFrom16(a6), bits6)
}

// assignment is which node has a pair of pools, as Consul has it.
type assignment struct {
	pool  fabric.Pool // zero: the value in Consul does not verify, and assigns nothing
	index uint64      // its modify index
}

// loadPools reads the assignments of pools. One that the fabric did not sign assigns nothing, and
// is deleted. The caller holds r.mu.
func (r *registry) loadPools(ctx context.Context, pairs consulapi.KVPairs) {
	for _, kv := range pairs {
		n, err := kvkey.ParsePool(kv.Key)
		if err == nil {
			a := assignment{index: kv.ModifyIndex}
			a.pool, err = r.verifyPool(int(n), kv.Value)
			r.pools[int(n)] = a
		}
		if err == nil {
			continue
		}
		r.log.Error("assignment of a pool in Consul refused and deleted", logkey.Key, kv.Key, logkey.Error, err)
		deleted, _, failed := r.cfg.Consul().KV().DeleteCAS(kv, (&consulapi.WriteOptions{}).WithContext(ctx))
		if !deleted || failed != nil {
			r.refused[kv.Key] = fmt.Sprintf("%s: %v; it is ignored", kv.Key, err)
		}
		if deleted {
			delete(r.pools, int(n))
		}
	}
}

// verifyPool decodes the assignment of pair n.
func (r *registry) verifyPool(n int, value []byte) (fabric.Pool, error) {
	var signed fabric.Signed
	if err := json.Unmarshal(value, &signed); err != nil {
		return fabric.Pool{}, err
	}
	var p fabric.Pool
	if err := r.cfg.Identity.Keys().Verify(signed, fabric.KindPool, &p); err != nil {
		return fabric.Pool{}, err
	}
	v4, v6 := poolPair(r.cfg.Pool4, r.cfg.Pool6, n)
	switch {
	case p.Fabric != r.cfg.Fabric:
		return fabric.Pool{}, fmt.Errorf("it is of fabric %q, not %q", p.Fabric, r.cfg.Fabric)
	case p.Number != n:
		return fabric.Pool{}, fmt.Errorf("it is the assignment of pair %d", p.Number)
	case p.Pool4 != v4 || p.Pool6 != v6:
		return fabric.Pool{}, fmt.Errorf("it assigns %s and %s, but pair %d is %s and %s", p.Pool4, p.Pool6, n, v4, v6)
	}
	return p, nil
}

// ownerOf returns the node to which pair n is assigned, and whether it is assigned at all. The
// caller holds r.mu.
func (r *registry) ownerOf(n int) (fabric.NodeID, bool) {
	p := r.pools[n].pool
	if _, ended := r.removed().Ends(p.Node, p.Issued); ended {
		return fabric.NodeID{}, false
	}
	return p.Node, !p.Node.IsZero()
}

// freePools deletes the assignments of pools to nodes that were removed since. Their tombstones
// keep the pools from being assigned before they have rested. The caller holds r.mu.
func (r *registry) freePools(ctx context.Context, removed fabric.Revocations) error {
	var errs []error
	for n, a := range r.pools {
		if _, ended := removed.Ends(a.pool.Node, a.pool.Issued); !ended {
			continue
		}
		key := kvkey.Pool(n).String()
		if _, err := r.cfg.Consul().KV().Delete(key, (&consulapi.WriteOptions{}).WithContext(ctx)); err != nil {
			errs = append(errs, fmt.Errorf("delete %s from Consul: %w", key, err))
			continue
		}
		delete(r.pools, n)
	}
	return errors.Join(errs...)
}

// resting returns the pools of removed nodes that must not be assigned yet. Every cache on nodes is
// corrected while they rest.
func resting(removed fabric.Revocations, now time.Time) []fabric.Tombstone {
	var list []fabric.Tombstone
	for _, t := range removed.Tombstones {
		if now.Before(t.Removed.Add(restTime)) {
			list = append(list, t)
		}
	}
	return list
}

// rival returns another node whose signed record has one of the pools. The caller holds r.mu.
func (r *registry) rival(id fabric.NodeID, v4, v6 netip.Prefix) (fabric.NodeID, bool) {
	for other, m := range r.members {
		if other != id && (m.node.Pool4.Overlaps(v4) || m.node.Pool6.Overlaps(v6)) {
			return other, true
		}
	}
	return fabric.NodeID{}, false
}

func rivals(a, b fabric.NodeID, v4, v6 netip.Prefix) *api.Error {
	return api.Errorf(http.StatusConflict, api.CodeAddress,
		"nodes %s and %s both have signed records with pools %s and %s; neither is changed: remove one of them with `sif node remove`, and let it join again", a, b, v4, v6)
}

// poolOf returns a node's pair of pools: the one in its newest signed record, else the one that a
// signed assignment gives it, else the first free one, which it assigns to the node. own is the
// record, or nil. The caller holds r.mu.
func (r *registry) poolOf(ctx context.Context, id fabric.NodeID, own *fabric.Node) (netip.Prefix, netip.Prefix, error) {
	if own != nil && r.cfg.Pool4.Contains(own.Pool4.Addr()) && r.cfg.Pool6.Contains(own.Pool6.Addr()) {
		if other, taken := r.rival(id, own.Pool4, own.Pool6); taken {
			return own.Pool4, own.Pool6, rivals(id, other, own.Pool4, own.Pool6)
		}
		return own.Pool4, own.Pool6, nil
	}
	count := poolCount(r.cfg.Pool4, r.cfg.Pool6)
	for n := range r.pools {
		v4, v6 := poolPair(r.cfg.Pool4, r.cfg.Pool6, n)
		owner, _ := r.ownerOf(n)
		if _, taken := r.rival(id, v4, v6); owner == id && n < count && !taken {
			return v4, v6, nil
		}
	}
	used := map[netip.Prefix]bool{} // by signed records
	for _, m := range r.members {
		used[m.node.Pool4], used[m.node.Pool6] = true, true
	}
	rest := resting(r.removed(), clock.Now())
	for n := range count {
		v4, v6 := poolPair(r.cfg.Pool4, r.cfg.Pool6, n)
		if _, assigned := r.ownerOf(n); assigned || used[v4] || used[v6] {
			continue
		}
		if _, taken := r.rival(id, v4, v6); taken { // a record from before the prefixes were changed
			continue
		}
		if slices.ContainsFunc(rest, func(t fabric.Tombstone) bool { return t.Holds(v4, v6) }) {
			continue
		}
		assigned, err := r.assign(ctx, n, id)
		if assigned || err != nil {
			return v4, v6, err
		}
	}
	return netip.Prefix{}, netip.Prefix{}, api.Errorf(http.StatusInsufficientStorage, api.CodeAddress,
		"all %d pools of %s and %s are assigned to nodes, or rest after the removal of a node; configure larger pools", count, r.cfg.Pool4, r.cfg.Pool6)
}

// assign signs the assignment of pair n to a node and stores it in Consul. It reports false if
// another controller has assigned the pair since this one read it. The caller holds r.mu.
func (r *registry) assign(ctx context.Context, n int, id fabric.NodeID) (bool, error) {
	p := fabric.Pool{Fabric: r.cfg.Fabric, Number: n, Node: id}
	p.Pool4, p.Pool6 = poolPair(r.cfg.Pool4, r.cfg.Pool6, n)
	p.Issued = r.issueTime(clock.Now().Truncate(time.Millisecond), id, nil)
	payload, err := json.Marshal(p)
	if err != nil {
		return false, fmt.Errorf("encode the assignment of pool %s to node %s: %w", p.Pool4, id, err)
	}
	signed, err := r.cfg.Signer.Sign(ctx, fabric.KindPool, payload)
	if err != nil {
		return false, unavailable("%v", err)
	}
	value, err := json.Marshal(signed)
	if err != nil {
		return false, fmt.Errorf("encode the assignment of pool %s to node %s: %w", p.Pool4, id, err)
	}
	key := kvkey.Pool(n).String()
	for range replaceAttempts {
		index, ok, err := checkAndSet(ctx, r.cfg.Consul(), key, value, r.pools[n].index)
		if err != nil {
			return false, unavailable("assign pool %s to node %s in Consul: %v", p.Pool4, id, err)
		}
		if ok {
			r.pools[n] = assignment{p, index}
			delete(r.refused, key)
			return true, nil
		}
		kv, _, err := r.cfg.Consul().KV().Get(key, (&consulapi.QueryOptions{}).WithContext(ctx))
		if err != nil {
			return false, unavailable("read %s from Consul: %v", key, err)
		}
		if kv == nil {
			delete(r.pools, n)
			continue
		}
		found := assignment{index: kv.ModifyIndex}
		found.pool, _ = r.verifyPool(n, kv.Value) // what does not verify is replaced
		r.pools[n] = found
		if owner, assigned := r.ownerOf(n); assigned {
			return owner == id, nil
		}
	}
	return false, conflict("%s in Consul was changed %d times meanwhile; only the controller must write it", key, replaceAttempts)
}
