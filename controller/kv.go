// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package controller

import (
	"context"

	consulapi "github.com/hashicorp/consul/api"
)

// checkAndSet writes a value in Consul KV if the key still has the given modify index, or does not
// exist if that is 0. It returns the new modify index, which Consul's own KV.CAS does not, and
// whether the value was written.
func checkAndSet(ctx context.Context, consul *consulapi.Client, key string, value []byte, index uint64) (next uint64, ok bool, err error) {
	op := &consulapi.KVTxnOp{Verb: consulapi.KVCAS, Key: key, Value: value, Index: index}
	ok, resp, _, err := consul.KV().Txn(consulapi.KVTxnOps{op}, (&consulapi.QueryOptions{}).WithContext(ctx))
	if err != nil || !ok {
		return 0, false, err
	}
	return resp.Results[0].ModifyIndex, true, nil
}
