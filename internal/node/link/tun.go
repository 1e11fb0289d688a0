// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package link

import (
	"fmt"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/tun"
)

// tunDevice is a TUN interface that may be in another namespace. It replaces wireguard-go's
// monitored one, which reads MTU and state by name in the namespace of the calling thread and so
// confuses it with a device of the same name there. Up and down are the server's decision.
type tunDevice struct {
	tun.Device
	mtu atomic.Int64

	mu     sync.Mutex
	closed bool
	events chan tun.Event
}

// UserspaceSupport returns why WireGuard cannot run in user space, or nil. It makes an interface in
// the calling thread's namespace and removes it.
func UserspaceSupport() error {
	t, err := openTUN("sif-trial", 1420)
	if err != nil {
		return err
	}
	return t.Close()
}

// openTUN creates the interface in the current thread's namespace.
func openTUN(name string, mtu int) (*tunDevice, error) {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open /dev/net/tun: %w", err)
	}
	request, err := unix.NewIfreq(name)
	if err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("create TUN interface %q: %w", name, err)
	}
	// IFF_TUN_EXCL: fail if the interface exists, instead of attaching to it.
	request.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI | unix.IFF_VNET_HDR | unix.IFF_TUN_EXCL)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, request); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("create TUN interface %s: %w", name, err)
	}
	device, _, err := tun.CreateUnmonitoredTUNFromFD(fd)
	if err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("set up TUN interface %s: %w", name, err)
	}
	t := &tunDevice{Device: device, events: make(chan tun.Event, 1)}
	t.mtu.Store(int64(mtu))
	return t, nil
}

func (t *tunDevice) MTU() (int, error) { return int(t.mtu.Load()), nil }

func (t *tunDevice) Events() <-chan tun.Event { return t.events }

// setMTU tells wireguard-go the interface's MTU, which limits its padding.
func (t *tunDevice) setMTU(mtu int) {
	if t.mtu.Swap(int64(mtu)) == int64(mtu) {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return
	}
	select {
	case t.events <- tun.EventMTUUpdate:
	default: // an event is pending, whose reader will read the new MTU
	}
}

func (t *tunDevice) Close() error {
	t.mu.Lock()
	if !t.closed {
		t.closed = true
		close(t.events)
	}
	t.mu.Unlock()
	return t.Device.Close()
}
