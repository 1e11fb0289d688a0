// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package api

import (
	"context"
	"net/http"
	"time"

	"github.com/sif-project/sif/fabric"
)

// LinkList lists the links between zones.
type LinkList struct {
	Links []LinkInfo `json:"links"` // ordered by name
}

// LinkInfo is a link between zones. One without a name is that which a graph without link blocks
// implies.
type LinkInfo struct {
	fabric.LinkRule
	Tunnels []Tunnel `json:"tunnels,omitempty"` // none if the link is disabled
	// Warnings say what stands against the link, such as an end without processors.
	Warnings []string `json:"warnings,omitempty"`
}

// Tunnel is a link between two processors, as both last reported it.
type Tunnel struct {
	Ends [2]TunnelEnd `json:"ends"` // ordered by node
}

// Up reports whether probes pass the tunnel in both directions, as both ends measured lately.
func (t Tunnel) Up() bool { return t.Ends[0].Up() && t.Ends[1].Up() }

// TunnelEnd is what a processor says of a tunnel.
type TunnelEnd struct {
	Node fabric.NodeID `json:"node"`
	// Link is what encrypts, and nil if the processor does not report the tunnel.
	Link *LinkStatus `json:"link,omitempty"`
	// Way is what probes found; nil: not measured.
	Way      *WayStatus `json:"way,omitempty"`
	Reported time.Time  `json:"reported,omitzero"` // zero: not since the controller began to lead
}

// Up reports whether the processor's probes were answered, over IPv4 and IPv6.
func (e TunnelEnd) Up() bool {
	return e.Way != nil && e.Way.IPv4.State == WayUp && e.Way.IPv6.State == WayUp
}

// Links lists the links between zones.
func (c *Client) Links(ctx context.Context) (LinkList, error) {
	var reply LinkList
	err := c.call(ctx, http.MethodGet, "/v1/links", nil, &reply)
	return reply, err
}
