// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package engine

import (
	"crypto/x509"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/internal/node/lease"
	"github.com/sif-project/sif/internal/trust/identity"
)

// What is revoked leaves the switch and the agents, is refused, and is not programmed even if it
// was verified before that and is stored after it.
func TestRevokedLeases(t *testing.T) {
	for name, revoke := range map[string]func(r fabric.Request) fabric.Revocation{
		"service":  func(fabric.Request) fabric.Revocation { return fabric.Revocation{Service: svc} },
		"endpoint": func(fabric.Request) fabric.Revocation { return fabric.Revocation{Endpoint: "svc-1"} },
		"certificate": func(r fabric.Request) fabric.Revocation {
			return fabric.Revocation{Serial: serialOf(t, r)}
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			e, sw, _ := w.engine("aws1")
			var list fabric.Revocations
			e.verify.Removed = func() fabric.Revocations { return list }
			peer := w.agentOf(e, "w2")
			r := w.request(1, "aws1", "w1", svc)
			for node, request := range map[string]fabric.Request{"w1": r, "w2": w.request(2, "aws1", "w2", web)} {
				_, err := w.connect(e, node, request)
				must.NoError(t, err)
			}
			must.Eq(t, []string{"svc-1", "web-2"}, sw.endpoints())
			must.Eq(t, []string{"svc-1"}, peer.endpoints())
			v := revoke(r)
			v.Revoked = time.Now()
			list = fabric.Revocations{Sequence: 1, Revoked: []fabric.Revocation{v}}
			must.NoError(t, e.reprogram.Call()) // before any lease has ended
			must.Eq(t, []string{"web-2"}, sw.endpoints())
			must.NoError(t, e.Expire())
			must.SliceEmpty(t, peer.endpoints())
			must.Len(t, 1, e.leases.All(e.now()))
			_, err := w.connect(e, "w1", r)
			must.ErrorContains(t, err, "was revoked at")
			_, err = e.take(t.Context(), lease.Lease{Request: r, Admission: instance(1, "aws1", "w1", svc)})
			must.NoError(t, err)
			must.NoError(t, e.reprogram.Call())
			must.Eq(t, []string{"web-2"}, sw.endpoints())
		})
	}
}

func serialOf(t *testing.T, r fabric.Request) string {
	t.Helper()
	leaf, err := x509.ParseCertificate(r.Certificate[0])
	must.NoError(t, err)
	return identity.Serial(leaf)
}
