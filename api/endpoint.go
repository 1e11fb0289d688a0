// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package api

import (
	"context"
	"time"

	"github.com/sif-project/sif/fabric"
)

// Endpoint is an endpoint as its node last reported it.
type Endpoint struct {
	EndpointStatus
	Zone     string    `json:"zone"`
	Node     string    `json:"node"`
	Reported time.Time `json:"reported"`
}

// Host names the endpoint's node.
func (e Endpoint) Host() fabric.NodeID { return fabric.NodeID{Zone: e.Zone, Name: e.Node} }

// NodeWaiting is a workload that waits on a node.
type NodeWaiting struct {
	WaitingAttachment
	Zone string `json:"zone"`
	Node string `json:"node"`
}

// EndpointList is the endpoints of the domains that the caller may read, by service and ID. Waiting
// is only for those who may read everything.
type EndpointList struct {
	Endpoints []Endpoint    `json:"endpoints"`
	Waiting   []NodeWaiting `json:"waiting,omitempty"`
}

// Endpoints returns the endpoints of the fabric.
func (c *Client) Endpoints(ctx context.Context) (EndpointList, error) {
	var reply EndpointList
	_, err := c.read(ctx, "/v1/endpoints", &reply)
	return reply, err
}
