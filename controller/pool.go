// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package controller

import (
	"context"
	"encoding/binary"
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

// freePools deletes the assignments of pools to nodes that were removed and are not back. Their
// tombstones keep the pools from being assigned before they have rested. The caller holds r.mu.
func (r *registry) freePools(ctx context.Context, removed fabric.Revocations) error {
	var errs []error
	for n, owner := range r.poolOwners {
		if _, ended := removed.Ends(owner, time.Time{}); !ended || r.members[owner] != nil {
			continue
		}
		key := kvkey.Pool(n).String()
		if _, err := r.cfg.Consul().KV().Delete(key, (&consulapi.WriteOptions{}).WithContext(ctx)); err != nil {
			errs = append(errs, fmt.Errorf("delete %s from Consul: %w", key, err))
			continue
		}
		delete(r.poolOwners, n)
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

// poolOf returns a node's pair of pools: the one in its signed record, else the one that Consul
// assigns to it, else the first free one, which it assigns to the node in Consul. The caller holds
// r.mu.
func (r *registry) poolOf(ctx context.Context, id fabric.NodeID) (netip.Prefix, netip.Prefix, error) {
	used := map[netip.Prefix]bool{} // by signed records of other nodes
	for other, m := range r.members {
		if other == id && r.cfg.Pool4.Contains(m.node.Pool4.Addr()) && r.cfg.Pool6.Contains(m.node.Pool6.Addr()) {
			return m.node.Pool4, m.node.Pool6, nil
		}
		used[m.node.Pool4], used[m.node.Pool6] = true, true
	}
	count := poolCount(r.cfg.Pool4, r.cfg.Pool6)
	for n, owner := range r.poolOwners {
		if v4, v6 := poolPair(r.cfg.Pool4, r.cfg.Pool6, n); owner == id && n < count && !used[v4] && !used[v6] {
			return v4, v6, nil
		}
	}
	rest := resting(r.removed(), clock.Now())
	for n := range count {
		v4, v6 := poolPair(r.cfg.Pool4, r.cfg.Pool6, n)
		if _, assigned := r.poolOwners[n]; assigned || used[v4] || used[v6] {
			continue
		}
		if slices.ContainsFunc(rest, func(t fabric.Tombstone) bool { return t.Holds(v4, v6) }) {
			continue
		}
		kv := &consulapi.KVPair{Key: kvkey.Pool(n).String(), Value: []byte(id.String())} // index 0: only if it does not exist
		ok, _, err := r.cfg.Consul().KV().CAS(kv, (&consulapi.WriteOptions{}).WithContext(ctx))
		if err != nil {
			return v4, v6, unavailable("assign pool %s to node %s in Consul: %v", v4, id, err)
		}
		if !ok {
			r.poolOwners[n] = fabric.NodeID{} // by another controller since this one read them
			continue
		}
		r.poolOwners[n] = id
		return v4, v6, nil
	}
	return netip.Prefix{}, netip.Prefix{}, api.Errorf(http.StatusInsufficientStorage, api.CodeAddress,
		"all %d pools of %s and %s are assigned to nodes, or rest after the removal of a node; configure larger pools", count, r.cfg.Pool4, r.cfg.Pool6)
}
