// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package openflow

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
)

// MeterConfig is a meter, which drops the packets that come too fast of those that it is shown.
type MeterConfig struct {
	// ID is from 1 to the number of meters that the switch offers.
	ID uint32
	// PerSecond is how many packets pass in a second, Burst how many pass at once after a pause.
	PerSecond, Burst uint32
	// Foreign says that the meter has flags or bands that this package never sets.
	Foreign bool
}

func (m MeterConfig) String() string {
	return fmt.Sprintf("meter %d: %d packets a second, %d at once", m.ID, m.PerSecond, m.Burst)
}

// MeterMod is a change of a meter.
type MeterMod struct {
	command uint16
	meter   MeterConfig
}

const (
	meterAdd    = 0
	meterModify = 1
	meterDelete = 2

	// meterFlags are packets per second, burst, statistics.
	meterFlags = 1<<1 | 1<<2 | 1<<3

	bandDrop = 1
	bandLen  = 16
	allMeter = 0xffffffff
	// maxMeter is the greatest ID of a real meter. Above it are those of the switch's own use.
	maxMeter = 0xffff0000
)

// AddMeter makes a meter, whose ID no other one may have.
func AddMeter(m MeterConfig) MeterMod { return MeterMod{meterAdd, m} }

// ChangeMeter changes a meter that exists.
func ChangeMeter(m MeterConfig) MeterMod { return MeterMod{meterModify, m} }

// DeleteMeter removes a meter, if it exists, and the flows that use it.
func DeleteMeter(id uint32) MeterMod { return MeterMod{meterDelete, MeterConfig{ID: id}} }

func (m MeterMod) String() string {
	return [...]string{"add ", "change ", "delete "}[m.command] + m.meter.String()
}

func (m MeterMod) size() int { return headerLen + 8 + bandLen }

// append appends an OFPT_METER_MOD message.
func (m MeterMod) append(b []byte, xid uint32) ([]byte, error) {
	start := len(b)
	b = beginMessage(b, typeMeterMod, xid)
	b = binary.BigEndian.AppendUint16(b, m.command)
	if m.command == meterDelete {
		b = append(b, 0, 0)
		b = binary.BigEndian.AppendUint32(b, m.meter.ID)
		return endMessage(b, start)
	}
	return endMessage(m.meter.append(b), start)
}

// append appends what changes and descriptions of meters have in common, from the flags on.
func (m MeterConfig) append(b []byte) []byte {
	b = binary.BigEndian.AppendUint16(b, meterFlags)
	b = binary.BigEndian.AppendUint32(b, m.ID)
	b = binary.BigEndian.AppendUint16(b, bandDrop)
	b = binary.BigEndian.AppendUint16(b, bandLen)
	b = binary.BigEndian.AppendUint32(b, m.PerSecond)
	b = binary.BigEndian.AppendUint32(b, m.Burst)
	return append(b, 0, 0, 0, 0)
}

// parseMeters reads the body of one OFPMP_METER_CONFIG reply. It leaves out what is no real meter.
func parseMeters(b []byte) (meters []MeterConfig, err error) {
	for len(b) > 0 {
		if len(b) < 8 {
			return nil, fmt.Errorf("description of a meter is cut off at %d bytes", len(b))
		}
		n := int(binary.BigEndian.Uint16(b))
		if n < 8 || n > len(b) {
			return nil, fmt.Errorf("description of a meter of %d bytes does not fit into %d", n, len(b))
		}
		m := MeterConfig{ID: binary.BigEndian.Uint32(b[4:])}
		bands := b[8:n]
		m.Foreign = binary.BigEndian.Uint16(b[2:]) != meterFlags || len(bands) != bandLen
		if len(bands) >= bandLen {
			m.Foreign = m.Foreign || binary.BigEndian.Uint16(bands) != bandDrop
			m.PerSecond, m.Burst = binary.BigEndian.Uint32(bands[4:]), binary.BigEndian.Uint32(bands[8:])
		}
		if m.ID <= maxMeter {
			meters = append(meters, m)
		}
		b = b[n:]
	}
	return meters, nil
}

const (
	meterStatsLen = 40
	bandStatsLen  = 16
)

// parseMeterDrops reads the body of one OFPMP_METER reply: how many packets each meter dropped.
func parseMeterDrops(b []byte, into map[uint32]uint64) error {
	for len(b) > 0 {
		if len(b) < meterStatsLen {
			return fmt.Errorf("statistics of a meter are cut off at %d bytes", len(b))
		}
		n := int(binary.BigEndian.Uint16(b[4:]))
		if n < meterStatsLen || n > len(b) || (n-meterStatsLen)%bandStatsLen != 0 {
			return fmt.Errorf("statistics of a meter of %d bytes do not fit into %d", n, len(b))
		}
		if id := binary.BigEndian.Uint32(b); id <= maxMeter {
			for band := b[meterStatsLen:n]; len(band) > 0; band = band[bandStatsLen:] {
				into[id] += binary.BigEndian.Uint64(band)
			}
		}
		b = b[n:]
	}
	return nil
}

// SetMeters makes changes in order, each for itself: refused has those that the switch refused, by
// ID. It returns when the meters are in force.
func (c *Conn) SetMeters(ctx context.Context, mods ...MeterMod) (refused map[uint32]error, err error) {
	messages, err := encode(mods)
	if err != nil || len(mods) == 0 {
		return nil, err
	}
	refused = map[uint32]error{}
	err = c.exchange(ctx, len(mods)+1, func(w *bufio.Writer, first uint32) error {
		return writeAll(w, messages, first)
	}, func(m message, first uint32) (bool, error) {
		if m.kind == typeBarrierRep {
			return true, nil
		}
		err := refusalOf(m, mods, first)
		if i := m.xid - first; i < uint32(len(mods)) && errors.As(err, new(*Error)) {
			refused[mods[i].meter.ID] = err
			return false, nil
		}
		return false, err
	})
	return refused, err
}

const (
	multipartMeter         = 9
	multipartMeterConfig   = 10
	multipartMeterFeatures = 11
)

// everyMeter is the body of a request about all meters.
func everyMeter() []byte {
	return append(binary.BigEndian.AppendUint32(nil, allMeter), 0, 0, 0, 0)
}

// Meters returns the bridge's meters.
func (c *Conn) Meters(ctx context.Context) (meters []MeterConfig, err error) {
	err = c.multipart(ctx, multipartMeterConfig, everyMeter(), func(b []byte) error {
		more, err := parseMeters(b)
		meters = append(meters, more...)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("list meters: %w", err)
	}
	return meters, nil
}

// MeterDrops returns how many packets each meter has dropped.
func (c *Conn) MeterDrops(ctx context.Context) (map[uint32]uint64, error) {
	drops := map[uint32]uint64{}
	err := c.multipart(ctx, multipartMeter, everyMeter(), func(b []byte) error { return parseMeterDrops(b, drops) })
	if err != nil {
		return nil, fmt.Errorf("read the counters of meters: %w", err)
	}
	return drops, nil
}

// MostMeters returns how many meters the switch offers, which is the greatest ID that one can have.
// It is 0 if the datapath has none.
func (c *Conn) MostMeters(ctx context.Context) (most uint32, err error) {
	err = c.multipart(ctx, multipartMeterFeatures, nil, func(b []byte) error {
		if len(b) < 4 {
			return fmt.Errorf("features of meters are cut off at %d bytes", len(b))
		}
		most = min(binary.BigEndian.Uint32(b), maxMeter)
		return nil
	})
	if err != nil {
		return 0, fmt.Errorf("ask how many meters the switch offers: %w", err)
	}
	return most, nil
}
