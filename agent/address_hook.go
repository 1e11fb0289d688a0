// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package agent

import "context"

// addressHook takes a pair of addresses from the node's pool. An endpoint that is attached again
// keeps its pair.
type addressHook struct{ *Agent }

func (addressHook) name() string { return "addresses" }

func (h addressHook) attach(_ context.Context, at *attachment) (err error) {
	if ep := &at.endpoint; !ep.IPv4.IsValid() {
		ep.IPv4, ep.IPv6, err = h.addresses.take(h.now())
	}
	return err
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
