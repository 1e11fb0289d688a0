// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package outage

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/shoenig/test/must"
)

type world struct {
	*Outage
	path string
	at   time.Time
}

func newWorld(t *testing.T) *world {
	w := &world{path: filepath.Join(t.TempDir(), "outage.json"), at: time.Date(2026, 11, 27, 18, 0, 0, 0, time.UTC)}
	w.restart(t)
	return w
}

func (w *world) restart(t *testing.T) {
	var err error
	w.Outage, err = Open(w.path, DefaultBound, func() time.Time { return w.at }, hclog.NewNullLogger())
	must.NoError(t, err)
}

func (w *world) pass(t *testing.T, d time.Duration, do func() error) {
	for end := w.at.Add(d); w.at.Before(end); {
		w.at = w.at.Add(2 * time.Second)
		must.NoError(t, do())
	}
}

func (w *world) missed() error  { return w.Missed("Vault is away") }
func (w *world) reached() error { return w.Reached(true) }

// A weekend without Vault is within the bound, which ends to the second. A restart in between
// changes nothing of that, and a leader that is replaced is no outage.
func TestWeekend(t *testing.T) {
	w := newWorld(t)
	w.pass(t, time.Hour, w.missed)
	must.True(t, w.Began().IsZero(), must.Sprint("who has never reached anybody holds nothing"))
	w.pass(t, time.Hour, w.reached)
	w.pass(t, patience, w.missed)
	must.True(t, w.Began().IsZero())
	must.Nil(t, w.Status())
	w.pass(t, time.Minute, w.reached)
	w.pass(t, patience+2*time.Second, w.missed)
	began := w.at
	must.Eq(t, began, w.Began())
	must.Eq(t, began.Add(DefaultBound), w.Status().Until)
	must.Eq(t, "Vault is away", w.Status().Why)
	w.pass(t, 40*time.Hour, w.missed)
	w.restart(t)
	must.Eq(t, began, w.Began())
	w.at = began.Add(DefaultBound - time.Second)
	must.NoError(t, w.missed())
	must.Eq(t, began, w.Began())
	w.at = began.Add(DefaultBound)
	must.True(t, w.Began().IsZero())
	must.NotNil(t, w.Status())
	w.pass(t, least+2*time.Second, w.reached)
	must.Nil(t, w.Status())
}

// When all answer again, what was honoured has time to be renewed: until nothing is honoured any
// more, or for as long as settling. Who is lost again meanwhile does not begin a new outage, with a
// new bound.
func TestBack(t *testing.T) {
	w := newWorld(t)
	w.pass(t, time.Minute, w.reached)
	w.pass(t, time.Hour, w.missed)
	began := w.Began()
	must.NotEq(t, time.Time{}, began)
	unsettled := func() error { return w.Reached(false) }
	w.pass(t, settling-10*time.Second, unsettled)
	must.Eq(t, began, w.Began())
	must.False(t, w.Status().Back.IsZero())
	w.pass(t, time.Minute, w.missed)
	must.Eq(t, began, w.Began())
	must.True(t, w.Status().Back.IsZero())
	w.pass(t, settling-10*time.Second, unsettled)
	must.Eq(t, began, w.Began())
	w.pass(t, 20*time.Second, unsettled)
	must.True(t, w.Began().IsZero())
	must.Nil(t, w.Status())
}

// A daemon that was not running counts from when it last reached all, and is back when it does.
func TestNotRunning(t *testing.T) {
	w := newWorld(t)
	w.pass(t, time.Minute, w.reached)
	last := w.at
	w.restart(t)
	must.True(t, w.Began().IsZero(), must.Sprint("a restart is no outage"))
	w.at = w.at.Add(time.Hour)
	w.restart(t)
	must.Between(t, last.Add(-noteInterval).Unix(), w.Began().Unix(), last.Unix())
	w.pass(t, least+2*time.Second, w.reached)
	must.True(t, w.Began().IsZero())
	w.at = w.at.Add(DefaultBound + time.Hour)
	w.restart(t)
	must.True(t, w.Began().IsZero(), must.Sprint("beyond the bound"))
}

func TestWithoutBound(t *testing.T) {
	w := newWorld(t)
	w.bound = 0
	w.pass(t, time.Minute, w.reached)
	w.pass(t, time.Hour, w.missed)
	must.True(t, w.Began().IsZero())
	must.NotNil(t, w.Status())
}

func TestDamagedFile(t *testing.T) {
	w := newWorld(t)
	w.pass(t, time.Minute, w.reached)
	must.NoError(t, os.WriteFile(w.path, []byte("\x00\x00"), 0o600))
	w.restart(t)
	must.True(t, w.Began().IsZero())
}

func TestHolds(t *testing.T) {
	began := time.Date(2026, 11, 27, 18, 0, 0, 0, time.UTC)
	now, none := began.Add(10*time.Hour), time.Time{}
	for _, c := range []struct {
		end, began time.Time
		holds      bool
	}{
		{now.Add(time.Second), none, true},
		{now, none, false},
		{now, began, true},
		{began.Add(time.Second), began, true},
		{began, began, false}, // it had ended when the outage began
	} {
		must.Eq(t, c.holds, Holds(c.end, now, c.began))
	}
}

func TestNil(t *testing.T) {
	var o *Outage
	must.True(t, o.Began().IsZero())
	must.Nil(t, o.Status())
	must.NoError(t, o.Missed("x"))
	must.NoError(t, o.Reached(false))
}
