// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package controller

import (
	"testing"

	"github.com/shoenig/test/must"
)

// In a fabric with another prefix, policies of that prefix give the rights, and those of the
// default prefix none.
func TestPolicyPrefix(t *testing.T) {
	with := func(names ...string) access {
		a := newAccess("token x", "", "Consul policies or roles")
		for _, n := range names {
			a.names[n] = true
		}
		return a
	}
	must.True(t, with("blue-operator").under("blue").has())
	must.True(t, with("blue-apply-shop").under("blue").applies("shop"))
	must.False(t, with("sif-operator").under("blue").any())
	must.False(t, with("blue-operator").under("").any())
	must.True(t, with("sif-read").under("sif").readsAll())
	must.ErrorContains(t, with("sif-operator").under("blue").mayReadAll("read the status"), "it has none of the Consul policies or roles blue-read, blue-operator")
	must.ErrorContains(t, with().under("").mayReadAll("read the status"), "sif-read, sif-operator")
}
