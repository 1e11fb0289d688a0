// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package health

import (
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/shoenig/test/must"
	"pgregory.net/rapid"

	"github.com/sif-project/sif/fabric/desired"
)

// heart plays a pulse as a Prober does: with a beat each 50 ms, and answers after 5 ms.
type heart struct {
	*pulse
	now     time.Time
	changes int
}

func newHeart() *heart { return &heart{pulse: newPulse(targets("z1", 1)[0], patience), now: start} }

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

// beats plays a prober whose node answers small and full-size pulses as it is told, with 5 ms of
// round trip, and returns how long after the beginning the node last changed.
func (b *beats) play(d time.Duration, small, full bool) (changed time.Duration) {
	for end := b.now.Add(d); b.now.Before(end); b.now = b.now.Add(beat) {
		if b.p.beatOnce(b.now) {
			changed = b.now.Sub(end) + d
		}
		for n, x := range b.p.beaten {
			if x.full && full || !x.full && small {
				b.p.pulsed(message{kind: answer, nonce: n}, x.to, arrival{place: x.from}, b.now.Add(5*time.Millisecond))
			} else {
				delete(b.p.beaten, n)
			}
		}
	}
	return changed
}

type beats struct {
	p   *Prober
	now time.Time
	hop desired.Hop
}

// newBeats returns a prober with one pulsed node. Its sockets lead nowhere.
func newBeats(t *testing.T) *beats {
	p := New(netip.MustParseAddr("127.0.0.1"), netip.MustParseAddr("::1"))
	far := targets("z1", 1)[0]
	far.Full, far.Link = 1420, "private"
	far.IPv4, far.IPv6 = p.own[ipv4], p.own[ipv6]
	p.Follow(View{Pulsed: []Target{far}, Whole: true})
	for family := range familyCount {
		conn, err := net.ListenUDP("udp", nil)
		must.NoError(t, err)
		t.Cleanup(func() { conn.Close() })
		p.sockets[place{"", family}] = &socket{UDPConn: conn}
	}
	return &beats{p, start, far.hop()}
}

// A way by which only small packets pass does not live, and lives again after full-size ones pass.
func TestLargePacketsOnly(t *testing.T) {
	b := newBeats(t)
	b.play(3*time.Second, true, true)
	must.True(t, b.p.Live()[b.hop])
	fell := b.play(5*time.Second, true, false)
	must.False(t, b.p.Live()[b.hop])
	must.Between(t, time.Second, fell, 1600*time.Millisecond)
	rose := b.play(5*time.Second, true, true)
	must.True(t, b.p.Live()[b.hop])
	must.Between(t, time.Second, rose, 3*time.Second)
	// What does not answer at all is known as soon as ever.
	must.LessEq(t, 700*time.Millisecond, b.play(3*time.Second, false, false))
	must.False(t, b.p.Live()[b.hop])
	must.LessEq(t, 2*time.Second, b.play(5*time.Second, true, true))
	must.True(t, b.p.Live()[b.hop])
}

// Who was stopped for a while blames nobody.
func TestStalledProcess(t *testing.T) {
	b := newBeats(t)
	b.play(2*time.Second, true, true)
	b.p.beatOnce(b.now)
	for range 3 {
		b.now = b.now.Add(beat)
		b.p.beatOnce(b.now)
	}
	b.now = b.now.Add(10 * time.Second)
	must.False(t, b.p.beatOnce(b.now))
	must.Eq(t, 0, b.play(time.Second, true, true))
	must.True(t, b.p.Live()[b.hop])
}

// Answers that a node gives late, after it was stopped, do not prove that it lives.
func TestLateAnswersProveNothing(t *testing.T) {
	p := newPulse(targets("z1", 1)[0], patience)
	must.True(t, p.answered(start, start.Add(time.Millisecond)))
	now := start
	for range 20 {
		now = now.Add(pulseInterval)
		p.late(now)
		p.open = append(p.open, now)
	}
	must.False(t, p.live)
	for range 3 {
		for _, sent := range slices.Clone(p.open) {
			p.answered(sent, now.Add(time.Second))
		}
	}
	must.False(t, p.live)
}

// The more nodes there are, the fewer pulses has each.
func TestPulsesAreBounded(t *testing.T) {
	sent := func(nodes int) (small, full int) {
		b := newBeats(t)
		list := targets("z1", nodes)
		for i := range list {
			list[i].IPv4, list[i].IPv6 = b.p.own[ipv4], b.p.own[ipv6]
		}
		b.p.Follow(View{Pulsed: list, Whole: true})
		seen := map[nonce]bool{}
		for end := b.now.Add(10 * time.Second); b.now.Before(end); b.now = b.now.Add(beat) {
			b.p.beatOnce(b.now)
			for n, x := range b.p.beaten {
				if seen[n] {
					continue
				}
				if seen[n] = true; x.full {
					full++
				} else {
					small++
				}
				b.p.pulsed(message{kind: answer, nonce: n}, x.to, arrival{place: x.from}, b.now)
			}
		}
		return small, full
	}
	few, fewFull := sent(10)
	must.Between(t, 600, few, 700)
	must.Between(t, 230, fewFull, 260)
	many, manyFull := sent(512)
	must.LessEq(t, 20000, many)
	must.LessEq(t, 2700, manyFull)
}
