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

// eventPoll is the longest time until an event is read: nobody waits for one, and each look costs a
// wake-up of the process, also when nothing happens. The programs wake the reader only when many
// events are waiting, because a wake-up costs more than the rest of the program.
const eventPoll = 250 * time.Millisecond

const eventOverridden = 1 // EVENT_OVERRIDDEN in headers/maps.h

// Event is a dropped packet, or an allowed packet that opened a flow: of any flow with
// Options.FlowEvents, else only of a flow whose contract has AuditContract.
type Event struct {
	Time                time.Time
	Interface           uint32 // the endpoint's
	Direction           Direction
	Reason              Reason
	Overridden          bool           // it passed because of PassAll
	Source, Destination netip.AddrPort // for ICMP, Destination's port is the type; invalid address: not an IP packet
	Protocol            uint8
	SourceIdentity      uint32 // 0: unknown, or not needed for this verdict
	DestinationIdentity uint32
	Contract            uint32 // 0: none
}

// Events delivers events until ctx ends, then closes the channel. Each event is delivered once:
// only one process, and one caller in it, should read.
func (d *Datapath) Events(ctx context.Context) (<-chan Event, error) {
	reader, err := ringbuf.NewReader(d.objects.SifEvents)
	if err != nil {
		return nil, fmt.Errorf("open the ring buffer sif_events: %w", err)
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

// decode reads a struct event. It returns false if raw is too short.
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
		Contract:            e.Contract &^ nodeExit,
	}, true
}

// wallClock converts a time of the kernel's monotonic clock, in ns, to wall-clock time.
func wallClock(monotonic uint64) time.Time {
	var ts unix.Timespec
	now := time.Now()
	if unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts) != nil {
		return now
	}
	return now.Add(time.Duration(int64(monotonic) - ts.Nano()))
}
