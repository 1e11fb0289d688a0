// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package fabric

import (
	"fmt"
	"slices"
	"strings"
)

// NodeKind is what a node does in its zone, and so which daemons it may run. A node's certificate
// attests it: one organizational unit for each kind.
type NodeKind string

// Kinds of nodes.
const (
	KindWorkload  NodeKind = "workload"  // it runs workloads, and an agent
	KindProcessor NodeKind = "processor" // it runs an engine
	// KindBoth is a node with both daemons, as in a small cluster. Its engine has no switch: a
	// switch on a node with workloads would take packets before the agent's programs see them.
	KindBoth NodeKind = "processor,workload"
)

// NodeKindOf returns the kind of a node that does all of what units name, in any order.
func NodeKindOf(units []string) (NodeKind, error) {
	k := NodeKind(strings.Join(slices.Sorted(slices.Values(units)), ","))
	if len(units) != len(k.Units()) {
		return k, fmt.Errorf("the kind of node is in %d parts, %q, expected one part for each kind", len(units), units)
	}
	return k, k.Check()
}

// Check returns an error if there is no such kind.
func (k NodeKind) Check() error {
	if k != KindWorkload && k != KindProcessor && k != KindBoth {
		return fmt.Errorf("the kind of node is %q, expected %q, %q or both", string(k), KindProcessor, KindWorkload)
	}
	return nil
}

// Units returns what the node does, one by one, in order.
func (k NodeKind) Units() []string { return strings.Split(string(k), ",") }

// Has reports whether a node of kind k does what a node of kind one does.
func (k NodeKind) Has(one NodeKind) bool { return slices.Contains(k.Units(), string(one)) }
