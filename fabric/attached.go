// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package fabric

import (
	"errors"
	"fmt"
	"regexp"
)

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

// Limits of what a node says of a workload outside Nomad.
const (
	maxAttachedName = 64
	maxConsulNode   = 128
	maxRequested    = 1000 // contracts
	maxWritten      = 2*MaxNameLength + 1
)

var attachedNames = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?$`)

// Check returns an error if the workload cannot be one, whatever Consul and the graph say.
func (a Attached) Check() error {
	if fault, _ := ConsulServiceFault(a.ConsulService); fault != "" {
		return errors.New(fault)
	}
	for _, n := range []struct {
		what, name string
		most       int
	}{{"a workload", a.Name, maxAttachedName}, {"a Consul agent", a.ConsulNode, maxConsulNode}} {
		if len(n.name) > n.most || !attachedNames.MatchString(n.name) {
			return fmt.Errorf(`%.200q is no name of %s; use letters, digits, "-", "_" and ".", at most %d, and a letter or digit at both ends`, n.name, n.what, n.most)
		}
	}
	if len(a.Originate)+len(a.Respond) > maxRequested {
		return fmt.Errorf("workload %q requests %d contracts, at most %d are allowed", a.Name, len(a.Originate)+len(a.Respond), maxRequested)
	}
	for _, list := range [][]string{{a.Service}, a.Originate, a.Respond} {
		for _, name := range list {
			if len(name) > maxWritten {
				return fmt.Errorf("workload %q requests %.80q..., which is longer than any name", a.Name, name)
			}
		}
	}
	return nil
}
