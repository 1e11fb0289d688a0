// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

// Package revision keeps the signed revision of the graph in Consul KV: the
// controller writes it, nodes follow it and believe nothing that does not
// verify. It knows objects, hashes and the pointer; not what a document means
// to whoever enforces it.
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

// Errors that callers tell apart.
var (
	ErrConflict       = errors.New("the pointer was moved by somebody else meanwhile")
	ErrNoRevision     = errors.New("no graph has been applied yet")
	ErrUnknownService = errors.New("the graph has no such service")
)

// Consul takes at most 128 operations and 524,288 bytes of body in one
// transaction, and values of at most 524,288 bytes. Values are in base64.
const (
	txnOps   = 120       // and a few conditions
	txnBytes = 256 << 10 // of values, before base64
	// repairChunk bounds how many objects are held twice while they are compared.
	repairChunk = 1024
)

// ReadCurrent returns the pointer as the store has it, unverified, and its
// modify index; ErrNoRevision if there is none.
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

// ReadObject reads the object of that hash, checks it, and decodes it into v.
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

// check says what is wrong with an object that was looked for and possibly
// found.
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

// Fetch reads objects, unchecked: the caller compares them with their hashes.
// Those that do not exist are not in the result.
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

// entry is an object as it was found, unchecked.
type entry struct {
	data  []byte
	index uint64 // modify index in Consul; 0: it is from elsewhere
}

// read is Fetch with the modify indexes.
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
					data = r.KV.Value // altered, as its hash will show
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

// compare reads the pointer, which is nil if there is none, and reports whether
// the objects still are at their modify indexes. The pointer counts only if they
// are. Consul answers without sending the objects, or asking its other servers.
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
			return nil, false, nil // another index, or the key is gone
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

// Writer publishes revisions.
type Writer struct {
	consul *consulapi.Client
}

// NewWriter returns a Writer.
func NewWriter(consul *consulapi.Client) *Writer { return &Writer{consul: consul} }

// Publish writes the objects of rev and moves the pointer, if its modify index
// is still casIndex (0: there is none yet); ErrConflict otherwise. What one
// transaction holds is written at once; of more, the pointer comes last, and not
// at all if objects were collected meanwhile (ErrConflict too). Until then nobody
// sees anything of it.
//
// It does not look what is there already: of a revision that was compiled from
// one in the store, rev need only have the objects that are new.
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
	if err := conditionally(ctx, w.consul, last); err != nil {
		return fmt.Errorf("move %s: %w", kvkey.Current, err)
	}
	return nil
}

// Repair writes those of the objects that are missing or were altered. It
// returns their hashes.
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

// Write writes objects, whether they are there or not.
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

// split returns what is to be done in transactions, in order. What is too large
// for one is a part of its own.
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

// set writes parts of what split returned.
func (w *Writer) set(ctx context.Context, parts []consulapi.TxnOps) error {
	for _, ops := range parts {
		if kv := ops[0].KV; len(kv.Value) > txnBytes { // too large for a transaction, not for a value
			pair := &consulapi.KVPair{Key: kv.Key, Value: kv.Value}
			if _, err := w.consul.KV().Put(pair, (&consulapi.WriteOptions{}).WithContext(ctx)); err != nil {
				return fmt.Errorf("write %s of %d bytes: %w", kv.Key, len(kv.Value), err)
			}
			continue
		}
		ok, resp, _, err := w.consul.Txn().Txn(ops, (&consulapi.QueryOptions{}).WithContext(ctx))
		if err == nil && !ok {
			err = txnError(resp)
		}
		if err != nil {
			return fmt.Errorf("write %d objects: %w", len(ops), err)
		}
	}
	return nil
}
