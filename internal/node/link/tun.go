// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package link

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containernetworking/plugins/pkg/netlinksafe"
	"github.com/vishvananda/netlink"
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
	fd, err := attachTUN("sif-trial", unix.IFF_TUN_EXCL)
	if err != nil {
		return err
	}
	t, err := newTUN(fd, "sif-trial", 1420)
	if err != nil {
		return err
	}
	return t.Close()
}

// takeoverTime is how long the kernel may need to end a killed predecessor, until which that one
// still has the interface.
const takeoverTime = 2 * time.Second

// openTUN opens the interface in the current thread's namespace, and returns its index: the one
// with the mark that an earlier process left, or a new one, which gets the mark. It stays when the
// process ends, and then drops packets, so that it keeps its routes, addresses and index until the
// next process opens it; destroy removes it.
func openTUN(name, mark string, mtu int) (t *tunDevice, index int, err error) {
	existing, err := netlinksafe.LinkByName(name)
	fresh := errors.As(err, &netlink.LinkNotFoundError{})
	if err != nil && !fresh {
		return nil, 0, fmt.Errorf("find the interface: %w", err)
	}
	flags := uint16(unix.IFF_TUN_EXCL) // fail if it exists after all, instead of attaching to it
	if !fresh {
		if !marked(existing, mark) {
			return nil, 0, fmt.Errorf("there is an interface %s that is not of this sif link (type %s, alias %q): delete or rename it", name, existing.Type(), existing.Attrs().Alias)
		}
		flags = 0
	}
	fd, err := attachTUN(name, flags)
	for end := time.Now().Add(takeoverTime); !fresh && errors.Is(err, unix.EBUSY) && time.Now().Before(end); fd, err = attachTUN(name, flags) {
		time.Sleep(5 * time.Millisecond)
	}
	if err != nil {
		return nil, 0, err
	}
	if t, err = newTUN(fd, name, mtu); err != nil {
		return nil, 0, err
	}
	if !fresh {
		return t, existing.Attrs().Index, nil
	}
	made, err := netlinksafe.LinkByName(name)
	if err == nil {
		err = netlink.LinkSetAlias(made, mark)
	}
	if err == nil {
		err = t.persist(true)
	}
	if err != nil {
		return nil, 0, errors.Join(fmt.Errorf("keep TUN interface %s: %w", name, err), t.Close())
	}
	return t, made.Attrs().Index, nil
}

// attachTUN opens an interface.
func attachTUN(name string, flags uint16) (fd int, err error) {
	if fd, err = unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC, 0); err != nil {
		return 0, fmt.Errorf("open /dev/net/tun: %w", err)
	}
	request, err := unix.NewIfreq(name)
	if err == nil {
		request.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI | unix.IFF_VNET_HDR | flags)
		err = unix.IoctlIfreq(fd, unix.TUNSETIFF, request)
	}
	if err != nil {
		unix.Close(fd)
		return 0, fmt.Errorf("create TUN interface %s: %w", name, err)
	}
	return fd, nil
}

// newTUN returns the device that fd is attached to. It takes over fd.
func newTUN(fd int, name string, mtu int) (*tunDevice, error) {
	device, _, err := tun.CreateUnmonitoredTUNFromFD(fd)
	if err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("set up TUN interface %s: %w", name, err)
	}
	t := &tunDevice{Device: device, events: make(chan tun.Event, 1)}
	t.mtu.Store(int64(mtu))
	return t, nil
}

// persist says whether the interface stays when it is closed.
func (t *tunDevice) persist(on bool) error {
	value := 0
	if on {
		value = 1
	}
	conn, err := t.File().SyscallConn() // File.Fd would make its reads block
	if err != nil {
		return err
	}
	failed := conn.Control(func(fd uintptr) { err = unix.IoctlSetInt(int(fd), unix.TUNSETPERSIST, value) })
	return errors.Join(failed, err)
}

// markOf is the alias of a device's interface in user space. It says whose it is, and has the name,
// too, so that a renamed one is found.
func markOf(name, dataDir string) string { return markPrefix + name + markSuffix(dataDir) }

const (
	markPrefix = aliasPrefix + "link "
	aliasSize  = 256 // of the kernel, in bytes, with the NUL (IFALIASZ)
)

func markSuffix(dataDir string) string {
	suffix := " of " + dataDir
	if len(markPrefix)+unix.IFNAMSIZ+len(suffix) >= aliasSize {
		suffix = fmt.Sprintf(" of %x", sha256.Sum256([]byte(dataDir)))
	}
	return suffix
}

func marked(l netlink.Link, mark string) bool {
	_, is := l.(*netlink.Tuntap)
	return is && l.Attrs().Alias == mark
}

// removeStrays deletes the interfaces that the `sif link` of a data directory left, in whatever
// namespace, but for those that keep wants. It runs keep on a thread of the namespace.
func removeStrays(dataDir string, keep func(name string, index int) bool) (removed []string, err error) {
	var errs []error
	for _, place := range places() {
		// Other namespaces are others', and may be gone by now.
		_ = inNamespace(place, func() error {
			links, err := netlinksafe.LinkList()
			for _, l := range links {
				text, is := strings.CutPrefix(l.Attrs().Alias, markPrefix)
				name, ours := strings.CutSuffix(text, markSuffix(dataDir))
				if _, tuntap := l.(*netlink.Tuntap); !is || !ours || !tuntap || keep(name, l.Attrs().Index) {
					continue
				}
				if err := netlink.LinkDel(l); err != nil {
					errs = append(errs, fmt.Errorf("delete interface %s, which an earlier sif link left: %w", l.Attrs().Name, err))
					continue
				}
				removed = append(removed, l.Attrs().Name)
			}
			return err
		})
	}
	return removed, errors.Join(errs...)
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

// Close ends the use of the interface, which stays.
func (t *tunDevice) Close() error {
	t.mu.Lock()
	if !t.closed {
		t.closed = true
		close(t.events)
	}
	t.mu.Unlock()
	return t.Device.Close()
}
