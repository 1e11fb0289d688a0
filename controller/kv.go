// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package controller

import (
	"context"
	"net/http"

	consulapi "github.com/hashicorp/consul/api"

	"github.com/sif-project/sif/api"
)

// maxStored is the largest value about one node or endpoint that is stored, in bytes. Every node
// reads the records of all nodes, and Consul takes at most 512 KiB.
const maxStored = 128 << 10

// storable refuses a value that is too large to be stored.
func storable(what string, value []byte) error {
	if len(value) > maxStored {
		return api.Errorf(http.StatusRequestEntityTooLarge, api.CodeInvalid, "%s would have %d bytes, at most %d are stored", what, len(value), maxStored)
	}
	return nil
}

// checkAndSet writes a value in Consul KV if the key still has the given modify index, or does not
// exist if that is 0. It returns the new modify index, which Consul's own KV.CAS does not, and
// whether the value was written.
func (f *fence) checkAndSet(ctx context.Context, consul *consulapi.Client, key string, value []byte, index uint64) (next uint64, ok bool, err error) {
	op := &consulapi.KVTxnOp{Verb: consulapi.KVCAS, Key: key, Value: value, Index: index}
	ok, resp, err := f.txn(ctx, consul, consulapi.TxnOps{{KV: op}})
	if err != nil || !ok {
		return 0, false, err
	}
	return resp.Results[0].KV.ModifyIndex, true, nil
}

// remove deletes a key in Consul KV if it still has the given modify index, and reports whether it
// did.
func (f *fence) remove(ctx context.Context, consul *consulapi.Client, key string, index uint64) (ok bool, err error) {
	ok, _, err = f.txn(ctx, consul, consulapi.TxnOps{{KV: &consulapi.KVTxnOp{Verb: consulapi.KVDeleteCAS, Key: key, Index: index}}})
	return ok, err
}

// removeAny deletes a key in Consul KV, whatever it has.
func (f *fence) removeAny(ctx context.Context, consul *consulapi.Client, key string) error {
	_, _, err := f.txn(ctx, consul, consulapi.TxnOps{{KV: &consulapi.KVTxnOp{Verb: consulapi.KVDelete, Key: key}}})
	return err
}

// replaceAttempts bounds how often a value is written while another process writes it too.
const replaceAttempts = 5

// replace writes a value whatever the key has, and returns its modify index. It is for keys that
// only the leading controller writes: what it finds is out of date or was altered.
func (f *fence) replace(ctx context.Context, consul *consulapi.Client, key string, value []byte) (uint64, error) {
	q := (&consulapi.QueryOptions{}).WithContext(ctx)
	for range replaceAttempts {
		old, _, err := consul.KV().Get(key, q)
		if err != nil {
			return 0, unavailable("read %s from Consul: %v", key, err)
		}
		var index uint64
		if old != nil {
			index = old.ModifyIndex
		}
		next, ok, err := f.checkAndSet(ctx, consul, key, value, index)
		if err != nil {
			return 0, unwritten(err, "write %s to Consul", key)
		}
		if ok {
			return next, nil
		}
	}
	return 0, conflict("%s in Consul was changed %d times meanwhile; only the controller must write it", key, replaceAttempts)
}
