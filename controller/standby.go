// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package controller

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	consulapi "github.com/hashicorp/consul/api"

	"github.com/sif-project/sif/internal/consulwatch"
	"github.com/sif-project/sif/internal/kvkey"
	"github.com/sif-project/sif/internal/logkey"
	"github.com/sif-project/sif/internal/retry"
)

// standbyPause is the least time between two looks at what has changed in Consul.
const standbyPause = time.Second

// standby keeps the state of a controller that does not lead as it is in Consul, so that it answers
// reads, and leads at once when it is its turn. It writes nothing to Consul.
type standby struct {
	c *Controller

	mu        sync.Mutex // held while the state is read from Consul
	suspended bool       // the controller leads

	told    sync.Mutex // never held while Consul is asked
	trouble error      // of the last look
}

// suspend leaves the state to the leader until resume is called.
func (s *standby) suspend() (resume func()) {
	set := func(suspended bool) {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.suspended = suspended
		s.tell(nil)
	}
	set(true)
	return func() { set(false) }
}

// run follows the state until ctx ends.
func (s *standby) run(ctx context.Context) error {
	changed := make(chan struct{}, 1)
	var watches sync.WaitGroup
	defer watches.Wait()
	for _, prefix := range []string{kvkey.Nodes, kvkey.Pools, kvkey.Bindings, kvkey.Admissions} {
		watch := consulwatch.Watch[[]string]{
			Query: func(opts *consulapi.QueryOptions) ([]string, *consulapi.QueryMeta, error) {
				return s.c.cfg.Consul().KV().Keys(prefix, "", opts)
			},
			Handle: func([]string) bool {
				select {
				case changed <- struct{}{}:
				default:
				}
				retry.Sleep(ctx, standbyPause)
				return true
			},
			Wait: time.Minute, MinPause: time.Second, MaxPause: 10 * time.Second,
		}
		watches.Go(func() { watch.Run(ctx) })
	}
	for {
		pause := time.Minute
		began := time.Now()
		if err := s.look(ctx); err != nil && ctx.Err() == nil {
			s.c.log.Warn("cannot read the state from Consul while standing by, retrying", logkey.Error, err)
			pause = 5 * time.Second
		}
		// Of a large fabric, it takes at most a tenth of a core.
		if !retry.Sleep(ctx, max(standbyPause, 10*time.Since(began))) {
			return nil
		}
		select {
		case <-ctx.Done():
			return nil
		case <-changed:
		case <-time.After(pause):
		}
	}
}

// degraded returns what is wrong, for people.
func (s *standby) degraded() []string {
	s.told.Lock()
	defer s.told.Unlock()
	if s.trouble == nil {
		return nil
	}
	return []string{fmt.Sprintf("it stands by with an old state: %v", s.trouble)}
}

func (s *standby) tell(trouble error) {
	s.told.Lock()
	defer s.told.Unlock()
	s.trouble = trouble
}

// look reads the state, unless this controller leads.
func (s *standby) look(ctx context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.suspended {
		return nil
	}
	err := errors.Join(s.c.nodes.load(ctx), s.c.bound.load(ctx), s.c.table.load(ctx))
	if ctx.Err() == nil {
		s.tell(err)
	}
	return err
}
