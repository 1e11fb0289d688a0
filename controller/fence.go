// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package controller

import (
	"context"
	"net/http"
	"slices"
	"strings"
	"sync"

	consulapi "github.com/hashicorp/consul/api"

	"github.com/sif-project/sif/api"
	"github.com/sif-project/sif/internal/kvkey"
)

// fence lets a controller write to Consul only while it holds the lock of the leader. The condition
// is a part of each transaction, so a controller that was stopped in the middle of a call, and goes
// on when another one leads, writes nothing.
type fence struct {
	mu      sync.Mutex
	session string // of the lock; empty: this controller does not lead
	lost    func() // ends the term

	// note returns an operation that is carried out together with each other one, or nil.
	note func() *consulapi.TxnOp
}

// begin opens the fence for a term that holds the lock with a session.
func (f *fence) begin(session string, lost func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.session, f.lost = session, lost
}

// end closes the fence.
func (f *fence) end() { f.begin("", nil) }

// open reports whether this controller believes that it holds the lock.
func (f *fence) open() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.session != ""
}

// fell ends the term that holds a session, if it has not ended.
func (f *fence) fell(session string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.session == session && f.lost != nil {
		f.session = ""
		f.lost()
	}
}

// errFenced is the refusal of a write by a controller that does not lead any more. Nothing was
// written.
func errFenced() error {
	return api.Errorf(http.StatusServiceUnavailable, api.CodeNotLeader, "this controller does not lead any more, and has written nothing; try again")
}

// txn carries out operations if this controller holds the lock. The results are those of the
// operations. ok is false if one of their own conditions was not met.
func (f *fence) txn(ctx context.Context, consul *consulapi.Client, ops consulapi.TxnOps) (ok bool, resp *consulapi.TxnResponse, err error) {
	f.mu.Lock()
	session := f.session
	f.mu.Unlock()
	if session == "" {
		return false, nil, errFenced()
	}
	held := &consulapi.TxnOp{KV: &consulapi.KVTxnOp{Verb: consulapi.KVCheckSession, Key: kvkey.Leader, Session: session}}
	all := slices.Insert(slices.Clone(ops), 0, held)
	if f.note != nil && len(ops) > 0 {
		if op := f.note(); op != nil {
			all = append(all, op)
		}
	}
	ok, resp, _, err = consul.Txn().Txn(all, (&consulapi.QueryOptions{}).WithContext(ctx))
	if err != nil {
		return false, nil, err
	}
	for _, e := range resp.Errors {
		if e.OpIndex == 0 && !strings.Contains(e.What, "ermission denied") {
			f.fell(session)
			return false, nil, errFenced()
		}
		e.OpIndex--
	}
	if len(resp.Results) > 0 && resp.Results[0].KV != nil && resp.Results[0].KV.Key == kvkey.Leader {
		resp.Results = resp.Results[1:]
	}
	return ok, resp, nil
}

// check returns an error unless this controller holds the lock now. It is for what is handed out
// without a write.
func (f *fence) check(ctx context.Context, consul *consulapi.Client) error {
	ok, _, err := f.txn(ctx, consul, nil)
	if err == nil && !ok {
		err = errFenced()
	}
	if err != nil {
		return unwritten(err, "ask Consul whether this controller leads")
	}
	return nil
}

// unwritten is the error of a write that failed: the refusal of the fence, or that Consul does not
// answer.
func unwritten(err error, format string, args ...any) error {
	if api.IsCode(err, api.CodeNotLeader) {
		return err
	}
	return unavailable(format+": %v", append(slices.Clip(args), err)...)
}
