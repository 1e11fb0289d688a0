// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package fabric

import (
	"fmt"
	"slices"
)

// Unenforced says what of the document no data path can do yet: flows to
// externals are dropped, whatever contract allows them. A sentence each.
func (d Document) Unenforced() []string {
	var list []string
	for _, e := range d.Originates {
		for _, p := range e.Peers {
			if p.IsExternal() {
				list = append(list, fmt.Sprintf("contract %s: flows of %s to external %s are not carried yet, so they are dropped", e.Contract, d.Service, p.Name))
			}
		}
	}
	return list
}

// Unenforced says what of the graph no data path can do yet, a sentence each.
func (g *Graph) Unenforced() []string {
	var list []string
	for _, d := range Documents(g) {
		list = append(list, d.Unenforced()...)
	}
	slices.Sort(list)
	return list
}
