// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package identity_test

import (
	"crypto/x509"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"github.com/sif-project/sif/internal/trust/identity"
	"github.com/sif-project/sif/internal/trust/identity/identitytest"
)

// Renewals are spread before two thirds of the life, never after, and each certificate's time is
// always the same.
func TestRenewalTime(t *testing.T) {
	ca := identitytest.NewCA(t)
	begin := time.Now().Truncate(time.Second)
	first, last := begin.Add(12*time.Hour), begin
	for range 64 {
		leaf := ca.Issue("/shop/web", "", func(c *x509.Certificate) { c.NotBefore, c.NotAfter = begin, begin.Add(12*time.Hour) }).Leaf
		at := identity.RenewalTime(leaf)
		must.True(t, at.Equal(identity.RenewalTime(leaf)))
		must.False(t, at.After(begin.Add(8*time.Hour)), must.Sprint(at))
		must.False(t, at.Before(begin.Add(7*time.Hour)), must.Sprint(at))
		if at.Before(first) {
			first = at
		}
		if at.After(last) {
			last = at
		}
	}
	must.Greater(t, 30*time.Minute, last.Sub(first))
}
