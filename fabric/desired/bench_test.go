// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package desired

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/sif-project/sif/fabric"
)

// BenchmarkForProcessor computes what a switch must enforce, as the engine does for each new
// endpoint: services call the next one, all endpoints are of a fabric of two zones.
func BenchmarkForProcessor(b *testing.B) {
	for _, n := range []int{1000, 10000, 100000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			endpoints, docs := chain(n)
			self := fabric.NodeID{Zone: "z1", Name: "p1"}
			nodes := []fabric.Node{{Zone: "z1", Name: "p1", Kind: fabric.KindProcessor}, {Zone: "z2", Name: "p1", Kind: fabric.KindProcessor}}
			topology := NewTopology(nodes, FullMesh(nodes), nil)
			b.ReportAllocs()
			for b.Loop() {
				ForProcessor(self, topology, endpoints, docs, fabric.Outside{})
			}
		})
	}
}

// chain returns n endpoints of n/50 services, each of which calls the next one.
func chain(n int) ([]fabric.Admission, Documents) {
	services := max(2, n/50)
	d := &fabric.Domain{Name: "a"}
	for i := range services {
		d.Services = append(d.Services, fabric.Service{Name: fmt.Sprintf("s%d", i)})
		d.Contracts = append(d.Contracts, fabric.Contract{
			Name:        fmt.Sprintf("c%d", i),
			Originators: []fabric.Ref{{Domain: "a", Name: fmt.Sprintf("s%d", i)}},
			Responders:  []fabric.Ref{{Domain: "a", Name: fmt.Sprintf("s%d", (i+1)%services)}},
			Rules:       []fabric.Rule{{Protocol: fabric.TCP, Ports: []fabric.PortRange{{From: 80, To: 80}}}},
		})
	}
	docs := Documents{}
	for _, doc := range fabric.Documents(&fabric.Graph{Domains: map[string]*fabric.Domain{"a": d}}) {
		docs[doc.Service] = doc
	}
	var endpoints []fabric.Admission
	for i := range n {
		service := fabric.Ref{Domain: "a", Name: fmt.Sprintf("s%d", i%services)}
		a := fabric.Admission{
			Endpoint: fmt.Sprintf("e%d", i), Zone: []string{"z1", "z2"}[i%2], Node: "w1", Service: service, Roles: docs[service].Roles(),
			IPv4: netip.AddrFrom4([4]byte{100, byte(64 + i>>16), byte(i >> 8), byte(i)}),
		}
		endpoints = append(endpoints, a)
	}
	return endpoints, docs
}
