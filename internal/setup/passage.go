// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package setup

import (
	"fmt"
	"net"
	"net/url"

	"github.com/sif-project/sif/internal/join"
	"github.com/sif-project/sif/internal/wellknown"
)

// Passage is what the firewalls of a cloud must let pass to a kind of node or server.
type Passage struct {
	To       string `json:"to"`
	From     string `json:"from"`
	Protocol string `json:"protocol"`
	Ports    string `json:"ports"`
	For      string `json:"for"`
}

// Passages lists what must pass, with the default ports of the daemons. Consul's and Nomad's own
// ports are not in it.
func Passages(s join.Settings) []Passage {
	links := fmt.Sprintf("%d-%d", wellknown.FirstLinkPort, wellknown.LastLinkPort)
	list := []Passage{
		{string(join.Controller), "processor, workload, operators", "tcp", wellknown.ControllerPort, "the controller's API"},
		{string(join.Processor), "workload", "tcp", wellknown.EnginePort, "requests of connectivity, from its zone"},
		{string(join.Processor), "processor, workload", "udp", links, "WireGuard, with Open vSwitch: workload nodes of its zone, processors of all zones"},
		{string(join.Workload), "processor, workload", "udp", links, "WireGuard: nodes of its zone"},
	}
	server := func(name, from, address, what string) {
		u, err := url.Parse(address)
		if err != nil || u.Host == "" {
			return
		}
		port := u.Port()
		if port == "" {
			port = "443"
		}
		list = append(list, Passage{name + " (" + net.JoinHostPort(u.Hostname(), port) + ")", from, "tcp", port, what})
	}
	server("Vault", "controller, processor, workload, Consul's and Nomad's servers", s.Vault.Address, "identities, and the keys of their tokens")
	server("Nomad", "controller", s.Nomad.Address, "which allocation is where, and how its tasks are")
	return list
}
