// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package agent

import (
	"net/netip"
	"path/filepath"
	"testing"
	"time"

	consulapi "github.com/hashicorp/consul/api"
	"github.com/hashicorp/go-hclog"
	"github.com/shoenig/test/must"

	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/internal/node/lease"
	"github.com/sif-project/sif/internal/outage"
	"github.com/sif-project/sif/internal/trust/identity/identitytest"
	"github.com/sif-project/sif/internal/trust/roster"
)

// An agent that is cut off from the controllers keeps its endpoints and their counterparts that
// were in force, for 72 hours: no peer that had expired is revived by that, and what others admit
// and ends meanwhile has its end. As soon as it reaches a controller, what is renewed stays, and
// the rest ends when that had its time.
func TestCutOff(t *testing.T) {
	a, _, _ := hookedAgent(t)
	start := time.Now().UTC()
	now := start
	a.now = func() time.Time { return now }
	var err error
	a.node.Outage, err = outage.Open(filepath.Join(t.TempDir(), "outage.json"), outage.DefaultBound, a.now, hclog.NewNullLogger())
	must.NoError(t, err)
	consul, err := consulapi.NewClient(consulapi.DefaultConfig())
	must.NoError(t, err)
	ca := identitytest.NewCA(t)
	a.node.Roster, err = roster.New(consul, t.TempDir(), "test", identitytest.TrustDomain, ca.Keys, ca.Roots, func() fabric.Revocations { return fabric.Revocations{} }, hclog.NewNullLogger())
	must.NoError(t, err)
	a.counterparts, err = lease.Open(filepath.Join(t.TempDir(), "counterparts.json"), a.node.Outage.Began, a.log)
	must.NoError(t, err)
	peer := func(id string, n int, issued time.Time, life time.Duration) {
		must.True(t, a.counterparts.Accept(lease.Lease{Since: now, Admission: fabric.Admission{
			Endpoint: id, Zone: "z1", Node: "w2", IPv4: netip.AddrFrom4([4]byte{100, 64, 2, byte(n)}), IPv6: netip.AddrFrom16([16]byte{0xfd, 15: byte(n)}),
			Issued: issued, Expires: issued.Add(life),
		}}))
	}
	held := func() (ids []string) {
		must.NoError(t, a.forget(a.departed()))
		for _, le := range a.counterparts.All(now) {
			ids = append(ids, le.Admission.Endpoint)
		}
		return ids
	}
	own := endpoint{ID: "e", Attachment: at("e"), HostIndex: 7, Admission: fabric.Admission{Endpoint: "e", Issued: start, Expires: start.Add(24 * time.Hour)}}
	a.endpoints.put(own)()
	peer("expired", 2, start, time.Minute)
	peer("living", 3, start, 24*time.Hour)
	must.NoError(t, a.node.Outage.Reached(true))

	now = start.Add(time.Hour)
	must.NoError(t, a.node.Outage.Missed("no controller answers"))
	began := a.node.Outage.Began()
	must.Eq(t, []string{"living"}, held(), must.Sprint("an outage revives nobody"))
	now = now.Add(time.Minute)
	peer("later", 4, now, time.Hour)
	must.Eq(t, []string{"later", "living"}, held())
	now = start.Add(60 * time.Hour)
	must.Eq(t, []string{"living"}, held())
	must.SliceLen(t, 1, a.live())
	must.Eq(t, 2, a.honoured())

	// It reaches a controller again: its own is renewed, and one counterpart.
	must.NoError(t, a.node.Outage.Reached(a.honoured() == 0))
	must.SliceLen(t, 1, a.live())
	must.Eq(t, []string{"living"}, held())
	peer("living", 3, now, 24*time.Hour)
	own.Admission.Issued, own.Admission.Expires = now, now.Add(24*time.Hour)
	a.endpoints.put(own)()
	must.Zero(t, a.honoured())
	now = now.Add(2 * time.Minute)
	must.NoError(t, a.node.Outage.Reached(a.honoured() == 0))
	must.Nil(t, a.node.Outage.Status())
	must.SliceLen(t, 1, a.live())
	must.Eq(t, []string{"living"}, held())

	// The next one lasts longer than the bound.
	now = now.Add(time.Minute)
	must.NoError(t, a.node.Outage.Missed("no controller answers"))
	now = a.node.Outage.Began().Add(outage.DefaultBound)
	must.SliceEmpty(t, a.live())
	must.SliceEmpty(t, held())
	must.True(t, now.After(began.Add(outage.DefaultBound)))
}
