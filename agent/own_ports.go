// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package agent

import (
	"fmt"

	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/internal/config"
	"github.com/sif-project/sif/internal/node/firewall"
	"github.com/sif-project/sif/internal/node/listener"
	"github.com/sif-project/sif/internal/wellknown"
)

// ownPorts knows the ports that the node itself uses. No endpoint gets one of them: a mapping comes
// before the node's own sockets, so it would take from the node what is sent to it.
type ownPorts struct {
	configured []configuredPorts
	sockets    func() ([]listener.Socket, error)
}

// configuredPorts are ports that the node's configuration names.
type configuredPorts struct {
	protocol fabric.Protocol
	ports    fabric.PortRange
	where    string // in the configuration
}

// newOwnPorts returns the ports of a node with the configuration.
func newOwnPorts(c *config.Underlay) (ownPorts, error) {
	own := ownPorts{sockets: listener.All}
	for where, list := range map[string][]string{"underlay.management": c.Management, "underlay.reserved_ports": c.ReservedPorts} {
		for _, text := range list {
			protocol, ports, err := config.ParsePorts(text)
			if err != nil {
				return own, fmt.Errorf("%s: %w", where, err)
			}
			own.configured = append(own.configured, configuredPorts{protocol, ports, where})
		}
	}
	return own, nil
}

// reserved returns an error if the port is the node's whether it listens there now or not.
func (o ownPorts) reserved(m firewall.PortMapping) error {
	port := m.From.Port()
	for _, c := range o.configured {
		if c.protocol == m.Protocol && c.ports.Contains(port) {
			return ownPort(m, "it is in "+c.where)
		}
	}
	if m.Protocol == fabric.UDP && wellknown.FirstLinkPort <= port && port <= wellknown.LastLinkPort {
		return ownPort(m, "it is one of those to which an encrypted link of the node may move")
	}
	return nil
}

// idle returns an error if a process of the node listens on the port.
func (o ownPorts) idle(m firewall.PortMapping) error {
	sockets, err := o.sockets()
	if err != nil {
		return err
	}
	for _, s := range sockets {
		if s.Receives(m.Protocol, m.From) {
			return ownPort(m, s.String())
		}
	}
	return nil
}

func ownPort(m firewall.PortMapping, why string) error {
	return fmt.Errorf("%s port %d is the node's own: %s; ask for another one, and reserve it in Nomad's client configuration (reserved_ports)",
		m.Protocol, m.From.Port(), why)
}
