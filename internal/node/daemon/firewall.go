// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package daemon

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/internal/config"
	"github.com/sif-project/sif/internal/node/firewall"
)

// newFirewall returns the node's firewall. Open to the underlay are the links, the ports in the
// configuration, and the node's engine.
func (n *Node) newFirewall() (*firewall.Firewall, error) {
	var open []firewall.Port
	for _, text := range n.Config.Underlay.Management {
		protocol, port, err := config.ParseManagement(text)
		if err != nil {
			return nil, fmt.Errorf("set up the node's firewall: %w", err)
		}
		open = append(open, firewall.Port{Protocol: protocol, Number: port})
	}
	links := func() []uint16 { return nil }
	if n.Links != nil {
		links = n.Links.Ports
	}
	return firewall.New(firewall.Config{
		Underlay: n.Config.Underlay.Interface, Ranges: n.Self.Ranges, Management: open, Engine: n.enginePort, Links: links,
		Health: []netip.Addr{n.Self.Health4(), n.Self.Health6()}, Published: n.Config.Connections.Limits().PublishedPerSecond,
		DNSPackets: firewall.DNSPacketsPerSecond,
	}), nil
}

// enginePort returns the TCP port of the node's engine; 0 if it has none, or it has not registered.
func (n *Node) enginePort() uint16 {
	if n.Kind == fabric.KindProcessor {
		return n.Self.Engine
	}
	if m, ok := n.Roster.Member(n.Self.ID()); ok {
		return m.Engine
	}
	return n.Self.Engine
}

// RepairFirewall puts back the node's firewall, and what other firewalls need to let the fabric's
// packets pass, and reports what it must not change.
func (n *Node) RepairFirewall() error {
	if n.Firewall == nil {
		return nil
	}
	own, err := n.Firewall.Apply()
	admitted, obstacles, admitting := n.Firewall.Admit()
	n.PutBack("firewall", slices.Concat(own, admitted))
	var findings []string
	for _, o := range obstacles {
		findings = append(findings, o.String())
	}
	n.Report("firewall", findings)
	return errors.Join(err, admitting)
}
