// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package controller

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	consulapi "github.com/hashicorp/consul/api"
	"github.com/hashicorp/go-hclog"

	"github.com/sif-project/sif/internal/atomicfile"
	"github.com/sif-project/sif/internal/kvkey"
	"github.com/sif-project/sif/internal/logkey"
	"github.com/sif-project/sif/internal/retry"
)

const (
	sessionTTL  = "10s" // the shortest that Consul permits
	sessionName = "sif controller"
)

// leaderRecord is the value of kvkey.Leader.
type leaderRecord struct {
	Address string `json:"address"`
}

// election campaigns for the lock on kvkey.Leader. It opens the fence while it holds the lock: each
// transaction that writes has the condition that it still does.
type election struct {
	consul  func() *consulapi.Client
	fence   *fence
	address string
	file    string // contains the ID of the session, so that a restarted controller can end it instead of waiting for its expiry
	disk    *disk
	lead    func(context.Context) error
	log     hclog.Logger
}

func newElection(cfg Config, d *disk, lead func(context.Context) error) *election {
	return &election{disk: d, consul: cfg.Consul, fence: cfg.fence, address: cfg.Address, file: filepath.Join(cfg.DataDir, "session"), lead: lead, log: cfg.Log.Named("election")}
}

// run campaigns until ctx ends, and returns when leadership was given up.
func (e *election) run(ctx context.Context) {
	for ctx.Err() == nil {
		e.waitForDisk(ctx)
		if err := e.term(ctx); err != nil && ctx.Err() == nil {
			e.log.Error("not leading", logkey.Error, err)
			retry.Sleep(ctx, time.Second)
		}
	}
}

// vacancy is how long nobody else may have led before a controller leads that cannot write its data
// directory: it can still be asked, and take rights away.
const vacancy = 5 * time.Second

// waitForDisk waits until the data directory can be written, or nobody else leads. A controller
// that waits has no session, so that a leader can tell who could take over.
func (e *election) waitForDisk(ctx context.Context) {
	var vacant time.Duration
	for ctx.Err() == nil {
		err := e.disk.try()
		if err == nil || vacant >= vacancy {
			return
		}
		if vacant == 0 {
			e.log.Error("not campaigning, unless nobody else leads", logkey.Error, err)
		}
		kv, _, reading := e.consul().KV().Get(kvkey.Leader, (&consulapi.QueryOptions{}).WithContext(ctx))
		if vacant += time.Second; reading != nil || kv != nil && kv.Session != "" {
			vacant = time.Millisecond
		}
		retry.Sleep(ctx, time.Second)
	}
}

// yield ends the term of a leader that cannot write its data directory if another controller waits
// for the lock. It returns when the term ends.
func (e *election) yield(term context.Context, end func(), session string) {
	for term.Err() == nil {
		if err := e.disk.try(); err != nil && e.rivals(term, session) {
			e.log.Error("giving up leadership to another controller", logkey.Error, err)
			end()
			return
		}
		retry.Sleep(term, diskInterval)
	}
}

// rivals reports whether another controller campaigns.
func (e *election) rivals(ctx context.Context, session string) bool {
	sessions, _, err := e.consul().Session().List((&consulapi.QueryOptions{}).WithContext(ctx))
	return err == nil && slices.ContainsFunc(sessions, func(s *consulapi.SessionEntry) bool {
		return s.Name == sessionName && s.ID != session
	})
}

// term waits for the lock, and leads while it holds the lock.
func (e *election) term(ctx context.Context) error {
	consul := e.consul()
	id, err := e.newSession(ctx, consul)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	renewed := make(chan struct{})
	go func() {
		defer close(renewed)
		// RenewPeriodic destroys the session when it is told to end.
		if err := consul.Session().RenewPeriodic(sessionTTL, id, nil, ctx.Done()); err != nil && ctx.Err() == nil {
			e.log.Warn("cannot renew the Consul session", logkey.Error, err)
			cancel()
		}
	}()
	defer func() { cancel(); <-renewed; _ = os.Remove(e.file) }()

	value, err := json.Marshal(leaderRecord{Address: e.address})
	if err != nil {
		return fmt.Errorf("encode the record of the leader: %w", err)
	}
	lock, err := consul.LockOpts(&consulapi.LockOptions{
		Key: kvkey.Leader, Value: value, Session: id,
		MonitorRetries: 3, MonitorRetryTime: time.Second, LockDelay: time.Millisecond,
	})
	if err != nil {
		return fmt.Errorf("prepare the lock %s: %w", kvkey.Leader, err)
	}
	lost, err := lock.Lock(ctx.Done())
	if err != nil {
		return fmt.Errorf("acquire the lock %s: %w", kvkey.Leader, err)
	}
	if lost == nil {
		return nil // ctx ended first
	}
	defer func() { _ = lock.Unlock() }() // if it fails, the session ends and the lock with it
	term, end := context.WithCancel(ctx)
	defer end()
	e.fence.begin(id, end)
	defer e.fence.end() // before the lock is given up
	go func() {
		select {
		case <-lost:
			e.log.Warn("leadership lost")
			end()
		case <-term.Done():
		}
	}()
	yielded := make(chan struct{})
	go func() {
		defer close(yielded)
		e.yield(term, end, id)
	}()
	defer func() { end(); <-yielded }()
	if err := e.lead(term); err != nil && term.Err() == nil {
		return err
	}
	return nil
}

// newSession creates a Consul session and returns its ID. It ends the session of an earlier run
// first: the data directory is locked, so the process that created that session has ended.
func (e *election) newSession(ctx context.Context, consul *consulapi.Client) (string, error) {
	if old, err := os.ReadFile(e.file); err == nil {
		// The file is empty if there was no room when it was written.
		if old := strings.TrimSpace(string(old)); old != "" {
			if _, err := consul.Session().Destroy(old, nil); err != nil {
				return "", fmt.Errorf("end the session of an earlier run: %w", err)
			}
		}
		_ = os.Remove(e.file) // it is written again below
	}
	id, _, err := consul.Session().CreateNoChecks(&consulapi.SessionEntry{
		Name: sessionName, TTL: sessionTTL, LockDelay: time.Millisecond, Behavior: consulapi.SessionBehaviorRelease,
	}, (&consulapi.WriteOptions{}).WithContext(ctx))
	if err != nil {
		return "", fmt.Errorf("create a Consul session: %w", err)
	}
	if err := atomicfile.Write(e.file, []byte(id), 0o600); err != nil { // a restarted controller waits for its expiry then
		e.log.Warn("cannot store the ID of the Consul session", logkey.Error, err)
	}
	return id, nil
}

// leaderAddress returns the address of the leader, or "" if Consul knows none.
func leaderAddress(ctx context.Context, consul *consulapi.Client) string {
	kv, _, err := consul.KV().Get(kvkey.Leader, (&consulapi.QueryOptions{}).WithContext(ctx))
	if err != nil || kv == nil || kv.Session == "" {
		return ""
	}
	var r leaderRecord
	if json.Unmarshal(kv.Value, &r) != nil {
		return ""
	}
	return r.Address
}
