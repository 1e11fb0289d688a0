// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

// Package matrix compares what the graph declares with what the network does. It applies the one
// rule to every ordered pair of live endpoints and every port that any contract uses, asks the
// endpoints' nodes to send and observe a packet for each, and reports where the two differ. It
// knows the model and the tasks of nodes. It does not know how a packet is sent or observed.
package matrix

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/sif-project/sif/api"
	"github.com/sif-project/sif/fabric"
)

// expanded is the largest number of ports in a range that are all probed. Of a larger range, the
// first, last and middle port are probed.
const expanded = 8

// Endpoint is a live endpoint.
type Endpoint struct {
	ID      string        `json:"endpoint"`
	Node    fabric.NodeID `json:"node"`
	Service fabric.Ref    `json:"service"`
	Roles   fabric.Roles  `json:"-"`
	IPv4    netip.Addr    `json:"-"`
	IPv6    netip.Addr    `json:"-"`
}

// Probe is one question: may From open Protocol and Port towards To?
type Probe struct {
	From     Endpoint        `json:"from"`
	To       Endpoint        `json:"to"`
	IP       int             `json:"ip"` // version
	Protocol fabric.Protocol `json:"protocol"`
	Port     uint16          `json:"port"`
	Contract *fabric.Ref     `json:"contract,omitempty"` // that declares it; nil: not declared
}

// Declared reports whether the graph allows the flow.
func (p Probe) Declared() bool { return p.Contract != nil }

func (p Probe) String() string {
	return fmt.Sprintf("%s -> %s %s", p.From.Service, p.To.Service, p.target())
}

func (p Probe) target() string {
	return fmt.Sprintf("%s/%d ip%d", p.Protocol, p.Port, p.IP)
}

func (p Probe) source() netip.Addr {
	if p.IP == 6 {
		return p.From.IPv6
	}
	return p.From.IPv4
}

func (p Probe) destination() netip.AddrPort {
	if p.IP == 6 {
		return netip.AddrPortFrom(p.To.IPv6, p.Port)
	}
	return netip.AddrPortFrom(p.To.IPv4, p.Port)
}

// Options narrow what is probed.
type Options struct {
	Domain    string            // only pairs with an end in this domain; empty: all
	Protocols []fabric.Protocol // none: TCP and UDP
	IPs       []int             // none: 4 and 6
}

// fill sets what is probed where the options do not say it.
func (o *Options) fill() {
	if len(o.Protocols) == 0 {
		o.Protocols = []fabric.Protocol{fabric.TCP, fabric.UDP}
	}
	if len(o.IPs) == 0 {
		o.IPs = []int{4, 6}
	}
}

// documents returns the documents that the graph has now.
func documents(graph *fabric.Graph) map[fabric.Ref]fabric.Document {
	now := time.Now()
	docs := map[fabric.Ref]fabric.Document{}
	for _, d := range fabric.Documents(graph) {
		docs[d.Service] = d.At(now)
	}
	return docs
}

// Plan returns all probes between endpoints, in a fixed order.
func Plan(status api.Status, graph *fabric.Graph, o Options) []Probe {
	o.fill()
	docs := documents(graph)
	endpoints, ports := Endpoints(status), ports(graph)
	var probes []Probe
	for _, from := range endpoints {
		for _, to := range endpoints {
			if from.ID == to.ID || (o.Domain != "" && from.Service.Domain != o.Domain && to.Service.Domain != o.Domain) {
				continue
			}
			for _, protocol := range o.Protocols {
				for _, port := range ports {
					contract := declared(from, to, docs, protocol, port)
					for _, ip := range o.IPs {
						probes = append(probes, Probe{from, to, ip, protocol, port, contract})
					}
				}
			}
		}
	}
	return probes
}

func declared(from, to Endpoint, docs map[fabric.Ref]fabric.Document, protocol fabric.Protocol, port uint16) *fabric.Ref {
	a, b := fabric.Identity{Service: from.Service, Roles: from.Roles}, fabric.Identity{Service: to.Service, Roles: to.Roles}
	contract, ok := fabric.Allow(a, docs[from.Service], b, protocol, port)
	if !ok {
		return nil
	}
	return &contract
}

// Endpoints returns the endpoints that nodes report, ordered by service.
func Endpoints(status api.Status) []Endpoint {
	var list []Endpoint
	for _, n := range status.Nodes {
		for _, e := range n.Endpoints {
			list = append(list, Endpoint{e.Endpoint, n.ID(), e.Service, e.Roles, e.IPv4, e.IPv6})
		}
	}
	slices.SortFunc(list, func(a, b Endpoint) int {
		return cmp.Or(fabric.CompareRefs(a.Service, b.Service), fabric.CompareNodeIDs(a.Node, b.Node), cmp.Compare(a.ID, b.ID))
	})
	return list
}

// ports returns every port that a contract uses, in order. Types of ICMP messages are not ports.
func ports(g *fabric.Graph) []uint16 {
	var list []uint16
	for _, d := range g.Domains {
		for _, c := range d.Contracts {
			for _, r := range c.Rules {
				if !r.Protocol.HasPorts() {
					continue
				}
				for _, p := range r.Ports {
					list = append(list, sample(p)...)
				}
			}
		}
	}
	slices.Sort(list)
	return slices.Compact(list)
}

func sample(r fabric.PortRange) []uint16 {
	if r.To-r.From >= expanded {
		return []uint16{r.From, r.From + (r.To-r.From)/2, r.To}
	}
	var list []uint16
	for p := int(r.From); p <= int(r.To); p++ {
		list = append(list, uint16(p))
	}
	return list
}
