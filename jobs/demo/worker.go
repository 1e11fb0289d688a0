// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"strconv"
	"sync"
	"time"
)

const (
	workInterval = time.Second
	workBatch    = 500
)

// tally is the count of the first Votes entries in the queue of a store. It depends only on them,
// so all workers that count them get the same tally.
type tally struct {
	Store  string         `json:"store"`
	Votes  int            `json:"votes"`
	Voters int            `json:"voters"`
	Counts map[string]int `json:"counts"` // option ID: voters whose last vote it is
}

// worker counts votes. Its state can be rebuilt from the databases.
type worker struct {
	votes, results upstream
	log            *slog.Logger

	store  string            // ID of the store that was read
	next   int               // position of the next entry
	choice map[string]string // voter: last choice

	mu    sync.Mutex
	state workerState
}

// workerState is the result of the last round, for /health.
type workerState struct {
	Status string `json:"status"`
	Votes  int    `json:"votes"`
	Error  string `json:"error,omitempty"`
}

// newWorker builds the worker: each second it reads new votes from voting-db and writes the tally
// to result-db if it has changed.
func newWorker(s settings, log *slog.Logger) (*service, error) {
	wk := &worker{
		votes:   s.needs["voting-db"],
		results: s.needs["result-db"],
		log:     log,
		choice:  make(map[string]string),
		state:   workerState{Status: "ok"},
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /health", func(w http.ResponseWriter, _ *http.Request) {
		wk.mu.Lock()
		state := wk.state
		wk.mu.Unlock()
		// The worker is healthy even if a round fails: see healthy.
		writeData(w, s.self, http.StatusOK, state)
	})
	return &service{handler: mux, background: wk.run}, nil
}

func (wk *worker) run(ctx context.Context) {
	tick := time.NewTicker(workInterval)
	defer tick.Stop()
	for {
		err := wk.round(ctx)
		if ctx.Err() != nil {
			return
		}
		wk.report(err)
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// report stores the result of a round and logs it if it differs from that of the previous round.
func (wk *worker) report(err error) {
	state := workerState{Status: "ok", Votes: wk.next}
	if err != nil {
		state.Error = err.Error()
	}
	wk.mu.Lock()
	before := wk.state.Error
	wk.state = state
	wk.mu.Unlock()
	switch {
	case err != nil && before != state.Error:
		wk.log.Warn("counting failed", "error", err)
	case err == nil && before != "":
		wk.log.Info("counting works again")
	}
}

// round reads new votes and writes the tally if it is missing or old.
func (wk *worker) round(ctx context.Context) error {
	for {
		more, err := wk.read(ctx)
		if err != nil {
			return fmt.Errorf("read votes: %w", err)
		}
		if !more {
			break
		}
	}
	if err := wk.publish(ctx); err != nil {
		return fmt.Errorf("write the result: %w", err)
	}
	return nil
}

// read reads one batch; more reports whether there may be another.
func (wk *worker) read(ctx context.Context) (more bool, err error) {
	answer, err := get[queueSlice](ctx, wk.votes, "/queues/"+voteQueue, url.Values{
		"from":  {strconv.Itoa(wk.next)},
		"limit": {strconv.Itoa(workBatch)},
	})
	if err != nil {
		return false, err
	}
	batch := answer.Data
	if batch.Store != wk.store {
		// It is another store, in which the known positions have no meaning.
		fromStart := wk.next == 0
		wk.store, wk.next = batch.Store, 0
		clear(wk.choice)
		if !fromStart {
			return true, nil
		}
	}
	for _, entry := range batch.Entries {
		var v vote
		if err := json.Unmarshal(entry, &v); err != nil || v.validate() != nil {
			wk.log.Warn("entry is not a vote", "position", wk.next)
		} else {
			wk.choice[v.Voter] = v.Choice
		}
		wk.next++
	}
	return len(batch.Entries) > 0, nil
}

// publish writes the tally to result-db unless that has one that is as new.
func (wk *worker) publish(ctx context.Context) error {
	held, err := get[versioned](ctx, wk.results, "/kv/"+tallyKey, nil)
	var version uint64
	var status *statusError
	switch {
	case errors.As(err, &status) && status.status == http.StatusNotFound:
	case err != nil:
		return err
	default:
		version = held.Data.Version
		var t tally
		// A value that is not a tally is replaced like an old tally.
		if json.Unmarshal(held.Data.Value, &t) == nil && t.Store == wk.store && t.Votes >= wk.next {
			return nil
		}
	}
	_, err = call[stored](ctx, wk.results, http.MethodPut, "/kv/"+tallyKey, nil, wk.count(),
		http.Header{"If-Match": {strconv.FormatUint(version, 10)}})
	if errors.As(err, &status) && status.status == http.StatusPreconditionFailed {
		return nil // another worker was first; the next round compares again
	}
	return err
}

func (wk *worker) count() tally {
	t := tally{Store: wk.store, Votes: wk.next, Voters: len(wk.choice), Counts: make(map[string]int)}
	for _, choice := range wk.choice {
		t.Counts[choice]++
	}
	return t
}
