// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package agent

import "context"

// recordHook stores the endpoint. From here on it is known to everything that looks at the node's
// endpoints, and survives a restart.
type recordHook struct{ *Agent }

func (recordHook) name() string { return "record" }

func (h recordHook) attach(_ context.Context, at *attachment) error {
	at.waits = append(at.waits, h.endpoints.put(at.endpoint))
	return nil
}

func (h recordHook) detach(_ context.Context, d *detachment) error {
	h.endpoints.remove(d.endpoint.Attachment)
	h.ended.note(d.endpoint.Admission, h.now())
	return nil
}
