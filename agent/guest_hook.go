// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package agent

import (
	"context"
	"fmt"
)

// guestHook attaches the programs that join a virtual machine's tap interface with its endpoint's.
// They drop what is not from the endpoint's addresses, which are final by then.
type guestHook struct{ *Agent }

func (guestHook) name() string { return "guest" }

func (h guestHook) attach(_ context.Context, at *attachment) error {
	if !at.endpoint.VM {
		return nil
	}
	at.start(func() error {
		if _, err := h.joinGuest(at.endpoint, at.namespace); err != nil {
			return fmt.Errorf("join the interfaces of the virtual machine: %w", err)
		}
		return nil
	})
	return nil
}

// detach does nothing: the programs went with the interface.
func (guestHook) detach(context.Context, *detachment) error { return nil }

// answersHook answers a virtual machine's guest, whose interface is up by then.
type answersHook struct{ *Agent }

func (answersHook) name() string { return "answers to the guest" }

func (h answersHook) attach(_ context.Context, at *attachment) error {
	if !at.endpoint.VM {
		return nil
	}
	return h.answerGuest(at.endpoint, at.namespace)
}

// detach does nothing: the answers ended before the interface went.
func (answersHook) detach(context.Context, *detachment) error { return nil }
