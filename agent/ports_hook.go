// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package agent

import "context"

// portsHook maps ports of the node to the endpoint's. It comes before the endpoint is admitted, so
// that an endpoint that cannot have its ports costs nobody else anything.
type portsHook struct{ *Agent }

func (portsHook) name() string { return "ports" }

func (h portsHook) attach(_ context.Context, at *attachment) error { return h.ports.claim(at.endpoint) }

func (h portsHook) detach(_ context.Context, d *detachment) error {
	return h.ports.release(d.endpoint.Attachment)
}
