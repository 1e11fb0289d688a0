// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package main

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"time"

	"github.com/containernetworking/plugins/pkg/ns"
	"github.com/miekg/dns"

	"github.com/sif-project/sif/e2e/internet"
	"github.com/sif-project/sif/internal/wellknown"
)

const (
	// lookups is the number of names of each exit, fewer than its subnet has addresses.
	lookups = 100
	// between is the time between two names, in which what one has caused comes to rest.
	between = 30 * time.Millisecond
)

// outsideNames measures what the first question for an outside name costs a workload, beyond what
// the exit's resolver takes for the same question from the machine that asks it.
func outsideNames(ctx context.Context, f *fabric, r *Report) error {
	records := internet.Records{}
	for _, w := range []way{byZone, byNode} {
		for i := range lookups {
			records[w.name(i)] = internet.Record{Addresses: []netip.Addr{w.address(i)}, TTL: 600}
		}
	}
	if err := f.SetRecords(records); err != nil {
		return err
	}
	stop, err := f.answerAll(ctx)
	if err != nil {
		return err
	}
	defer stop()
	sleep, err := awake()
	if err != nil {
		return err
	}
	defer sleep()
	for _, exit := range []struct {
		way
		name, machine string // that asks the resolver
	}{{byZone, "the zone's exit", exitNode}, {byNode, "the node", clientNode}} {
		var l lookedUp
		for i := range lookups {
			if err := l.add(f, exit.way, exit.machine, i); err != nil {
				return err
			}
			if err := pause(ctx, between); err != nil {
				return err
			}
		}
		group := fmt.Sprintf("outside name that resolves by %s, %d names", exit.name, lookups)
		r.times(group, "first question → answer, beyond the resolver", l.answer, below(5), below(5))
		r.times(group, "first question → first request answered, beyond resolver and connecting", l.connection, none, none)
		r.times(group, "first question → answer", l.whole, none, none)
		r.times(group, "the resolver itself", l.resolver, none, none)
		r.times(group, "further question → answer", l.known, none, none)
	}
	return nil
}

func (w way) name(i int) string { return fmt.Sprintf("n%d.%s", i, w.domain) }

func (w way) address(i int) netip.Addr {
	octets := w.subnet.Addr().As4()
	octets[3] = byte(1 + i)
	return netip.AddrFrom4(octets)
}

// answerAll gives the provider all addresses of both ways' subnets, at which it answers requests
// until stop is called.
func (f *fabric) answerAll(ctx context.Context) (stop func(), err error) {
	for _, w := range []way{byZone, byNode} {
		if err := script(ctx, fmt.Sprintf(`
			ip -n %[1]s route replace local %[3]s dev lo
			ip -n %[2]s route replace %[3]s dev %[4]s
			ip netns exec %[2]s nft insert rule inet internet forward ip daddr %[3]s accept`,
			f.Namespace(provider), f.Namespace("internet"), w.subnet, provider)); err != nil {
			return nil, err
		}
	}
	return serve(endpoint{f.NetNS(provider), netip.IPv4Unspecified()})
}

// lookedUp are durations, one for each name.
type lookedUp struct {
	answer     []time.Duration // until the first answer, without the resolver's time
	connection []time.Duration // until the first connection, without the resolver's time and that of a later connection
	whole      []time.Duration // until the first answer
	resolver   []time.Duration // the same question from the exit itself
	known      []time.Duration // until the second answer
}

// add looks up one name that was not looked up before.
func (l *lookedUp) add(f *fabric, w way, machine string, i int) error {
	workload := asker{f.client.netns, netip.AddrPortFrom(wellknown.LinkLocal4, wellknown.DNSPort)}
	exit := asker{f.NetNS(machine), netip.AddrPortFrom(f.Topology.Resolver().Address(4), internet.DNSPort)}
	to := endpoint{addr: w.address(i)}
	// What a question to the resolver costs does not depend on which is the first one.
	order := []asker{workload, exit}
	if i%2 == 1 {
		order = []asker{exit, workload}
	}
	took := map[asker]time.Duration{}
	var connected time.Duration
	for _, a := range order {
		began := time.Now()
		got, d, err := a.ask(w.name(i))
		if err != nil {
			return err
		}
		if got != to.addr {
			return fmt.Errorf("%s is %s, but the answer to %s is %s", w.name(i), to.addr, a.netns, got)
		}
		took[a] = d
		if a == workload {
			if _, err := connects(f.client, to, 1); err != nil {
				return fmt.Errorf("just after the answer for %s: %w", w.name(i), err)
			}
			connected = time.Since(began)
		}
	}
	again, err := connects(f.client, to, 1)
	if err != nil {
		return err
	}
	_, known, err := workload.ask(w.name(i))
	if err != nil {
		return err
	}
	l.answer = append(l.answer, took[workload]-took[exit])
	l.connection = append(l.connection, connected-took[exit]-again[0])
	l.whole = append(l.whole, took[workload])
	l.resolver = append(l.resolver, took[exit])
	l.known = append(l.known, known)
	return nil
}

// asker asks a resolver from a namespace.
type asker struct {
	netns    string
	resolver netip.AddrPort
}

// ask asks for the one address of a name, and returns how long the answer took.
func (a asker) ask(name string) (got netip.Addr, took time.Duration, err error) {
	var conn net.Conn
	if err := ns.WithNetNSPath(a.netns, func(ns.NetNS) (err error) {
		conn, err = net.Dial("udp", a.resolver.String())
		return err
	}); err != nil {
		return got, 0, err
	}
	defer conn.Close()
	question := new(dns.Msg).SetQuestion(dns.Fqdn(name), dns.TypeA)
	client := dns.Client{Timeout: 5 * time.Second}
	began := time.Now()
	m, _, err := client.ExchangeWithConn(question, &dns.Conn{Conn: conn})
	took = time.Since(began)
	if err != nil {
		return got, took, fmt.Errorf("ask %s for %s: %w", a.resolver, name, err)
	}
	if len(m.Answer) != 1 {
		return got, took, fmt.Errorf("ask %s for %s: %s, %d records", a.resolver, name, dns.RcodeToString[m.Rcode], len(m.Answer))
	}
	record, ok := m.Answer[0].(*dns.A)
	if !ok {
		return got, took, fmt.Errorf("ask %s for %s: no address: %s", a.resolver, name, m.Answer[0])
	}
	got, _ = netip.AddrFromSlice(record.A.To4())
	return got, took, nil
}
