// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package agent

import (
	"context"
	"fmt"
	"time"

	"github.com/sif-project/sif/internal/logkey"
)

// inForce is how long ADD waits for the connectivity to be in force beyond this node.
const inForce = 500 * time.Millisecond

// connectivityHook requests the endpoint's connectivity from the engines of the zone, or, when none
// answers, from its other agents.
type connectivityHook struct{ *Agent }

func (connectivityHook) name() string { return "connectivity" }

func (h connectivityHook) attach(ctx context.Context, at *attachment) error {
	ep := at.endpoint
	// The service's document is read here, before its rules are needed. The controller knows the
	// service, so the document comes, if this node does not have it yet.
	if err := h.insist(ctx, at, func() error {
		if _, err := h.node.Revision.Document(ctx, ep.Admission.Service); err != nil {
			return away{fmt.Errorf("read what service %s may reach: %w", ep.Admission.Service, err)}
		}
		return nil
	}); err != nil {
		return err
	}
	var pending []string
	if err := h.insist(ctx, at, func() (err error) {
		ctx, cancel := context.WithTimeout(ctx, inForce)
		defer cancel()
		if pending, err = h.engines.requestConnectivity(ctx, ep.Attachment); err != nil {
			return fmt.Errorf("request the connectivity of %s: %w", ep.Admission.Service, err)
		}
		return nil
	}); err != nil {
		return err
	}
	if len(pending) > 0 {
		h.log.Warn("connectivity is not in force everywhere yet", logkey.Endpoint, ep.ID, logkey.Pending, pending)
	}
	return nil
}

func (h connectivityHook) detach(ctx context.Context, d *detachment) error {
	ep := d.endpoint
	h.node.Degrade(renewing(ep), nil)
	if !ep.admitted() {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, inForce)
	defer cancel()
	h.engines.withdraw(ctx, ep)
	return nil
}

// retryPending requests again what is not in force everywhere.
func (a *Agent) retryPending(ctx context.Context) {
	for _, ep := range a.endpoints.all() {
		if len(a.engines.pendingOf(ep.Attachment)) == 0 || !a.engines.answering() {
			continue
		}
		asking, cancel := context.WithTimeout(ctx, inForce)
		if _, err := a.engines.requestConnectivity(asking, ep.Attachment); err != nil {
			a.engines.setPending(ep, []string{err.Error()})
		}
		cancel()
	}
}
