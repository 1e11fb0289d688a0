// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package engine

import (
	"context"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/internal/clock"
	"github.com/sif-project/sif/internal/node/rpc"
)

// An engine whose clock jumps by an hour or a day, in either direction, loses no lease, ends none
// elsewhere, and serves. A lease still ends when its time is over.
func TestClockSteps(t *testing.T) {
	for _, step := range []time.Duration{time.Hour, -time.Hour, 25 * time.Hour, -25 * time.Hour} {
		w := newWorld(t)
		aws, sw, _ := w.engine("aws1")
		gcp, _, _ := w.engine("gcp1")
		start := time.Now()
		passed, wrong := time.Duration(0), time.Duration(0)
		stepping := clock.Of(func() time.Time { return start.Add(passed + wrong) }, func() time.Duration { return passed })
		aws.now = stepping.Now
		gcp.now = func() time.Time { return start.Add(passed) }
		w.carries(gcp)
		w.join(aws, gcp)
		living := func(a *fabric.Admission) { a.Issued, a.Expires = start, start.Add(50*time.Minute) }
		w1 := &owner{w: w, node: "w1", has: map[string]fabric.Request{"svc-1": w.request(1, "aws1", "w1", svc, living)}}
		w2 := &owner{w: w, node: "w2", has: map[string]fabric.Request{"web-2": w.request(2, "aws1", "w2", web, living)}}
		w1.connect(aws)
		w2.connect(aws)

		wrong, passed = step, time.Minute
		stepping.Confirm("the controller", start.Add(passed))
		w2.has["web-3"] = w.request(3, "aws1", "w2", web, living)
		w2.sync(aws)
		must.NoError(t, aws.Expire())
		must.NoError(t, aws.Refresh(context.Background()))
		aws.Sync(context.Background())
		all := []string{"svc-1", "web-2", "web-3"}
		must.Eq(t, all, sw.endpoints())
		must.Eq(t, []string{"web-2", "web-3"}, w1.told.endpoints())
		must.SliceLen(t, 3, gcp.leases.All(start.Add(passed)))
		must.SliceLen(t, 2, stepping.Degraded())

		passed = 50 * time.Minute
		must.NoError(t, aws.Expire())
		must.SliceEmpty(t, sw.endpoints())
	}
}

// An engine that believes its clock when that is wrong ends its own leases, and none elsewhere: it
// withdraws only what an agent withdrew.
func TestAnEnginesClockEndsNothingElsewhere(t *testing.T) {
	w := newWorld(t)
	aws, _, _ := w.engine("aws1")
	gcp, _, _ := w.engine("gcp1")
	w.carries(gcp)
	w.join(aws, gcp)
	living := func(a *fabric.Admission) { a.Issued, a.Expires = time.Now(), time.Now().Add(50*time.Minute) }
	w1 := w.agentOf(aws, "w1")
	_, err := w.connect(aws, "w1", w.request(1, "aws1", "w1", svc, living))
	must.NoError(t, err)
	_, err = w.connect(aws, "w2", w.request(2, "aws1", "w2", web, living))
	must.NoError(t, err)
	aws.now = func() time.Time { return time.Now().Add(time.Hour) }
	must.NoError(t, aws.Expire())
	must.SliceEmpty(t, held(aws))
	must.Eq(t, []string{"svc-1", "web-2"}, held(gcp))
	must.Eq(t, []string{"web-2"}, w1.endpoints())
	aws.now = time.Now
	var reply rpc.SyncReply
	(&owner{w: w, node: "w1"}).call(aws, rpc.MethodSync, rpc.SyncParams{Endpoints: map[string]time.Time{"svc-1": time.Now()}}, &reply)
	must.Eq(t, []string{"svc-1"}, reply.Missing) // so it is requested again
}
