// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package daemon

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"slices"
	"time"

	"github.com/sif-project/sif/api"
	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/internal/config"
	"github.com/sif-project/sif/internal/logkey"
	"github.com/sif-project/sif/internal/node/firewall"
	"github.com/sif-project/sif/internal/node/firewallcall"
)

// newFirewall makes the node's firewall. Open to the underlay are the links, the ports in the
// configuration, and the node's engine.
func (n *Node) newFirewall() error {
	var open []firewall.Port
	for _, text := range n.Config.Underlay.Management {
		protocol, port, err := config.ParseManagement(text)
		if err != nil {
			return fmt.Errorf("set up the node's firewall: %w", err)
		}
		open = append(open, firewall.Port{Protocol: protocol, Number: port})
	}
	if port, outside := n.Config.Telemetry.Outside(); outside {
		open = append(open, firewall.Port{Protocol: fabric.TCP, Number: port})
	}
	toWorkloads, refused, err := exposed(n.Config.Exposures())
	if err != nil {
		return fmt.Errorf("set up the node's firewall: %w", err)
	}
	n.Report("exposed", refused)
	links := func() []uint16 { return nil }
	var marks func() map[string]uint32
	if n.Links != nil {
		links = n.Links.Ports
		if n.Kind.Has(fabric.KindWorkload) {
			marks = n.Links.marks
		}
	}
	n.Firewall = firewall.New(firewall.Config{
		Underlay: n.Config.Underlay.Interface, Ranges: n.Self.Ranges, Management: open, Engine: n.enginePort, Links: links, Marks: marks,
		Health: []netip.Addr{n.Self.Health4(), n.Self.Health6()}, Published: n.Config.Connections.Limits().PublishedPerSecond,
		DNSPackets: firewall.DNSPacketsPerSecond, Exposed: toWorkloads, Agents: n.Kind.Has(fabric.KindWorkload),
	})
	n.mode, err = newMode(n.Firewall, n.Self.Ranges, filepath.Join(n.Config.DataDir, "firewall.json"), firewall.Mode(n.Config.Firewall.Mode), time.Now())
	return err
}

// serveFirewall answers the calls of `sif node firewall`.
func (n *Node) serveFirewall(ctx context.Context) error {
	return firewallcall.Serve(ctx, n.Config.RunDir, func(r firewallcall.Request) (api.FirewallStatus, error) {
		changed, err := n.mode.change(r, time.Now())
		if changed {
			err = errors.Join(err, n.RepairFirewall())
			n.Log.Info("the mode of the node's firewall was changed on the machine", logkey.Action, r.Action)
		}
		if err != nil {
			return api.FirewallStatus{}, err
		}
		return n.mode.status(time.Now(), 0)
	})
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
	settling := n.mode.settle(time.Now())
	own, err := n.Firewall.Apply()
	admitted, obstacles, admitting := n.Firewall.Admit()
	n.PutBack("firewall", slices.Concat(own, admitted))
	findings := n.mode.findings()
	for _, o := range obstacles {
		findings = append(findings, o.String())
	}
	n.Report("firewall", findings)
	return errors.Join(settling, err, admitting)
}
