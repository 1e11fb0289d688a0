// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package flowlog

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"sync"
	"testing"

	"github.com/shoenig/test/must"

	"github.com/sif-project/sif/fabric/flow"
)

// file is a file that is full at first.
type file struct {
	mu   sync.Mutex
	full bool
	text bytes.Buffer
}

var errFull = errors.New("no space left on device")

func (f *file) Write(p []byte) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.full {
		return 0, errFull
	}
	return f.text.Write(p)
}

func (f *file) fill(full bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.full = full
}

// Each record is written as a line or counted, and a disk that was full is tried again.
func TestExport(t *testing.T) {
	l, to := New(2000), &file{full: true}
	var e Exporter
	add(l, 1, 700)
	ctx, cancel := context.WithCancel(t.Context())
	reports, ended := make(chan error, 100), make(chan struct{})
	go func() {
		defer close(ended)
		e.Run(ctx, l, to, func(err error) { reports <- err })
	}()
	must.ErrorIs(t, <-reports, errFull)
	must.ErrorIs(t, <-reports, errFull)
	to.fill(false)
	add(l, 701, 800)
	must.NoError(t, <-reports)
	exported, missed := e.Counts()
	for exported+missed < 800 { // it counts after it reports
		exported, missed = e.Counts()
	}
	must.Eq(t, []uint64{100, 700}, []uint64{exported, missed})
	cancel()
	<-ended
	must.MapEmpty(t, l.observers)
	lines := json.NewDecoder(&to.text)
	for n := uint32(701); n <= 800; n++ {
		var f flow.Flow
		must.NoError(t, lines.Decode(&f))
		must.Eq(t, n, f.Number)
	}
	must.False(t, lines.More())
}
