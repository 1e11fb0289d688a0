// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

//go:build e2e

package e2e

import (
	"encoding/binary"
	"errors"
	"math"
	"syscall"
	"testing"
	"time"

	"github.com/shoenig/test/must"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// flood sends a datagram from each port of a workload, as fast as it can: by several threads, which
// have a larger share of a busy machine than one.
func flood(t *testing.T, from, to workload, port uint16) {
	t.Helper()
	const threads = 8
	var g errgroup.Group
	for i := range threads {
		g.Go(func() error {
			_, err := within(from.netns, func() (struct{}, error) { return struct{}{}, sendAll(to, port, 1024+i, threads) })
			return err
		})
	}
	must.NoError(t, g.Wait())
}

// sendAll sends a datagram to a port from each step-th port from first on. A raw socket needs no
// port for each flow.
func sendAll(to workload, port uint16, first, step int) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_UDP)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	address := &unix.SockaddrInet4{Addr: to.v4.As4()}
	for source := first; source <= math.MaxUint16; source += step {
		header := binary.BigEndian.AppendUint16(nil, uint16(source))
		header = binary.BigEndian.AppendUint16(header, port)
		header = append(header, 0, 8, 0, 0) // length; no checksum
		switch err := unix.Sendto(fd, header, 0, address); {
		case errors.Is(err, syscall.ENOBUFS), errors.Is(err, syscall.EPERM): // dropped at the hook or in a queue
		case err != nil:
			return err
		}
	}
	return nil
}

// TestFlood has one workload open connections faster than it may. The fabric refuses them, counts
// them, and everybody else goes on: connections that exist and new ones, of the other workloads of
// the node and through the same processors.
func TestFlood(t *testing.T) {
	world.withTestPorts(t)
	svc, news := world.workload(t, "getaway-app/getaway-svc", "aws1"), world.workload(t, "getaway-app/news-gw", "gcp1")
	weather := world.workload(t, "getaway-app/weather-gw", "gcp1")
	worker, db := world.workload(t, "voting-app/worker", "aws1"), world.workload(t, "voting-app/result-db", "gcp1")
	own := openStream(t, svc, weather, weatherPort, "own")
	const resultPort = 7002
	refused := func() uint64 {
		for _, n := range world.status(t).Nodes {
			if n.Node == svc.node {
				return n.Drops["ebpf from-workload: too-fast"]
			}
		}
		return 0
	}
	before := refused()
	eventually(t, 30*time.Second, func() error {
		flood(t, svc, news, newsPort)
		must.True(t, arrives(t, worker, db, resultPort, 2*time.Second))
		own.mustFlow(t, 5*time.Second)
		if refused() == before {
			return errors.New("status counts no refused connection")
		}
		return nil
	})
	world.allWell(t, 20*time.Second)
}
