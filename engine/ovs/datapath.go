// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package ovs

import (
	"context"
	"fmt"
	"time"

	of "github.com/sif-project/sif/engine/openflow"
)

// pokeInterval is a little longer than a pass of the revalidators usually takes.
const pokeInterval = 5 * time.Millisecond

// pokeFlow is in a table that no packet reaches. Writing it makes ovs-vswitchd compare the datapath
// with its tables at once instead of within half a second.
func pokeFlow() of.Flow { return flow(tablePoke, priorityMiss, cookie(cookieBase, 0), of.Drop) }

// awaitDatapath returns when packets meet the tables as they were when it was called. The datapath
// caches decisions; ovs-vswitchd's revalidators correct them a few milliseconds after the tables
// changed.
func (p *Pipeline) awaitDatapath(ctx context.Context) error {
	// The first pass to end may have begun before the change, the second has not.
	for range 2 {
		if err := p.awaitPass(ctx); err != nil {
			return fmt.Errorf("wait for the datapath to follow the tables: %w", err)
		}
	}
	return nil
}

// awaitPass returns when the revalidators have ended a pass.
func (p *Pipeline) awaitPass(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	ended := make(chan error, 1)
	go func() { ended <- p.revalidated(ctx) }()
	for {
		if err := p.send(ctx, []of.FlowMod{of.Add(pokeFlow())}); err != nil {
			return err
		}
		select {
		case err := <-ended:
			return err
		case <-time.After(pokeInterval):
			// The pass was over before the switch began to wait for it.
		}
	}
}
