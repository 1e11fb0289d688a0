// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package agent

import "context"

// catalogHook has the Consul catalog follow the node's endpoints.
type catalogHook struct{ *Agent }

func (catalogHook) name() string { return "catalog" }

func (h catalogHook) attach(_ context.Context, at *attachment) error {
	if at.endpoint.Attached == nil && !at.again { // the controller tells only of changes
		h.lives.begin(at.endpoint.ID, at.endpoint.Admission.Origin.Canary)
	}
	h.refreshCatalog()
	return nil
}

func (h catalogHook) detach(_ context.Context, d *detachment) error {
	if d.endpoint.admitted() {
		h.refreshCatalog()
	}
	return nil
}
