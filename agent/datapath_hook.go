// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package agent

import "context"

// datapathHook writes the maps and then, when everything that runs beside the hooks has ended well,
// brings the interface up: the first packet of the workload meets programs and rules.
type datapathHook struct{ *Agent }

func (datapathHook) name() string { return "data path" }

func (h datapathHook) attach(_ context.Context, at *attachment) error {
	if err := at.wait(); err != nil {
		return err
	}
	at.parts.lap("background")
	ep := at.endpoint
	if err := h.programFor(ep.Admission); err != nil {
		return err
	}
	if err := at.pair.raiseHost(ep.IPv4, ep.IPv6); err != nil {
		return err
	}
	return at.pair.raiseWorkload(ep.Attachment.IfName, at.namespace, ep.IPv4, ep.IPv6)
}

// detach takes the endpoint out of the maps; its interface has gone by then.
func (h datapathHook) detach(context.Context, *detachment) error { return h.reprogram.Call() }
