// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

// Package desiredtest makes fabrics of any size, without a network, for benchmarks and tests of
// what each node must enforce. It knows only the model. Equal sizes give equal fabrics everywhere.
package desiredtest

import (
	"fmt"
	"math/rand/v2"
	"net/netip"

	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/fabric/desired"
)

// Size is that of a fabric.
type Size struct {
	Zones      int
	Processors int // of each zone
	Workloads  int // nodes of each zone
	Endpoints  int // of each workload node
	Services   int // at least one for each zone
	// Links are declared ones: two of different kinds from each zone to the hub of its region, and
	// one among hubs. Without, every two processors of different zones are linked.
	Links bool
}

// Fabric is who is in a fabric, and what is declared.
type Fabric struct {
	Nodes     []fabric.Node
	Tunnels   []desired.Tunnel
	Endpoints []fabric.Admission
	Docs      desired.Documents
}

// region is the number of zones of a region. The first one of each is its hub.
const region = 25

// Node returns the ID of a node: the n-th processor ("p") or workload node ("w") of a zone, all
// counted from 0.
func Node(zone int, kind string, n int) fabric.NodeID {
	return fabric.NodeID{Zone: zoneName(zone), Name: fmt.Sprint(kind, n)}
}

func zoneName(zone int) string { return fmt.Sprint("z", zone) }

// Build returns a fabric of a size. Each service calls three others, and all call the first one.
// The endpoints of each are in two neighbouring zones.
func (s Size) Build() Fabric {
	var f Fabric
	for z := range s.Zones {
		for p := range s.Processors {
			f.add(Node(z, "p", p), fabric.KindProcessor)
		}
		for w := range s.Workloads {
			f.add(Node(z, "w", w), fabric.KindWorkload)
		}
	}
	f.Tunnels = desired.Tunnels(f.Nodes, s.declared())
	random := rand.New(rand.NewPCG(1, 2))
	f.Docs = desired.Documents{}
	for _, doc := range fabric.Documents(&fabric.Graph{Domains: map[string]*fabric.Domain{domain: s.domain(random)}}) {
		f.Docs[doc.Service] = doc
	}
	each := s.Services / s.Zones
	zone := -1
	for i, n := range f.Nodes {
		if i == 0 || n.Zone != f.Nodes[i-1].Zone {
			zone++
		}
		if n.Kind != fabric.KindWorkload {
			continue
		}
		for e := range s.Endpoints {
			service := service((zone*each + random.IntN(2*each)) % s.Services)
			address, address6 := n.Pool4.Addr().As4(), n.Pool6.Addr().As16()
			address[3], address6[15] = byte(e+2), byte(e+2)
			f.Endpoints = append(f.Endpoints, fabric.Admission{
				Endpoint: fmt.Sprintf("%s-%s-%d", n.Zone, n.Name, e), Zone: n.Zone, Node: n.Name, Service: service, Roles: f.Docs[service].Roles(),
				IPv4: netip.AddrFrom4(address), IPv6: netip.AddrFrom16(address6),
			})
		}
	}
	return f
}

func (f *Fabric) add(id fabric.NodeID, kind fabric.NodeKind) {
	i := len(f.Nodes)
	f.Nodes = append(f.Nodes, fabric.Node{
		Zone: id.Zone, Name: id.Name, Kind: kind,
		Pool4: netip.PrefixFrom(netip.AddrFrom4([4]byte{100, byte(64 + i>>8), byte(i), 0}), 24),
		Pool6: netip.PrefixFrom(netip.AddrFrom16([16]byte{0xfd, 0x5f, 6: byte(i >> 8), 7: byte(i)}), 64),
	})
}

const domain = "app"

func service(i int) fabric.Ref { return fabric.Ref{Domain: domain, Name: fmt.Sprint("s", i)} }

// domain returns the graph. With links, some contracts say what they wish of them.
func (s Size) domain(random *rand.Rand) *fabric.Domain {
	d := &fabric.Domain{Name: domain}
	for i := range s.Services {
		d.Services = append(d.Services, fabric.Service{Name: service(i).Name})
		for n := range 4 {
			to := 0
			if n > 0 {
				to = random.IntN(s.Services)
			}
			port := uint16(8000 + n)
			c := fabric.Contract{
				Name: fmt.Sprintf("c%d-%d", i, n), Originators: []fabric.Ref{service(i)}, Responders: []fabric.Ref{service(to)},
				Rules: []fabric.Rule{{Protocol: fabric.TCP, Ports: []fabric.PortRange{{From: port, To: port}}}},
			}
			switch {
			case s.Links && i%10 == 1:
				c.Path.Prefer = []string{"fast"}
			case s.Links && i%10 == 2:
				c.Path.Avoid = []string{"metered"}
			}
			d.Contracts = append(d.Contracts, c)
		}
	}
	return d
}

// declared returns the links.
func (s Size) declared() (links []fabric.LinkRule) {
	if !s.Links {
		return nil
	}
	join := func(name string, a, b int, cost uint16, labels ...string) {
		links = append(links, fabric.LinkRule{Name: name, Between: [2]fabric.LinkEnd{{Zone: zoneName(a)}, {Zone: zoneName(b)}}, Cost: cost, Labels: labels})
	}
	for z := range s.Zones {
		hub := z / region * region
		if z != hub {
			join("fast-"+zoneName(z), z, hub, 10, "fast", "metered")
			join("slow-"+zoneName(z), z, hub, 50)
			continue
		}
		for other := 0; other < hub; other += region {
			join("hubs-"+zoneName(other)+"-"+zoneName(hub), other, hub, 100, "fast")
		}
	}
	return links
}
