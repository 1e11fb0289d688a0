// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package daemon

import (
	"maps"
	"slices"

	"github.com/sif-project/sif/api"
	"github.com/sif-project/sif/internal/trust/identity"
)

// authorities adds the node's own to what a daemon says of the certificates that it uses, if
// anything.
func (n *Node) authorities(of *api.AuthorityStatus) *api.AuthorityStatus {
	s := api.AuthorityStatus{Issued: map[string]int{}}
	if of != nil {
		maps.Copy(s.Issued, of.Issued)
	}
	s.Trusted = n.Identity.Authorities()
	s.Issued[identity.IssuedBy(n.Identity.Certificate().Leaf)]++
	s.Keys = slices.Sorted(maps.Keys(n.Identity.Keys().Keys))
	return &s
}
