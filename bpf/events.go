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

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/ringbuf"
	"golang.org/x/sys/unix"
)

// eventPoll is the longest time until an event is read: nobody waits for one, and each look costs a
// wake-up of the process, also when nothing happens. The programs wake the reader only when many
// events are waiting, because a wake-up costs more than the rest of the program.
const eventPoll = 250 * time.Millisecond

const eventOverridden = 1 // EVENT_OVERRIDDEN in headers/maps.h

// readBurst and readEvery bound what the reader costs: it reads at most so many events in that
// time. What finds no room in the ring meanwhile is counted in Counters.LostEvents.
const (
	readBurst = 2000
	readEvery = 100 * time.Millisecond
)

// Event is what the programs recorded of a flow, or of packets that were dropped: that it opened or
// was refused, unless GoesOn or Ended say otherwise.
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

	Flow            uint32    // number of the flow, in all its events; 0: it was refused, or no event tells of its end
	Opened          time.Time // when its first event was
	GoesOn          bool      // there was an event before, and it goes on
	Ended           bool      // there was an event before, and it is over
	Original, Reply Traffic   // in the direction of its first packet, and in the other one
}

// Traffic is what passed in one direction of a flow, or of a refused one what was dropped.
type Traffic struct {
	Packets uint64 // segments that the kernel handles together count one by one
	Bytes   uint64 // from the IP header on, which such segments have once
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
		for read, since := 0, time.Now(); ctx.Err() == nil; {
			if rest := readEvery - time.Since(since); rest <= 0 {
				read, since = 0, time.Now()
			} else if read >= readBurst {
				time.Sleep(rest)
				continue
			}
			reader.SetDeadline(time.Now().Add(eventPoll))
			err := reader.ReadInto(&record)
			if errors.Is(err, os.ErrDeadlineExceeded) {
				continue
			}
			if err != nil {
				return
			}
			read++
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

// Begins reports whether the event is the first of a flow, or of packets that were refused.
func (e Event) Begins() bool { return !e.GoesOn && !e.Ended }

// EndFlows has the programs record what has become of flows and of refused packets. Call it every
// few seconds. What finds no room in the ring is recorded by a later call.
func (d *Datapath) EndFlows() error {
	if d.programs == nil {
		return errors.New("end flows: the data path was opened without programs")
	}
	packet := make([]byte, 14) // the kernel wants one, the program does not
	if _, err := d.programs.SifEndFlows.Run(&ebpf.RunOptions{Data: packet}); err != nil {
		return fmt.Errorf("end flows: %w", err)
	}
	return nil
}

// decode reads a struct record, or the struct event that programs of an earlier version wrote. It
// returns false if raw is too short.
func decode(raw []byte) (Event, bool) {
	var r endpointRecord
	if len(raw) < int(unsafe.Sizeof(r.Event)) {
		return Event{}, false
	}
	copy(unsafe.Slice((*byte)(unsafe.Pointer(&r)), unsafe.Sizeof(r)), raw)
	now, e := time.Now(), r.Event
	event := Event{
		Time:                wallClock(now, e.Time),
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
		Flow:                r.Flow,
		GoesOn:              r.Flags&endpointRecordFlagRECORD_GOES_ON != 0,
		Ended:               r.Flags&endpointRecordFlagRECORD_ENDED != 0,
		Original:            Traffic{r.Original.Packets, r.Original.Bytes},
		Reply:               Traffic{r.Reply.Packets, r.Reply.Bytes},
	}
	event.Opened = event.Time
	if len(raw) < int(unsafe.Sizeof(r)) { // each packet had its own event
		event.Original.Packets = 1
	} else {
		event.Opened = wallClock(now, r.Opened)
		if event.Time.Before(event.Opened) { // its clock is coarse
			event.Time = event.Opened
		}
	}
	return event, true
}

// wallClock converts a time of the kernel's monotonic clock, in ns, to wall-clock time.
func wallClock(now time.Time, monotonic uint64) time.Time {
	var ts unix.Timespec
	if unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts) != nil {
		return now
	}
	return now.Add(time.Duration(int64(monotonic) - ts.Nano()))
}
