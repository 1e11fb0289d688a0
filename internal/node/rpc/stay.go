// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package rpc

import (
	"context"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/sif-project/sif/internal/clock"
	"github.com/sif-project/sif/internal/logkey"
)

const (
	// linger is how long a connection stays open after its successor is in use, longer than the
	// time limits of the calls in progress.
	linger = 15 * time.Second
	// minRest keeps connections from being replaced in a loop when certificates are not renewed.
	minRest = time.Second
	// endedRest is how often a connection is replaced whose certificates have ended: in an outage
	// they go on to be honoured, and nobody has others.
	endedRest = time.Minute
)

// Stay dials and calls use, which introduces this side to the peer and returns. Before a
// certificate of the connection ends, it does so again: the new connection shows the renewed
// certificates, and the old one stays open for the calls in progress. Stay returns nil when ctx
// ends, and an error when dial or use fails or the connection is lost. Then all of its connections
// are closed.
func Stay(ctx context.Context, dial func(context.Context) (*Conn, error), use func(context.Context, *Conn) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel() // closes predecessors
	conn, err := dial(ctx)
	if err != nil {
		return err
	}
	defer func() { conn.Close() }()
	if err := use(ctx, conn); err != nil {
		return err
	}
	for {
		next, err := successor(ctx, conn, dial)
		if next == nil {
			return err
		}
		conn.closeLater(ctx)
		conn = next
		if err := use(ctx, conn); err != nil {
			return err
		}
	}
}

// successor dials again when two thirds of what is left of the certificates' lives have passed. It
// returns nil when ctx ends, and nil with an error when the connection is lost.
func successor(ctx context.Context, c *Conn, dial func(context.Context) (*Conn, error)) (*Conn, error) {
	for {
		rest := max(c.ends.Sub(clock.Now())*2/3, minRest)
		if !clock.Now().Before(c.ends) {
			rest = endedRest
		}
		due := time.NewTimer(rest)
		select {
		case <-ctx.Done():
			due.Stop()
			return nil, nil
		case <-c.Done():
			due.Stop()
			return nil, ErrClosed
		case <-due.C:
		}
		next, err := dial(ctx)
		if err == nil {
			return next, nil
		}
		if ctx.Err() == nil {
			hclog.FromContext(ctx).Warn("cannot replace the connection before its certificates end", logkey.Node, c.peer.NodeID, logkey.Error, err)
		}
	}
}

// closeLater closes the connection after linger, or when ctx ends.
func (c *Conn) closeLater(ctx context.Context) {
	go func() {
		rest := time.NewTimer(linger)
		defer rest.Stop()
		select {
		case <-ctx.Done():
		case <-c.done:
		case <-rest.C:
		}
		c.Close()
	}()
}
