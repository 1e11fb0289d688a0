// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package daemon

import (
	"maps"

	"github.com/sif-project/sif/api"
	"github.com/sif-project/sif/internal/trust/identity"
)

// authorities adds the node's own to what a daemon says of the certificates that it uses and
// of the signed statements that it has, if anything.
func (n *Node) authorities(of *api.AuthorityStatus) *api.AuthorityStatus {
	s := api.AuthorityStatus{Issued: map[string]int{}, Statements: n.Roster.Signed()}
	if of != nil {
		maps.Copy(s.Issued, of.Issued)
		s.TokenKeys = of.TokenKeys
		for version, count := range of.Statements {
			s.Statements[version] += count
		}
	}
	if list := n.Removals.Signed(); len(list.Payload) > 0 {
		s.Statements[list.Version]++
	}
	if version := n.Revision.Signed(); version > 0 {
		s.Statements[version]++
	}
	n.mu.Lock()
	if own := n.registered.Node; own.Version > 0 {
		s.Statements[own.Version]++
	}
	n.mu.Unlock()
	s.Trusted = n.Identity.Authorities()
	s.Issued[identity.IssuedBy(n.Identity.Certificate().Leaf)]++
	keys := n.Identity.Keys()
	s.Keys, s.Lowest = keys.Accepted(), keys.Min
	return &s
}
