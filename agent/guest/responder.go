// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package guest

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
	"golang.org/x/time/rate"

	"github.com/sif-project/sif/agent/wire"
)

// How many questions of a guest are answered, each second and at once. The others are dropped.
// After one too many, none is read for a while, so that a guest cannot keep processors busy.
const (
	perSecond = 20
	atOnce    = 40
	pause     = time.Second / perSecond
)

// receiveBuffer bounds the questions that wait, in bytes. The kernel drops the others.
const receiveBuffer = 64 << 10

// Told is what a guest was told by a Responder.
type Told struct {
	Asked    time.Time // when it last asked for anything; zero: never
	IPv4     time.Time // when it last got or renewed its address; zero: never
	IPv6     time.Time // likewise
	Declined time.Time // when it last said that another has its address
	Mistaken uint64    // questions for an address that is not the guest's
	Limited  uint64    // questions that were not answered, because there were too many
}

// Responder answers one guest. The socket keeps the network namespace alive: who opens a Responder
// must close it when nothing else is left of the namespace.
type Responder struct {
	config Config
	index  int
	socket *os.File
	ended  chan struct{}

	mu   sync.Mutex
	told Told
	err  error // why it ended
}

// Open opens a packet socket on an interface of the network namespace of the calling thread, and
// answers the guest behind it until Close, whenever the interface is up.
func Open(ifName string, c Config) (*Responder, error) {
	socket, index, err := wire.Open(ifName, "questions", unix.SOCK_RAW, questions(), func(fd int) error {
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, receiveBuffer); err != nil {
			return fmt.Errorf("set the buffer of the packet socket: %w", err)
		}
		if err := unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_IGNORE_OUTGOING, 1); err != nil {
			return fmt.Errorf("leave out what goes to the guest: %w", err)
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("answer the guest: %w", err)
	}
	r := &Responder{config: c, index: index, socket: socket, ended: make(chan struct{})}
	go r.serve()
	go r.advertise()
	return r, nil
}

// questions accepts what answer may answer: DHCPv4, DHCPv6 and router solicitations, without IPv6
// extension headers.
func questions() []bpf.Instruction {
	const ethertype, protocol4, protocol6 = 12, ethernetLength + 9, ethernetLength + 6
	const fragment, header6 = ethernetLength + 6, ethernetLength + ipv6Length
	return []bpf.Instruction{
		bpf.LoadAbsolute{Off: ethertype, Size: 2},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: etherIPv6, SkipTrue: 8},
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: etherIPv4, SkipTrue: 14},
		bpf.LoadAbsolute{Off: protocol4, Size: 1},
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: protocolUDP, SkipTrue: 12},
		bpf.LoadAbsolute{Off: fragment, Size: 2},
		bpf.JumpIf{Cond: bpf.JumpBitsSet, Val: 0x3fff, SkipTrue: 10},
		bpf.LoadMemShift{Off: ethernetLength},
		bpf.LoadIndirect{Off: ethernetLength + 2, Size: 2},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: dhcp4Server, SkipTrue: 8, SkipFalse: 7},
		bpf.LoadAbsolute{Off: protocol6, Size: 1},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: protocolICMPv6, SkipTrue: 3},
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: protocolUDP, SkipTrue: 4},
		bpf.LoadAbsolute{Off: header6 + 2, Size: 2},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: dhcp6Server, SkipTrue: 3, SkipFalse: 2},
		bpf.LoadAbsolute{Off: header6, Size: 1},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: solicitation, SkipTrue: 1},
		bpf.RetConstant{Val: 0},
		bpf.RetConstant{Val: maxFrame},
	}
}

// maxFrame bounds a question, in bytes.
const maxFrame = 2048

func (r *Responder) serve() {
	defer close(r.ended)
	limit := rate.NewLimiter(perSecond, atOnce)
	b := make([]byte, maxFrame)
	for {
		n, err := r.socket.Read(b)
		if errors.Is(err, unix.ENETDOWN) {
			continue // once; the socket goes on when the interface is up again
		}
		if err != nil {
			r.mu.Lock()
			r.err = err
			r.mu.Unlock()
			r.socket.Close()
			return
		}
		if !limit.Allow() {
			r.mu.Lock()
			r.told.Limited += 1 + r.overflowed()
			r.mu.Unlock()
			time.Sleep(pause)
			continue
		}
		answer, event := r.config.answer(b[:n])
		r.note(event)
		if answer != nil {
			_, _ = r.socket.Write(answer) // it may not fit into the guest's queue: the guest asks again
		}
	}
}

// overflowed returns how many questions the kernel has dropped since it was called last.
func (r *Responder) overflowed() (n uint64) {
	raw, err := r.socket.SyscallConn()
	if err != nil {
		return 0 // it is closed
	}
	_ = raw.Control(func(fd uintptr) {
		if stats, err := unix.GetsockoptTpacketStats(int(fd), unix.SOL_PACKET, unix.PACKET_STATISTICS); err == nil {
			n = uint64(stats.Drops)
		}
	})
	return n
}

// note remembers what is answered.
func (r *Responder) note(e Event) {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := time.Now()
	switch e {
	case Nothing:
		return
	case Confirmed4:
		r.told.IPv4 = now
	case Confirmed6:
		r.told.IPv6 = now
	case Declined:
		r.told.Declined = now
	case Mistaken:
		r.told.Mistaken++
	}
	r.told.Asked = now
}

// advertise sends router advertisements that nobody asked for.
func (r *Responder) advertise() {
	tick := time.NewTicker(advertising)
	defer tick.Stop()
	for {
		_, _ = r.socket.Write(r.config.advertisement(allNodes, allNodesMAC)) // there may be no guest yet
		select {
		case <-r.ended:
			return
		case <-tick.C:
		}
	}
}

// Config returns what the guest is told.
func (r *Responder) Config() Config { return r.config }

// Index returns the index of the interface.
func (r *Responder) Index() int { return r.index }

// Told returns what the guest was told since Open.
func (r *Responder) Told() Told {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.told
}

// Ended reports whether the responder answers no more.
func (r *Responder) Ended() bool {
	select {
	case <-r.ended:
		return true
	default:
		return false
	}
}

// Close ends the responder, and returns why it had ended before, if it had.
func (r *Responder) Close() error {
	ended := r.Ended()
	r.socket.Close()
	<-r.ended
	r.mu.Lock()
	defer r.mu.Unlock()
	if !ended || errors.Is(r.err, os.ErrClosed) {
		return nil
	}
	return r.err
}
