// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package api

import (
	"net/netip"
	"time"

	"github.com/sif-project/sif/fabric"
)

// FirewallStatus is the state of a node's own firewall towards the underlay.
type FirewallStatus struct {
	// Mode is "enforce" if ports of the node that are not open are closed to the underlay, and
	// "report" if what comes to them is only counted.
	Mode string `json:"mode"`
	// Until is when the mode goes back to "report" unless it is confirmed; zero: never.
	Until time.Time `json:"until,omitzero"`
	// Ports are those on which a process listens for the underlay, and closed ones to which packets
	// came within a day.
	Ports []FirewallPort `json:"ports,omitempty"`
	// Forwarded is the number of packets that the node routed between others in mode "report", and
	// would have dropped in mode "enforce".
	Forwarded uint64 `json:"forwarded,omitempty"`
}

// FirewallPort is a port of a node.
type FirewallPort struct {
	Protocol fabric.Protocol `json:"protocol"`
	Port     uint16          `json:"port"`
	Open     bool            `json:"open"`              // to the underlay, in every mode
	Address  netip.Addr      `json:"address,omitzero"`  // where a process listens; zero: none does
	Process  string          `json:"process,omitempty"` // its name; empty: the kernel's, or unknown
	PID      int             `json:"pid,omitempty"`
	Unit     string          `json:"unit,omitempty"`    // of systemd
	Packets  uint64          `json:"packets,omitempty"` // that came to a closed port and opened something
}
