// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package api

import (
	"context"
	"net/url"
	"strconv"
	"time"
)

// LifeState says whether the allocation of an endpoint can be called, as Nomad knows it.
type LifeState string

// LifeUnknown says that Nomad does not say: what was known before holds. LifeReady says that every
// task that must run does, and that the checks of Nomad's own provider pass. Any other state, for
// people, says that the endpoint cannot be called.
const (
	LifeUnknown LifeState = ""
	LifeReady   LifeState = "ready"
)

// EndpointLife is the state of the allocation of an endpoint.
type EndpointLife struct {
	State LifeState `json:"state,omitempty"`
	Why   string    `json:"why,omitempty"` // it is not ready, in words that follow "it"
	// Canary says that it is a canary of a deployment that was not promoted yet. It is not known
	// while State is LifeUnknown.
	Canary bool `json:"canary,omitempty"`
}

// EndpointLives are those of the admitted endpoints of a node.
type EndpointLives struct {
	Endpoints map[string]EndpointLife `json:"endpoints"` // by the endpoint's ID
}

// Lives returns what Nomad says about the endpoints of the calling node, and the index of the
// answer. It waits at most as long as wait for an answer with another index than the one that the
// caller knows; it does not wait for 0. Another controller answers with other indexes.
func (c *Client) Lives(ctx context.Context, known uint64, wait time.Duration) (EndpointLives, uint64, error) {
	var reply EndpointLives
	query := url.Values{"index": {strconv.FormatUint(known, 10)}, "wait": {wait.String()}}
	index, err := c.read(ctx, "/v1/node/lives?"+query.Encode(), &reply)
	return reply, index, err
}
