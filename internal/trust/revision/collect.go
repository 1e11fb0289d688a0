// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package revision

import (
	"context"
	"crypto/rand"
	"fmt"
	"maps"
	"slices"
	"strings"

	consulapi "github.com/hashicorp/consul/api"

	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/internal/kvkey"
)

// unchanged is the condition that a key still has this modify index, or with 0 that it does not
// exist.
func unchanged(key string, index uint64) *consulapi.TxnOp {
	if index == 0 {
		return &consulapi.TxnOp{KV: &consulapi.KVTxnOp{Verb: consulapi.KVCheckNotExists, Key: key}}
	}
	return &consulapi.TxnOp{KV: &consulapi.KVTxnOp{Verb: consulapi.KVCheckIndex, Key: key, Index: index}}
}

// conditionally runs a transaction, and returns ErrConflict if a condition is not met.
func conditionally(ctx context.Context, txn Transact, ops consulapi.TxnOps) error {
	ok, resp, err := txn(ctx, ops)
	switch {
	case err != nil:
		return err
	case ok:
		return nil
	case slices.ContainsFunc(resp.Errors, func(e *consulapi.TxnError) bool { return strings.Contains(e.What, "ermission denied") }):
		return txnError(resp)
	}
	return ErrConflict
}

// collected returns the modify index of kvkey.Collected, 0 if it does not exist.
func collected(ctx context.Context, consul *consulapi.Client) (uint64, error) {
	pair, _, err := consul.KV().Get(kvkey.Collected, (&consulapi.QueryOptions{RequireConsistent: true}).WithContext(ctx))
	if err != nil {
		return 0, fmt.Errorf("read %s: %w", kvkey.Collected, err)
	}
	if pair == nil {
		return 0, nil
	}
	return pair.ModifyIndex, nil
}

// Reachable returns the hashes of all objects of the given roots, including the roots. It fails if
// a root, an index or a shard cannot be read and verified.
func Reachable(ctx context.Context, consul *consulapi.Client, roots map[fabric.Hash]bool) (map[fabric.Hash]bool, error) {
	set := map[fabric.Hash]bool{}
	// level reads the objects that have not been read yet.
	level := func(hashes map[fabric.Hash]bool, take func(data []byte, h fabric.Hash) error) error {
		var unread []fabric.Hash
		for h := range hashes {
			if !h.IsZero() && !set[h] {
				set[h] = true
				unread = append(unread, h)
			}
		}
		for chunk := range slices.Chunk(unread, txnOps) {
			found, err := Fetch(ctx, consul, chunk)
			if err != nil {
				return err
			}
			for _, h := range chunk {
				data, ok := found[h]
				err := check(data, ok, h)
				if err == nil {
					err = take(data, h)
				}
				if err != nil {
					return fmt.Errorf("object %s in Consul %w", h, err)
				}
			}
		}
		return nil
	}
	shards, indexes := map[fabric.Hash]bool{}, map[fabric.Hash]bool{}
	err := level(roots, func(data []byte, h fabric.Hash) error {
		var r fabric.Root
		if err := fabric.DecodeObject(data, h, &r); err != nil {
			return err
		}
		for _, s := range r.Shards {
			shards[s] = true
		}
		indexes[r.Domains] = true
		for _, h := range []fabric.Hash{r.Guardrails, r.Bindings, r.Links} {
			if !h.IsZero() {
				set[h] = true
			}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	all := func(m map[string]fabric.Hash) {
		for h := range maps.Values(m) {
			set[h] = true
		}
	}
	err = level(shards, func(data []byte, h fabric.Hash) error {
		var s fabric.Shard
		err := fabric.DecodeObject(data, h, &s)
		all(s)
		return err
	})
	if err != nil {
		return nil, err
	}
	err = level(indexes, func(data []byte, h fabric.Hash) error {
		var i fabric.DomainIndex
		err := fabric.DecodeObject(data, h, &i)
		all(i)
		return err
	})
	return set, err
}

// Collect deletes the objects that are not in keep, and returns how many. If the pointer does not
// have this modify index any more, it returns ErrConflict. keep must contain all objects of the
// pointer's revision.
func Collect(ctx context.Context, consul *consulapi.Client, txn Transact, keep map[fabric.Hash]bool, index uint64) (removed int, err error) {
	keys, _, err := consul.KV().Keys(kvkey.Objects, "", (&consulapi.QueryOptions{RequireConsistent: true}).WithContext(ctx))
	if err != nil {
		return 0, fmt.Errorf("list the objects: %w", err)
	}
	var stale []string
	for _, key := range keys {
		if object, err := kvkey.ParseObject(key); err == nil && !keep[fabric.Hash(object)] {
			stale = append(stale, key)
		}
	}
	for chunk := range slices.Chunk(stale, txnOps) {
		// A Publish of several transactions moves the pointer only if kvkey.Collected is as it was
		// before it wrote its objects, so none of them can be removed in between.
		ops := consulapi.TxnOps{
			unchanged(kvkey.Current, index),
			// Consul changes the modify index only if the value changes.
			{KV: &consulapi.KVTxnOp{Verb: consulapi.KVSet, Key: kvkey.Collected, Value: []byte(rand.Text())}},
		}
		for _, key := range chunk {
			ops = append(ops, &consulapi.TxnOp{KV: &consulapi.KVTxnOp{Verb: consulapi.KVDelete, Key: key}})
		}
		if err := conditionally(ctx, txn, ops); err != nil {
			return removed, fmt.Errorf("delete %d objects: %w", len(chunk), err)
		}
		removed += len(chunk)
	}
	return removed, nil
}
