// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

//go:build e2e

package e2e

import (
	"bufio"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"testing"
	"time"

	"github.com/shoenig/test/must"
)

// TestIngress calls a published port by both IP versions: from users and from machines outside that
// no contract names, from the node itself and from other workloads of the node.
func TestIngress(t *testing.T) {
	const port = 18080
	proxy := world.workload(t, "getaway-app/http-proxy", "aws1")
	n := world.Topology.Node(proxy.node)
	addresses := map[int]netip.Addr{4: netip.MustParseAddr(n.Address), 6: netip.MustParseAddr(n.Address6)}
	without := altered(t, world.getaway(t), `prefixes = ["10.99.0.0/24"]`, `prefixes = ["10.99.0.0/24", "2001:db8:99::/64"]`,
		`  service "http-proxy" {`, `  service "caller" {
    selector "nomad" {
      job = "e2e-caller"
    }
  }

  service "http-proxy" {`)
	graph := altered(t, without, `originators = ["users"]`, `originators = ["users", "caller"]`)
	world.withGraph(t, graph)
	job := systemJob("e2e-caller", "aws1")
	_, _, err := world.nomad.Jobs().Register(job, nil)
	must.NoError(t, err)
	world.purgeAtEnd(t, "default", *job.ID)
	var caller, neighbour workload // on the node of the port, and on another one
	eventually(t, time.Minute, func() error {
		for _, w := range world.workloads(t, "getaway-app/caller", "aws1") {
			if w.node == proxy.node {
				caller = w
			} else {
				neighbour = w
			}
		}
		if caller.netns == "" || neighbour.netns == "" {
			return errors.New("the callers do not run yet")
		}
		return nil
	})

	answers := func(path string, to netip.Addr, timeout time.Duration) error {
		conn, err := dial(path, netip.AddrPortFrom(to, port), timeout)
		if err != nil {
			return err
		}
		defer conn.Close()
		if _, err := fmt.Fprintf(conn, "GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"); err != nil {
			return err
		}
		must.NoError(t, conn.SetReadDeadline(time.Now().Add(3*time.Second)))
		answer, err := http.ReadResponse(bufio.NewReader(conn), nil)
		if err == nil {
			answer.Body.Close()
		}
		return err
	}
	reached := func(path string, to netip.Addr) {
		t.Helper()
		eventually(t, 10*time.Second, func() error {
			if err := answers(path, to, 2*time.Second); err != nil {
				return fmt.Errorf("from %s: %w", path, err)
			}
			return nil
		})
	}
	closed := func(path string, to netip.Addr) {
		t.Helper()
		must.Error(t, answers(path, to, 700*time.Millisecond), must.Sprintf("%s reaches port %d of %s", path, port, to))
	}
	users, stranger := world.NetNS("client"), world.NetNS("provider")
	svc := world.workload(t, "getaway-app/getaway-svc", "aws1")
	check := func(t *testing.T, mayCall bool) {
		t.Helper()
		for _, a := range addresses {
			reached(users, a)
			closed(stranger, a)
			closed(svc.netns, a)
			reached(world.NetNS(n.Name), a) // as Consul's agent does, which checks that port of the workload
			closed(neighbour.netns, a)      // the address of another node is outside
			if mayCall {
				reached(caller.netns, a)
			} else {
				closed(caller.netns, a)
			}
		}
	}
	check(t, true)
	world.apply(t, without)
	world.allWell(t, 30*time.Second)
	check(t, false)
	must.StrContains(t, world.sif(t, "status").stdout, fmt.Sprint("tcp 0.0.0.0:", port))

	// Withdrawn from users, whose connection ends.
	conn, err := dial(users, netip.AddrPortFrom(addresses[4], port), 2*time.Second)
	must.NoError(t, err)
	t.Cleanup(func() { conn.Close() })
	world.apply(t, altered(t, without, `prefixes = ["10.99.0.0/24", "2001:db8:99::/64"]`, `prefixes = ["192.0.2.0/24"]`))
	world.allWell(t, 30*time.Second)
	for _, a := range addresses {
		closed(users, a)
	}
	_, err = fmt.Fprintf(conn, "GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
	if err == nil {
		must.NoError(t, conn.SetReadDeadline(time.Now().Add(2*time.Second)))
		_, err = conn.Read(make([]byte, 1))
	}
	must.Error(t, err, must.Sprint("an open connection passes after its contract was withdrawn"))
}
