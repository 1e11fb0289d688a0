// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package probe

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"sync"
	"time"

	"github.com/containernetworking/plugins/pkg/ns"
	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"

	"github.com/sif-project/sif/agent/wire"
	"github.com/sif-project/sif/fabric"
)

// idle is how long an unused observer stays open, because more probes to the same endpoint often
// follow. It is short because the observer's socket keeps the namespace alive.
const idle = 3 * time.Second

// Observation is a captured probe.
type Observation struct {
	Src, Dst netip.AddrPort
	Protocol fabric.Protocol
	At       time.Time
}

// Observers captures probes with one socket per endpoint, however many probes are expected there.
// The zero Observers is ready to use. It is safe for concurrent use.
type Observers struct {
	mu   sync.Mutex
	open map[string]*observer // by key
}

// Expect captures a probe to dst with the nonce on interface ifName of a namespace. Packets that
// arrive after it returns are not missed. The channel receives the first such packet; it is closed
// without one if the interface is removed. The caller must call cancel when it no longer waits.
//
// key names the endpoint. If the endpoint has no observer yet, Expect calls namespace to open its
// namespace, and closes it.
func (o *Observers) Expect(key string, namespace func() (ns.NetNS, error), ifName string, dst netip.AddrPort, protocol fabric.Protocol, nonce uint64) (seen <-chan Observation, cancel func(), err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	ob := o.open[key]
	if ob == nil {
		if ob, err = o.start(key, namespace, ifName); err != nil {
			return nil, nil, fmt.Errorf("watch for probes at endpoint %s: %w", key, err)
		}
	}
	e := expectation{dst, protocol, nonce}
	if ob.waiting[e] != nil {
		return nil, nil, fmt.Errorf("watch for probes at endpoint %s: nonce %d is expected already", key, nonce)
	}
	if ob.timer != nil {
		ob.timer.Stop()
		ob.timer = nil
	}
	c := make(chan Observation, 1)
	ob.waiting[e] = c
	ob.users++
	return c, sync.OnceFunc(func() { o.release(key, ob, e) }), nil
}

// Close closes all observers.
func (o *Observers) Close() {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, ob := range o.open {
		ob.socket.Close()
	}
}

func (o *Observers) release(key string, ob *observer, e expectation) {
	o.mu.Lock()
	defer o.mu.Unlock()
	delete(ob.waiting, e)
	if ob.users--; ob.users > 0 || o.open[key] != ob {
		return
	}
	ob.timer = time.AfterFunc(idle, func() {
		o.mu.Lock()
		defer o.mu.Unlock()
		if ob.users == 0 && o.open[key] == ob {
			delete(o.open, key)
			ob.socket.Close()
		}
	})
}

// observer is the socket in an endpoint's namespace. Observers.mu guards it.
type observer struct {
	socket  *os.File
	waiting map[expectation]chan Observation
	users   int
	timer   *time.Timer
}

type expectation struct {
	dst      netip.AddrPort
	protocol fabric.Protocol
	nonce    uint64
}

func (o *Observers) start(key string, namespace func() (ns.NetNS, error), ifName string) (*observer, error) {
	space, err := namespace()
	if err != nil {
		return nil, err
	}
	defer space.Close()
	ob := &observer{waiting: map[expectation]chan Observation{}}
	if err := space.Do(func(ns.NetNS) error {
		ob.socket, err = listenPackets(ifName)
		return err
	}); err != nil {
		return nil, err
	}
	if o.open == nil {
		o.open = map[string]*observer{}
	}
	o.open[key] = ob
	go o.watch(key, ob)
	return ob, nil
}

// watch delivers probes until the socket is closed or its interface is removed.
func (o *Observers) watch(key string, ob *observer) {
	raw, err := ob.socket.SyscallConn()
	buffer := make([]byte, 512) // a probe is far shorter
	for err == nil {
		var n int
		var from unix.Sockaddr
		var recvErr error
		err = raw.Read(func(fd uintptr) bool {
			n, from, recvErr = unix.Recvfrom(int(fd), buffer, 0)
			return !errors.Is(recvErr, unix.EAGAIN)
		})
		if err = errors.Join(err, recvErr); err != nil {
			break
		}
		ll, ok := from.(*unix.SockaddrLinklayer)
		if !ok || ll.Pkttype == unix.PACKET_OUTGOING {
			continue
		}
		if p, ok := parse(buffer[:n]); ok {
			o.mu.Lock()
			e := expectation{p.dst, p.protocol, p.nonce}
			if c := ob.waiting[e]; c != nil {
				select {
				case c <- Observation{p.src, p.dst, p.protocol, time.Now()}:
				default: // not the first
				}
			}
			o.mu.Unlock()
		}
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	ob.socket.Close()
	if o.open[key] == ob {
		delete(o.open, key)
	}
	for e, c := range ob.waiting {
		close(c)
		delete(ob.waiting, e)
	}
}

// listenPackets opens a packet socket (packet(7)) on an interface of the current namespace that
// receives only probes.
func listenPackets(ifName string) (*os.File, error) {
	socket, _, err := wire.Open(ifName, "probes", unix.SOCK_DGRAM, probeFilter(), func(fd int) error {
		// A matrix may send all its probes at once. One that does not fit into the buffer would be
		// reported as dropped by the fabric.
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, receiveBuffer); err != nil {
			return fmt.Errorf("enlarge the buffer of the packet socket: %w", err)
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("observe the workload: %w", err)
	}
	return socket, nil
}

// receiveBuffer is the size of the socket's receive buffer in bytes, enough for thousands of
// probes.
const receiveBuffer = 8 << 20

// probeFilter accepts packets that have the magic at an offset where probes have it. A load beyond
// the end of a packet rejects it, so the offsets are in ascending order.
func probeFilter() []bpf.Instruction {
	var program []bpf.Instruction
	places := []uint32{ipv4Length + udpLength, ipv4Length + tcpLength, ipv6Length + udpLength, ipv6Length + tcpLength}
	start := uint32(magic[0])<<24 | uint32(magic[1])<<16 | uint32(magic[2])<<8 | uint32(magic[3])
	for i, at := range places {
		accept := uint8(2*(len(places)-i) - 1) // to the last instruction, which accepts
		program = append(program, bpf.LoadAbsolute{Off: at, Size: 4}, bpf.JumpIf{Cond: bpf.JumpEqual, Val: start, SkipTrue: accept})
	}
	return append(program, bpf.RetConstant{Val: 0}, bpf.RetConstant{Val: 512})
}
