// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package engine

import (
	"context"
	"sync/atomic"
	"time"

	"github.com/sif-project/sif/engine/openflow"
)

const (
	// askInterval is how often the switch is asked whether it answers, and askTimeout how long that
	// may take, besides the time that a change may take that it is making.
	askInterval = 150 * time.Millisecond
	askTimeout  = 500 * time.Millisecond
)

// pulse is what is known of the life of the switch.
type pulse struct {
	answers  atomic.Bool
	changing atomic.Int64 // for how long at most it may be busy with a change, in nanoseconds
	// enforcing is the connection by which it got all that it must have; nil: it has not.
	enforcing atomic.Pointer[openflow.Conn]
}

// enforces reports whether the switch answers, and has what it was told last: one that restarted
// has nothing.
func (b *bridge) enforces() bool {
	conn := b.pulse.enforcing.Load()
	return b.pulse.answers.Load() && conn != nil && conn.Err() == nil
}

// keepAsking asks the switch several times a second whether it answers, by a connection of its own,
// until ctx ends. It calls changed when the answer is another one than before.
func (b *bridge) keepAsking(ctx context.Context, changed func(answers bool)) {
	var conn *openflow.Conn
	defer func() {
		if conn != nil {
			conn.Close()
		}
	}()
	for ctx.Err() == nil {
		patience, cancel := context.WithTimeout(ctx, askTimeout+time.Duration(b.pulse.changing.Load()))
		err := error(nil)
		if conn == nil {
			conn, err = b.sw.Dial(patience)
		}
		if err == nil {
			_, err = conn.Fragments(patience)
		}
		cancel()
		if ctx.Err() != nil {
			return
		}
		if err != nil && conn != nil {
			conn.Close()
			conn = nil
		}
		if answers := err == nil; b.pulse.answers.Swap(answers) != answers {
			changed(answers)
		}
		var ended <-chan struct{}
		if conn != nil {
			ended = conn.Done()
		}
		select {
		case <-ctx.Done():
		case <-ended:
		case <-time.After(askInterval):
		}
	}
}
