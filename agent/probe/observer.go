// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package probe

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync"
	"time"

	"github.com/containernetworking/plugins/pkg/ns"
	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"

	"github.com/sif-project/sif/fabric"
)

// idle is how long an observer that nobody needs goes on: the next probes to
// the same endpoint mostly follow soon. It is short, since its socket keeps
// the namespace alive.
const idle = 3 * time.Second

// Observation is a probe that arrived.
type Observation struct {
	Src, Dst netip.AddrPort
	Protocol fabric.Protocol
	At       time.Time
}

// Observers watches for probes, with one socket per endpoint however many are
// expected there. The zero Observers is ready, and safe for concurrent use.
type Observers struct {
	mu   sync.Mutex
	open map[string]*observer // by key
}

// Expect watches interface ifName of a namespace for a probe to dst with the
// nonce. When it returns, no packet is missed any more. The channel gets the
// first such packet; it is closed without one if the interface goes away. The
// caller calls cancel when it has what it wants or waited long enough.
//
// key names the endpoint; namespace is called, and its result closed, if it is
// not being watched yet.
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

// Close stops all observers.
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

// observer is the socket in one endpoint's namespace. Observers.mu guards it.
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

// watch hands out what arrives until the socket is closed or its interface
// gone.
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
				default: // seen before
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

// listenPackets opens a packet socket (packet(7)) on an interface of the
// current namespace that gets nothing but probes.
func listenPackets(ifName string) (*os.File, error) {
	device, err := net.InterfaceByName(ifName)
	if err != nil {
		return nil, fmt.Errorf("find interface %s of the workload: %w", ifName, err)
	}
	// Without a protocol it receives nothing until it is bound.
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open a packet socket: %w", err)
	}
	if err := configure(fd, device.Index); err != nil {
		unix.Close(fd)
		return nil, err
	}
	return os.NewFile(uintptr(fd), "probes on "+ifName), nil
}

// receiveBuffer is the room for probes that have arrived and are not read yet,
// in bytes: thousands of them.
const receiveBuffer = 8 << 20

func configure(fd, index int) error {
	filter, err := probeFilter()
	if err != nil {
		return err
	}
	program := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	if err := unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &program); err != nil {
		return fmt.Errorf("attach the filter of probes: %w", err)
	}
	// A whole matrix may send its probes at once; those that find no room are
	// lost and taken for dropped ones.
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, receiveBuffer); err != nil {
		return fmt.Errorf("enlarge the buffer of the packet socket: %w", err)
	}
	const all = unix.ETH_P_ALL<<8 | unix.ETH_P_ALL>>8 // in network byte order
	if err := unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: all & 0xffff, Ifindex: index}); err != nil {
		return fmt.Errorf("bind the packet socket: %w", err)
	}
	return nil
}

// probeFilter lets through what has the magic where probes have it. A load
// beyond the end of a packet rejects it, so the nearest place comes first.
func probeFilter() ([]unix.SockFilter, error) {
	var program []bpf.Instruction
	places := []uint32{ipv4Length + udpLength, ipv4Length + tcpLength, ipv6Length + udpLength, ipv6Length + tcpLength}
	start := uint32(magic[0])<<24 | uint32(magic[1])<<16 | uint32(magic[2])<<8 | uint32(magic[3])
	for i, at := range places {
		accept := uint8(2*(len(places)-i) - 1) // to the instruction after the next
		program = append(program, bpf.LoadAbsolute{Off: at, Size: 4}, bpf.JumpIf{Cond: bpf.JumpEqual, Val: start, SkipTrue: accept})
	}
	program = append(program, bpf.RetConstant{Val: 0}, bpf.RetConstant{Val: 512})
	raw, err := bpf.Assemble(program)
	if err != nil {
		return nil, fmt.Errorf("assemble the filter of probes: %w", err)
	}
	filter := make([]unix.SockFilter, len(raw))
	for i, r := range raw {
		filter[i] = unix.SockFilter{Code: r.Op, Jt: r.Jt, Jf: r.Jf, K: r.K}
	}
	return filter, nil
}
