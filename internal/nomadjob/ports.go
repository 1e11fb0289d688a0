// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package nomadjob

import (
	"cmp"
	"regexp"
	"slices"
	"strings"

	nomadapi "github.com/hashicorp/nomad/api"

	"github.com/sif-project/sif/fabric"
)

// portName matches what can be the name of a port in DNS, behind an underscore: DNS ignores case,
// and Nomad's labels may have underscores.
var portName = regexp.MustCompile(`^[a-z0-9_]([a-z0-9_-]{0,60}[a-z0-9_])?$`)

// offer adds the port behind a label, or a number, under a name.
func (d *describer) offer(name, label string) {
	name = strings.ToLower(name)
	if port, known := d.portInside(label); known && port != 0 && portName.MatchString(name) {
		d.Ports = append(d.Ports, fabric.NamedPort{Name: name, Port: port})
	}
}

// name adds the ports of the group's network under their labels, and puts all in order.
func (d *describer) name() {
	for _, p := range portsOf(d.group) {
		d.offer(p.Label, p.Label)
	}
	slices.SortFunc(d.Ports, func(a, b fabric.NamedPort) int {
		return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.Port, b.Port))
	})
	d.Ports = slices.Compact(d.Ports)
	d.Ports = d.Ports[:min(len(d.Ports), maxPorts)]
}

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
