// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

// Package graphgen generates graphs of any size for benchmarks and tests. They look like those of
// real organisations: many small domains, a few shared services that many others call, a few
// contracts across domains, and some with the outside. The package knows only the model. Equal
// shapes give equal graphs on every machine.
package graphgen

import (
	"fmt"
	"math/rand/v2"
	"net/netip"

	"github.com/sif-project/sif/fabric"
)

// Shape describes a graph to generate.
type Shape struct {
	Seed      uint64
	Services  int
	Contracts int
	Domain    int     // average number of services in an ordinary domain; 0: 10
	Hubs      int     // number of shared domains, whose services others call; 0: 1 of 100
	Cross     float64 // fraction of contracts that name a shared service; 0: 0.1
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
	// common are the ports in most contracts.
	common = []uint16{80, 443, 8080, 8443, 9000, 5432, 3306, 6379, 9092, 53}
)

// Generate returns the graph of a shape. It passes the checks of package fabric, and its own
// guardrails, and every contract across domains is accepted.
func Generate(shape Shape) *fabric.Graph {
	shape = shape.withDefaults()
	g := &generator{Shape: shape, rng: rand.New(rand.NewPCG(shape.Seed, 0)), graph: &fabric.Graph{Domains: map[string]*fabric.Domain{}}}
	g.domains()
	g.contracts()
	g.graph.Guardrails = []fabric.Guardrail{
		{Name: "no-dev-to-pci", Deny: []fabric.Denial{{From: fabric.Labels{"env": "dev"}, To: fabric.Labels{"pci": "true"}}}},
		{Name: "no-telnet", Deny: []fabric.Denial{{Rules: []fabric.Rule{{Protocol: fabric.TCP, Ports: []fabric.PortRange{{From: 23, To: 23}}}}}}},
	}
	return g.graph
}

type generator struct {
	Shape
	rng   *rand.Rand
	graph *fabric.Graph
	hubs  []*fabric.Domain
	local []*fabric.Domain
}

func (g *generator) domains() {
	for left, n := g.Services, 0; left > 0; n++ {
		// Sizes are between half and one and a half times the average.
		size := min(left, max(1, g.Domain/2+g.rng.IntN(g.Domain+1)))
		left -= size
		d := &fabric.Domain{
			Name:   fmt.Sprintf("d%05d", n),
			Labels: fabric.Labels{"team": teams[g.rng.IntN(len(teams))], "env": environments[g.rng.IntN(len(environments))]},
		}
		if n < g.Hubs {
			d.Name = fmt.Sprintf("shared-%03d", n)
			d.Labels["env"] = "prod"
			g.hubs = append(g.hubs, d)
		} else {
			g.local = append(g.local, d)
		}
		for i := range size {
			s := fabric.Service{Name: fmt.Sprintf("svc-%02d", i), Selectors: []fabric.Selector{
				{Kind: fabric.SelectNomad, Namespace: fabric.DefaultNamespace, Job: fmt.Sprintf("%s-%d", d.Name, i), Group: "main"},
			}}
			if g.rng.IntN(20) == 0 && d.Labels["env"] == "prod" && n >= g.Hubs {
				s.Labels = fabric.Labels{"pci": "true"}
			}
			d.Services = append(d.Services, s)
		}
		if g.rng.IntN(4) == 0 {
			d.Externals = append(d.Externals, fabric.External{Name: "office", Prefixes: []netip.Prefix{
				netip.PrefixFrom(netip.AddrFrom4([4]byte{192, 0, 2, byte(n)}), 32),
			}}, fabric.External{Name: "provider", Names: []string{fmt.Sprintf("api.p%d.example.com", n%50), "*.cdn.example.net"}})
		}
		g.graph.Domains[d.Name] = d
	}
	if len(g.local) == 0 {
		g.local = g.hubs
	}
}

func (g *generator) contracts() {
	for i := range g.Contracts {
		d := g.local[i%len(g.local)]
		c := fabric.Contract{Name: fmt.Sprintf("c%05d", i/len(g.local)), Rules: g.rules()}
		hub := g.hubs[g.rng.IntN(len(g.hubs))]
		switch {
		case hub != d && g.rng.Float64() < g.Cross:
			// A few services of a few domains are called from everywhere.
			responder := g.popular(hub)
			c.Originators = g.some(d, "")
			c.Responders = []fabric.Ref{responder}
			hub.Accepts = append(hub.Accepts, fabric.Accept{Contract: fabric.Ref{Domain: d.Name, Name: c.Name}, Services: []string{responder.Name}})
		case len(d.Externals) > 0 && g.rng.IntN(50) == 0:
			c.Originators = []fabric.Ref{{Domain: d.Name, Name: d.Externals[0].Name}}
			c.Responders = []fabric.Ref{g.popular(d)}
		case len(d.Externals) > 0 && g.rng.IntN(10) == 0:
			c.Originators = g.some(d, "")
			c.Responders = []fabric.Ref{{Domain: d.Name, Name: d.Externals[1].Name}}
		default:
			responder := g.popular(d)
			c.Originators = g.some(d, responder.Name)
			c.Responders = []fabric.Ref{responder}
		}
		d.Contracts = append(d.Contracts, c)
	}
}

// popular returns a random service of d, the first ones more often.
func (g *generator) popular(d *fabric.Domain) fabric.Ref {
	at := g.rng.Float64()
	return fabric.Ref{Domain: d.Name, Name: d.Services[int(at*at*float64(len(d.Services)))].Name}
}

// some returns one to three random services of d, not the one named without unless it is the only
// one.
func (g *generator) some(d *fabric.Domain, without string) []fabric.Ref {
	var refs []fabric.Ref
	count := min(1+g.rng.IntN(3), len(d.Services))
	for _, i := range g.rng.Perm(len(d.Services)) {
		if len(refs) == count {
			break
		}
		if name := d.Services[i].Name; name != without || len(d.Services) == 1 {
			refs = append(refs, fabric.Ref{Domain: d.Name, Name: name})
		}
	}
	return refs
}

func (g *generator) rules() []fabric.Rule {
	r := fabric.Rule{Protocol: fabric.TCP}
	if g.rng.IntN(10) == 0 {
		r.Protocol = fabric.UDP
	}
	switch port := common[g.rng.IntN(len(common))]; g.rng.IntN(10) {
	case 0:
		from := 10000 + uint16(g.rng.IntN(1000))
		r.Ports = []fabric.PortRange{{From: from, To: from + 10}}
	case 1:
		r.Ports = []fabric.PortRange{{From: port, To: port}, {From: 9100, To: 9100}}
	default:
		r.Ports = []fabric.PortRange{{From: port, To: port}}
	}
	return []fabric.Rule{r}
}
