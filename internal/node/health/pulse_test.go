// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package health

import (
	"testing"
	"time"

	"github.com/shoenig/test/must"
	"pgregory.net/rapid"
)

// heart plays a pulse as a Prober does: with a beat each 50 ms, and answers after 5 ms.
type heart struct {
	*pulse
	now     time.Time
	changes int
}

func newHeart() *heart { return &heart{pulse: newPulse(targets("z1", 1)[0]), now: start} }

// play goes on until a time, and returns when the node last changed between life and death.
func (h *heart) play(d time.Duration, answers bool) (changed time.Time) {
	for end := h.now.Add(d); h.now.Before(end); h.now = h.now.Add(beat) {
		if h.late(h.now) {
			h.changes++
			changed = h.now
		}
		if h.now.Before(h.next) {
			continue
		}
		h.next = h.now.Add(pulseInterval)
		h.open = append(h.open, h.now)
		if answers && h.answered(h.now, h.now.Add(5*time.Millisecond)) {
			h.changes++
			changed = h.now
		}
	}
	return changed
}

func TestDeathIsKnownWithinASecond(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		h := newHeart()
		must.Eq(t, start, h.play(time.Duration(rapid.IntRange(1, 1e6).Draw(t, "alive for"))*time.Microsecond+beat, true)) // at once
		died := h.now
		fell := h.play(2*time.Second, false)
		must.False(t, h.live)
		must.LessEq(t, 650*time.Millisecond, fell.Sub(died))
		must.Less(t, 10, len(h.open))
		back := h.now
		rose := h.play(10*time.Second, true)
		must.True(t, h.live)
		must.Between(t, 500*time.Millisecond, rose.Sub(back), 2*time.Second)
	})
}

// Two lost in a row are chance, and a process that did not run for a while blames nobody.
func TestLossIsNotDeath(t *testing.T) {
	h := newHeart()
	h.play(time.Second, true)
	for range 20 {
		h.play(2*pulseInterval, false)
		h.play(pulseInterval, true)
	}
	h.now = h.now.Add(time.Minute)
	h.play(time.Second, true)
	must.True(t, h.live)
	must.Eq(t, 1, h.changes)
}

// A node that comes and goes is left more and more.
func TestFlappingIsDamped(t *testing.T) {
	h := newHeart()
	for range 40 {
		h.play(3*time.Second, true)
		h.play(time.Second, false)
	}
	must.LessEq(t, 8, h.changes)
	h.play(time.Minute, true)
	must.True(t, h.live)
	h.play(2*relapse, true)
	h.play(time.Second, false)
	h.play(3*time.Second, true)
	must.True(t, h.live) // it had lived for long
}
