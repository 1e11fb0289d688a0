// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

// Package clock is the time by which daemons judge what has expired. It follows the wall clock of
// the machine, but does not believe a step of it: a wrong step would end what is in force, or keep
// what must end. After a step it continues as before, by the time that has passed since the machine
// was started, until somebody whose clock is another one agrees with the wall clock. It knows
// times, and not what expires, nor who the others are.
//
// Deadlines and pauses do not need it: for them, time.Now has a monotonic reading.
package clock

import (
	"fmt"
	"net/http"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Tolerance is the largest step that is believed at once. Everything that expires is renewed
// earlier than that before its end.
const Tolerance = 2 * time.Minute

// MaxSkew is how much the clocks of two machines may differ before Degraded says so. Times of HTTP
// answers are in whole seconds, and a busy machine reads them late.
const MaxSkew = 10 * time.Second

// Clock is a clock. Its methods are safe for concurrent use.
type Clock struct {
	wall    func() time.Time
	running func() time.Duration // since the machine was started

	mu        sync.Mutex
	offset    time.Duration // of the time from running, since 1970
	confirmed bool          // anybody has told a time
	stepped   time.Duration // the step that is not believed; zero: none
	at        time.Time     // when that was noticed
	skews     map[string]time.Duration
}

// New returns a clock that begins with the present wall clock.
func New() *Clock { return Of(time.Now, sinceBoot) }

// Of returns a clock of which wall is the wall clock, and running the time since a moment in the
// past that is always the same.
func Of(wall func() time.Time, running func() time.Duration) *Clock {
	c := &Clock{wall: wall, running: running, skews: map[string]time.Duration{}}
	c.offset = sinceEpoch(wall()) - running()
	return c
}

// sinceBoot goes on while the machine is suspended, unlike the monotonic reading of time.Now.
func sinceBoot() time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		panic(fmt.Sprintf("read the time since the machine was started: %v", err)) // every kernel has it
	}
	return time.Duration(ts.Nano())
}

func sinceEpoch(t time.Time) time.Duration { return time.Duration(t.UnixNano()) }

// Now returns the time in UTC, without a monotonic reading.
func (c *Clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	now, _ := c.read()
	return now
}

// read returns the time and how far the wall clock is ahead of it. The caller holds c.mu.
func (c *Clock) read() (now time.Time, ahead time.Duration) {
	wall, running := sinceEpoch(c.wall()), c.running()
	ahead = wall - (c.offset + running)
	if ahead.Abs() <= Tolerance {
		c.follow(wall - running)
		ahead = 0
	} else if (ahead - c.stepped).Abs() > Tolerance {
		c.stepped = ahead
		c.at = time.Unix(0, int64(c.offset+running)).UTC()
	}
	return time.Unix(0, int64(c.offset+running)).UTC(), ahead
}

func (c *Clock) follow(offset time.Duration) { c.offset, c.stepped = offset, 0 }

// Confirm tells the clock what time it is by somebody else's, who is trusted. After a step, it
// decides whether the wall clock is right. Where the daemon has just started and nobody has told a
// time before, the earlier of the two clocks counts, because nothing is known of a step.
func (c *Clock) Confirm(who string, time time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	now, ahead := c.read()
	skew := now.Add(ahead).Sub(time)
	c.skews[who] = skew
	switch {
	case ahead == 0 && !c.confirmed && skew > Tolerance:
		c.offset -= skew
		c.read()
	case ahead != 0 && skew.Abs() <= now.Sub(time).Abs():
		c.follow(c.offset + ahead)
	}
	c.confirmed = true
}

// Degraded describes a step that is not believed, and differences from the clocks of others, for
// people.
func (c *Clock) Degraded() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.read()
	var list []string
	if c.stepped != 0 {
		list = append(list, fmt.Sprintf("the clock of this machine is off by %s since %s: what is in force ends by the time before, until another clock agrees; correct the clock",
			signed(c.stepped), c.at.Format(time.RFC3339)))
	}
	for who, skew := range c.skews {
		if skew.Abs() > MaxSkew {
			list = append(list, fmt.Sprintf("the clock of this machine differs from that of %s by %s", who, signed(skew)))
		}
	}
	slices.Sort(list)
	return list
}

// signed writes a positive duration with its sign.
func signed(d time.Duration) string {
	d = d.Round(time.Second)
	if d > 0 {
		return "+" + d.String()
	}
	return d.String()
}

// process is the clock of this process: there is one wall clock.
var process = New()

// Now returns the time of the process's clock.
func Now() time.Time { return process.Now() }

// Confirm calls Clock.Confirm of the process's clock.
func Confirm(who string, time time.Time) { process.Confirm(who, time) }

// Degraded returns Clock.Degraded of the process's clock.
func Degraded() []string { return process.Degraded() }

// ConfirmBy returns a transport that confirms the process's clock by the times of the answers.
func ConfirmBy(who string, next http.RoundTripper) http.RoundTripper { return transport{who, next} }

type transport struct {
	who  string
	next http.RoundTripper
}

// RoundTrip implements http.RoundTripper.
func (t transport) RoundTrip(r *http.Request) (*http.Response, error) {
	resp, err := t.next.RoundTrip(r)
	if err == nil {
		if at, err := http.ParseTime(resp.Header.Get("Date")); err == nil {
			Confirm(t.who, at)
		}
	}
	return resp, err
}
