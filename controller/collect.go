// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package controller

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/internal/logkey"
	"github.com/sif-project/sif/internal/trust/revision"
)

// collectInterval is how often objects are deleted that no revision of the history needs.
const collectInterval = 15 * time.Minute

// collectLoop calls collect now and at intervals, until ctx ends.
func (p *policy) collectLoop(ctx context.Context) error {
	tick := time.NewTicker(collectInterval)
	defer tick.Stop()
	for {
		removed, err := p.collect(ctx)
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, revision.ErrConflict): // a graph was applied meanwhile; the next round collects
		case err != nil:
			p.log.Warn("cannot delete old objects, retrying later", logkey.Error, err)
		case removed > 0:
			p.log.Info("deleted objects that no revision of the history needs", logkey.Count, removed)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// collect deletes the objects that no revision of the history needs. If one of these revisions
// cannot be read in full, nothing is deleted.
func (p *policy) collect(ctx context.Context) (removed int, err error) {
	signed, index, err := revision.ReadCurrent(ctx, p.consul())
	if errors.Is(err, revision.ErrNoRevision) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	var pointer fabric.Pointer
	if err := p.keys().Verify(signed, fabric.KindPointer, &pointer); err != nil {
		return 0, err
	}
	if known := p.pointer(); pointer.Sequence != known.Sequence || pointer.Root != known.Root {
		return 0, revision.ErrConflict
	}
	changes, err := p.history(ctx, pointer)
	if err != nil {
		return 0, err
	}
	entries := map[fabric.Hash]bool{pointer.Change: true}
	roots := map[fabric.Hash]bool{pointer.Root: true}
	for i, change := range changes {
		roots[change.Root] = true
		if i < len(changes)-1 {
			entries[change.Previous] = true
		}
	}
	keep, err := revision.Reachable(ctx, p.consul(), roots)
	if err != nil {
		return 0, fmt.Errorf("list the objects of the history: %w", err)
	}
	for h := range entries {
		keep[h] = true
	}
	p.changes.retain(entries)
	return revision.Collect(ctx, p.consul(), p.transact, keep, index)
}
