// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package agent

import (
	"context"
	"fmt"
)

// interfaceHook makes the veth pair, both ends down, and attaches the programs to its host side.
type interfaceHook struct{ *Agent }

func (interfaceHook) name() string { return "interface" }

func (h interfaceHook) attach(_ context.Context, at *attachment) error {
	ep := &at.endpoint
	// The runtime calls ADD again after a reboot, or when a namespace was lost: ADD replaces what
	// was there.
	if err := h.dismantle(ep.HostIf); err != nil {
		return err
	}
	if err := vacate(ep.Attachment.IfName, at.namespace); err != nil {
		return err
	}
	pair, err := makeVeth(ep.HostIf, ep.Attachment.IfName, at.namespace, h.workloadMTU())
	if err != nil {
		return err
	}
	pair.loopback = h.leadsToLoopback()
	at.pair, ep.HostIndex = pair, pair.hostIndex
	// With each program that is attached by TCX the kernel waits for an RCU grace period, some 10
	// ms. The next hooks use that time.
	at.start(func() error {
		if _, err := h.attachPrograms(ep.HostIf); err != nil {
			return fmt.Errorf("attach the programs to %s: %w", ep.HostIf, err)
		}
		return nil
	})
	return nil
}

func (h interfaceHook) detach(_ context.Context, d *detachment) error {
	return h.dismantle(d.endpoint.HostIf)
}

// attachPrograms attaches the programs to an endpoint's interface, if they are not attached, and
// returns what was missing.
func (a *Agent) attachPrograms(hostIf string) (missing []string, err error) {
	defer a.attachments.Lock(hostIf)()
	return a.data.Attach(hostIf)
}

// dismantle removes an endpoint's interface, and then its programs: without programs, everything
// would pass the interface.
func (a *Agent) dismantle(hostIf string) error {
	if err := removeVeth(hostIf); err != nil {
		return err
	}
	return a.data.Detach(hostIf)
}
