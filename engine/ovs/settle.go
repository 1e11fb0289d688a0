// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package ovs

import (
	"context"
	"fmt"
	"sync"
	"time"

	of "github.com/sif-project/sif/engine/openflow"
)

// settler waits for the datapath on behalf of any number of callers. Rounds are
// shared: who comes while one runs waits for the one after it.
type settler struct {
	// wait returns when ovs-vswitchd's threads have been through the datapath's
	// remembered decisions once more.
	wait func(context.Context) error

	mu      sync.Mutex
	running *round
	next    *round
}

// pokeInterval is a little longer than a pass usually takes.
const pokeInterval = 5 * time.Millisecond

type round struct {
	done chan struct{}
	err  error
}

// pokeFlow is where no packet comes. Writing it makes ovs-vswitchd look through
// the datapath at once instead of within half a second.
func pokeFlow() of.Flow { return flow(tablePoke, priorityMiss, cookie(cookieBase, 0), of.Drop) }

func (s *settler) settle(ctx context.Context, conn *of.Conn) error {
	s.mu.Lock()
	var r *round
	if s.running == nil {
		r = &round{done: make(chan struct{})}
		s.running = r
		go s.run(conn, r)
	} else {
		if s.next == nil {
			s.next = &round{done: make(chan struct{})}
		}
		r = s.next
	}
	s.mu.Unlock()
	select {
	case <-r.done:
		return r.err
	case <-ctx.Done():
		return fmt.Errorf("wait for the datapath to follow: %w", ctx.Err())
	}
}

// run outlives the caller that started it, because others share its outcome.
func (s *settler) run(conn *of.Conn, r *round) {
	for r != nil {
		ctx, cancel := context.WithTimeout(context.Background(), toolTimeout)
		r.err = s.round(ctx, conn)
		cancel()
		close(r.done)
		s.mu.Lock()
		r, s.next = s.next, nil
		s.running = r
		s.mu.Unlock()
	}
}

func (s *settler) round(ctx context.Context, conn *of.Conn) error {
	// The pass that ends first may have begun before the change; the second has
	// not.
	for range 2 {
		waited := make(chan error, 1)
		go func() { waited <- s.wait(ctx) }()
		for asked := false; !asked; {
			if err := conn.Apply(ctx, of.Add(pokeFlow())); err != nil {
				return fmt.Errorf("wait for the datapath to follow: %w", err)
			}
			select {
			case err := <-waited:
				if err != nil {
					return fmt.Errorf("wait for the datapath to follow: %w", err)
				}
				asked = true
			case <-time.After(pokeInterval):
				// The pass was over before the question arrived.
			}
		}
	}
	return nil
}
