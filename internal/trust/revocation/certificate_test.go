// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package revocation

import (
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/internal/trust/identity"
	"github.com/sif-project/sif/internal/trust/identity/identitytest"
)

// A certificate is judged by its node, its service and its serial number. Only the last has its
// holder get another.
func TestCertificate(t *testing.T) {
	ca := identitytest.NewCA(t)
	now := time.Now().UTC()
	leaf := ca.Issue("/shop/web", "").Leaf // since a minute ago
	web := identity.Subject{Service: fabric.Ref{Domain: "shop", Name: "web"}}
	node := identity.Subject{Node: identity.Node{NodeID: fabric.NodeID{Zone: "z", Name: "w"}, Kind: fabric.KindWorkload}}
	controller := identity.Subject{Controller: true}
	for name, tc := range map[string]struct {
		list     fabric.Revocations
		of       identity.Subject
		says     string
		replaced bool
	}{
		"nothing":             {fabric.Revocations{}, node, "", false},
		"its node":            {fabric.Revocations{Tombstones: []fabric.Tombstone{{Node: node.Node.NodeID, Removed: now}}}, node, "from before the removal", false},
		"its node, long ago":  {fabric.Revocations{Tombstones: []fabric.Tombstone{{Node: node.Node.NodeID, Removed: now.Add(-time.Hour)}}}, node, "", false},
		"its service":         {fabric.Revocations{Revoked: []fabric.Revocation{{Service: web.Service, Revoked: now}}}, web, "service shop/web was revoked", false},
		"service reinstated":  {fabric.Revocations{Revoked: []fabric.Revocation{{Service: web.Service, Revoked: now, Reinstated: now.Add(time.Second)}}}, web, "", false},
		"a service, no node":  {fabric.Revocations{Revoked: []fabric.Revocation{{Service: web.Service, Revoked: now}}}, node, "", false},
		"itself":              {fabric.Revocations{Revoked: []fabric.Revocation{{Serial: identity.Serial(leaf), Revoked: now}}}, node, "was revoked", true},
		"a controller's":      {fabric.Revocations{Revoked: []fabric.Revocation{{Serial: identity.Serial(leaf), Revoked: now}}}, controller, "was revoked", true},
		"another certificate": {fabric.Revocations{Revoked: []fabric.Revocation{{Serial: "0a", Revoked: now}}}, node, "", false},
	} {
		err := Certificate(tc.list, tc.of, leaf)
		if tc.says == "" {
			must.NoError(t, err, must.Sprint(name))
			continue
		}
		must.ErrorContains(t, err, tc.says, must.Sprint(name))
		if tc.replaced {
			must.ErrorIs(t, err, identity.ErrReplaced)
		}
	}
}
