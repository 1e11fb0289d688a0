// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

//go:build e2e

package e2e

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/sif-project/sif/e2e/lab"
)

// attempts opens 20 new TCP connections a second to one address, without resolving a name.
type attempts struct {
	mu       sync.Mutex
	made     int
	failures []error
	stop     func()
}

func openAttempts(t *testing.T, from, to workload, port uint16) *attempts {
	t.Helper()
	at := netip.AddrPortFrom(to.v4, port)
	a := &attempts{}
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() {
		for ctx.Err() == nil {
			// Each attempt has its own goroutine, so that a slow one does not delay the next.
			running.Go(func() {
				conn, err := dial(from.netns, at, 5*time.Second)
				if err == nil {
					conn.Close()
				}
				a.mu.Lock()
				defer a.mu.Unlock()
				a.made++
				if err != nil {
					a.failures = append(a.failures, fmt.Errorf("%s: connect from %s to %s: %w", time.Now().Format(time.TimeOnly), from, to, err))
				}
			})
			select {
			case <-ctx.Done():
			case <-time.After(50 * time.Millisecond):
			}
		}
	})
	a.stop = sync.OnceFunc(func() {
		cancel()
		running.Wait()
	})
	t.Cleanup(a.stop)
	return a
}

func (a *attempts) count() (made int, err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.made, errors.Join(a.failures...)
}

// TestKilledDaemonsTakeOver kills agents and engines while flows pass between and within zones.
// Established flows, and new ones to addresses that are known already, continue without a lost
// packet, and the restarted daemons take over.
func TestKilledDaemonsTakeOver(t *testing.T) {
	world.withTestPorts(t)
	svc := world.workload(t, "getaway-app/getaway-svc", "aws1")
	near, far := world.workload(t, "getaway-app/news-gw", "aws1"), world.workload(t, "getaway-app/news-gw", "gcp1")
	connection := openStream(t, svc, far, newsPort, "established")
	packets := openDatagrams(t, svc, far, newsPort)
	flows := []*attempts{openAttempts(t, svc, far, 9001), openAttempts(t, svc, near, 9001)}

	for _, kind := range []string{lab.Workload, lab.Processor} {
		t.Run(kind+" nodes' daemons", func(t *testing.T) {
			var before []int
			for _, f := range flows {
				made, _ := f.count()
				before = append(before, made)
			}
			killed := world.Topology.Nodes(kind)
			t.Cleanup(func() {
				for _, n := range killed {
					if err := world.Start(n.Name, daemonOf(n)); err != nil {
						t.Error(err)
					}
				}
			})
			t.Log("killed at", time.Now().Format(time.StampMilli))
			for _, n := range killed {
				if err := world.Signal(n.Name, daemonOf(n), syscall.SIGKILL); err != nil {
					t.Fatal(err)
				}
			}
			// Let a second pass without the daemons.
			eventually(t, 20*time.Second, func() error {
				for i, f := range flows {
					if made, _ := f.count(); made < before[i]+20 {
						return fmt.Errorf("only %d connections were attempted", made-before[i])
					}
				}
				return nil
			})
			t.Log("started again at", time.Now().Format(time.StampMilli))
			for _, n := range killed {
				if err := world.Start(n.Name, daemonOf(n)); err != nil {
					t.Fatal(err)
				}
			}
			world.allWell(t, 40*time.Second)
			connection.mustFlow(t, 5*time.Second)
		})
	}

	for _, f := range flows {
		f.stop()
		made, err := f.count()
		if err != nil {
			t.Errorf("some of %d new connections failed:\n%v", made, err)
		}
	}
	eventually(t, 5*time.Second, func() error {
		if sent, lost := packets.count(time.Second); lost > 0 {
			return fmt.Errorf("no echo of %d of %d packets, sent from %s", lost, sent, packets.gap(time.Second))
		}
		return nil
	})
	packets.stop()
	connection.mustFlow(t, 5*time.Second)

	// The restarted daemons do their work.
	t.Cleanup(func() { world.scale(t, "places-gw", "gcp1", 1) })
	world.scale(t, "places-gw", "gcp1", 2)
	for _, w := range world.instances(t, "getaway-app/places-gw", "gcp1", 2) {
		reaches(t, svc, w, 9002, true, 10*time.Second)
	}
}
