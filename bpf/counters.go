// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package bpf

import (
	"fmt"

	"github.com/cilium/ebpf"
)

// Count is the number of packets with a verdict since the maps were created.
type Count struct {
	Direction  Direction
	Reason     Reason
	Interface  uint32 // 0: all endpoints
	Packets    uint64
	Overridden uint64 // of these, passed because of PassAll
}

// Counters are the counters of the programs.
type Counters struct {
	Verdicts   []Count // by direction and reason; without zeros
	Drops      []Count // by interface, direction and reason; drops only
	Refusals   Refusals
	LostEvents uint64 // dropped because the ring was full
	Unrecorded []Unrecorded
	Generation uint64 // in force
}

// Unrecorded counts what caused no event, because there were too many of an endpoint.
type Unrecorded struct {
	Interface uint32
	Refused   uint64 // packets
	Opened    uint64 // flows
}

// Refusals counts what endpoints with Endpoint.Reject were told of packets that were dropped.
type Refusals struct {
	Resets     uint64 // TCP resets
	Prohibited uint64 // ICMP and ICMPv6 errors
	Limited    uint64 // nothing, because the endpoint was told of too many
}

// Verdict returns the number of packets with one direction and reason.
func (c Counters) Verdict(dir Direction, why Reason) uint64 {
	for _, v := range c.Verdicts {
		if v.Direction == dir && v.Reason == why {
			return v.Packets
		}
	}
	return 0
}

// Counters returns the counters, summed over all CPUs.
func (d *Datapath) Counters() (Counters, error) {
	var c Counters
	for _, dir := range []Direction{FromWorkload, ToWorkload} {
		for why := AllowedContract; why < reasonCount; why++ {
			var perCPU []endpointVerdictCount
			if err := d.objects.SifVerdicts.Lookup(uint32(dir)*64+uint32(why), &perCPU); err != nil {
				return c, fmt.Errorf("read map sif_verdicts: %w", err)
			}
			if n := sum(perCPU); n.Packets > 0 {
				c.Verdicts = append(c.Verdicts, Count{Direction: dir, Reason: why, Packets: n.Packets, Overridden: n.Overridden})
			}
		}
	}
	err := d.eachDrop(func(k endpointDropKey, n endpointVerdictCount) {
		c.Drops = append(c.Drops, Count{Direction: Direction(k.Direction), Reason: Reason(k.Reason),
			Interface: k.Ifindex, Packets: n.Packets, Overridden: n.Overridden})
	})
	if err != nil {
		return c, err
	}
	for _, n := range []struct {
		m    *ebpf.Map
		name string
		key  uint32
		sum  *uint64
	}{
		{d.objects.SifLost, "sif_lost", 0, &c.LostEvents},
		{d.objects.SifRefusals, "sif_refusals", uint32(endpointRefusalREFUSAL_RESET), &c.Refusals.Resets},
		{d.objects.SifRefusals, "sif_refusals", uint32(endpointRefusalREFUSAL_PROHIBITED), &c.Refusals.Prohibited},
		{d.objects.SifRefusals, "sif_refusals", uint32(endpointRefusalREFUSAL_LIMITED), &c.Refusals.Limited},
	} {
		var perCPU []uint64
		if err := n.m.Lookup(n.key, &perCPU); err != nil {
			return c, fmt.Errorf("read map %s: %w", n.name, err)
		}
		for _, x := range perCPU {
			*n.sum += x
		}
	}
	if c.Unrecorded, err = d.unrecorded(); err != nil {
		return c, err
	}
	var cfg endpointConfig
	if err := d.objects.SifConfig.Lookup(uint32(0), &cfg); err != nil {
		return c, fmt.Errorf("read map sif_config: %w", err)
	}
	c.Generation = cfg.Generation
	return c, nil
}

func (d *Datapath) unrecorded() (list []Unrecorded, err error) {
	var ifindex uint32
	var perCPU []endpointUnrecorded
	entries := d.objects.SifUnrecorded.Iterate()
	for entries.Next(&ifindex, &perCPU) {
		u := Unrecorded{Interface: ifindex}
		for _, n := range perCPU {
			u.Refused += n.Refused
			u.Opened += n.Opened
		}
		list = append(list, u)
	}
	if err := entries.Err(); err != nil {
		return nil, fmt.Errorf("read map sif_unrecorded: %w", err)
	}
	return list, nil
}

// forgetRecords forgets how much of an endpoint is recorded.
func (d *Datapath) forgetRecords(ifindex uint32) error {
	if _, err := remove(d.objects.SifMeters, "sif_meters", ifindex); err != nil {
		return err
	}
	_, err := remove(d.objects.SifUnrecorded, "sif_unrecorded", ifindex)
	return err
}

func sum(perCPU []endpointVerdictCount) (n endpointVerdictCount) {
	for _, x := range perCPU {
		n.Packets += x.Packets
		n.Overridden += x.Overridden
	}
	return n
}

func (d *Datapath) eachDrop(f func(endpointDropKey, endpointVerdictCount)) error {
	var key endpointDropKey
	var perCPU []endpointVerdictCount
	entries := d.objects.SifDrops.Iterate()
	for entries.Next(&key, &perCPU) {
		f(key, sum(perCPU))
	}
	if err := entries.Err(); err != nil {
		return fmt.Errorf("read map sif_drops: %w", err)
	}
	return nil
}

func (d *Datapath) forgetDrops(ifindex uint32) error {
	var gone []endpointDropKey
	err := d.eachDrop(func(k endpointDropKey, _ endpointVerdictCount) {
		if k.Ifindex == ifindex {
			gone = append(gone, k)
		}
	})
	if err != nil {
		return err
	}
	for _, k := range gone {
		if _, err := remove(d.objects.SifDrops, "sif_drops", k); err != nil {
			return err
		}
	}
	return nil
}
