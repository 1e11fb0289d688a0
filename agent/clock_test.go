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
	"github.com/sif-project/sif/internal/clock"
	"github.com/sif-project/sif/internal/node/lease"
	"github.com/sif-project/sif/internal/trust/identity/identitytest"
	"github.com/sif-project/sif/internal/trust/roster"
)

// An agent whose clock jumps by an hour or a day, in either direction, keeps its counterparts,
// renews nothing early, and lets addresses rest for as long as it should.
func TestClockSteps(t *testing.T) {
	for _, step := range []time.Duration{time.Hour, -time.Hour, 25 * time.Hour, -25 * time.Hour} {
		a, _, _ := hookedAgent(t)
		start := time.Now()
		passed, wrong := time.Duration(0), time.Duration(0)
		stepping := clock.Of(func() time.Time { return start.Add(passed + wrong) }, func() time.Duration { return passed })
		a.now = stepping.Now
		consul, err := consulapi.NewClient(consulapi.DefaultConfig())
		must.NoError(t, err)
		ca := identitytest.NewCA(t)
		a.node.Roster, err = roster.New(consul, t.TempDir(), "test", identitytest.TrustDomain, ca.Keys, ca.Roots, func() fabric.Revocations { return fabric.Revocations{} }, hclog.NewNullLogger())
		must.NoError(t, err)
		a.counterparts, err = lease.Open(filepath.Join(t.TempDir(), "counterparts.json"), nil, a.log)
		must.NoError(t, err)
		living := fabric.Admission{Endpoint: "web-1", Zone: "z1", Node: "w2", IPv4: netip.MustParseAddr("100.64.2.2"), IPv6: netip.MustParseAddr("fd5f::2:2"), Issued: start, Expires: start.Add(50 * time.Minute)}
		a.counterparts.Accept(lease.Lease{Admission: living})
		own := endpoint{ID: "e", Attachment: at("e"), Admission: fabric.Admission{Endpoint: "e", Issued: start, Expires: start.Add(24 * time.Hour)}}
		own.Request.Certificate = ca.Issue(svc.SPIFFE(), "").Certificate
		v4, _, err := a.addresses.take(a.now())
		must.NoError(t, err)
		a.addresses.release(v4, a.now())

		wrong, passed = step, time.Minute
		stepping.Confirm("the controller", start.Add(passed))
		must.NoError(t, a.forget(a.departed()))
		must.SliceLen(t, 1, a.counterparts.All(a.now()))
		must.True(t, a.now().Before(due(own, never)))
		must.True(t, a.now().Before(a.addresses.resting[firstOffset]))

		passed = 50 * time.Minute
		must.False(t, a.now().Before(a.addresses.resting[firstOffset]))
		must.NoError(t, a.forget(a.departed()))
		_, has := a.counterparts.Get("web-1")
		must.False(t, has)
	}
}
