// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package fabric

// Attached is a workload outside Nomad, in the words of its node.
type Attached struct {
	Name          string `json:"name"`          // unique on the node
	ConsulService string `json:"consulService"` // as which it is registered with the node's Consul agent
	ConsulNode    string `json:"consulNode"`    // the name of that agent

	// What it requests, as a connectivity stanza does: "domain/service" or empty, and contracts.
	Service   string   `json:"service,omitempty"`
	Originate []string `json:"originate,omitempty"`
	Respond   []string `json:"respond,omitempty"`
}
