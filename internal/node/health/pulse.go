// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package health

import (
	"context"
	"net/netip"
	"time"

	"github.com/sif-project/sif/fabric/desired"
	"github.com/sif-project/sif/internal/wellknown"
)

// A node that only one of several must carry is asked for life several times a second, apart from
// the measurement of the way to it.
const (
	// pulseInterval is the time between two pulses to a node, fullPulseInterval that between two
	// full-size ones. The families take turns.
	pulseInterval     = 150 * time.Millisecond
	fullPulseInterval = 400 * time.Millisecond
	// manyPulses and manyFullPulses are how many nodes get pulses so often. If there are more, each
	// gets fewer, so that all together take as much.
	manyPulses     = 256
	manyFullPulses = 64
	// beat is how often is looked for pulses that are due or late.
	beat = 50 * time.Millisecond
	// patience is how old a pulse without an answer is before it counts, fullPatience that of a
	// full-size one, and deadAfter the number of those, all after the last one that was answered,
	// that make a node dead. So a node is dead at most 3*150+150 ms after it stopped answering, and
	// 3*400+300 ms after large packets no longer passed.
	patience     = 150 * time.Millisecond
	fullPatience = 300 * time.Millisecond
	deadAfter    = 3
	// A node that was dead lives when it has answered usualProof pulses in a row, within about a
	// second. If it dies again within relapse, it must answer twice as many, up to mostProof.
	usualProof = 5
	mostProof  = 80
	relapse    = time.Minute
)

// pulse is what is known of the life of one node by packets of one size.
type pulse struct {
	target   Target
	patience time.Duration
	next     time.Time
	turn     int         // of the families
	open     []time.Time // when the pulses were sent that have no answer, after the last one that has
	live     bool
	silent   bool // it did not answer when it should have
	row      int  // answers in a row
	proof    int  // answers in a row that it takes to live
	risen    time.Time
}

// newPulse returns the pulse of a node of which nothing is known: its first answer makes it live.
func newPulse(t Target, patience time.Duration) *pulse {
	return &pulse{target: t, patience: patience, proof: 1}
}

// life is what is known of the life of one node.
type life struct {
	small, full *pulse
	lived       bool // when that was last looked at
}

// lives reports whether a node lives: it answers, and full-size packets pass as far as is known.
func (l *life) lives() bool { return l.small.live && !l.full.silent }

// known reports whether it is known whether the node lives.
func (l *life) known() bool { return l.small.live || l.small.silent }

// answered records the answer to a pulse, and reports whether the node is live now and was not.
func (p *pulse) answered(sent, now time.Time) (rose bool) {
	for len(p.open) > 0 && !p.open[0].After(sent) {
		p.open = p.open[1:]
	}
	if now.Sub(sent) <= deadAfter*p.patience { // else the node was stopped, and answers what it missed
		p.row++
	}
	if p.live || p.row < p.proof {
		return false
	}
	p.live, p.silent, p.risen = true, false, now
	return true
}

// late looks for pulses that were not answered, and reports whether the node is dead now and was
// not.
func (p *pulse) late(now time.Time) (fell bool) {
	lost := 0
	for _, at := range p.open {
		if now.Sub(at) >= p.patience {
			lost++
		}
	}
	if lost < deadAfter {
		return false
	}
	p.open, p.row = p.open[lost-deadAfter+1:], 0 // what comes after says when it lives again
	p.silent = true
	if !p.live {
		return false
	}
	p.live = false
	if now.Sub(p.risen) < relapse {
		p.proof = min(max(2*p.proof, usualProof), mostProof)
	} else {
		p.proof = usualProof
	}
	return true
}

// stalled makes up for time in which this process did not run: answers that came meanwhile were not
// read yet, which is nobody's fault.
func (p *pulse) stalled(d time.Duration) {
	for i := range p.open {
		p.open[i] = p.open[i].Add(d)
	}
}

// beaten is a pulse without an answer.
type beaten struct {
	hop  desired.Hop
	full bool
	at   time.Time
	from place
	to   netip.AddrPort
}

// Live says of the nodes among View.Pulsed whether they live, by the tunnels to them; it has none
// of which that is not known.
func (p *Prober) Live() map[desired.Hop]bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	live := map[desired.Hop]bool{}
	for hop, x := range p.pulses {
		if x.known() {
			live[hop] = x.lives()
		}
	}
	return live
}

// OnLife has f called when a node among View.Pulsed has come to life or died. It must be called
// before Run.
func (p *Prober) OnLife(f func()) { p.onLife = f }

// beat sends pulses until ctx ends.
func (p *Prober) beat(ctx context.Context) {
	ticker := time.NewTicker(beat)
	defer ticker.Stop()
	for {
		if p.beatOnce(time.Now()) && p.onLife != nil {
			p.onLife()
		}
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
	}
}

// beatOnce sends the pulses that are due, and reports whether a node has come to life or died since
// the last time.
func (p *Prober) beatOnce(now time.Time) (changed bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.arrangePulses()
	for n, b := range p.beaten {
		if now.Sub(b.at) >= timeout {
			delete(p.beaten, n)
		}
	}
	stalled := time.Duration(0)
	if gap := now.Sub(p.beatLast); !p.beatLast.IsZero() && gap > patience {
		stalled = gap
	}
	p.beatLast = now
	count := time.Duration(len(p.pulses))
	each, eachFull := pulseInterval*max(count, manyPulses)/manyPulses, fullPulseInterval*max(count, manyFullPulses)/manyFullPulses
	changed, p.changed = p.changed, false
	for hop, x := range p.pulses {
		x.small.stalled(stalled)
		x.full.stalled(stalled)
		if x.small.late(now) {
			x.full.forget() // what large packets do tells nothing more
		}
		x.full.late(now)
		if p.sendPulse(hop, x.small, 0, now) {
			x.small.next = now.Add(each)
		}
		if p.view.Whole && x.small.live && p.sendPulse(hop, x.full, x.full.target.Full, now) {
			x.full.next = now.Add(eachFull)
		}
		changed = x.changed() || changed
	}
	return changed
}

// forget makes a pulse one of which nothing is known, but for how often the node died.
func (p *pulse) forget() { p.open, p.live, p.silent, p.row = nil, false, false, 0 }

// changed reports whether the node lives now and did not, or the other way round.
func (l *life) changed() bool {
	lives := l.lives()
	changed := lives != l.lived
	l.lived = lives
	return changed
}

// sendPulse sends a pulse of a size, with IP's header, if one is due, and reports whether one was:
// what is due is due from now on, so a process that was stopped makes up for nothing. The caller
// must hold mu.
func (p *Prober) sendPulse(hop desired.Hop, x *pulse, size int, now time.Time) (due bool) {
	if now.Before(x.next) {
		return false
	}
	at := place{x.target.Space, x.turn}
	c := p.sockets[at]
	if c == nil {
		return true // that there is none says nothing of the other node
	}
	n := newNonce()
	b := beaten{hop, size > 0, now, at, netip.AddrPortFrom(x.target.addr(x.turn), wellknown.ProbePort)}
	_ = c.send(message{kind: request, nonce: n, size: size - headersOf(x.turn)}, b.to, p.view.Marks[x.target.Interface]) // it is lost if there is no answer
	p.beaten[n] = b
	x.open = append(x.open, now)
	x.turn = (x.turn + 1) % familyCount
	return true
}

// arrangePulses brings the pulses to what the view asks for.
func (p *Prober) arrangePulses() {
	keep := map[desired.Hop]bool{}
	for _, t := range p.view.Pulsed {
		hop := t.hop()
		keep[hop] = true
		if x := p.pulses[hop]; x != nil {
			x.small.target, x.full.target = t, t
		} else {
			p.pulses[hop] = &life{small: newPulse(t, patience), full: newPulse(t, fullPatience)}
		}
	}
	for hop, x := range p.pulses {
		if !keep[hop] {
			delete(p.pulses, hop)
			p.changed = p.changed || x.lived
		}
	}
}

// pulsed records the answer to a pulse, if it is from whom and where the pulse was sent to. The
// caller must hold mu.
func (p *Prober) pulsed(m message, source netip.AddrPort, at arrival, now time.Time) {
	b, ok := p.beaten[m.nonce]
	if !ok || b.to != source || b.from != at.place {
		return
	}
	x := p.pulses[b.hop]
	if x == nil || !at.by(x.small.target.Interface) {
		return
	}
	delete(p.beaten, m.nonce)
	which := x.small
	if b.full {
		which = x.full
	}
	which.answered(b.at, now)
	p.changed = x.changed() || p.changed
}
