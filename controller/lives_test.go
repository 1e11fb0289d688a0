// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package controller

import (
	"fmt"
	"maps"
	"slices"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"github.com/sif-project/sif/api"
	"github.com/sif-project/sif/internal/nomadlife"
)

// Each node hears of the life of its own endpoints alone, at once, while they are admitted.
func testLives(t *testing.T, w *world) {
	scheduler := &fakeScheduler{placed: map[string]Placement{allocation(1): placed("app", "g"), allocation(2): placed("app", "g")}}
	c, ctx := w.fresh(t, scheduler), t.Context()
	w1, w2, p1 := w.node(t, c, "w1"), w.node(t, c, "w2"), w.node(t, c, "p1")
	w1.register(t, "10.0.0.1")
	w2.register(t, "10.0.0.2")
	p1.register(t, "10.0.0.9")
	_, err := c.operator.Apply(ctx, api.GraphRequest{Domains: domains(testDomain("app"))})
	must.NoError(t, err)
	follower := c.lives.follower.(*fakeFollower)
	for n := range 2 {
		_, err := w1.Admit(ctx, request4(n+1, byte(10+n)))
		must.NoError(t, err)
	}
	follows := func(ids ...string) {
		t.Helper()
		eventually(t, func() error {
			follower.mu.Lock()
			defer follower.mu.Unlock()
			if !slices.Equal(ids, follower.followed) {
				return fmt.Errorf("it follows %v", follower.followed)
			}
			return nil
		})
	}
	follows(allocation(1), allocation(2))

	first, index, err := w1.Lives(ctx, 0, time.Minute)
	must.NoError(t, err)
	must.Eq(t, []string{allocation(1), allocation(2)}, slices.Sorted(maps.Keys(first.Endpoints)))
	must.Eq(t, api.EndpointLife{}, first.Endpoints[allocation(1)])
	others, otherIndex, err := w2.Lives(ctx, 0, time.Minute)
	must.NoError(t, err)
	must.MapEmpty(t, others.Endpoints)
	_, _, err = p1.Lives(ctx, 0, 0)
	code(t, api.CodeForbidden, err)

	// A call that waits is answered when something changes, and not before.
	type answer struct {
		api.EndpointLives
		index uint64
		err   error
	}
	wait := func(n *testNode, index uint64, most time.Duration) chan answer {
		reply := make(chan answer, 1)
		go func() {
			lives, next, err := n.Lives(ctx, index, most)
			reply <- answer{lives, next, err}
		}()
		return reply
	}
	mine, theirs := wait(w1, index, time.Minute), wait(w2, otherIndex, time.Second)
	time.Sleep(50 * time.Millisecond)
	must.Eq(t, 0, len(mine))
	follower.set(allocation(1), nomadlife.Life{State: nomadlife.Waiting, Why: "waits for its start"})
	got := <-mine
	must.NoError(t, got.err)
	must.Eq(t, api.EndpointLife{State: "waiting", Why: "waits for its start"}, got.Endpoints[allocation(1)])
	must.NotEq(t, index, got.index)
	unchanged := <-theirs
	must.NoError(t, unchanged.err)
	must.Eq(t, otherIndex, unchanged.index)

	// What happened between two calls is not lost.
	follower.set(allocation(1), nomadlife.Life{State: nomadlife.Ready})
	got = <-wait(w1, got.index, time.Minute)
	must.NoError(t, got.err)
	must.Eq(t, api.EndpointLife{State: api.LifeReady}, got.Endpoints[allocation(1)])

	follower.mu.Lock()
	follower.canary = map[string]bool{allocation(1): true}
	follower.mu.Unlock()
	follower.changed([]string{allocation(1)})
	got = <-wait(w1, got.index, time.Minute)
	must.NoError(t, got.err)
	must.Eq(t, api.EndpointLife{State: api.LifeReady, Canary: true}, got.Endpoints[allocation(1)])

	must.NoError(t, w1.Release(ctx, allocation(2)))
	follows(allocation(1))

	// Another leader knows other indexes: the node does not wait for one that is higher.
	c.stop()
	again := w.start(t, c.dir, scheduler, false)
	w1 = w.node(t, again, "w1")
	eventually(t, func() error {
		lives, next, err := w1.Lives(ctx, got.index, time.Minute)
		if err == nil && (next == got.index || len(lives.Endpoints) != 1) {
			err = fmt.Errorf("%v, index %d", lives, next)
		}
		return err
	})
}
