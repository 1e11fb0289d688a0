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
	for _, text := range c.Management {
		protocol, port, err := config.ParseManagement(text)
		if err != nil {
			return own, fmt.Errorf("underlay.management: %w", err)
		}
		if port != 0 { // else it is a protocol without ports
			own.configured = append(own.configured, configuredPorts{protocol, fabric.PortRange{From: port, To: port}, "underlay.management"})
		}
	}
	for _, text := range c.ReservedPorts {
		protocol, ports, err := config.ParsePorts(text)
		if err != nil {
			return own, fmt.Errorf("underlay.reserved_ports: %w", err)
		}
		own.configured = append(own.configured, configuredPorts{protocol, ports, "underlay.reserved_ports"})
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
