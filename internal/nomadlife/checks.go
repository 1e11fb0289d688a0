// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package nomadlife

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	nomadapi "github.com/hashicorp/nomad/api"
	"golang.org/x/sync/errgroup"

	"github.com/sif-project/sif/internal/logkey"
)

// How often the checks of an allocation are read, from its Nomad client: while they have not
// passed, and once they have.
const (
	failingInterval = 2 * time.Second
	passingInterval = 5 * time.Second
)

// checkTime limits reading the checks of an allocation. A client that is slow must not keep those
// of others from being read.
const checkTime = 4 * time.Second

// checks are the results of an allocation's checks.
type checks struct {
	read    bool
	passed  int
	failing string    // one that has not passed, of the first by name
	next    time.Time // when to read them again; zero: at once
}

// judge returns the life of an allocation whose tasks run.
func (c checks) judge(declared int) Life {
	switch {
	case !c.read:
		return Life{Unknown, "has checks in Nomad that were not read yet"}
	case c.failing != "":
		return Life{Unhealthy, c.failing}
	case c.passed < declared:
		return Life{Unhealthy, fmt.Sprintf("has passed only %d of the %d checks that its job declares in Nomad", c.passed, declared)}
	}
	return Life{Ready, ""}
}

// resultsOf returns what the results of an allocation's checks say.
func resultsOf(results nomadapi.AllocCheckStatuses) checks {
	c := checks{read: true}
	for _, id := range slices.Sorted(maps.Keys(results)) {
		switch r := results[id]; {
		case r.Status == "success":
			c.passed++
		case c.failing == "":
			c.failing = fmt.Sprintf("has not passed check %q of service %q in Nomad (%s)", r.Check, r.Service, r.Status)
		}
	}
	return c
}

// readChecks reads the checks that are due, until ctx ends.
func (w *Watcher) readChecks(ctx context.Context) error {
	tick := time.NewTicker(failingInterval / 4)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-w.check:
		case <-tick.C:
		}
		var g errgroup.Group
		g.SetLimit(atOnce)
		for _, id := range w.due(time.Now()) {
			g.Go(func() error {
				w.readCheck(ctx, id)
				return nil
			})
		}
		_ = g.Wait()
	}
}

// due returns the allocations whose checks are to be read.
func (w *Watcher) due(now time.Time) (ids []string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for id, f := range w.followed {
		if f.known && f.shape != nil && f.shape.checks > 0 && !now.Before(f.checks.next) && assess(f.view, f.shape).State == Ready {
			ids = append(ids, id)
		}
	}
	return ids
}

// readCheck reads the checks of one allocation. What was read before stays if they cannot be read.
func (w *Watcher) readCheck(ctx context.Context, id string) {
	ctx, cancel := context.WithTimeout(ctx, checkTime)
	defer cancel()
	results, err := w.Client().Allocations().Checks(id, (&nomadapi.QueryOptions{}).WithContext(ctx))
	if err != nil && ctx.Err() == nil {
		w.Log.Debug("cannot read the checks of an allocation, retrying", logkey.Endpoint, id, logkey.Error, err)
	}
	changed := false
	w.mu.Lock()
	if f := w.followed[id]; f != nil && f.shape != nil && assess(f.view, f.shape).State == Ready {
		if err == nil {
			f.checks = resultsOf(results)
		}
		f.checks.next = time.Now().Add(failingInterval)
		changed = w.judge(id, f)
		if f.life.State == Ready {
			f.checks.next = time.Now().Add(passingInterval)
		}
	}
	w.mu.Unlock()
	if changed {
		w.tell([]string{id})
	}
}
