// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package health

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/shoenig/test/must"
	"pgregory.net/rapid"

	"github.com/sif-project/sif/api"
	"github.com/sif-project/sif/fabric"
)

var start = time.Unix(1_000_000, 0)

func targets(zone string, n int) []Target {
	var list []Target
	for i := range n {
		list = append(list, Target{Node: fabric.NodeID{Zone: zone, Name: fmt.Sprintf("w%d", i)}, Full: 1420,
			IPv4: netip.AddrFrom4([4]byte{100, 64, byte(i), 1}), IPv6: netip.AddrFrom16([16]byte{0xfd, 7: byte(i), 15: 1})})
	}
	return list
}

// run plays a way until a time. pass says whether a probe is answered, after 5 ms.
func run(w *way, from, to time.Time, pass func(packet, Target) bool) {
	play(w, from, to, func(_ time.Time, p packet, t Target) bool { return pass(p, t) })
}

func play(w *way, from, to time.Time, pass func(time.Time, packet, Target) bool) {
	type late struct {
		packet packet
		at     time.Time
	}
	var lost []late
	for now := from; now.Before(to); now = now.Add(tick) {
		for len(lost) > 0 && now.Sub(lost[0].at) >= timeout {
			w.concluded(lost[0].packet, 0, false, now)
			lost = lost[1:]
		}
		for _, p := range w.due(now) {
			if pass(now, p, w.target()) {
				w.concluded(p, 5*time.Millisecond, true, now)
			} else {
				lost = append(lost, late{p, now})
			}
		}
	}
}

func link() *way { return newWay(targets("z1", 1), smallInterval, linkFullInterval, start) }

func states(w *way) [2]api.WayState {
	s := w.status("x")
	return [2]api.WayState{s.IPv4.State, s.IPv6.State}
}

func TestWayIsMeasured(t *testing.T) {
	w, at := link(), start
	all := func(packet, Target) bool { return true }
	none := func(packet, Target) bool { return false }
	play := func(d time.Duration, pass func(packet, Target) bool) { run(w, at, at.Add(d), pass); at = at.Add(d) }

	must.Eq(t, [2]api.WayState{api.WayUnmeasured, api.WayUnmeasured}, states(w))
	play(smallInterval+2*linkFullInterval+tick, all) // a full-size probe of each version of IP
	must.Eq(t, [2]api.WayState{api.WayUp, api.WayUp}, states(w))
	s := w.status("z1/w0")
	must.Eq(t, 1420, s.IPv4.Passed)
	must.Eq(t, 1420, s.IPv6.Passed)
	must.Eq(t, 5*time.Millisecond, s.IPv4.RTT)
	must.Zero(t, s.IPv4.Lost)

	// A daemon that restarts loses a few.
	play(5*time.Second, none)
	play(4*time.Second, all)
	must.Eq(t, [2]api.WayState{api.WayUp, api.WayUp}, states(w))

	// Nothing for three intervals: both are down. What was lost then does not count afterwards.
	play(3*smallInterval+timeout+tick, none)
	must.Eq(t, [2]api.WayState{api.WayDown, api.WayDown}, states(w))
	play(60*time.Second, none)
	play(5*time.Second, all)
	must.Eq(t, [2]api.WayState{api.WayUp, api.WayUp}, states(w))

	// One version of IP alone.
	play(16*time.Second, func(p packet, _ Target) bool { return p.family == ipv4 })
	must.Eq(t, [2]api.WayState{api.WayUp, api.WayDown}, states(w))
	play(10*time.Second, all)
	must.Eq(t, [2]api.WayState{api.WayUp, api.WayUp}, states(w))

	// A third is lost.
	n := 0
	play(2*time.Minute, func(p packet, _ Target) bool { n++; return n%3 != 0 })
	must.Eq(t, api.WayLoss, states(w)[0])
	play(3*time.Minute, all)
	must.Eq(t, [2]api.WayState{api.WayUp, api.WayUp}, states(w))

	// Large packets do not pass: told soon, and what passes is found.
	small := func(most int) func(packet, Target) bool {
		return func(p packet, _ Target) bool { return p.size <= most }
	}
	play(35*time.Second, small(1371))
	must.SliceContains(t, []api.WayState{states(w)[0], states(w)[1]}, api.WayMTU)
	play(10*time.Minute, small(1371))
	s = w.status("z1/w0")
	must.Eq(t, [2]api.WayState{api.WayMTU, api.WayMTU}, states(w))
	must.Between(t, 1371-grain, s.IPv4.Passed, 1371)
	must.Between(t, 1371-grain, s.IPv6.Passed, 1371)
	play(3*time.Minute, all)
	s = w.status("z1/w0")
	must.Eq(t, [2]api.WayState{api.WayUp, api.WayUp}, states(w))
	must.Eq(t, 1420, s.IPv4.Passed)
}

// A way that was never answered is down, not unmeasured for ever.
func TestWayThatNeverAnswers(t *testing.T) {
	w := link()
	run(w, start, start.Add(12*time.Second), func(packet, Target) bool { return false })
	must.Eq(t, [2]api.WayState{api.WayDown, api.WayDown}, states(w))
	must.True(t, w.status("x").IPv4.Answered.IsZero())
}

// A node of another zone that does not answer costs the path a probe, not the zone.
func TestPathDoesNotDependOnOneNode(t *testing.T) {
	w := newWay(targets("z2", 3), zoneInterval, zoneFullInterval, start)
	run(w, start, start.Add(5*time.Minute), func(_ packet, to Target) bool { return to.Node.Name != "w1" })
	must.Eq(t, [2]api.WayState{api.WayUp, api.WayUp}, states(w))
	run(w, start.Add(5*time.Minute), start.Add(6*time.Minute), func(packet, Target) bool { return false })
	must.Eq(t, [2]api.WayState{api.WayDown, api.WayDown}, states(w))
}

// The bytes of probes on a link between two processors, or of a zone's only node, whatever happens
// to them: at most 1 kB/s with all headers, in any three minutes.
func TestAtMostAKilobyteASecond(t *testing.T) {
	const encrypted = 80 // WireGuard, UDP and IPv6
	rapid.Check(t, func(t *rapid.T) {
		zones := rapid.IntRange(1, 4).Draw(t, "other zones")
		largest := rapid.SampledFrom([]int{0, 1300, 9000}).Draw(t, "largest that passes")
		lossy := rapid.IntRange(0, 3).Draw(t, "lost quarters")
		bytes := map[time.Duration]int{} // by second
		n := 0
		measure := func(w *way) {
			play(w, start, start.Add(8*time.Minute), func(now time.Time, p packet, _ Target) bool {
				small := (ipv6Headers+smallPayload+15)/16*16 + encrypted
				if p.family == ipv4 {
					small -= 16
				}
				at := now.Sub(start).Truncate(time.Second)
				n++
				answered := p.size <= largest && (n*7)%4 >= lossy
				if bytes[at] += max(p.size+encrypted, small); answered {
					bytes[at] += small
				}
				return answered
			})
		}
		for range 2 { // both ends
			measure(link())
			for range zones {
				share := time.Duration(zones)
				measure(newWay(targets("z2", 2), share*zoneInterval, share*zoneFullInterval, start))
			}
		}
		for from := time.Duration(0); from < 5*time.Minute; from += 5 * time.Second {
			total := 0
			for at := from; at < from+3*time.Minute; at += time.Second {
				total += bytes[at]
			}
			must.LessEq(t, 180*1000, total, must.Sprint(from))
		}
	})
}

// A node's zone is probed in turn, sixteen at a time, and its processors always.
func TestOthersTakeTurns(t *testing.T) {
	p := New(netip.MustParseAddr("100.64.0.1"), netip.MustParseAddr("fd5f::1"))
	p.began = start
	p.Follow(View{Processors: targets("z0", 2), Others: targets("z1", 40)})
	probed := map[fabric.NodeID]bool{}
	for minute := range 3 {
		now := start.Add(time.Duration(minute) * rotation)
		p.arrange(now)
		must.MapLen(t, 2+othersAtOnce, p.links)
		for hop := range p.links {
			probed[hop.Processor] = true
		}
	}
	must.MapLen(t, 42, probed)
}

// A probe of which somebody else claims to be the receiver, or of whom there is none, changes
// nothing; nor does an answer that is late or comes twice.
func TestFakeAnswers(t *testing.T) {
	p := New(netip.MustParseAddr("100.64.0.1"), netip.MustParseAddr("fd5f::1"))
	list := targets("z1", 1)
	list[0].Interface = "sif-l1"
	p.Follow(View{Processors: list})
	now := start
	for len(p.sent) == 0 {
		p.step(now)
		now = now.Add(tick)
	}
	for n, s := range p.sent {
		good := message{kind: answer, nonce: n, size: smallPayload}
		other := netip.AddrPortFrom(netip.MustParseAddr("100.64.9.1"), s.to.Port())
		at := arrival{s.from, "sif-l1"}
		p.answered(message{kind: answer, nonce: newNonce()}, s.to, at, now)
		p.answered(good, other, at, now)
		p.answered(good, netip.AddrPortFrom(s.to.Addr(), 1), at, now)
		p.answered(good, s.to, arrival{place{"/run/netns/other", s.from.family}, "sif-l1"}, now)
		p.answered(good, s.to, arrival{s.from, "sif-l0"}, now)
		must.MapContainsKey(t, p.sent, n)
		p.answered(good, s.to, at, now)
		must.MapNotContainsKey(t, p.sent, n)
		p.answered(good, s.to, at, now)
	}
	w := p.links[targets("z1", 1)[0].hop()].status("x")
	must.Eq(t, 1, w.IPv4.Sent+w.IPv6.Sent)
}

// Nobody but nodes is answered, and none of them without limit.
func TestWhoIsAnswered(t *testing.T) {
	p := New(netip.MustParseAddr("100.64.0.1"), netip.MustParseAddr("fd5f::1"))
	node := netip.MustParseAddr("100.64.1.1")
	p.Follow(View{Known: map[netip.Addr][]string{node: {"sif-l0"}}})
	by, other := arrival{device: "sif-l0"}, arrival{device: "sif-l1"}
	may := func(source netip.Addr, at arrival, now time.Time) bool {
		_, may := p.mayAnswer(source, at, now)
		return may
	}
	must.False(t, may(node.Next(), by, start)) // an endpoint of it
	for range 2 * answersEach {
		must.False(t, may(node, other, start)) // somebody who takes its name
	}
	for range answersEach {
		must.True(t, may(node, by, start))
	}
	must.False(t, may(node, by, start))
	must.True(t, may(node, by, start.Add(time.Second)))
}
