// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package daemon

import (
	"context"
	"fmt"
	"net/netip"
	"sync"
	"time"

	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/internal/retry"
)

// redial is the pause between attempts to connect to an engine.
const redial = time.Second

// KeepEngines runs a session with the engine of each processor in the roster for which mine returns
// true, until ctx ends. It restarts sessions that end. It cancels the session with a processor that
// leaves or changes its address.
func (n *Node) KeepEngines(ctx context.Context, mine func(fabric.Node) bool, address func(fabric.Node) netip.Addr, session func(context.Context, fabric.Node) error) error {
	var running sync.WaitGroup
	defer running.Wait()
	started := map[string]context.CancelFunc{}
	tick := time.NewTicker(redial)
	defer tick.Stop()
	for {
		want := map[string]fabric.Node{}
		for _, m := range n.Nodes() {
			if m.Engine != 0 && mine(m) {
				want[fmt.Sprintf("%s %s:%d", m.ID(), address(m), m.Engine)] = m
			}
		}
		for id, stop := range started {
			if _, stays := want[id]; !stays {
				stop()
				delete(started, id)
			}
		}
		for id, m := range want {
			if started[id] != nil {
				continue
			}
			each, stop := context.WithCancel(ctx)
			started[id] = stop
			running.Go(func() { n.keepEngine(each, m, session) })
		}
		select {
		case <-ctx.Done():
			for _, stop := range started {
				stop()
			}
			return nil
		case <-tick.C:
		}
	}
}

// keepEngine runs the session with one engine.
func (n *Node) keepEngine(ctx context.Context, m fabric.Node, session func(context.Context, fabric.Node) error) {
	for ctx.Err() == nil {
		err := session(ctx, m)
		if ctx.Err() != nil {
			n.Degrade("engine "+m.ID().String(), nil)
			return
		}
		n.Degrade("engine "+m.ID().String(), err)
		retry.Sleep(ctx, redial)
	}
}
