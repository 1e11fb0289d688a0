// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package bpf

import (
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// Connection is an entry of the connection table, as seen by one endpoint. A flow between two
// endpoints of the same node has two entries.
type Connection struct {
	Interface      uint32         // the endpoint's
	Local, Remote  netip.AddrPort // for ICMP echo, the requesting side's port is the identifier
	Protocol       uint8
	Outbound       bool   // the workload opened it
	Host           bool   // the other side is a socket of this node
	Answered       bool   // the other side has sent a packet
	Contract       uint32 // 0 if no contract is needed
	Exit           uint32 // mark of its packets to an external; 0: none
	Way            uint32 // mark of its packets to a peer that is reached by ways; 0: none
	LocalIdentity  uint32
	RemoteIdentity uint32
	Generation     uint64        // in which it was last evaluated and allowed
	Idle           time.Duration // time since its last packet, accurate to about a second
}

// Connections returns the connection table. It includes expired entries, which the programs ignore.
func (d *Datapath) Connections() ([]Connection, error) {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC_COARSE, &ts); err != nil {
		return nil, fmt.Errorf("read the clock: %w", err)
	}
	entries, err := dump[endpointConnKey, endpointConn](d.objects.SifConns, "sif_conns")
	var all []Connection
	for _, e := range entries {
		exit, way := uint32(0), e.value.Mark
		if e.value.Flags&endpointConnFlagCONN_OUTSIDE != 0 {
			exit, way = way, 0
		}
		all = append(all, Connection{
			Interface:      e.key.Ifindex,
			Local:          netip.AddrPortFrom(fromMap(e.key.Local), e.key.LocalPort),
			Remote:         netip.AddrPortFrom(fromMap(e.key.Remote), e.key.RemotePort),
			Protocol:       e.key.Protocol,
			Outbound:       e.value.Flags&endpointConnFlagCONN_OUTBOUND != 0,
			Host:           e.value.Flags&endpointConnFlagCONN_HOST != 0,
			Answered:       e.value.State&endpointConnStateCONN_ANSWERED != 0,
			Contract:       e.value.Contract &^ nodeExit,
			Exit:           exit,
			Way:            way,
			LocalIdentity:  e.value.LocalIdentity,
			RemoteIdentity: e.value.RemoteIdentity,
			Generation:     e.value.Generation,
			Idle:           max(0, time.Duration(ts.Nano()-int64(e.value.Seen))),
		})
	}
	return all, err
}

// SweepConnections deletes the connections that have been idle for longer than their limit. The
// programs ignore them, but they take room and count for their endpoint.
func (d *Datapath) SweepConnections() error {
	if d.programs == nil {
		return errors.New("delete idle connections: the data path was opened without programs")
	}
	packet := make([]byte, 14) // the kernel wants one, the program does not
	if _, err := d.programs.SifSweep.Run(&ebpf.RunOptions{Data: packet}); err != nil {
		return fmt.Errorf("delete idle connections: %w", err)
	}
	return nil
}

func (d *Datapath) forgetConnections(ifindex uint32) error {
	entries, err := dump[endpointConnKey, endpointConn](d.objects.SifConns, "sif_conns")
	if err != nil {
		return err
	}
	for _, e := range entries {
		if e.key.Ifindex != ifindex {
			continue
		}
		if _, err := remove(d.objects.SifConns, "sif_conns", e.key); err != nil {
			return err
		}
	}
	_, err = remove(d.objects.SifUsage, "sif_usage", ifindex)
	return err
}
