// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package nomadjob

import (
	"slices"

	nomadapi "github.com/hashicorp/nomad/api"
)

// StaticPorts returns the ports of its node that a group chooses itself and publishes, in order.
// Ports that Nomad chooses are not among them.
func StaticPorts(group *nomadapi.TaskGroup) []uint16 {
	var ports []uint16
	for _, n := range group.Networks {
		for _, p := range n.ReservedPorts {
			if p.Value > 0 && p.Value <= 65535 {
				ports = append(ports, uint16(p.Value))
			}
		}
	}
	slices.Sort(ports)
	return slices.Compact(ports)
}
