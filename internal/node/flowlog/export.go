// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package flowlog

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"sync/atomic"

	"github.com/sif-project/sif/internal/retry"
)

// Exporter writes records as lines of JSON. It is an observer like others: who adds records does
// not wait for it, and what it does not write in time, or cannot write, is counted. The zero value
// is ready.
type Exporter struct {
	exported atomic.Uint64
	missed   atomic.Uint64
}

// Counts returns how many records were written, and how many were not.
func (e *Exporter) Counts() (exported, missed uint64) { return e.exported.Load(), e.missed.Load() }

// Run writes the records that a log gets, from the oldest that it has, until ctx ends. to is given
// whole lines. report is called with the error of each attempt to write, or nil.
func (e *Exporter) Run(ctx context.Context, l *Log, to io.Writer, report func(error)) {
	fresh := make(chan struct{}, 1)
	l.observe(fresh)
	defer l.leave(fresh)
	for from := uint64(1); ; {
		list, next, missed := l.after(from)
		from = next
		e.missed.Add(missed)
		for len(list) > 0 {
			n := min(len(list), batch)
			var lines bytes.Buffer
			encoder := json.NewEncoder(&lines)
			written := uint64(0)
			for _, f := range list[:n] {
				if encoder.Encode(f) == nil { // it fails only for a time beyond the year 9999
					written++
				}
			}
			_, err := to.Write(lines.Bytes())
			if report(err); err != nil {
				written = 0
			}
			e.exported.Add(written)
			e.missed.Add(uint64(n) - written)
			list = list[n:]
		}
		if !retry.Sleep(ctx, pause) {
			return
		}
		select {
		case <-fresh:
		case <-ctx.Done():
			return
		}
	}
}
