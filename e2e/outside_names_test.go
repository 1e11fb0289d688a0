// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

//go:build e2e

package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/miekg/dns"
	"github.com/shoenig/test/must"

	"github.com/sif-project/sif/bpf"
	"github.com/sif-project/sif/e2e/internet"
	"github.com/sif-project/sif/e2e/lab"
	"github.com/sif-project/sif/engine/ovs"
	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/internal/node/rpc"
	"github.com/sif-project/sif/internal/trust/identity"
)

// question asks the node's resolver from inside a workload.
func question(w workload, name string, kind uint16, timeout time.Duration) (*dns.Msg, error) {
	conn, err := within(w.netns, func() (net.Conn, error) { return net.DialTimeout("udp", resolver, timeout) })
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	m, _, err := (&dns.Client{Timeout: timeout}).ExchangeWithConn(new(dns.Msg).SetQuestion(dns.Fqdn(name), kind), &dns.Conn{Conn: conn})
	return m, err
}

// addressesIn returns the addresses of an answer.
func addressesIn(m *dns.Msg) (list []netip.Addr) {
	for _, rr := range m.Answer {
		switch rr := rr.(type) {
		case *dns.A:
			if a, ok := netip.AddrFromSlice(rr.A.To4()); ok {
				list = append(list, a)
			}
		case *dns.AAAA:
			if a, ok := netip.AddrFromSlice(rr.AAAA); ok {
				list = append(list, a)
			}
		}
	}
	return list
}

// resolves waits until a workload gets addresses for a name.
func resolves(t *testing.T, w workload, name string, kind uint16) (list []netip.Addr) {
	t.Helper()
	eventually(t, 10*time.Second, func() error {
		m, err := question(w, name, kind, 3*time.Second)
		if err != nil {
			return err
		}
		if list = addressesIn(m); len(list) == 0 {
			return fmt.Errorf("%s asks for %s: %s, without addresses", w, name, dns.RcodeToString[m.Rcode])
		}
		return nil
	})
	return list
}

// refusesName requires that a workload is refused a name at once.
func refusesName(t *testing.T, w workload, name string, kind uint16) {
	t.Helper()
	m, err := question(w, name, kind, atOnce)
	must.NoError(t, err, must.Sprintf("%s asks for %s", w, name))
	must.Eq(t, dns.RcodeNameError, m.Rcode, must.Sprintf("%s asks for %s: %v", w, name, m.Answer))
}

// namesGraph is getaway's graph with names outside: by the exit of the zone for news, by that of
// the node for weather.
func (f *fabricUnderTest) namesGraph(t *testing.T, names string) string {
	t.Helper()
	graph := external(t, f.getaway(t), "news-provider", "    names = ["+names+"]")
	graph = external(t, graph, "weather-provider", "    names = ["+names+"]\n    exit  = \"node\"")
	return sourceContract(t, sourceContract(t, graph, "news", ""), "weather", "")
}

// TestOutsideNames lets workloads call what they may resolve, and resolve just what their contracts
// name.
func TestOutsideNames(t *testing.T) {
	world.withGraph(t, world.namesGraph(t, `"api.example.com", "alias.example.com", "*.cdn.example.com", "rebind.example.net", "moves.example.net"`))
	t.Cleanup(func() { must.NoError(t, world.SetRecords(nil)) })
	gateways := []workload{
		world.workload(t, "getaway-app/news-gw", "aws1"), world.workload(t, "getaway-app/news-gw", "gcp1"),
		world.workload(t, "getaway-app/weather-gw", "aws1"), world.workload(t, "getaway-app/weather-gw", "gcp1"),
	}
	byNode := func(w workload) bool { return w.service.Name == "weather-gw" }
	calls := func(t *testing.T, w workload, to netip.Addr) {
		t.Helper()
		// The address is in force before its name is answered.
		got, err := seen(w, netip.AddrPortFrom(to, 443), 2*time.Second)
		must.NoError(t, err, must.Sprintf("%s calls %s at once after its name", w, to))
		version := 4
		if to.Is6() {
			version = 6
		}
		must.Eq(t, world.exitOf(t, w, byNode(w), version), got)
	}

	t.Run("allowed", func(t *testing.T) {
		for _, w := range gateways {
			for _, name := range []string{"api.example.com", "alias.example.com", "a.b.cdn.example.com"} {
				for _, kind := range []uint16{dns.TypeA, dns.TypeAAAA} {
					for _, a := range resolves(t, w, name, kind) {
						calls(t, w, a)
					}
				}
			}
			refusedAtOnce(t, w, netip.AddrPortFrom(world.outside(t, "provider").Address(4), 444))
		}
	})

	t.Run("refused", func(t *testing.T) {
		for _, w := range gateways {
			for _, name := range []string{"news.example.com", "example.com", "cdn.example.com", "places.example.com", "secret-in-a-name.example.org"} {
				for _, kind := range []uint16{dns.TypeA, dns.TypeAAAA, dns.TypeHTTPS, dns.TypeTXT} {
					refusesName(t, w, name, kind)
				}
			}
		}
		svc := world.workload(t, "getaway-app/getaway-svc", "aws1")
		refusesName(t, svc, "api.example.com", dns.TypeA)
		unreachable(t, svc, netip.AddrPortFrom(world.outside(t, "provider").Address(4), 443))
		must.Zero(t, world.questions(t, "secret-in-a-name.example.org"), must.Sprint("a refused name left its node"))
	})

	t.Run("rotating", func(t *testing.T) {
		for _, w := range gateways[1:3] {
			// An exit may remember an answer for as long as it holds, so several names are asked
			// for.
			known := map[netip.Addr]bool{}
			for i := 0; len(known) < 10; i++ {
				must.Less(t, 40, i, must.Sprintf("only %d addresses were answered", len(known)))
				for _, a := range resolves(t, w, fmt.Sprintf("x%d.cdn.example.com", i), dns.TypeA) {
					if !known[a] {
						calls(t, w, a)
					}
					known[a] = true
				}
			}
		}
	})

	t.Run("HTTPS records", func(t *testing.T) {
		for _, w := range gateways {
			m, err := question(w, "api.example.com", dns.TypeHTTPS, 3*time.Second)
			must.NoError(t, err)
			for _, rr := range m.Answer {
				if https, ok := rr.(*dns.HTTPS); ok {
					for _, v := range https.Value {
						must.StrNotContains(t, v.Key().String(), "hint", must.Sprintf("%s", rr))
					}
				}
			}
		}
	})

	t.Run("rebinding", func(t *testing.T) {
		victim := world.workload(t, "getaway-app/getaway-svc", "aws1")
		inside := []netip.Addr{victim.v4, victim.v6}
		for _, n := range world.Topology.Nodes() {
			inside = append(inside, netip.MustParseAddr(n.Address))
			if n.Address6 != "" {
				inside = append(inside, netip.MustParseAddr(n.Address6))
			}
		}
		good := world.outside(t, "cdn").Address(4)
		for _, w := range gateways {
			for _, kind := range []uint16{dns.TypeA, dns.TypeAAAA} {
				m, err := question(w, "rebind.example.net", kind, 3*time.Second)
				must.NoError(t, err)
				must.SliceEmpty(t, addressesIn(m), must.Sprintf("the inside is no outside: %v", m.Answer))
			}
			// A name that was good, and then points inside.
			must.NoError(t, world.SetRecords(internet.Records{"moves.example.net": {Addresses: []netip.Addr{good}, TTL: 1}}))
			must.True(t, slices.Contains(resolves(t, w, "moves.example.net", dns.TypeA), good))
			must.NoError(t, world.SetRecords(internet.Records{"moves.example.net": {Addresses: append(inside, good), TTL: 1}}))
			m, err := question(w, "moves.example.net", dns.TypeA, 3*time.Second)
			must.NoError(t, err)
			for _, a := range addressesIn(m) {
				must.Eq(t, good, a, must.Sprint("an address inside was answered"))
			}
			for _, a := range inside {
				if a.Is4() && a != victim.v4 {
					unreachable(t, w, netip.AddrPortFrom(a, 5000))
				}
			}
		}
	})

	t.Run("restart", func(t *testing.T) {
		w := gateways[0]
		a := resolves(t, w, "api.example.com", dns.TypeA)[0]
		stream := openOutsideStream(t, w, netip.AddrPortFrom(a, 443))
		must.NoError(t, world.Signal(w.node, "agent", syscall.SIGKILL))
		t.Cleanup(func() {
			must.NoError(t, world.Start(w.node, "agent"))
			world.allWell(t, 40*time.Second)
		})
		stream.mustFlow(t, 5*time.Second)
		calls(t, w, a)
		must.NoError(t, world.Start(w.node, "agent"))
		resolves(t, w, "api.example.com", dns.TypeA)
		stream.mustFlow(t, 5*time.Second)
		calls(t, w, a)
	})
}

// TestOutsideStolenNode has who holds a workload node try to name addresses outside: by its own
// maps, and by the engine. The exit knows better.
func TestOutsideStolenNode(t *testing.T) {
	world.withGraph(t, world.namesGraph(t, `"api.example.com"`))
	w := world.workload(t, "getaway-app/news-gw", "aws1")
	resolves(t, w, "api.example.com", dns.TypeA)
	provider, cdn := world.outside(t, "provider"), world.outside(t, "cdn")
	allowed := netip.AddrPortFrom(provider.Address(4), 443)
	_, err := seen(w, allowed, 2*time.Second)
	must.NoError(t, err)

	t.Run("eBPF lets all pass", func(t *testing.T) {
		// Without a verdict a packet has no mark, so the node leads it to no exit.
		world.kernelPasses(t, w.node)
		for _, to := range []netip.AddrPort{
			netip.AddrPortFrom(cdn.Address(4), 443), netip.AddrPortFrom(cdn.Address(6), 443), netip.AddrPortFrom(provider.Address(4), 444),
		} {
			unreachable(t, w, to)
		}
		_, err := seen(w, allowed, 2*time.Second)
		must.NoError(t, err)
	})

	t.Run("the node says that an address is the external's", func(t *testing.T) {
		// The agent would repair its maps, so it stands still.
		must.NoError(t, world.Signal(w.node, "agent", syscall.SIGSTOP))
		t.Cleanup(func() { must.NoError(t, world.Signal(w.node, "agent", syscall.SIGCONT)) })
		d := world.kernel(t, w.node)
		externals, err := d.Externals()
		must.NoError(t, err)
		var known *bpf.External
		for _, e := range externals {
			if e.Prefix.Contains(allowed.Addr()) && e.Identity != 0 && e.Interface == 0 {
				known = &e
			}
		}
		must.NotNil(t, known, must.Sprintf("no external has %s: %v", allowed, externals))
		forged := *known
		forged.Prefix = netip.PrefixFrom(cdn.Address(4), 32)
		must.NoError(t, d.PutExternal(forged))
		t.Cleanup(func() { must.NoError(t, d.DeleteExternal(forged)) })
		before := world.boundaryDrops(t)
		unreachable(t, w, netip.AddrPortFrom(cdn.Address(4), 443))
		eventually(t, 5*time.Second, func() error {
			if grown := rise(before, world.boundaryDrops(t)); sumOf(grown, ovs.DropUnknownDestination) == 0 {
				return fmt.Errorf("the switches' drop counters rose by %v", grown)
			}
			return nil
		})
		_, err = seen(w, allowed, 2*time.Second)
		must.NoError(t, err)
	})

	t.Run("the node asks for others", func(t *testing.T) {
		h := world.hostile(t, "aws1")
		var engine fabric.Node
		for _, n := range world.Topology.Nodes(lab.Processor) {
			if n.Zone == h.id.Zone {
				record, _ := world.record(t, fabric.NodeID{Zone: n.Zone, Name: n.Name})
				must.NoError(t, json.Unmarshal(record.Node.Payload, &engine))
			}
		}
		must.NoError(t, world.In(h.machine, func() error {
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			defer cancel()
			handler := func(context.Context, rpc.Peer, string, json.RawMessage) (any, error) { return nil, nil }
			conn, err := rpc.Dial(ctx, netip.AddrPortFrom(engine.Underlay, engine.Engine).String(), h.identity.ClientTLS(identity.OfNode(engine)), h.identity, handler)
			if err != nil {
				return err
			}
			defer conn.Close()
			ask := func(service, name string) (*dns.Msg, error) {
				ref, err := fabric.ParseRef(service)
				if err != nil {
					return nil, err
				}
				var reply rpc.ResolveReply
				if err := conn.Call(ctx, rpc.MethodResolve, rpc.ResolveParams{Service: ref, Name: name, Type: dns.TypeA}, &reply); err != nil {
					return nil, err
				}
				m := new(dns.Msg)
				return m, m.Unpack(reply.Message)
			}
			for _, q := range [][2]string{
				{"getaway-app/news-gw", "news.example.com"},       // not in its contract
				{"getaway-app/places-gw", "api.example.com"},      // not its contract
				{"getaway-app/getaway-svc", "places.example.com"}, // has none
				{"voting-app/result-db", "api.example.com"},       // not on this node
				{"getaway-app/news-gw", "API.example.com"},        // not as names are written
			} {
				m, err := ask(q[0], q[1])
				if err == nil && (m.Rcode == dns.RcodeSuccess || len(m.Answer) > 0) {
					return fmt.Errorf("the engine resolved %s for %s: %v", q[1], q[0], m.Answer)
				}
			}
			// The lease decides: it is on this node, or it is not.
			m, err := ask("getaway-app/news-gw", "api.example.com")
			if got := err == nil && slices.Contains(addressesIn(m), allowed.Addr()); got != (w.node == h.machine) {
				return fmt.Errorf("%s runs on %s; node %s resolves its name: %t, %v", w.service, w.node, h.machine, got, err)
			}
			return nil
		}))
		// The connection took the place of the agent's own, which has its place again.
		resolves(t, w, "api.example.com", dns.TypeA)
		world.allWell(t, 40*time.Second)
	})
}

// TestOutsideNameIsShared gives two services the same address by names with other ports: each gets
// what its own name grants.
func TestOutsideNameIsShared(t *testing.T) {
	graph := external(t, world.getaway(t), "news-provider", `    names = ["one.example.org"]`)
	graph = external(t, graph, "places-provider", `    names = ["two.example.org"]`)
	graph = contract(t, graph, "news-source", `    originators = ["news-gw"]
    responders  = ["news-provider"]
    rule {
      protocol = "tcp"
      ports    = [443]
    }`)
	graph = contract(t, graph, "places-source", `    originators = ["places-gw"]
    responders  = ["places-provider"]
    rule {
      protocol = "tcp"
      ports    = [444]
    }`)
	world.withGraph(t, graph)
	shared := world.outside(t, "provider").Address(4)
	must.NoError(t, world.SetRecords(internet.Records{"one.example.org": {Addresses: []netip.Addr{shared}, TTL: 60}, "two.example.org": {Addresses: []netip.Addr{shared}, TTL: 60}}))
	t.Cleanup(func() { must.NoError(t, world.SetRecords(nil)) })
	for _, zone := range []string{"aws1", "gcp1"} {
		news, places := world.workload(t, "getaway-app/news-gw", zone), world.workload(t, "getaway-app/places-gw", zone)
		must.True(t, slices.Contains(resolves(t, news, "one.example.org", dns.TypeA), shared))
		must.True(t, slices.Contains(resolves(t, places, "two.example.org", dns.TypeA), shared))
		for w, port := range map[workload]uint16{news: 443, places: 444} {
			_, err := seen(w, netip.AddrPortFrom(shared, port), 2*time.Second)
			must.NoError(t, err, must.Sprintf("from %s, port %d", w, port))
			unreachable(t, w, netip.AddrPortFrom(shared, 443+444-port))
		}
		refusesName(t, news, "two.example.org", dns.TypeA)
		refusesName(t, places, "one.example.org", dns.TypeA)
	}
}
