// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package controller

import (
	"context"
	"errors"
	"strings"
	"time"

	"github.com/sif-project/sif/api"
	"github.com/sif-project/sif/internal/clock"
	"github.com/sif-project/sif/internal/retry"
)

const (
	// measureInterval is how often the controller looks whether those answer whom it needs, to
	// renew what nodes hold; measureTimeout is how long Vault may take.
	measureInterval = 2 * time.Second
	measureTimeout  = 3 * time.Second
)

// keepMeasuring looks who is away until ctx ends, for this controller and for the nodes, which it
// tells.
func (c *Controller) keepMeasuring(ctx context.Context) error {
	for retry.Sleep(ctx, measureInterval) {
		away := c.look(ctx)
		if ctx.Err() != nil {
			return nil
		}
		c.away.Store(&away)
		var err error
		if away != "" {
			err = c.cfg.Outage.Missed(away)
		} else {
			valid := clock.Now().Before(c.cfg.Identity.Expiry())
			if !valid {
				c.cfg.Identity.Retry()
			}
			err = c.cfg.Outage.Reached(c.table.honoured() == 0 && valid)
		}
		if err != nil {
			c.disk.failed(err)
		}
	}
	return nil
}

// look returns who does not answer, for people; empty: all do.
func (c *Controller) look(ctx context.Context) string {
	var list []string
	if vault := c.cfg.Vault(); vault != nil {
		ctx, cancel := context.WithTimeout(ctx, measureTimeout)
		if err := vaultReady(ctx, vault.WithNamespace("")); err != nil {
			list = append(list, "Vault is away: "+reason(err))
		}
		cancel()
	}
	switch {
	case c.leads():
		if err := c.lives.trouble(); err != nil {
			list = append(list, "Nomad is away: "+reason(err))
		}
	case c.peers.leader() == nil:
		list = append(list, "no controller leads: Consul is away, or another one begins to")
	}
	return strings.Join(list, "; ")
}

// reason is an error without what it wraps around the last cause: which call it was says nothing.
func reason(err error) string {
	for {
		inner := errors.Unwrap(err)
		if inner == nil {
			return err.Error()
		}
		err = inner
	}
}

// told returns who does not answer, as nodes are told.
func (c *Controller) told() string {
	if away := c.away.Load(); away != nil {
		return *away
	}
	return ""
}

// outage returns what the controller has measured of an outage, or nil.
func (c *Controller) outage() *api.Outage {
	o := c.cfg.Outage.Status()
	if o != nil {
		o.Honoured = c.table.honoured()
	}
	return o
}
