// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package agent

import (
	"context"
	"errors"
	"fmt"
)

// interfaceHook makes the veth pair, both ends down, and attaches the programs to its host side.
type interfaceHook struct{ *Agent }

func (interfaceHook) name() string { return "interface" }

func (h interfaceHook) attach(_ context.Context, at *attachment) error {
	if err := h.makeInterfaces(at); err != nil {
		return err
	}
	// With each program that is attached by TCX the kernel waits for an RCU grace period, some 10
	// ms. The next hooks use that time.
	ep := at.endpoint
	at.start(func() error {
		if _, err := h.attachPrograms(ep.HostIf); err != nil {
			return fmt.Errorf("attach the programs to %s: %w", ep.HostIf, err)
		}
		return nil
	})
	return nil
}

// makeInterfaces makes the endpoint's interfaces, all down.
func (a *Agent) makeInterfaces(at *attachment) error {
	ep := &at.endpoint
	// The runtime calls ADD again after a reboot, or when a namespace was lost: ADD replaces what
	// was there.
	if ep.VM {
		a.endGuest(*ep)
	}
	if err := a.dismantle(ep.HostIf); err != nil {
		return err
	}
	if err := vacate(ep.Attachment.IfName, at.namespace); err != nil {
		return err
	}
	pair, err := a.pairOf(*ep).make(ep.Attachment.IfName, at.namespace)
	if err != nil {
		return err
	}
	if ep.VM {
		if _, err := pair.keepTap(at.namespace); err != nil {
			return err
		}
	}
	at.pair, ep.HostIndex = pair, pair.hostIndex
	return nil
}

func (h interfaceHook) detach(_ context.Context, d *detachment) error {
	if d.endpoint.VM {
		h.endGuest(d.endpoint)
		h.removeTap(d)
	}
	return h.dismantle(d.endpoint.HostIf)
}

// attachPrograms attaches the programs to an endpoint's interface, if they are not attached, and
// returns what was missing.
func (a *Agent) attachPrograms(hostIf string) (missing []string, err error) {
	defer a.attachments.Lock(hostIf)()
	return a.data.Attach(hostIf)
}

// dismantle removes an endpoint's interface, and then its programs, also those of a guest: without
// programs, everything would pass the interface.
func (a *Agent) dismantle(hostIf string) error {
	a.guests.close(hostIf)
	if err := removeVeth(hostIf); err != nil {
		return err
	}
	return errors.Join(a.data.Detach(hostIf), a.data.DetachGuest(hostIf))
}
