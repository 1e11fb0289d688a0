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
	"github.com/sif-project/sif/internal/trust/identity"
)

// Each node has a pool of IPv4 and one of IPv6 addresses for its endpoints. The fabric's two
// prefixes are divided into pairs of units, a /24 and a /64 each, which are numbered in their
// order. A pool of IPv4 addresses is one unit or several, and begins at a multiple of its size; its
// number is that of its first unit. The IPv6 pool is always the /64 of that number.
const (
	bits4 = fabric.SmallestNodePrefix // prefix length of an IPv4 unit
	bits6 = 64                        // prefix length of a node's IPv6 pool
)

// checkPools checks that the fabric's prefixes can be divided into pools of nodes with IPv4
// prefixes of nodePrefix bits.
func checkPools(v4, v6 netip.Prefix, nodePrefix int) error {
	switch {
	case !v4.IsValid() || !v4.Addr().Is4() || v4.Bits() > bits4:
		return fmt.Errorf("IPv4 pool %v must be an IPv4 prefix of at most %d bits, for instance 100.64.0.0/10", v4, bits4)
	case !v6.IsValid() || !v6.Addr().Is6() || v6.Bits() > bits6:
		return fmt.Errorf("IPv6 pool %v must be an IPv6 prefix of at most %d bits, for instance fd5f::/32", v6, bits6)
	case nodePrefix < v4.Bits():
		return fmt.Errorf("IPv4 pool %v is smaller than the /%d of one node", v4, nodePrefix)
	}
	if err := fabric.CheckNodePrefix(nodePrefix); err != nil {
		return fmt.Errorf("IPv4 pools of nodes: %w", err)
	}
	return nil
}

// unitCount returns how many pairs of units the fabric's prefixes contain.
func unitCount(v4, v6 netip.Prefix) int {
	return 1 << min(bits4-v4.Bits(), bits6-v6.Bits(), 30)
}

// unitsOf returns how many units a pool of so many bits has.
func unitsOf(bits int) int { return 1 << (bits4 - bits) }

// poolPair returns the pair of pools with the number n, of which the IPv4 one has so many bits.
func poolPair(v4, v6 netip.Prefix, n, bits int) (netip.Prefix, netip.Prefix) {
	a4 := v4.Masked().Addr().As4()
	binary.BigEndian.PutUint32(a4[:], binary.BigEndian.Uint32(a4[:])+uint32(n)<<(32-bits4))
	a6 := v6.Masked().Addr().As16()
	binary.BigEndian.PutUint64(a6[:8], binary.BigEndian.Uint64(a6[:8])+uint64(n))
	return netip.PrefixFrom(netip.AddrFrom4(a4), bits), netip.PrefixFrom(netip.AddrFrom16(a6), bits6)
}

// units is a set of units that are not free.
type units struct {
	v4, v6 netip.Prefix
	taken  []bool
}

func newUnits(v4, v6 netip.Prefix) *units {
	return &units{v4: v4.Masked(), v6: v6.Masked(), taken: make([]bool, unitCount(v4, v6))}
}

// take marks every unit that shares an address with one of the prefixes, which may lie elsewhere,
// or be of another division of the fabric's prefixes.
func (u *units) take(prefixes ...netip.Prefix) {
	for _, p := range prefixes {
		var base, first uint64
		var unit int
		switch {
		case !p.IsValid():
			continue
		case p.Overlaps(u.v4):
			b, f := u.v4.Addr().As4(), p.Masked().Addr().As4()
			base, first, unit = uint64(binary.BigEndian.Uint32(b[:])), uint64(binary.BigEndian.Uint32(f[:])), bits4
			base, first = base>>(32-bits4), first>>(32-bits4)
		case p.Overlaps(u.v6):
			b, f := u.v6.Addr().As16(), p.Masked().Addr().As16()
			base, first, unit = binary.BigEndian.Uint64(b[:8]), binary.BigEndian.Uint64(f[:8]), bits6
		default:
			continue
		}
		if first < base { // it contains the fabric's prefix
			first = base
		}
		more := uint64(1)
		if p.Bits() < unit {
			more = 1 << min(unit-p.Bits(), 40)
		}
		for n := first - base; n < first-base+more && n < uint64(len(u.taken)); n++ {
			u.taken[n] = true
		}
	}
}

// free returns the number of the first free pool of so many bits that is at from or after it.
func (u *units) free(from, bits int) (n int, ok bool) {
	size := unitsOf(bits)
	for n := (from + size - 1) / size * size; n+size <= len(u.taken); n += size {
		if !slices.Contains(u.taken[n:n+size], true) {
			return n, true
		}
	}
	return 0, false
}

// near returns the numbers of all other pools that could overlap pool n.
func near(n, bits, count int) (list []int) {
	for size := 1; size <= unitsOf(fabric.LargestNodePrefix); size *= 2 { // those that begin before it
		if first := n / size * size; first != n && !slices.Contains(list, first) {
			list = append(list, first)
		}
	}
	for m := n + 1; m < min(n+unitsOf(bits), count); m++ {
		list = append(list, m)
	}
	return list
}

// assignment is which node has a pair of pools, as Consul has it.
type assignment struct {
	pool   fabric.Pool   // zero: the value in Consul does not verify, and assigns nothing
	signed fabric.Signed // of which it is the payload
	index  uint64        // its modify index
}

// loadPools reads the assignments of pools. One that the fabric did not sign assigns nothing, and
// is deleted. The caller holds r.mu.
func (r *registry) loadPools(ctx context.Context, pairs consulapi.KVPairs) {
	for _, kv := range pairs {
		n, err := kvkey.ParsePool(kv.Key)
		if err == nil {
			a := assignment{index: kv.ModifyIndex}
			a.pool, a.signed, err = r.verifyPool(int(n), kv.Value)
			r.pools[int(n)] = a
		}
		if err == nil {
			continue
		}
		r.log.Error("assignment of a pool in Consul refused and deleted", logkey.Key, kv.Key, logkey.Error, err)
		deleted, failed := false, error(nil)
		if r.cfg.fence.open() { // one that stands by leaves it to the leader
			deleted, failed = r.cfg.fence.remove(ctx, r.cfg.Consul(), kv.Key, kv.ModifyIndex)
		}
		if !deleted || failed != nil {
			r.refused[kv.Key] = fmt.Sprintf("%s: %v; it is ignored", kv.Key, err)
		}
		if deleted {
			delete(r.pools, int(n))
		}
	}
}

// verifyPool decodes the assignment of pair n.
func (r *registry) verifyPool(n int, value []byte) (fabric.Pool, fabric.Signed, error) {
	var signed fabric.Signed
	if err := json.Unmarshal(value, &signed); err != nil {
		return fabric.Pool{}, signed, err
	}
	var p fabric.Pool
	if err := r.cfg.Identity.Keys().Verify(signed, fabric.KindPool, &p); err != nil {
		return fabric.Pool{}, signed, err
	}
	bits := p.Pool4.Bits()
	v4, v6 := poolPair(r.cfg.Pool4, r.cfg.Pool6, n, bits)
	switch {
	case p.Fabric != r.cfg.Fabric:
		return fabric.Pool{}, signed, fmt.Errorf("it is of fabric %q, not %q", p.Fabric, r.cfg.Fabric)
	case p.Number != n:
		return fabric.Pool{}, signed, fmt.Errorf("it is the assignment of pair %d", p.Number)
	case fabric.CheckNodePrefix(bits) != nil || p.Pool4 != v4 || p.Pool4 != p.Pool4.Masked() || p.Pool6 != v6:
		return fabric.Pool{}, signed, fmt.Errorf("it assigns %s and %s, but pair %d begins with %s and %s", p.Pool4, p.Pool6, n, v4.Addr(), v6)
	}
	return p, signed, nil
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
		if err := r.cfg.fence.removeAny(ctx, r.cfg.Consul(), key); err != nil {
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

// poolBits returns how many bits the IPv4 pool of a new node gets. Nodes without workloads need one
// address.
func (r *registry) poolBits(who identity.Node, granted int) int {
	switch {
	case !who.Kind.Has(fabric.KindWorkload):
		return fabric.SmallestNodePrefix
	case granted != 0:
		return granted
	}
	return r.cfg.NodePrefix
}

// poolOf returns a node's pair of pools: the one in its newest signed record, else the one that a
// signed assignment gives it, else the first free one with so many bits, which it assigns to the
// node. own is the record, or nil. The caller holds r.mu.
func (r *registry) poolOf(ctx context.Context, id fabric.NodeID, own *fabric.Node, bits int) (netip.Prefix, netip.Prefix, error) {
	if own != nil && r.cfg.Pool4.Contains(own.Pool4.Addr()) && r.cfg.Pool6.Contains(own.Pool6.Addr()) {
		if other, taken := r.rival(id, own.Pool4, own.Pool6); taken {
			return own.Pool4, own.Pool6, rivals(id, other, own.Pool4, own.Pool6)
		}
		return own.Pool4, own.Pool6, nil
	}
	for n, a := range r.pools {
		owner, _ := r.ownerOf(n)
		_, taken := r.rival(id, a.pool.Pool4, a.pool.Pool6)
		if owner == id && !taken && !r.contested(n) && r.cfg.Pool4.Contains(a.pool.Pool4.Addr()) && r.cfg.Pool4.Bits() <= a.pool.Pool4.Bits() {
			return a.pool.Pool4, a.pool.Pool6, nil
		}
	}
	u := newUnits(r.cfg.Pool4, r.cfg.Pool6)
	takeAssigned := func() {
		for n := range r.pools {
			if _, assigned := r.ownerOf(n); assigned {
				u.take(r.pools[n].pool.Pool4, r.pools[n].pool.Pool6)
			}
		}
	}
	takeAssigned()
	for _, m := range r.members { // also records from before the prefixes were changed
		u.take(m.node.Pool4, m.node.Pool6)
	}
	for _, t := range resting(r.removed(), clock.Now()) {
		u.take(t.Pool4, t.Pool6)
	}
	for n, ok := u.free(0, bits); ok; n, ok = u.free(n+1, bits) {
		v4, v6 := poolPair(r.cfg.Pool4, r.cfg.Pool6, n, bits)
		assigned, err := r.assign(ctx, n, bits, id)
		if assigned || err != nil {
			return v4, v6, err
		}
		takeAssigned() // what another controller has assigned meanwhile may reach beyond n
	}
	return netip.Prefix{}, netip.Prefix{}, api.Errorf(http.StatusInsufficientStorage, api.CodeAddress,
		"no /%d of %s with a /64 of %s is free: the others are assigned to nodes, or rest after the removal of a node; configure larger pools, or smaller ones for each node (node_prefix)",
		bits, r.cfg.Pool4, r.cfg.Pool6)
}

// contested reports whether the assignment of pool n overlaps one to another node, which only a
// Consul that was set back can have. The caller holds r.mu.
func (r *registry) contested(n int) bool {
	mine, _ := r.ownerOf(n)
	for m, a := range r.pools {
		if owner, assigned := r.ownerOf(m); assigned && owner != mine && a.pool.Pool4.Overlaps(r.pools[n].pool.Pool4) {
			return true
		}
	}
	return false
}

// assign signs the assignment of pool n to a node and stores it in Consul. It reports false if
// another controller has assigned the pool since this one read it, or one that overlaps it. The
// caller holds r.mu.
func (r *registry) assign(ctx context.Context, n, bits int, id fabric.NodeID) (bool, error) {
	p := fabric.Pool{Fabric: r.cfg.Fabric, Number: n, Node: id}
	p.Pool4, p.Pool6 = poolPair(r.cfg.Pool4, r.cfg.Pool6, n, bits)
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
	others := near(n, bits, unitCount(r.cfg.Pool4, r.cfg.Pool6))
	for range replaceAttempts {
		ops := consulapi.TxnOps{{KV: &consulapi.KVTxnOp{Verb: consulapi.KVCAS, Key: key, Value: value, Index: r.pools[n].index}}}
		for _, m := range others {
			op := &consulapi.KVTxnOp{Verb: consulapi.KVCheckNotExists, Key: kvkey.Pool(m).String()}
			if known, there := r.pools[m]; there {
				op.Verb, op.Index = consulapi.KVCheckIndex, known.index
			}
			ops = append(ops, &consulapi.TxnOp{KV: op})
		}
		ok, resp, err := r.cfg.fence.txn(ctx, r.cfg.Consul(), ops)
		if err != nil {
			return false, unwritten(err, "assign pool %s to node %s in Consul", p.Pool4, id)
		}
		if ok {
			r.pools[n] = assignment{p, signed, resp.Results[0].KV.ModifyIndex}
			delete(r.refused, key)
			return true, nil
		}
		for _, m := range append([]int{n}, others...) {
			if err := r.reread(ctx, m); err != nil {
				return false, err
			}
			owner, assigned := r.ownerOf(m)
			switch {
			case assigned && m == n && owner == id && r.pools[n].pool.Pool4 == p.Pool4:
				return true, nil
			case assigned && r.pools[m].pool.Pool4.Overlaps(p.Pool4):
				return false, nil
			}
		}
	}
	return false, conflict("%s in Consul was changed %d times meanwhile; only the controller must write it", key, replaceAttempts)
}

// reread reads the assignment of pool n from Consul. What does not verify assigns nothing. The
// caller holds r.mu.
func (r *registry) reread(ctx context.Context, n int) error {
	key := kvkey.Pool(n).String()
	kv, _, err := r.cfg.Consul().KV().Get(key, (&consulapi.QueryOptions{}).WithContext(ctx))
	switch {
	case err != nil:
		return unavailable("read %s from Consul: %v", key, err)
	case kv == nil:
		delete(r.pools, n)
		return nil
	}
	found := assignment{index: kv.ModifyIndex}
	found.pool, found.signed, _ = r.verifyPool(n, kv.Value)
	r.pools[n] = found
	return nil
}
