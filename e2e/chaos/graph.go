// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package chaos

import (
	"fmt"

	"github.com/sif-project/sif/fabric"
)

// The domain whose contracts come and go, and another one with another author.
const (
	domainName = "chaos"
	otherName  = "chaos-other"
)

// Ports of the contracts.
const (
	steadyPort = 7000 // always allowed, from the originator to the responders
	togglePort = 7100 // and the next ones: each is allowed in some revisions
	toggles    = 4
	neverPort  = 7200 // never allowed
	guestPort  = 7300 // always allowed, from guests to the responders
	openedPort = 7400 // to which responders try to open flows
)

// Services, each with a job of its name.
const (
	originator = "origin"
	near       = "near" // a responder in the originator's zone
	far        = "far"  // a responder in the other zone
	guest      = "guest"
)

// content is what a revision has in both domains. Each content is applied once, so that who reads
// it knows which change it was.
type content struct {
	mask    int // bit i: togglePort+i is allowed
	edition int // of the domain
	other   int // edition of the other domain
}

func (c content) String() string {
	return fmt.Sprintf("edition %d (ports %04b), other %d", c.edition, c.mask, c.other)
}

// domain returns the domain with a content.
func (c content) domain() *fabric.Domain {
	d := &fabric.Domain{Name: domainName, Description: fmt.Sprintf("%d %d", c.edition, c.mask)}
	for _, s := range []string{originator, near, far, guest} {
		d.Services = append(d.Services, fabric.Service{Name: s, Selectors: []fabric.Selector{{
			Kind: fabric.SelectNomad, Namespace: "default", Job: jobPrefix + s,
		}}})
	}
	contract := func(name, from string, port uint16) {
		rule := func(p fabric.Protocol) fabric.Rule {
			return fabric.Rule{Protocol: p, Ports: []fabric.PortRange{{From: port, To: port}}}
		}
		d.Contracts = append(d.Contracts, fabric.Contract{
			Name: name, Originators: []fabric.Ref{{Domain: domainName, Name: from}},
			Responders: []fabric.Ref{{Domain: domainName, Name: near}, {Domain: domainName, Name: far}},
			Rules:      []fabric.Rule{rule(fabric.TCP), rule(fabric.UDP)},
		})
	}
	contract("steady", originator, steadyPort)
	contract("guests", guest, guestPort)
	for i := range toggles {
		if c.mask&(1<<i) != 0 {
			contract(fmt.Sprintf("toggle-%d", i), originator, uint16(togglePort+i))
		}
	}
	return d
}

// otherDomain returns the other domain with a content.
func (c content) otherDomain() *fabric.Domain {
	return &fabric.Domain{Name: otherName, Description: fmt.Sprint(c.other), Services: []fabric.Service{{
		Name: "nobody", Selectors: []fabric.Selector{{Kind: fabric.SelectNomad, Namespace: "default", Job: otherName}},
	}}}
}

// contentOf reads the content of a graph.
func contentOf(g *fabric.Graph) (c content, err error) {
	if g == nil || g.Domains[domainName] == nil || g.Domains[otherName] == nil {
		return c, fmt.Errorf("the graph lacks a domain")
	}
	if _, err := fmt.Sscanf(g.Domains[domainName].Description, "%d %d", &c.edition, &c.mask); err != nil {
		return c, fmt.Errorf("read the description of domain %s: %w", domainName, err)
	}
	if _, err := fmt.Sscan(g.Domains[otherName].Description, &c.other); err != nil {
		return c, fmt.Errorf("read the description of domain %s: %w", otherName, err)
	}
	return c, nil
}
