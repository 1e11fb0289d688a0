// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package desired

import "github.com/sif-project/sif/fabric"

// Tunnels returns the tunnels among the processors with a switch that declared links stand for; if
// there are none, those of a FullMesh.
func Tunnels(nodes []fabric.Node, declared []fabric.LinkRule) []Tunnel {
	if len(declared) == 0 {
		return FullMesh(nodes)
	}
	var list []Tunnel
	for _, l := range fabric.CanonicalLinks(declared) {
		for i, a := range nodes {
			for _, b := range nodes[i+1:] {
				if a.Boundary() && b.Boundary() && l.Covers(a.ID(), b.ID()) {
					list = append(list, Tunnel{A: a.ID(), B: b.ID(), Link: l.Name, Labels: l.Labels, Cost: int(l.Cost)})
				}
			}
		}
	}
	return list
}
