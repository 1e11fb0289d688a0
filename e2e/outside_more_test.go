// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

//go:build e2e

package e2e

import (
	"bufio"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"testing"
	"time"

	consul "github.com/hashicorp/consul/api"
	"github.com/miekg/dns"
	"github.com/shoenig/test/must"

	"github.com/sif-project/sif/internal/wellknown"
)

// TestOutsideConsul lets a workload call the instances of a service that Consul's catalog has
// outside the fabric, as they come and go, and only where its graph says that they may be.
func TestOutsideConsul(t *testing.T) {
	database, other := world.outside(t, "database"), world.outside(t, "cdn")
	within := `    consul {
      service = "postgres"
      within  = ["10.20.0.0/16", "203.0.113.16/28"]
    }`
	graph := external(t, world.getaway(t), "news-provider", within)
	graph = external(t, graph, "weather-provider", within+"\n    exit = \"node\"")
	graph = sourceContract(t, sourceContract(t, graph, "news", ""), "weather", "")
	world.withGraph(t, graph)
	gateways := []workload{world.workload(t, "getaway-app/news-gw", "aws1"), world.workload(t, "getaway-app/weather-gw", "gcp1")}
	calls := func(to netip.Addr) {
		t.Helper()
		for _, w := range gateways {
			eventually(t, 15*time.Second, func() error {
				_, err := seen(w, netip.AddrPortFrom(to, 443), time.Second)
				return err
			})
		}
	}
	closed := func(to netip.Addr) {
		t.Helper()
		for _, w := range gateways {
			unreachable(t, w, netip.AddrPortFrom(to, 443))
		}
	}
	calls(database.Address(4))
	closed(other.Address(4))

	registered := map[string]bool{}
	deregister := func(node string) {
		t.Helper()
		_, err := world.consul.Catalog().Deregister(&consul.CatalogDeregistration{Node: node}, nil)
		must.NoError(t, err)
		delete(registered, node)
	}
	t.Cleanup(func() {
		for node := range registered {
			deregister(node)
		}
	})
	register := func(node string, at netip.Addr) {
		t.Helper()
		_, err := world.consul.Catalog().Register(&consul.CatalogRegistration{
			Node: node, Address: at.String(), NodeMeta: map[string]string{"external-node": "true"},
			Service: &consul.AgentService{ID: "postgres", Service: "postgres", Address: at.String(), Port: 5432},
		}, nil)
		must.NoError(t, err)
		registered[node] = true
	}
	// One within; then others of whoever may write the catalog: elsewhere, and inside.
	register("second", other.Address(4))
	calls(other.Address(4))
	calls(database.Address(4))
	elsewhere := []netip.Addr{world.outside(t, "provider").Address(4), netip.MustParseAddr(world.Topology.Orchestrator().Address), world.outside(t, "metadata").Address(4)}
	for i, a := range elsewhere {
		register(fmt.Sprintf("false-%d", i), a)
	}
	stream := openOutsideStream(t, gateways[0], netip.AddrPortFrom(other.Address(4), 443))
	for _, a := range elsewhere {
		closed(a)
	}
	stream.mustFlow(t, 5*time.Second)
	deregister("second")
	stream.mustBeReset(t, 15*time.Second)
	for _, w := range gateways {
		eventually(t, 15*time.Second, func() error {
			if _, err := seen(w, netip.AddrPortFrom(other.Address(4), 443), time.Second); err == nil {
				return fmt.Errorf("%s still reaches an instance that has gone", w)
			}
			return nil
		})
	}
	calls(database.Address(4))
}

// TestOutsideNode lets a workload call what its node exposes, and nothing else of it.
func TestOutsideNode(t *testing.T) {
	node := func(short, more string) func(string) string {
		return func(graph string) string {
			graph = external(t, graph, short+"-provider", "    node {}")
			return contract(t, graph, short+"-source", fmt.Sprintf(`    originators = ["%[1]s-gw"]
    responders  = ["%[1]s-provider"]
    rule {
      protocol = "tcp"
      ports    = [8500, 4646, 4317, 4318]
    }
    rule {
      protocol = "udp"
      ports    = [8125]
    }
%s`, short, more))
		}
	}
	world.withGraph(t, node("news", "")(world.getaway(t)))
	link4 := wellknown.LinkLocal4 // what listens on the IPv4 loopback address alone has no IPv6 address
	for _, zone := range []string{"aws1", "gcp1"} {
		w := world.workload(t, "getaway-app/news-gw", zone)
		for _, a := range []netip.Addr{link4} {
			eventually(t, 10*time.Second, func() error {
				conn, err := dial(w.netns, netip.AddrPortFrom(a, 8500), 2*time.Second)
				if err != nil {
					return err
				}
				defer conn.Close()
				if _, err := fmt.Fprintf(conn, "GET /v1/status/leader HTTP/1.1\r\nHost: consul\r\nConnection: close\r\n\r\n"); err != nil {
					return err
				}
				answer, err := http.ReadResponse(bufio.NewReader(conn), nil)
				if err != nil {
					return err
				}
				answer.Body.Close()
				if answer.StatusCode != http.StatusOK {
					return fmt.Errorf("Consul's agent answers %s", answer.Status)
				}
				return nil
			})
			// In the contract, but not exposed; exposed, but not in a contract; neither.
			for _, port := range []uint16{4646, 22, 8301, 7701} {
				conn, err := dial(w.netns, netip.AddrPortFrom(a, port), 700*time.Millisecond)
				if err == nil {
					conn.Close()
				}
				must.Error(t, err, must.Sprintf("%s reaches port %d of its node", w, port))
			}
		}
		// Telemetry: datagrams to what listens on loopback.
		collector, err := within(world.NetNS(w.node), func() (net.PacketConn, error) { return net.ListenPacket("udp", "127.0.0.1:8125") })
		must.NoError(t, err)
		t.Cleanup(func() { collector.Close() })
		sender, err := within(w.netns, func() (net.Conn, error) { return net.Dial("udp", netip.AddrPortFrom(link4, 8125).String()) })
		must.NoError(t, err)
		t.Cleanup(func() { sender.Close() })
		eventually(t, 5*time.Second, func() error {
			if _, err := sender.Write([]byte("requests:1|c")); err != nil {
				return err
			}
			must.NoError(t, collector.SetReadDeadline(time.Now().Add(500*time.Millisecond)))
			buf := make([]byte, 100)
			n, _, err := collector.ReadFrom(buf)
			if err == nil {
				must.Eq(t, "requests:1|c", string(buf[:n]))
			}
			return err
		})

		// What listens on all addresses of the node: exposed, and not.
		link6 := wellknown.LinkLocal6.WithZone("eth0")
		for _, port := range []uint16{4317, 4318} {
			all, err := listen(world.NetNS(w.node), netip.AddrPortFrom(netip.IPv6Unspecified(), port))
			must.NoError(t, err)
			t.Cleanup(func() { all.Close() })
		}
		eventually(t, 5*time.Second, func() error {
			conn, err := dial(w.netns, netip.AddrPortFrom(link6, 4317), time.Second)
			if err == nil {
				conn.Close()
			}
			return err
		})
		for _, a := range []netip.Addr{link4, link6} {
			if conn, err := dial(w.netns, netip.AddrPortFrom(a, 4318), 700*time.Millisecond); err == nil {
				conn.Close()
				t.Errorf("%s reaches port 4318 of its node at %s", w, a)
			}
		}

		// Who has no contract has nothing, by no address of the node.
		svc := world.workload(t, "getaway-app/places-gw", zone)
		for _, a := range []netip.Addr{link4, netip.MustParseAddr(world.Topology.Node(svc.node).Address), netip.MustParseAddr(world.Topology.Node(svc.node).Address6)} {
			conn, err := dial(svc.netns, netip.AddrPortFrom(a, 8500), 700*time.Millisecond)
			if err == nil {
				conn.Close()
			}
			must.Error(t, err)
		}
		if conn, err := dial(svc.netns, netip.AddrPortFrom(link6, 4317), 700*time.Millisecond); err == nil {
			conn.Close()
			t.Errorf("%s reaches port 4317 of its node at %s", svc, link6)
		}
		// DNS stays DNS.
		_, err = question(svc, "news-gw.getaway-app.sif", dns.TypeA, 2*time.Second)
		must.NoError(t, err)
	}
	// The contract is withdrawn: an open connection ends.
	w := world.workload(t, "getaway-app/news-gw", "aws1")
	conn, err := dial(w.netns, netip.AddrPortFrom(link4, 8500), 2*time.Second)
	must.NoError(t, err)
	t.Cleanup(func() { conn.Close() })
	world.apply(t, withoutContract(t, node("news", "")(world.getaway(t)), "news-source"))
	world.allWell(t, 30*time.Second)
	_, err = fmt.Fprintf(conn, "GET /v1/status/leader HTTP/1.1\r\nHost: consul\r\nConnection: close\r\n\r\n")
	if err == nil {
		must.NoError(t, conn.SetReadDeadline(time.Now().Add(2*time.Second)))
		_, err = conn.Read(make([]byte, 1))
	}
	must.Error(t, err, must.Sprint("the node answers after the contract was withdrawn"))
}
