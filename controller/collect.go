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

// collectEvery is how often objects that no kept revision names are removed.
const collectEvery = 15 * time.Minute

// collecting removes, again and again, what no kept revision names.
func (p *policy) collecting(ctx context.Context) error {
	tick := time.NewTicker(collectEvery)
	defer tick.Stop()
	for {
		removed, err := p.collect(ctx)
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, revision.ErrConflict): // an apply was faster; the next round does it
		case err != nil:
			p.log.Warn("objects that no revision needs were not collected", logkey.Error, err)
		case removed > 0:
			p.log.Info("objects that no kept revision names were removed", logkey.Count, removed)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// collect removes the objects that neither the revision in force nor a kept
// one names. If any of those cannot be read in full, nothing is removed.
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
	if held := p.pointer(); pointer.Sequence != held.Sequence || pointer.Root != held.Root {
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
		return 0, fmt.Errorf("find out what the kept revisions consist of: %w", err)
	}
	for h := range entries {
		keep[h] = true
	}
	p.chain.only(entries)
	return revision.Collect(ctx, p.consul(), keep, index)
}
