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
	}{
		{"the certificate first", certificate(9 * time.Hour), issued.Add(6 * time.Hour)},
		{"the admission first", certificate(48 * time.Hour), issued.Add(16 * time.Hour)},
		{"no certificate", nil, time.Time{}},
		{"not a certificate", [][]byte{{1}}, time.Time{}},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			ep := endpoint{
				Admission: fabric.Admission{Issued: issued, Expires: issued.Add(24 * time.Hour)},
				Request:   fabric.Request{Certificate: c.certificate},
			}
			must.True(t, c.due.Equal(due(ep)), must.Sprint(due(ep)))
		})
	}
}
