// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package fabric

import (
	"fmt"
	"strings"
)

// NodeID names a node of the fabric. Its text form is "zone/node". The zero value names no node and
// has an empty text form.
type NodeID struct {
	Zone string
	Name string
}

// ParseNodeID parses "zone/node".
func ParseNodeID(s string) (NodeID, error) {
	zone, name, ok := strings.Cut(s, "/")
	if !ok {
		return NodeID{}, fmt.Errorf("node %q is not of the form zone/node", s)
	}
	if err := CheckName(zone); err != nil {
		return NodeID{}, fmt.Errorf("zone of node %q: %w", s, err)
	}
	if err := CheckName(name); err != nil {
		return NodeID{}, fmt.Errorf("node %q: %w", s, err)
	}
	return NodeID{Zone: zone, Name: name}, nil
}

func (id NodeID) String() string {
	if id.IsZero() {
		return ""
	}
	return id.Zone + "/" + id.Name
}

// IsZero reports whether id names no node.
func (id NodeID) IsZero() bool { return id == NodeID{} }

// SPIFFE returns the path of the node's SPIFFE ID.
func (id NodeID) SPIFFE() string { return "/node/" + id.Zone + "/" + id.Name }

// MarshalText implements encoding.TextMarshaler.
func (id NodeID) MarshalText() ([]byte, error) { return []byte(id.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (id *NodeID) UnmarshalText(b []byte) error {
	if len(b) == 0 {
		*id = NodeID{}
		return nil
	}
	v, err := ParseNodeID(string(b))
	if err != nil {
		return err
	}
	*id = v
	return nil
}

// CompareNodeIDs orders nodes by their text form, so "eu-west/p1" comes before "eu/p1". Two engines
// decide by this order which of them connects, so engines of all versions must use the same.
func CompareNodeIDs(a, b NodeID) int {
	if a.Zone == b.Zone { // the same without making the texts
		return strings.Compare(a.Name, b.Name)
	}
	return strings.Compare(a.String(), b.String())
}
