// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package health

import (
	"context"
	"net/netip"
	"time"

	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/internal/wellknown"
)

// A node that only one of several must carry is asked for life several times a second, apart from
// the measurement of the way to it.
const (
	// pulseInterval is the time between two pulses to a node. The families take turns.
	pulseInterval = 150 * time.Millisecond
	// beat is how often is looked for pulses that are due or late.
	beat = 50 * time.Millisecond
	// patience is how old a pulse without an answer is before it counts, and deadAfter the number
	// of those, all after the last one that was answered, that make a node dead. So a node is dead
	// at most 3*150+150 ms after it stopped answering.
	patience  = 150 * time.Millisecond
	deadAfter = 3
	// A node that was dead lives when it has answered usualProof pulses in a row, within about a
	// second. If it dies again within relapse, it must answer twice as many, up to mostProof.
	usualProof = 5
	mostProof  = 80
	relapse    = time.Minute
)

// pulse is what is known of the life of one node.
type pulse struct {
	target Target
	next   time.Time
	turn   int         // of the families
	open   []time.Time // when the pulses were sent that have no answer, after the last one that has
	live   bool
	silent bool // it did not answer when it should have
	row    int  // answers in a row
	proof  int  // answers in a row that it takes to live
	risen  time.Time
}

// newPulse returns the pulse of a node of which nothing is known: its first answer makes it live.
func newPulse(t Target) *pulse { return &pulse{target: t, proof: 1} }

// answered records the answer to a pulse, and reports whether the node is live now and was not.
func (p *pulse) answered(sent, now time.Time) (rose bool) {
	for len(p.open) > 0 && !p.open[0].After(sent) {
		p.open = p.open[1:]
	}
	if p.row++; p.live || p.row < p.proof {
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
		if now.Sub(at) >= patience {
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

// beaten is a pulse without an answer.
type beaten struct {
	node fabric.NodeID
	at   time.Time
	from place
	to   netip.AddrPort
}

// Live says of the nodes among View.Pulsed whether they live; it has none of which that is not
// known.
func (p *Prober) Live() map[fabric.NodeID]bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	live := map[fabric.NodeID]bool{}
	for node, x := range p.pulses {
		if x.live || x.silent {
			live[node] = x.live
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
	changed, p.risen = p.risen, false
	for node, x := range p.pulses {
		changed = x.late(now) || changed
		if now.Before(x.next) {
			continue
		}
		// What is due is due from now on: a process that was stopped makes up for nothing.
		x.next = now.Add(pulseInterval)
		at := place{x.target.Space, x.turn}
		c := p.sockets[at]
		if c == nil {
			continue // that there is none says nothing of the other node
		}
		n := newNonce()
		b := beaten{node, now, at, netip.AddrPortFrom(x.target.addr(x.turn), wellknown.ProbePort)}
		_, _ = c.WriteToUDPAddrPort(encode(message{kind: request, nonce: n}), b.to) // it is lost if there is no answer
		p.beaten[n] = b
		x.open = append(x.open, now)
		x.turn = (x.turn + 1) % familyCount
	}
	return changed
}

// arrangePulses brings the pulses to what the view asks for.
func (p *Prober) arrangePulses() {
	keep := map[fabric.NodeID]bool{}
	for _, t := range p.view.Pulsed {
		keep[t.Node] = true
		if x := p.pulses[t.Node]; x != nil {
			x.target = t
		} else {
			p.pulses[t.Node] = newPulse(t)
		}
	}
	for node, x := range p.pulses {
		if !keep[node] {
			delete(p.pulses, node)
			p.risen = p.risen || x.live
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
	x := p.pulses[b.node]
	if x == nil || !at.by(x.target.Interface) {
		return
	}
	delete(p.beaten, m.nonce)
	p.risen = x.answered(b.at, now) || p.risen
}
