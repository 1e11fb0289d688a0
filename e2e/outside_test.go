// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

//go:build e2e

package e2e

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"github.com/sif-project/sif/e2e/lab"
)

// outsideGraph is getaway's graph with prefixes outside for its gateways: by the zone's exit for
// news, by the node's for weather.
func (f *fabricUnderTest) outsideGraph(t *testing.T) string {
	t.Helper()
	graph := f.getaway(t)
	graph = external(t, graph, "news-provider", `    prefixes = ["203.0.113.10", "2001:db8:203::10"]`)
	graph = external(t, graph, "weather-provider", `    prefixes = ["203.0.113.10", "2001:db8:203::10"]
    exit     = "node"`)
	graph = sourceContract(t, graph, "news", "")
	return sourceContract(t, graph, "weather", "")
}

// TestOutside lets workloads call prefixes outside, by the exit of their zone and by that of their
// node.
func TestOutside(t *testing.T) {
	world.withGraph(t, world.outsideGraph(t))
	provider, other := world.outside(t, "provider"), world.outside(t, "cdn")
	gateways := map[string]bool{"getaway-app/news-gw": false, "getaway-app/weather-gw": true} // exit by the node

	t.Run("reached", func(t *testing.T) {
		for service, byNode := range gateways {
			for _, zone := range []string{"aws1", "gcp1"} {
				w := world.workload(t, service, zone)
				for _, version := range []int{4, 6} {
					want, to := world.exitOf(t, w, byNode, version), provider.Address(version)
					for _, port := range []uint16{443, 5009} {
						eventually(t, 5*time.Second, func() error {
							got, err := seen(w, netip.AddrPortFrom(to, port), 2*time.Second)
							if err == nil && got != want {
								t.Errorf("%s is seen at %s by TCP, want %s", w, got, want)
							}
							return err
						})
					}
					got, err := seenUDP(w, netip.AddrPortFrom(to, 443), 3*time.Second)
					must.NoError(t, err, must.Sprintf("%s by UDP to %s", w, to))
					must.Eq(t, want, got)
					must.NoError(t, pings(w, to))
				}
			}
		}
	})

	t.Run("refused", func(t *testing.T) {
		var trying sync.WaitGroup
		defer trying.Wait()
		for service := range gateways {
			for _, zone := range []string{"aws1", "gcp1"} {
				w := world.workload(t, service, zone)
				for _, version := range []int{4, 6} {
					// Both are known, and no contract has the port.
					refusedAtOnce(t, w, netip.AddrPortFrom(provider.Address(version), 444))
					trying.Go(func() { unreachable(t, w, netip.AddrPortFrom(provider.Address(version), 444)) })
					trying.Go(func() { unreachable(t, w, netip.AddrPortFrom(other.Address(version), 443)) })
				}
			}
		}
		// A service without a contract to the outside.
		svc := world.workload(t, "getaway-app/getaway-svc", "aws1")
		trying.Go(func() { unreachable(t, svc, netip.AddrPortFrom(provider.Address(4), 443)) })
		trying.Go(func() { unreachable(t, svc, netip.AddrPortFrom(provider.Address(6), 443)) })
	})

	t.Run("nobody comes in", func(t *testing.T) {
		// An exit is no entrance: not even from the address that a workload calls, and not from the
		// port to which it has a flow.
		w := world.workload(t, "getaway-app/news-gw", "aws1")
		openOutsideStream(t, w, netip.AddrPortFrom(provider.Address(4), 443))
		for _, to := range []netip.Addr{w.v4, world.exitOf(t, w, false, 4)} {
			conn, err := dialFrom(world.NetNS(provider.Name), netip.AddrPortFrom(netip.Addr{}, 443), netip.AddrPortFrom(to, 9001), time.Second)
			if err == nil {
				conn.Close()
			}
			must.Error(t, err)
		}
	})

	t.Run("matrix", func(t *testing.T) {
		report := world.matrix(t, "-filter=getaway-app", "-ip=4", "-outside="+strings.Join([]string{
			provider.Address(4).String(), "places.example.com=" + other.Address(4).String(), "169.254.169.254",
		}, ","))
		must.Positive(t, len(report.Outside))
		declared := 0
		for _, o := range report.Outside {
			if o.Declared() {
				declared++
			}
		}
		must.Positive(t, declared)
	})
}

// dialFrom opens a TCP connection from a local port of a namespace.
func dialFrom(path string, from, to netip.AddrPort, timeout time.Duration) (net.Conn, error) {
	return within(path, func() (net.Conn, error) {
		d := net.Dialer{Timeout: timeout, LocalAddr: &net.TCPAddr{Port: int(from.Port())}}
		d.SetMultipathTCP(false)
		return d.Dial("tcp", to.String())
	})
}

// TestOutsideWithdrawn shows that what permits a flow to the outside ends it, too: a change of the
// graph, the end of a contract's time; and that audit mode lets it pass and reports it.
func TestOutsideWithdrawn(t *testing.T) {
	graph := world.outsideGraph(t)
	world.withGraph(t, graph)
	provider := world.outside(t, "provider")
	at := netip.AddrPortFrom(provider.Address(4), 443)
	at6 := netip.AddrPortFrom(provider.Address(6), 443)
	news, weather := world.workload(t, "getaway-app/news-gw", "aws1"), world.workload(t, "getaway-app/weather-gw", "gcp1")
	open := func() (list []*outsideStream) {
		t.Helper()
		for _, w := range []workload{news, weather} {
			for _, to := range []netip.AddrPort{at, at6} {
				list = append(list, openOutsideStream(t, w, to))
			}
		}
		return list
	}

	t.Run("contract", func(t *testing.T) {
		streams := open()
		world.apply(t, withoutContract(t, withoutContract(t, graph, "news-source"), "weather-source"))
		for _, s := range streams {
			s.mustBeReset(t, 5*time.Second)
		}
		unreachable(t, news, at)
		unreachable(t, weather, at)
		world.apply(t, graph)
		open()
	})
	t.Run("port", func(t *testing.T) {
		streams := open()
		world.apply(t, strings.ReplaceAll(graph, "80, 443,", "80,"))
		for _, s := range streams {
			s.mustBeReset(t, 5*time.Second)
		}
		refusedAtOnce(t, news, at)
		world.apply(t, graph)
		open()
	})
	t.Run("time", func(t *testing.T) {
		streams := open()
		ends := time.Now().Add(4 * time.Second).UTC().Format(time.RFC3339)
		limited := sourceContract(t, graph, "news", fmt.Sprintf("    expires = %q\n", ends))
		world.apply(t, sourceContract(t, limited, "weather", fmt.Sprintf("    expires = %q\n", ends)))
		for _, s := range streams {
			s.mustBeReset(t, 15*time.Second)
		}
		unreachable(t, news, at)
		world.apply(t, graph)
	})
	t.Run("audit", func(t *testing.T) {
		audited := sourceContract(t, graph, "news", "    mode = \"audit\"\n")
		world.apply(t, sourceContract(t, audited, "weather", "    mode = \"audit\"\n"))
		for _, s := range open() {
			s.stop()
		}
		eventually(t, 20*time.Second, func() error {
			found := map[string]bool{}
			for _, n := range world.status(t).Nodes {
				for _, flow := range n.Audited {
					found[fmt.Sprintf("%v", flow)] = true
				}
			}
			var missing []error
			for _, w := range []workload{news, weather} {
				ok := false
				for text := range found {
					ok = ok || strings.Contains(text, w.service.Name)
				}
				if !ok {
					missing = append(missing, fmt.Errorf("no flow of %s to the outside is reported", w.service))
				}
			}
			return errors.Join(missing...)
		})
		world.apply(t, graph)
	})
}

// TestOutsideReserved lets a workload call everything outside, which does not include the nodes,
// the servers, the fabric's own addresses and the clouds' metadata. A binding that lists exactly an
// address opens it.
func TestOutsideReserved(t *testing.T) {
	everything := `    prefixes = ["0.0.0.0/0", "::/0"]`
	graph := external(t, world.getaway(t), "news-provider", everything)
	graph = external(t, graph, "weather-provider", everything+"\n    exit = \"node\"")
	graph = sourceContract(t, sourceContract(t, graph, "news", ""), "weather", "")
	// The servers' ports as well.
	graph = strings.ReplaceAll(graph, "80, 443,", "80, 443, 4646, 7700, 7701, 8200, 8300, 8301, 8500, 8501,")
	world.withGraph(t, graph)
	provider, metadata := world.outside(t, "provider"), world.outside(t, "metadata")
	gateways := []workload{world.workload(t, "getaway-app/news-gw", "aws1"), world.workload(t, "getaway-app/weather-gw", "aws1")}

	closed := map[netip.AddrPort]bool{}
	for _, n := range world.Topology.Nodes() {
		ports := []uint16{8301}
		switch {
		case n.Is(lab.Orchestrator):
			ports = []uint16{4646, 7700, 8200, 8300, 8501}
		case n.Is(lab.Processor):
			ports = append(ports, 7701)
		}
		for _, port := range ports {
			closed[netip.AddrPortFrom(netip.MustParseAddr(n.Address), port)] = true
			if n.Address6 != "" {
				closed[netip.AddrPortFrom(netip.MustParseAddr(n.Address6), port)] = true
			}
		}
	}
	for _, version := range []int{4, 6} {
		closed[netip.AddrPortFrom(metadata.Address(version), 80)] = true
	}
	svc := world.workload(t, "getaway-app/getaway-svc", "aws1")
	closed[netip.AddrPortFrom(svc.v4, 443)] = true
	closed[netip.AddrPortFrom(svc.v6, 443)] = true
	for _, text := range []string{"169.254.1.1", "224.0.0.1", "255.255.255.255", "0.0.0.0"} {
		closed[netip.AddrPortFrom(netip.MustParseAddr(text), 8500)] = true
	}
	check := func(t *testing.T) {
		t.Helper()
		for _, w := range gateways {
			for _, version := range []int{4, 6} {
				eventually(t, 10*time.Second, func() error {
					_, err := seen(w, netip.AddrPortFrom(provider.Address(version), 443), 2*time.Second)
					return err
				})
			}
			var trying sync.WaitGroup
			for to := range closed {
				trying.Go(func() { unreachable(t, w, to) })
			}
			trying.Wait()
		}
	}
	t.Run("without bindings", check)

	world.apply(t, world.file(t, "jobs/bindings.sif.hcl"))
	t.Cleanup(func() {
		world.apply(t, world.getaway(t))
		r := world.sif(t, "graph", "apply", "-remove-binding=getaway-app", "-remove-binding=voting-app")
		must.Zero(t, r.code, must.Sprint(r.stderr))
	})
	bind := func(t *testing.T, more string) {
		t.Helper()
		world.apply(t, altered(t, world.file(t, "jobs/bindings.sif.hcl"), `prefixes = ["10.99.0.0/24"]`, `prefixes = ["10.99.0.0/24", "0.0.0.0/0", "::/0"`+more+"]"))
		world.allWell(t, 30*time.Second)
	}
	t.Run("with a binding of everything", func(t *testing.T) {
		bind(t, "")
		check(t)
	})
	t.Run("with a binding that lists one", func(t *testing.T) {
		bind(t, `, "169.254.169.254/32"`)
		delete(closed, netip.AddrPortFrom(metadata.Address(4), 80))
		check(t)
		for _, w := range gateways {
			eventually(t, 10*time.Second, func() error {
				_, err := seen(w, netip.AddrPortFrom(metadata.Address(4), 80), 2*time.Second)
				return err
			})
		}
	})
}
