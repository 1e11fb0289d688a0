// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

// Package revision stores the signed revision of the graph in Consul KV. The controller writes it,
// nodes follow it and use only what verifies. The package knows objects, hashes and the pointer; it
// does not know how a document is enforced.
package revision

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	consulapi "github.com/hashicorp/consul/api"

	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/internal/kvkey"
)

// Errors that callers distinguish.
var (
	ErrConflict       = errors.New("another process has moved the pointer")
	ErrNoRevision     = errors.New("no graph has been applied yet")
	ErrUnknownService = errors.New("the graph has no such service")
)

// Consul accepts at most 128 operations and a body of 524,288 bytes in a transaction, and values of
// at most 524,288 bytes. Values are encoded in base64.
const (
	txnOps   = 120       // leaves room for a few conditions
	txnBytes = 256 << 10 // of values, before they are encoded in base64
	// repairChunk bounds how many objects Repair has in memory twice.
	repairChunk = 1024
)

// ReadCurrent returns the pointer in Consul, unverified, and its modify index. Without a pointer it
// returns ErrNoRevision.
func ReadCurrent(ctx context.Context, consul *consulapi.Client) (fabric.Signed, uint64, error) {
	opts := (&consulapi.QueryOptions{RequireConsistent: true}).WithContext(ctx)
	pair, _, err := consul.KV().Get(kvkey.Current, opts)
	if err != nil {
		return fabric.Signed{}, 0, fmt.Errorf("read %s: %w", kvkey.Current, err)
	}
	if pair == nil {
		return fabric.Signed{}, 0, ErrNoRevision
	}
	signed, err := decodeSigned(pair.Value)
	return signed, pair.ModifyIndex, err
}

func decodeSigned(b []byte) (fabric.Signed, error) {
	var s fabric.Signed
	if err := json.Unmarshal(b, &s); err != nil {
		return s, fmt.Errorf("decode %s: %w", kvkey.Current, err)
	}
	return s, nil
}

// ReadObject reads the object with the hash h, verifies it, and decodes it into v.
func ReadObject(ctx context.Context, consul *consulapi.Client, h fabric.Hash, v any) error {
	found, err := Fetch(ctx, consul, []fabric.Hash{h})
	if err != nil {
		return err
	}
	data, ok := found[h]
	if err := check(data, ok, h); err != nil {
		return fmt.Errorf("object %s in Consul %w", h, err)
	}
	return fabric.DecodeObject(data, h, v)
}

// check verifies an object that was read. found is false if Consul does not have it.
func check(data []byte, found bool, h fabric.Hash) error {
	switch {
	case !found:
		return errMissing
	case fabric.HashOf(data) != h:
		return errAltered
	}
	return nil
}

var (
	errMissing = errors.New("is missing")
	errAltered = errors.New("was altered: its content does not hash to its address")
)

// Fetch reads objects. It does not verify them: the caller compares them with their hashes. The
// result lacks those that do not exist.
func Fetch(ctx context.Context, consul *consulapi.Client, hashes []fabric.Hash) (map[fabric.Hash][]byte, error) {
	entries, err := read(ctx, consul, hashes)
	if err != nil {
		return nil, err
	}
	found := make(map[fabric.Hash][]byte, len(entries))
	for h, e := range entries {
		found[h] = e.data
	}
	return found, nil
}

// entry is an object as it was read, unverified.
type entry struct {
	data  []byte
	index uint64 // modify index in Consul; 0 if it is not from Consul
}

// read is Fetch with modify indexes.
func read(ctx context.Context, consul *consulapi.Client, hashes []fabric.Hash) (map[fabric.Hash]entry, error) {
	found := map[fabric.Hash]entry{}
	for chunk := range slices.Chunk(hashes, txnOps) {
		var ops consulapi.TxnOps
		byKey := map[string]fabric.Hash{}
		for _, h := range chunk {
			byKey[kvkey.Object(h).String()] = h
			ops = append(ops, get(kvkey.Object(h).String()))
		}
		ok, resp, _, err := consul.Txn().Txn(ops, (&consulapi.QueryOptions{}).WithContext(ctx))
		if err != nil {
			return nil, fmt.Errorf("read %d objects: %w", len(chunk), err)
		}
		if !ok {
			return nil, fmt.Errorf("read %d objects: %w", len(chunk), txnError(resp))
		}
		for _, r := range resp.Results {
			if h, asked := byKey[r.KV.Key]; asked && r.KV.ModifyIndex != 0 {
				data, err := unpack(r.KV.Value)
				if err != nil {
					data = r.KV.Value // it was altered; its hash will not match
				}
				found[h] = entry{data, r.KV.ModifyIndex}
			}
		}
	}
	return found, nil
}

func get(key string) *consulapi.TxnOp {
	return &consulapi.TxnOp{KV: &consulapi.KVTxnOp{Verb: consulapi.KVGetOrEmpty, Key: key}}
}

// compare reports whether the objects still have their modify indexes, and if so returns the
// pointer, or nil if there is none. Consul answers without sending the objects and without asking
// its other servers.
func compare(ctx context.Context, consul *consulapi.Client, indexes map[fabric.Hash]uint64) (pointer *consulapi.KVPair, same bool, err error) {
	ops := consulapi.TxnOps{get(kvkey.Current)}
	for h, index := range indexes {
		if index == 0 {
			return nil, false, nil
		}
		ops = append(ops, unchanged(kvkey.Object(h).String(), index))
	}
	for chunk := range slices.Chunk(ops, txnOps) {
		ok, resp, _, err := consul.Txn().Txn(chunk, (&consulapi.QueryOptions{}).WithContext(ctx))
		if err != nil {
			return nil, false, fmt.Errorf("compare %d objects: %w", len(chunk), err)
		}
		if !ok {
			return nil, false, nil // the index differs, or the key was deleted
		}
		for _, r := range resp.Results {
			if r.KV.Key == kvkey.Current && r.KV.ModifyIndex != 0 {
				pointer = &consulapi.KVPair{Key: r.KV.Key, Value: r.KV.Value, ModifyIndex: r.KV.ModifyIndex}
			}
		}
	}
	return pointer, true, nil
}

func txnError(resp *consulapi.TxnResponse) error {
	if len(resp.Errors) == 0 {
		return errors.New("the transaction was rolled back")
	}
	return errors.New(resp.Errors[0].What)
}

// Transact carries out a transaction in Consul. It may add conditions of its own; then it returns
// an error if they are not met, and ok is false if those of the operations are not. The results and
// errors are those of the operations.
type Transact func(ctx context.Context, ops consulapi.TxnOps) (ok bool, resp *consulapi.TxnResponse, err error)

// Unfenced returns a Transact without conditions of its own.
func Unfenced(consul *consulapi.Client) Transact {
	return func(ctx context.Context, ops consulapi.TxnOps) (bool, *consulapi.TxnResponse, error) {
		ok, resp, _, err := consul.Txn().Txn(ops, (&consulapi.QueryOptions{}).WithContext(ctx))
		return ok, resp, err
	}
}

// Writer publishes revisions.
type Writer struct {
	consul *consulapi.Client
	txn    Transact
}

// NewWriter returns a Writer that writes by txn.
//
// An object that is too large for a transaction is written without it. That does no harm: the key
// is the hash of the value, so whoever writes it writes the same.
func NewWriter(consul *consulapi.Client, txn Transact) *Writer {
	return &Writer{consul: consul, txn: txn}
}

// Publish writes the objects of rev and moves the pointer if its modify index still is casIndex (0:
// there is none yet), otherwise it returns ErrConflict. A revision that fits in one transaction is
// written by one. With several transactions the last one moves the pointer, unless objects were
// deleted since Publish began, which is ErrConflict too. Nodes see the revision once the pointer
// has moved.
//
// Publish does not check which objects exist. If rev was compiled from a stored revision, it need
// only contain the new objects.
func (w *Writer) Publish(ctx context.Context, rev fabric.Revision, signed fabric.Signed, casIndex uint64) error {
	value, err := json.Marshal(signed)
	if err != nil {
		return fmt.Errorf("encode the pointer: %w", err)
	}
	ops, err := sets(rev.Objects)
	if err != nil {
		return err
	}
	ops = append(ops, &consulapi.TxnOp{KV: &consulapi.KVTxnOp{Verb: consulapi.KVCAS, Key: kvkey.Current, Value: value, Index: casIndex}})
	parts := split(ops)
	last := parts[len(parts)-1]
	if len(parts) > 1 {
		index, err := collected(ctx, w.consul)
		if err != nil {
			return err
		}
		last = append(last, unchanged(kvkey.Collected, index))
		if err := w.set(ctx, parts[:len(parts)-1]); err != nil {
			return err
		}
	}
	if err := conditionally(ctx, w.txn, last); err != nil {
		return fmt.Errorf("move %s: %w", kvkey.Current, err)
	}
	return nil
}

// Repair writes the objects that are missing or altered in Consul, and returns their hashes.
func (w *Writer) Repair(ctx context.Context, objects []fabric.Object) ([]fabric.Hash, error) {
	hashes := make([]fabric.Hash, len(objects))
	for i, o := range objects {
		hashes[i] = o.Hash
	}
	var bad []fabric.Object
	var repaired []fabric.Hash
	for chunk := range slices.Chunk(objects, repairChunk) {
		stored, err := Fetch(ctx, w.consul, hashes[:len(chunk)])
		if err != nil {
			return nil, err
		}
		hashes = hashes[len(chunk):]
		for _, o := range chunk {
			data, ok := stored[o.Hash]
			if check(data, ok, o.Hash) != nil {
				bad, repaired = append(bad, o), append(repaired, o.Hash)
			}
		}
	}
	return repaired, w.Write(ctx, bad)
}

// Write writes objects, whether they exist or not.
func (w *Writer) Write(ctx context.Context, objects []fabric.Object) error {
	ops, err := sets(objects)
	if err != nil {
		return err
	}
	return w.set(ctx, split(ops))
}

// sets returns the operations that write objects.
func sets(objects []fabric.Object) (consulapi.TxnOps, error) {
	ops := make(consulapi.TxnOps, 0, len(objects)+1)
	for _, o := range objects {
		value, err := pack(o.Data)
		if err != nil {
			return nil, fmt.Errorf("write object %s: %w", o.Hash, err)
		}
		ops = append(ops, &consulapi.TxnOp{KV: &consulapi.KVTxnOp{Verb: consulapi.KVSet, Key: kvkey.Object(o.Hash).String(), Value: value}})
	}
	return ops, nil
}

// split distributes operations over transactions, in order. An operation that is too large for a
// transaction is a part of its own.
func split(ops consulapi.TxnOps) []consulapi.TxnOps {
	var parts []consulapi.TxnOps
	begin, size := 0, 0
	for i, op := range ops {
		if i > begin && (i-begin == txnOps || size+len(op.KV.Value) > txnBytes) {
			parts = append(parts, ops[begin:i:i])
			begin, size = i, 0
		}
		size += len(op.KV.Value)
	}
	if begin < len(ops) {
		parts = append(parts, ops[begin:])
	}
	return parts
}

// set runs parts that split returned.
func (w *Writer) set(ctx context.Context, parts []consulapi.TxnOps) error {
	for _, ops := range parts {
		if kv := ops[0].KV; len(kv.Value) > txnBytes { // too large for a transaction, but not for a value
			pair := &consulapi.KVPair{Key: kv.Key, Value: kv.Value}
			if _, err := w.consul.KV().Put(pair, (&consulapi.WriteOptions{}).WithContext(ctx)); err != nil {
				return fmt.Errorf("write %s of %d bytes: %w", kv.Key, len(kv.Value), err)
			}
			continue
		}
		ok, resp, err := w.txn(ctx, ops)
		if err == nil && !ok {
			err = txnError(resp)
		}
		if err != nil {
			return fmt.Errorf("write %d objects: %w", len(ops), err)
		}
	}
	return nil
}
