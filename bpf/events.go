// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package bpf

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"time"
	"unsafe"

	"github.com/cilium/ebpf/ringbuf"
	"golang.org/x/sys/unix"
)

// eventPoll is how long an event may lie before it is read. The programs wake the reader
// only when many wait, because a wake-up costs them more than all the rest.
const eventPoll = 20 * time.Millisecond

const eventOverridden = 1 // EVENT_OVERRIDDEN in headers/maps.h

// Event is a dropped packet, or an allowed one that opened a flow: with Options.FlowEvents
// any, else only one in the name of a contract with AuditContract.
type Event struct {
	Time                time.Time
	Interface           uint32 // the endpoint's
	Direction           Direction
	Reason              Reason
	Overridden          bool           // it passed only because everything was to pass
	Source, Destination netip.AddrPort // of ICMP, Destination's port is the type; no address: not IP
	Protocol            uint8
	SourceIdentity      uint32 // 0: not known, or not looked up for this verdict
	DestinationIdentity uint32
	Contract            uint32 // 0: none
}

// Events delivers events until ctx ends, then closes the channel. Each event goes to one reader only: let one process, and in it one caller, read.
func (d *Datapath) Events(ctx context.Context) (<-chan Event, error) {
	reader, err := ringbuf.NewReader(d.objects.SifEvents)
	if err != nil {
		return nil, fmt.Errorf("read ring sif_events: %w", err)
	}
	events := make(chan Event, 256)
	go func() {
		defer close(events)
		defer reader.Close()
		var record ringbuf.Record
		for ctx.Err() == nil {
			reader.SetDeadline(time.Now().Add(eventPoll))
			err := reader.ReadInto(&record)
			if errors.Is(err, os.ErrDeadlineExceeded) {
				continue
			}
			if err != nil {
				return
			}
			event, ok := decode(record.RawSample)
			if !ok {
				continue
			}
			select {
			case events <- event:
			case <-ctx.Done():
			}
		}
	}()
	return events, nil
}

// decode reads a `struct event`. Returns false if it is too short to be one.
func decode(raw []byte) (Event, bool) {
	var e endpointEvent
	if len(raw) < int(unsafe.Sizeof(e)) {
		return Event{}, false
	}
	copy(unsafe.Slice((*byte)(unsafe.Pointer(&e)), unsafe.Sizeof(e)), raw)
	return Event{
		Time:                wallClock(e.Time),
		Interface:           e.Ifindex,
		Direction:           Direction(e.Direction),
		Reason:              Reason(e.Reason),
		Overridden:          e.Flags&eventOverridden != 0,
		Source:              netip.AddrPortFrom(fromMap(e.Source), e.SourcePort),
		Destination:         netip.AddrPortFrom(fromMap(e.Destination), e.DestinationPort),
		Protocol:            e.Protocol,
		SourceIdentity:      e.SourceIdentity,
		DestinationIdentity: e.DestinationIdentity,
		Contract:            e.Contract,
	}, true
}

// wallClock turns a time of the kernel's monotonic clock, in ns, into one of the calendar.
func wallClock(monotonic uint64) time.Time {
	var ts unix.Timespec
	now := time.Now()
	if unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts) != nil {
		return now
	}
	return now.Add(time.Duration(int64(monotonic) - ts.Nano()))
}
