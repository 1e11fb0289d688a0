// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package agent

import (
	"crypto/x509"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/internal/trust/identity/identitytest"
)

// A request is due at two thirds of whichever ends first, its admission or the certificate that
// signed it: each request carries a certificate of its own, so that renewing the service's for one
// endpoint does not renew the others.
func TestDue(t *testing.T) {
	ca := identitytest.NewCA(t)
	issued := time.Now().UTC().Truncate(time.Second)
	certificate := func(life time.Duration) [][]byte {
		return ca.Issue(svc.SPIFFE(), "", func(c *x509.Certificate) { c.NotBefore, c.NotAfter = issued, issued.Add(life) }).Certificate
	}
	cases := []struct {
		name        string
		certificate [][]byte
		due         time.Time
		canary      bool
	}{
		{"the certificate first", certificate(9 * time.Hour), issued.Add(6 * time.Hour), false},
		{"the admission first", certificate(48 * time.Hour), issued.Add(16 * time.Hour), false},
		{"a canary", certificate(9 * time.Hour), issued.Add(canaryInterval), true},
		{"a canary with a certificate that ends soon", certificate(15 * time.Second), issued.Add(10 * time.Second), true},
		{"no certificate", nil, time.Time{}, false},
		{"not a certificate", [][]byte{{1}}, time.Time{}, true},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			ep := endpoint{
				Admission: fabric.Admission{Issued: issued, Expires: issued.Add(24 * time.Hour), Origin: fabric.Origin{Canary: c.canary}},
				Request:   fabric.Request{Certificate: c.certificate},
			}
			must.True(t, c.due.Equal(due(ep)), must.Sprint(due(ep)))
		})
	}
}
