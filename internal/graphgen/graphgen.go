// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

// Package graphgen makes graphs of any size with the shape of those of real
// organisations, for benchmarks and tests: many small domains, a few shared
// services that everybody calls, a few contracts across domains. It knows the
// model only. Equal shapes give equal graphs, on every machine.
package graphgen

import (
	"fmt"
	"math/rand/v2"
	"net/netip"

	"github.com/sif-project/sif/fabric"
)

// Shape says how large a graph is and how it is made.
type Shape struct {
	Seed      uint64
	Services  int
	Contracts int
	Domain    int     // services of an ordinary domain, on average; default 10
	Hubs      int     // shared domains, whose services others call; default 1 of 100
	Cross     float64 // share of contracts that name a shared service; default 0.1
}

func (s Shape) withDefaults() Shape {
	if s.Domain == 0 {
		s.Domain = 10
	}
	if s.Hubs == 0 {
		s.Hubs = max(1, s.Services/s.Domain/100)
	}
	if s.Cross == 0 {
		s.Cross = 0.1
	}
	return s
}

var (
	environments = []string{"dev", "test", "prod"}
	teams        = []string{"payments", "search", "identity", "data", "web", "mobile", "platform"}
	// common are the ports that most contracts open.
	common = []uint16{80, 443, 8080, 8443, 9000, 5432, 3306, 6379, 9092, 53}
)

// Generate makes the graph of a shape. It passes fabric's checks, its
// guardrails included, and every contract across domains is accepted.
func Generate(shape Shape) *fabric.Graph {
	shape = shape.withDefaults()
	m := &maker{Shape: shape, rng: rand.New(rand.NewPCG(shape.Seed, 0)), graph: &fabric.Graph{Domains: map[string]*fabric.Domain{}}}
	m.domains()
	m.contracts()
	m.graph.Guardrails = []fabric.Guardrail{
		{Name: "no-dev-to-pci", Deny: []fabric.Denial{{From: fabric.Labels{"env": "dev"}, To: fabric.Labels{"pci": "true"}}}},
		{Name: "no-telnet", Deny: []fabric.Denial{{Rules: []fabric.Rule{{Protocol: fabric.TCP, Ports: []fabric.PortRange{{From: 23, To: 23}}}}}}},
	}
	return m.graph
}

type maker struct {
	Shape
	rng   *rand.Rand
	graph *fabric.Graph
	hubs  []*fabric.Domain
	local []*fabric.Domain
}

func (m *maker) domains() {
	for left, n := m.Services, 0; left > 0; n++ {
		// Sizes from a half to one and a half of the average.
		size := min(left, max(1, m.Domain/2+m.rng.IntN(m.Domain+1)))
		left -= size
		d := &fabric.Domain{
			Name:   fmt.Sprintf("d%05d", n),
			Labels: fabric.Labels{"team": teams[m.rng.IntN(len(teams))], "env": environments[m.rng.IntN(len(environments))]},
		}
		if n < m.Hubs {
			d.Name = fmt.Sprintf("shared-%03d", n)
			d.Labels["env"] = "prod"
			m.hubs = append(m.hubs, d)
		} else {
			m.local = append(m.local, d)
		}
		for i := range size {
			s := fabric.Service{Name: fmt.Sprintf("svc-%02d", i), Selectors: []fabric.Selector{
				{Kind: fabric.SelectNomad, Namespace: fabric.DefaultNamespace, Job: fmt.Sprintf("%s-%d", d.Name, i), Group: "main"},
			}}
			if m.rng.IntN(20) == 0 && d.Labels["env"] == "prod" && n >= m.Hubs {
				s.Labels = fabric.Labels{"pci": "true"}
			}
			d.Services = append(d.Services, s)
		}
		if m.rng.IntN(4) == 0 {
			d.Externals = append(d.Externals, fabric.External{Name: "office", Prefixes: []netip.Prefix{
				netip.PrefixFrom(netip.AddrFrom4([4]byte{192, 0, 2, byte(n)}), 32),
			}})
		}
		m.graph.Domains[d.Name] = d
	}
	if len(m.local) == 0 {
		m.local = m.hubs
	}
}

func (m *maker) contracts() {
	for i := range m.Contracts {
		d := m.local[i%len(m.local)]
		c := fabric.Contract{Name: fmt.Sprintf("c%05d", i/len(m.local)), Rules: m.rules()}
		hub := m.hubs[m.rng.IntN(len(m.hubs))]
		switch {
		case hub != d && m.rng.Float64() < m.Cross:
			// Few services of few domains are called from everywhere.
			responder := m.popular(hub)
			c.Originators = m.some(d, "")
			c.Responders = []fabric.Ref{responder}
			hub.Accepts = append(hub.Accepts, fabric.Accept{Contract: fabric.Ref{Domain: d.Name, Name: c.Name}, Services: []string{responder.Name}})
		case len(d.Externals) > 0 && m.rng.IntN(50) == 0:
			c.Originators = []fabric.Ref{{Domain: d.Name, Name: d.Externals[0].Name}}
			c.Responders = []fabric.Ref{m.popular(d)}
		default:
			responder := m.popular(d)
			c.Originators = m.some(d, responder.Name)
			c.Responders = []fabric.Ref{responder}
		}
		d.Contracts = append(d.Contracts, c)
	}
}

// popular picks a service of d, the first ones more often.
func (m *maker) popular(d *fabric.Domain) fabric.Ref {
	at := m.rng.Float64()
	return fabric.Ref{Domain: d.Name, Name: d.Services[int(at*at*float64(len(d.Services)))].Name}
}

// some picks one to three services of d, without one of them if others are
// there.
func (m *maker) some(d *fabric.Domain, without string) []fabric.Ref {
	var refs []fabric.Ref
	count := min(1+m.rng.IntN(3), len(d.Services))
	for _, i := range m.rng.Perm(len(d.Services)) {
		if len(refs) == count {
			break
		}
		if name := d.Services[i].Name; name != without || len(d.Services) == 1 {
			refs = append(refs, fabric.Ref{Domain: d.Name, Name: name})
		}
	}
	return refs
}

func (m *maker) rules() []fabric.Rule {
	r := fabric.Rule{Protocol: fabric.TCP}
	if m.rng.IntN(10) == 0 {
		r.Protocol = fabric.UDP
	}
	switch port := common[m.rng.IntN(len(common))]; m.rng.IntN(10) {
	case 0:
		from := 10000 + uint16(m.rng.IntN(1000))
		r.Ports = []fabric.PortRange{{From: from, To: from + 10}}
	case 1:
		r.Ports = []fabric.PortRange{{From: port, To: port}, {From: 9100, To: 9100}}
	default:
		r.Ports = []fabric.PortRange{{From: port, To: port}}
	}
	return []fabric.Rule{r}
}
