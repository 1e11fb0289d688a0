// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

//go:build e2e

package e2e

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/shoenig/test/must"
)

// pulseTick is the interval between two pulses.
const pulseTick = 5 * time.Millisecond

// pulses is a UDP flow of numbered packets, each of which the far end echoes.
type pulses struct {
	mu   sync.Mutex
	sent []pulse
}

type pulse struct {
	at     time.Time
	echoed bool
}

// openPulses starts a UDP flow that ends with the test, and waits until it passes.
func openPulses(t *testing.T, from, to workload, port uint16) *pulses {
	t.Helper()
	at := netip.AddrPortFrom(to.v4, port)
	echo(t, to, at)
	conn, err := within(from.netns, func() (net.Conn, error) { return net.Dial("udp", at.String()) })
	must.NoError(t, err)
	p := &pulses{}
	stop := make(chan struct{})
	var running sync.WaitGroup
	running.Go(func() { p.send(conn, stop) })
	running.Go(func() { p.receive(conn) })
	t.Cleanup(func() {
		close(stop)
		conn.Close()
		running.Wait()
	})
	p.passes(t, 10*time.Second)
	return p
}

func (p *pulses) send(conn net.Conn, stop <-chan struct{}) {
	next := time.NewTicker(pulseTick)
	defer next.Stop()
	for number := uint64(0); ; number++ {
		p.mu.Lock()
		p.sent = append(p.sent, pulse{at: time.Now()})
		p.mu.Unlock()
		_, _ = conn.Write(binary.BigEndian.AppendUint64(nil, number)) // what could not be sent has no echo
		select {
		case <-stop:
			return
		case <-next.C:
		}
	}
}

func (p *pulses) receive(conn net.Conn) {
	buf := make([]byte, 64)
	for {
		n, err := conn.Read(buf)
		switch {
		case errors.Is(err, net.ErrClosed):
			return
		case err != nil || n != 8:
			continue
		}
		p.mu.Lock()
		p.sent[binary.BigEndian.Uint64(buf)].echoed = true
		p.mu.Unlock()
	}
}

// since returns a copy of the pulses that were sent after a time.
func (p *pulses) since(after time.Time) []pulse {
	p.mu.Lock()
	defer p.mu.Unlock()
	i, _ := slices.BinarySearchFunc(p.sent, after, func(one pulse, t time.Time) int { return one.at.Compare(t) })
	return slices.Clone(p.sent[i:])
}

// passes waits until 20 pulses in a row, all sent from now on, were echoed.
func (p *pulses) passes(t *testing.T, within time.Duration) {
	t.Helper()
	began := time.Now()
	eventually(t, within, func() error {
		row := 0
		for _, one := range p.since(began) {
			if row++; !one.echoed {
				row = 0
			}
			if row == 20 {
				return nil
			}
		}
		return fmt.Errorf("no 20 packets in a row were echoed since %s", began.Format(time.StampMilli))
	})
}

// longestGap returns how many pulses were lost that were sent from a time on, and the longest time
// between two that were not, apart from those that may still be on their way.
func (p *pulses) longestGap(from time.Time) (longest time.Duration, lost int) {
	last := from
	for _, one := range p.since(from) {
		switch {
		case one.echoed:
			longest, last = max(longest, one.at.Sub(last)), one.at
		case time.Since(one.at) > time.Second:
			lost++
		}
	}
	return longest, lost
}

// TestGaps measures how long packets between two zones, each with one processor, are lost when a
// process of a node on their way is killed, or ended, and started again at once. `make bench-gap`
// prints what it measures.
func TestGaps(t *testing.T) {
	long(t)
	world.withTestPorts(t)
	from, to := world.workload(t, "getaway-app/getaway-svc", "aws1"), world.workload(t, "getaway-app/news-gw", "gcp1")
	flow := openPulses(t, from, to, newsPort)
	const processor = "aws1-p1"
	for _, c := range []struct {
		name, node, process string
		signal              syscall.Signal
		lossless            bool
	}{
		{"agent killed", from.node, "agent", syscall.SIGKILL, true},
		{"engine killed", processor, "engine", syscall.SIGKILL, true},
		{"link of a workload node killed", from.node, "link", syscall.SIGKILL, false},
		{"link of a workload node ended", from.node, "link", syscall.SIGTERM, false},
		{"link of a processor killed", processor, "link", syscall.SIGKILL, false},
		{"link of a processor ended", processor, "link", syscall.SIGTERM, false},
		{"ovs-vswitchd killed", processor, "ovs-vswitchd", syscall.SIGKILL, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Cleanup(func() { must.NoError(t, world.Start(c.node, c.process)) })
			world.allWell(t, 40*time.Second)
			flow.passes(t, 10*time.Second)
			began := time.Now()
			must.NoError(t, world.Signal(c.node, c.process, c.signal))
			for world.Alive(c.node, c.process) {
				if time.Since(began) > 10*time.Second {
					t.Fatalf("%s of %s still runs", c.process, c.node)
				}
				time.Sleep(time.Millisecond)
			}
			down := time.Since(began)
			must.NoError(t, world.Start(c.node, c.process))
			// By itself: nothing but the process is started again.
			flow.passes(t, 30*time.Second)
			world.allWell(t, 40*time.Second)
			flow.passes(t, 30*time.Second)
			time.Sleep(time.Second + pulseTick) // the echo of the last one counts as lost only then
			gap, lost := flow.longestGap(began)
			t.Logf("%-32s down %4d ms, longest gap %4d ms, %d lost", c.name, down.Milliseconds(), gap.Milliseconds(), lost)
			if c.lossless && lost > 0 {
				t.Errorf("%d packets were lost", lost)
			}
		})
	}
}
