// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package agent

import (
	"context"
	"fmt"
	"net/netip"

	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/internal/node/firewall"
)

// portsHook maps ports of the node to the endpoint's.
type portsHook struct{ *Agent }

func (portsHook) name() string { return "ports" }

func (h portsHook) attach(context.Context, *attachment) error { return h.setPorts() }

func (h portsHook) detach(context.Context, *detachment) error { return h.setPorts() }

// setPorts makes the node's port mappings those of its endpoints.
func (a *Agent) setPorts() error {
	var list []firewall.PortMapping
	for _, ep := range a.endpoints.all() {
		for _, p := range ep.Ports {
			protocol, err := fabric.ParseProtocol(p.Protocol)
			if err != nil {
				return fmt.Errorf("port mapping of endpoint %s: %w", ep.ID, err)
			}
			m := firewall.PortMapping{Protocol: protocol, HostPort: p.HostPort, To: netip.AddrPortFrom(ep.IPv4, p.ContainerPort)}
			if p.HostIP != "" {
				if m.HostIP, err = netip.ParseAddr(p.HostIP); err != nil {
					return fmt.Errorf("port mapping of endpoint %s: %w", ep.ID, err)
				}
			}
			list = append(list, m)
		}
	}
	return a.firewall.SetPorts(list)
}
