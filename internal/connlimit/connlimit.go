// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

// Package connlimit is the one table of the limits of connections, which eBPF and Open vSwitch both
// apply: how long a connection may be idle, how many there may be, how fast new ones may come. It
// knows numbers only, neither data path.
package connlimit

import (
	"fmt"
	"time"
)

// Idle says how long no packet of a connection may pass before the connection is forgotten. Its
// next packet is then judged as if it opened a connection.
type Idle struct {
	TCPOpening     time.Duration // until the first answer
	TCPEstablished time.Duration
	TCPClosing     time.Duration // after the first FIN
	TCPClosed      time.Duration // after the second FIN, or a reset
	UDP            time.Duration
	SCTP           time.Duration // eBPF only: Open vSwitch has a fixed time
	ICMP           time.Duration // between the messages of an exchange
}

// Limits are the limits of a node.
type Limits struct {
	Idle Idle
	// PerEndpoint is the most connections that one endpoint may have, in both directions together.
	PerEndpoint int
	// NewPerSecond is the most connections that may open at one endpoint in a second, in both
	// directions together.
	NewPerSecond int
	// PublishedPerSecond is the most connections that may open at the published ports of the node
	// in a second. The kernel tracks these as well, for 2 min if nothing answers.
	PublishedPerSecond int
	// Switch is the most connections that the switch of a processor tracks.
	Switch int
	// SwitchNewPerSecond is the most connections that one endpoint of a zone may open in a second
	// through the switch of a processor, and ZoneNewPerSecond the most that all of a zone may. 0 is
	// no limit.
	SwitchNewPerSecond, ZoneNewPerSecond int
	// ExitPerEndpoint is the most connections to the outside that one endpoint may have through a
	// processor, and ExitNewPerSecond the most that it may open in a second. The kernel tracks
	// these as well, in one table for all, and has some 64,000 ports for each destination.
	ExitPerEndpoint, ExitNewPerSecond int
}

// Default returns the limits of a node whose configuration has none.
func Default() Limits {
	return Limits{
		Idle: Idle{
			TCPOpening: time.Minute, TCPEstablished: 6 * time.Hour, TCPClosing: 2 * time.Minute, TCPClosed: 10 * time.Second,
			UDP: 3 * time.Minute, SCTP: 3 * time.Minute, ICMP: 30 * time.Second,
		},
		PerEndpoint: 65_536, NewPerSecond: 10_000, PublishedPerSecond: 2_000, Switch: 1_000_000,
		SwitchNewPerSecond: 10_000, ZoneNewPerSecond: 100_000,
		ExitPerEndpoint: 8_192, ExitNewPerSecond: 1_000,
	}
}

// The bounds of each limit.
const (
	minIdle, maxIdle         = time.Second, 30 * 24 * time.Hour
	minEndpoint, maxEndpoint = 16, MaxConnections
	minRate, maxRate         = 1, 1_000_000
	minSwitch, maxSwitch     = 1024, 16_000_000
)

// MaxConnections is the number of connections for which a node's table has room.
const MaxConnections = 524_288

// CheckIdle returns an error if a connection cannot be idle for that time.
func CheckIdle(d time.Duration) error {
	if d < minIdle || d > maxIdle {
		return fmt.Errorf("%s is outside %s to %s", d, minIdle, maxIdle)
	}
	return nil
}

// CheckPerEndpoint returns an error if n cannot be Limits.PerEndpoint.
func CheckPerEndpoint(n int) error { return within(n, minEndpoint, maxEndpoint) }

// CheckNewPerSecond returns an error if n cannot be Limits.NewPerSecond or PublishedPerSecond.
func CheckNewPerSecond(n int) error { return within(n, minRate, maxRate) }

// CheckMetered returns an error if n cannot be Limits.SwitchNewPerSecond or ZoneNewPerSecond.
func CheckMetered(n int) error { return within(n, 0, maxRate) }

// CheckSwitch returns an error if n cannot be Limits.Switch.
func CheckSwitch(n int) error { return within(n, minSwitch, maxSwitch) }

func within(n, least, most int) error {
	if n < least || n > most {
		return fmt.Errorf("%d is outside %d to %d", n, least, most)
	}
	return nil
}
