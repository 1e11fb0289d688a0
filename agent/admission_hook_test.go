// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package agent

import (
	"crypto/tls"
	"crypto/x509"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"github.com/sif-project/sif/api"
	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/internal/trust/identity"
	"github.com/sif-project/sif/internal/trust/identity/identitytest"
)

func never(*x509.Certificate) bool { return false }

// A request is due at two thirds of whichever ends first, its admission or the certificate that
// signed it: each request carries a certificate of its own, so that renewing the service's for one
// endpoint does not renew the others.
func TestDue(t *testing.T) {
	ca := identitytest.NewCA(t)
	issued := time.Now().UTC().Truncate(time.Second)
	certificate := func(life time.Duration) *tls.Certificate {
		return ca.Issue(svc.SPIFFE(), "", func(c *x509.Certificate) { c.NotBefore, c.NotAfter = issued, issued.Add(life) })
	}
	short := certificate(9 * time.Hour)
	cases := []struct {
		name        string
		certificate [][]byte
		due         time.Time
	}{
		{"the certificate first", short.Certificate, identity.RenewalTime(short.Leaf)},
		{"the admission first", certificate(48 * time.Hour).Certificate, issued.Add(16 * time.Hour)},
		{"no certificate", nil, time.Time{}},
		{"not a certificate", [][]byte{{1}}, time.Time{}},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			ep := endpoint{
				Admission: fabric.Admission{Issued: issued, Expires: issued.Add(24 * time.Hour)},
				Request:   fabric.Request{Certificate: c.certificate},
			}
			must.True(t, c.due.Equal(due(ep, never)), must.Sprint(due(ep, never)))
		})
	}
}

// The admission of a canary is renewed as soon as it is known to be promoted: it may be an instance
// of another service then. If nothing is known, it is renewed often.
func TestPromotedCanaryIsRenewed(t *testing.T) {
	ca := identitytest.NewCA(t)
	a, _, _ := hookedAgent(t)
	issued := a.now()
	ep := endpoint{
		ID:        "a",
		Admission: fabric.Admission{Endpoint: "a", Issued: issued, Expires: issued.Add(24 * time.Hour), Origin: fabric.Origin{Canary: true}},
		Request: fabric.Request{Certificate: ca.Issue(svc.SPIFFE(), "", func(c *x509.Certificate) {
			c.NotBefore, c.NotAfter = issued, issued.Add(9*time.Hour)
		}).Certificate},
	}
	here := map[string]bool{"a": true}
	told := func(life api.EndpointLife) {
		a.lives.take(api.EndpointLives{Endpoints: map[string]api.EndpointLife{"a": life}}, here)
	}
	must.False(t, a.mustRenew(ep))
	ep.Admission.Issued = issued.Add(-canaryInterval)
	must.True(t, a.mustRenew(ep)) // nothing is known
	a.lives.begin("a", true)
	must.False(t, a.mustRenew(ep))
	told(api.EndpointLife{State: api.LifeReady, Canary: true})
	must.False(t, a.mustRenew(ep))
	told(api.EndpointLife{}) // unknown: what was known before holds
	must.False(t, a.mustRenew(ep))
	told(api.EndpointLife{State: api.LifeReady})
	must.True(t, a.mustRenew(ep))
	ep.Admission.Origin.Canary = false // renewed
	must.False(t, a.mustRenew(ep))
}
