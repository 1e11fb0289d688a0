// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package controller

import (
	"context"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/sif-project/sif/api"
	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/internal/clock"
	"github.com/sif-project/sif/internal/nomadlife"
)

// livesInterval is how often the followed allocations are compared with the admissions, beside
// after each admission.
const livesInterval = 5 * time.Second

// Follower follows the life of allocations of the scheduler.
type Follower interface {
	// Follow sets the allocations to follow. It does not block.
	Follow(ids []string)
	Of(id string) nomadlife.Life
	// Canary reports whether it is a canary of a deployment that was not promoted yet.
	Canary(id string) bool
	// Trouble returns why the scheduler cannot be followed, or nil.
	Trouble() error
	Run(ctx context.Context) error
}

// Lives implements Scheduler.
func (n *Nomad) Lives(changed func(ids []string), log hclog.Logger) Follower {
	w := nomadlife.New(nomadlife.Config{Client: n.client, Changed: changed, Log: log})
	n.watcher.Store(w)
	return w
}

// lives tells nodes about the life of their own endpoints in the scheduler. The leader alone
// follows it: it alone answers nodes.
type lives struct {
	table    *table
	follower Follower
	nudge    chan struct{}

	mu    sync.Mutex
	nodes map[string]fabric.NodeID // of the endpoints that are followed
	turns map[fabric.NodeID]*turn
	first uint64 // index of nodes of whose endpoints nothing has changed
}

// turn is the index of what a node's endpoints are like. A controller that leads anew begins with
// other indexes, so a node waits for another index than its own, not for a higher one.
type turn struct {
	index   uint64
	changed chan struct{} // closed and replaced with each change
}

func newLives(cfg Config, t *table) *lives {
	l := &lives{table: t, nudge: make(chan struct{}, 1), nodes: map[string]fabric.NodeID{}, turns: map[fabric.NodeID]*turn{}, first: 1}
	l.follower = cfg.Scheduler.Lives(l.changed, cfg.Log.Named("lives"))
	return l
}

// admitted has a new endpoint followed. It does not block.
func (l *lives) admitted() {
	select {
	case l.nudge <- struct{}{}:
	default:
	}
}

// run follows the endpoints with a live admission until ctx ends.
func (l *lives) run(ctx context.Context) error {
	l.mu.Lock()
	l.first = uint64(clock.Now().UnixMicro())
	for _, t := range l.turns {
		t.index = l.first
		t.ring()
	}
	l.mu.Unlock()
	ended := make(chan error, 1)
	go func() { ended <- l.follower.Run(ctx) }()
	tick := time.NewTicker(livesInterval)
	defer tick.Stop()
	for {
		l.sync()
		select {
		case err := <-ended:
			return err
		case <-l.nudge:
		case <-tick.C:
		}
	}
}

// sync follows what the table has admitted. What a node attached is not in the scheduler.
func (l *lives) sync() {
	nodes := map[string]fabric.NodeID{}
	var ids []string
	for _, id := range l.table.liveWhere(func(a fabric.Admission) bool { return a.Origin.Consul == "" && a.Origin.Attached == "" }) {
		nodes[id.Endpoint] = id.Node
		ids = append(ids, id.Endpoint)
	}
	l.mu.Lock()
	l.nodes = nodes
	l.mu.Unlock()
	l.follower.Follow(ids)
}

// changed wakes the nodes of endpoints.
func (l *lives) changed(ids []string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	woken := map[fabric.NodeID]bool{}
	for _, id := range ids {
		if node, ok := l.nodes[id]; ok && !woken[node] {
			woken[node] = true
			t := l.turn(node)
			t.index++
			t.ring()
		}
	}
}

// turn returns the turn of a node. The caller holds l.mu.
func (l *lives) turn(node fabric.NodeID) *turn {
	t := l.turns[node]
	if t == nil {
		t = &turn{index: l.first, changed: make(chan struct{})}
		l.turns[node] = t
	}
	return t
}

func (t *turn) ring() {
	close(t.changed)
	t.changed = make(chan struct{})
}

// of returns what the endpoints of a node are like, once the index is another than the one that the
// node knows, or after wait.
func (l *lives) of(ctx context.Context, node fabric.NodeID, known uint64, wait time.Duration) indexed {
	timer := time.NewTimer(wait)
	defer timer.Stop()
	for over := false; ; {
		l.mu.Lock()
		t := l.turn(node)
		index, changed := t.index, t.changed
		l.mu.Unlock()
		if over || index != known {
			return indexed{l.all(node), index}
		}
		select {
		case <-changed:
		case <-timer.C:
			over = true
		case <-ctx.Done():
			over = true
		}
	}
}

// all returns what is known of the endpoints of a node. The index is read before: what changes
// meanwhile is told again.
func (l *lives) all(node fabric.NodeID) api.EndpointLives {
	reply := api.EndpointLives{Endpoints: map[string]api.EndpointLife{}}
	l.mu.Lock()
	var ids []string
	for id, n := range l.nodes {
		if n == node {
			ids = append(ids, id)
		}
	}
	l.mu.Unlock()
	for _, id := range ids {
		life := l.follower.Of(id)
		reply.Endpoints[id] = api.EndpointLife{State: api.LifeState(life.State), Why: life.Why, Canary: l.follower.Canary(id)}
	}
	return reply
}

// degraded returns what is wrong, for people.
func (l *lives) degraded() []string {
	if err := l.trouble(); err != nil {
		return []string{"DNS does not notice what becomes of allocations: " + err.Error()}
	}
	return nil
}

// trouble returns why the scheduler does not tell of allocations, or nil. Without an endpoint
// there, nothing is wrong.
func (l *lives) trouble() error {
	l.mu.Lock()
	none := len(l.nodes) == 0
	l.mu.Unlock()
	if none {
		return nil
	}
	return l.follower.Trouble()
}

func (c *Controller) getLives(ctx context.Context, r request) (any, error) {
	if _, err := c.admitter.workloadNode(r.node); err != nil {
		return nil, err
	}
	known, wait, err := indexOf(r)
	if err != nil {
		return nil, err
	}
	ctx, cancel := r.untilStop(ctx)
	defer cancel()
	return c.lives.of(ctx, r.node.NodeID, known, wait), nil
}
