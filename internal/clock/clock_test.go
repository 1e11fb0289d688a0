// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package clock

import (
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/shoenig/test/must"
	"pgregory.net/rapid"
)

// machine is a machine whose true time is now, and whose wall clock differs from it by wrong.
type machine struct {
	now   time.Time
	wrong time.Duration
	boot  time.Time
}

func newMachine() *machine {
	start := time.Date(2026, 11, 28, 12, 0, 0, 0, time.UTC)
	return &machine{now: start, boot: start.Add(-time.Hour)}
}

func (m *machine) clock() *Clock {
	return Of(func() time.Time { return m.now.Add(m.wrong) }, func() time.Duration { return m.now.Sub(m.boot) })
}

func (m *machine) pass(d time.Duration) { m.now = m.now.Add(d) }

// A wrong step of an hour in either direction changes nothing, whatever the others' clocks say, and
// is reported; correcting it changes nothing either.
func TestWrongSteps(t *testing.T) {
	for _, step := range []time.Duration{time.Hour, -time.Hour, 24 * time.Hour, -24 * time.Hour, 3 * time.Minute} {
		m := newMachine()
		c := m.clock()
		c.Confirm("the controller", m.now)
		must.SliceEmpty(t, c.Degraded())
		m.pass(time.Minute)
		m.wrong = step
		for range 100 {
			m.pass(time.Minute)
			must.Eq(t, m.now, c.Now())
			c.Confirm("the controller", m.now)
		}
		must.Eq(t, m.now, c.Now())
		must.SliceLen(t, 2, c.Degraded())
		must.StrContains(t, c.Degraded()[0], "differs from that of the controller by "+signed(step))
		must.StrContains(t, c.Degraded()[1], "is off by "+signed(step)+" since 2026-11-28T12:02:00Z")
		m.wrong = 0
		m.pass(time.Minute)
		must.Eq(t, m.now, c.Now())
		c.Confirm("the controller", m.now)
		must.SliceEmpty(t, c.Degraded())
	}
}

// A step that corrects a wrong clock is believed as soon as others agree with it.
func TestCorrections(t *testing.T) {
	for _, wrong := range []time.Duration{time.Hour, -time.Hour} {
		m := newMachine()
		m.wrong = wrong
		c := m.clock()
		m.pass(time.Minute)
		m.wrong = 0
		must.Eq(t, m.now.Add(wrong), c.Now())
		m.pass(time.Hour)
		must.Eq(t, m.now.Add(wrong), c.Now())
		c.Confirm("the controller", m.now)
		must.Eq(t, m.now, c.Now())
		must.SliceEmpty(t, c.Degraded())
	}
}

// A daemon that starts with a clock that is ahead ends nothing as soon as it has heard another
// clock; if it is the other one that is ahead, it ends nothing either.
func TestStartedWithAWrongClock(t *testing.T) {
	m := newMachine()
	m.wrong = time.Hour
	c := m.clock()
	c.Confirm("the controller", m.now)
	must.Eq(t, m.now, c.Now())
	must.SliceLen(t, 2, c.Degraded())

	m = newMachine()
	c = m.clock()
	c.Confirm("the controller", m.now.Add(time.Hour))
	must.Eq(t, m.now, c.Now())
	must.SliceLen(t, 1, c.Degraded())
}

// Small steps and a clock that runs too fast are followed.
func TestSmallSteps(t *testing.T) {
	m := newMachine()
	c := m.clock()
	for range 100 {
		m.pass(10 * time.Minute)
		m.wrong += time.Second
		must.Eq(t, m.now.Add(m.wrong), c.Now())
	}
	m.wrong -= Tolerance
	must.Eq(t, m.now.Add(m.wrong), c.Now())
}

// Whatever the wall clock does, as long as somebody with the right time is heard now and then, the
// clock is never further from it than Tolerance plus the error of the other.
func TestNeverFarFromTheTruth(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		m := newMachine()
		c := m.clock()
		c.Confirm("the controller", m.now)
		minutes := rapid.IntRange(-3000, 3000)
		for range rapid.IntRange(1, 30).Draw(rt, "steps") {
			m.wrong = time.Duration(minutes.Draw(rt, "wrong")) * time.Minute
			for range rapid.IntRange(0, 3).Draw(rt, "reads") {
				m.pass(time.Duration(rapid.IntRange(0, 600).Draw(rt, "seconds")) * time.Second)
				if off := c.Now().Sub(m.now).Abs(); off > Tolerance {
					rt.Fatalf("off by %s", off)
				}
			}
			c.Confirm("the controller", m.now)
			if m.wrong.Abs() <= Tolerance {
				m.wrong = 0
				c.Now()
			}
		}
	})
}

func TestConfirmBy(t *testing.T) {
	server := httptest.NewServer(http.NotFoundHandler())
	defer server.Close()
	resp, err := (&http.Client{Transport: ConfirmBy("a server", http.DefaultTransport)}).Get(server.URL)
	must.NoError(t, err)
	resp.Body.Close()
	process.mu.Lock()
	defer process.mu.Unlock()
	must.Less(t, 5*time.Second, process.skews["a server"].Abs())
}

// The process's clock is near time.Now.
func TestProcess(t *testing.T) {
	must.Less(t, time.Second, time.Since(Now()).Abs())
	must.SliceEmpty(t, Degraded())
}
