// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package agent

import (
	"context"
	"errors"
	"fmt"

	"github.com/containernetworking/cni/pkg/types"
)

// addressHook takes a pair of addresses from the node's pool. An endpoint that is attached again
// keeps its pair.
type addressHook struct{ *Agent }

func (addressHook) name() string { return "addresses" }

func (h addressHook) attach(ctx context.Context, at *attachment) (err error) {
	ep := &at.endpoint
	if ep.IPv4.IsValid() {
		return nil
	}
	ep.IPv4, ep.IPv6, err = h.addresses.wait(ctx, h.now, at.patience)
	if errors.Is(err, errPoolExhausted) {
		return types.NewError(types.ErrTryAgainLater, err.Error(), "")
	}
	return err
}

// nearlyFull says so when less than a tenth of the node's addresses is free.
func (a *Agent) nearlyFull() []string {
	used, resting, free := a.addresses.usage(a.now())
	if free*10 >= used+resting+free {
		return nil
	}
	return []string{fmt.Sprintf("the address pool %s of this node is nearly used up: %d addresses are in use, %d rest for %s after their release, %d are free; %s",
		a.addresses.pool4, used, resting, rest, free, larger)}
}

func (h addressHook) detach(_ context.Context, d *detachment) error {
	ep := d.endpoint
	switch {
	case !ep.IPv4.IsValid():
		return nil
	case !ep.admitted():
		h.addresses.giveBack(ep.IPv4) // no other node has heard of it
		return nil
	}
	h.addresses.release(ep.IPv4, h.now())
	return nil
}
