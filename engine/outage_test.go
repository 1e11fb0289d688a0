// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package engine

import (
	"context"
	"path/filepath"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/shoenig/test/must"

	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/internal/node/lease"
	"github.com/sif-project/sif/internal/outage"
)

// An engine that is cut off keeps what is in force in its switch beyond its end for 72 hours, and
// to the second no longer; a restart changes nothing. What had expired does not come back, nobody
// new comes who has expired, and what is revoked ends at once. Another engine, which is not cut
// off, honours nothing.
func TestOutage(t *testing.T) {
	w := newWorld(t)
	leases := filepath.Join(t.TempDir(), "leases.json")
	start := time.Now().UTC().Truncate(time.Second)
	at := start
	now := func() time.Time { return at }
	measured, err := outage.Open(filepath.Join(t.TempDir(), "outage.json"), outage.DefaultBound, now, hclog.NewNullLogger())
	must.NoError(t, err)
	var removed fabric.Revocations
	cutOff := func() (*Engine, *recorder) {
		e, sw, _ := w.engine("aws1")
		e.now, e.verify.Removed = now, func() fabric.Revocations { return removed }
		e.leases, err = lease.Open(leases, measured.Began, hclog.NewNullLogger())
		must.NoError(t, err)
		must.NoError(t, e.Resume(context.Background()))
		return e, sw
	}
	e, sw := cutOff()
	other, far, _ := w.engine("gcp1")
	other.now = now
	w.carries(other)
	w.join(e, other)
	lives := func(d time.Duration) func(*fabric.Admission) {
		return func(a *fabric.Admission) { a.Issued, a.Expires = start, start.Add(d) }
	}
	w1 := &owner{w: w, node: "w1", has: map[string]fabric.Request{"svc-1": w.request(1, "aws1", "w1", svc, lives(time.Hour))}}
	w2 := &owner{w: w, node: "w2", has: map[string]fabric.Request{
		"web-2": w.request(2, "aws1", "w2", web, lives(time.Hour)), "web-3": w.request(3, "aws1", "w2", web, lives(time.Minute)), "web-4": w.request(4, "aws1", "w2", web, lives(time.Hour)),
	}}
	w1.connect(e)
	w2.connect(e)
	must.NoError(t, measured.Reached(true))
	must.Eq(t, []string{"svc-1", "web-2", "web-3", "web-4"}, sw.endpoints())
	must.SliceContains(t, far.endpoints(), "svc-1")

	at = start.Add(10 * time.Minute)
	must.NoError(t, measured.Missed("no controller answers"))
	began := measured.Began()
	must.Eq(t, at, began)
	must.NoError(t, e.Expire())
	all := []string{"svc-1", "web-2", "web-4"}
	must.Eq(t, all, sw.endpoints(), must.Sprint("web-3 had expired"))

	at = began.Add(71 * time.Hour)
	must.NoError(t, e.Expire())
	must.NoError(t, e.Refresh(context.Background()))
	e.Sync(context.Background())
	must.Eq(t, all, sw.endpoints())
	must.Eq(t, 3, e.leases.Honoured(at))
	must.NoError(t, other.Expire())
	must.SliceEmpty(t, far.endpoints(), must.Sprint("the other engine is not cut off"))
	e, sw = cutOff()
	must.Eq(t, all, sw.endpoints(), must.Sprint("after a restart"))
	w1.connect(e)
	w2.told = w.agentOf(e, "w2")
	must.Eq(t, all, sw.endpoints(), must.Sprint("its agents say it all again"))
	for _, r := range []fabric.Request{w2.has["web-3"], w.request(5, "aws1", "w2", web, lives(time.Hour))} {
		_, err := w.connect(e, "w2", r)
		must.ErrorContains(t, err, "expired at")
	}

	removed = fabric.Revocations{Sequence: 1, Revoked: []fabric.Revocation{{Endpoint: "web-4", Revoked: at}}}
	must.NoError(t, e.Expire())
	must.Eq(t, []string{"svc-1", "web-2"}, sw.endpoints())

	at = began.Add(outage.DefaultBound - time.Second)
	must.NoError(t, e.Expire())
	must.Eq(t, []string{"svc-1", "web-2"}, sw.endpoints())
	at = began.Add(outage.DefaultBound)
	must.NoError(t, e.Expire())
	must.SliceEmpty(t, sw.endpoints())
}
