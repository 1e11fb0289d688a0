// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package link

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/containernetworking/plugins/pkg/netlinksafe"
	"github.com/containernetworking/plugins/pkg/ns"
	"github.com/hashicorp/go-hclog"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/sif-project/sif/internal/logkey"
	"github.com/sif-project/sif/internal/node/kernel"
)

// KernelSupport returns why the kernel's WireGuard cannot be used, or nil. It makes a device in a
// namespace that nobody else sees, once for each process.
var KernelSupport = sync.OnceValue(func() error {
	err := kernel.Try(func() error {
		return netlink.LinkAdd(&netlink.Wireguard{LinkAttrs: netlink.LinkAttrs{Name: "probe"}})
	})
	switch {
	case errors.Is(err, unix.EOPNOTSUPP):
		return errors.New("this kernel has no WireGuard")
	case err != nil:
		return fmt.Errorf("try the kernel's WireGuard: %w", err)
	}
	return nil
})

// KernelConfig configures a Kernel.
type KernelConfig struct {
	// Owner distinguishes the devices of one daemon from those of others on the same machine.
	Owner string
	// Userspace, if set, is the `sif link` whose devices give way to the kernel's: each is deleted
	// just before its successor is made.
	Userspace *Client
	// UserspaceData is the data directory of that `sif link`. What it saved there is removed if it
	// does not run, so that it does not make its devices again when it is started.
	UserspaceData string
	Logger        hclog.Logger
}

// Kernel configures devices of the kernel's WireGuard. They go on when this process ends; the next
// one adopts them and writes only what differs. Its devices have an alias that names their owner.
// It is safe for concurrent use.
type Kernel struct {
	config KernelConfig
	home   ns.NetNS // where the devices' UDP sockets are

	mu      sync.Mutex
	devices map[string]*kernelDevice
	adopted bool // devices has those that an earlier process left
}

// kernelDevice is what is known of a device.
type kernelDevice struct {
	want     Device
	err      error                  // why it is not in its desired state
	applied  bool                   // it was in its desired state once
	declared map[Key]netip.AddrPort // see difference
	// initiated are the peers to which a handshake was started.
	initiated map[Key]bool
	counts    map[string]uint64
}

// NewKernel returns a Kernel whose devices have their UDP sockets in the network namespace of the
// calling thread. It changes nothing.
func NewKernel(config KernelConfig) (*Kernel, error) {
	home, err := ns.GetCurrentNS()
	if err != nil {
		return nil, fmt.Errorf("open the network namespace of the links: %w", err)
	}
	return &Kernel{config: config, home: home, devices: map[string]*kernelDevice{}}, nil
}

// Apply makes the kernel run exactly these devices of this owner. It has the same guarantees as
// Client.Apply.
func (k *Kernel) Apply(ctx context.Context, devices []Device) error {
	fit, wanted, errs := fitting(devices)
	k.mu.Lock()
	defer k.mu.Unlock()
	if err := k.adopt(); err != nil {
		return fmt.Errorf("apply links: %w", errors.Join(append(errs, err)...))
	}
	former, err := k.formerDevices(ctx)
	errs = append(errs, err)
	for name := range k.devices {
		if !wanted[name] {
			errs = append(errs, k.delete(name))
		}
	}
	var failed ApplyError
	for _, d := range fit {
		if former[d.Name] {
			errs = append(errs, k.config.Userspace.delete(ctx, d.Name))
			delete(former, d.Name)
		}
		err := k.applyDevice(d)
		if err != nil {
			errs = append(errs, fmt.Errorf("apply device %s: %w", d.Name, err))
		}
		if errors.Is(err, errPortTaken) {
			failed.PortTaken = append(failed.PortTaken, d.Name)
		}
	}
	for name := range former {
		errs = append(errs, k.config.Userspace.delete(ctx, name))
	}
	if failed.error = errors.Join(errs...); failed.error != nil {
		return &failed
	}
	return nil
}

// Remove deletes all devices of this owner.
func (k *Kernel) Remove() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if err := k.adopt(); err != nil {
		return fmt.Errorf("remove links: %w", err)
	}
	var errs []error
	for name := range k.devices {
		errs = append(errs, k.delete(name))
	}
	return errors.Join(errs...)
}

// Status returns the devices of this owner, ordered by name.
func (k *Kernel) Status(context.Context) ([]DeviceStatus, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	list := make([]DeviceStatus, 0, len(k.devices))
	for _, name := range slices.Sorted(maps.Keys(k.devices)) {
		list = append(list, k.status(k.devices[name]))
	}
	return list, nil
}

func (k *Kernel) status(m *kernelDevice) DeviceStatus {
	s := DeviceStatus{Name: m.want.Name, Interface: m.want.Interface, Kind: KindKernel, Peers: []PeerStatus{}, Repaired: maps.Clone(m.counts)}
	err := m.err
	if readErr := k.in(m.want.Namespace, func() error {
		link, err := netlinksafe.LinkByName(m.want.Name)
		if err != nil {
			return fmt.Errorf("find the interface: %w", err)
		}
		state, err := readWireGuard(m.want.Name)
		if err != nil {
			return err
		}
		s.PublicKey, s.ListenPort = state.privateKey.Public(), state.listenPort
		s.Peers = append(s.Peers, state.peers...)
		s.Up = link.Attrs().RawFlags&unix.IFF_UP != 0 && s.ListenPort != 0 && !s.PublicKey.IsZero()
		return nil
	}); err == nil {
		err = readErr
	}
	if err != nil {
		s.Up, s.Error = false, err.Error()
	}
	return s
}

// in runs f in the network namespace at path. Empty means home.
func (k *Kernel) in(path string, f func() error) error {
	if path == "" {
		return k.home.Do(func(ns.NetNS) error { return f() })
	}
	return inNamespace(path, f)
}

const (
	kindWireGuard = "wireguard" // of links, in rtnetlink
	aliasPrefix   = "sif "
)

// alias marks a device of ours; it has the name, too, so that a renamed one is found.
func (k *Kernel) alias(name string) string { return aliasPrefix + name + " of " + k.config.Owner }

func (k *Kernel) owns(link netlink.Link, name string) bool {
	return link.Type() == kindWireGuard && link.Attrs().Alias == k.alias(name)
}

// places returns the paths of the namespaces in which devices of ours may be, from the likeliest.
func places() []string {
	named, _ := filepath.Glob("/run/netns/*")
	return append(append([]string{""}, named...), "/proc/1/ns/net")
}

// adopt finds the devices that an earlier process left.
func (k *Kernel) adopt() error {
	if k.adopted {
		return nil
	}
	for _, place := range places() {
		err := k.in(place, func() error {
			links, err := netlinksafe.LinkList()
			for _, link := range links {
				text, marked := strings.CutPrefix(link.Attrs().Alias, aliasPrefix)
				name, ours := strings.CutSuffix(text, " of "+k.config.Owner)
				if _, known := k.devices[name]; marked && ours && !known && link.Type() == kindWireGuard {
					k.devices[name] = &kernelDevice{want: Device{Name: name, Interface: Interface{Namespace: place}}, counts: map[string]uint64{}}
				}
			}
			return err
		})
		if place == "" && err != nil {
			return fmt.Errorf("list the interfaces: %w", err)
		}
		// The other namespaces are others', and may be gone by now.
	}
	k.adopted = true
	return nil
}

// delete deletes a device of ours. That it does not exist is not an error.
func (k *Kernel) delete(name string) error {
	m := k.devices[name]
	for _, place := range append([]string{m.want.Namespace}, places()...) {
		err := k.in(place, func() error { return k.deleteHere(name) })
		var gone ns.NSPathNotExistErr
		var other ns.NSPathNotNSErr
		if err != nil && !errors.As(err, &gone) && !errors.As(err, &other) {
			return fmt.Errorf("delete device %s: %w", name, err)
		}
	}
	delete(k.devices, name)
	k.config.Logger.Info("device deleted", logkey.Interface, name)
	return nil
}

// deleteHere deletes a device of ours in the calling thread's namespace, if it is there.
func (k *Kernel) deleteHere(name string) error {
	link, err := k.ours(name)
	if err != nil || link == nil {
		return err
	}
	return netlink.LinkDel(link)
}

// ours returns the device of that name in the calling thread's namespace, also if it was renamed.
// It returns nil if there is none.
func (k *Kernel) ours(name string) (netlink.Link, error) {
	links, err := netlinksafe.LinkList()
	if err != nil {
		return nil, fmt.Errorf("list the interfaces: %w", err)
	}
	for _, link := range links {
		if k.owns(link, name) {
			return link, nil
		}
	}
	return nil, nil
}

func (k *Kernel) applyDevice(d Device) error {
	m, known := k.devices[d.Name]
	if !known {
		m = &kernelDevice{counts: map[string]uint64{}}
		k.devices[d.Name] = m
	}
	same := m.applied && m.want.equal(d)
	before := m.err
	m.want = d
	changes, err := k.repair(m)
	m.err = err
	m.applied = m.applied || err == nil
	log := k.config.Logger.With(logkey.Interface, d.Name)
	switch {
	case same && before == nil && len(changes) > 0:
		log.Warn("the device had been changed and was put back", logkey.Repaired, changes)
		for _, c := range changes {
			m.counts[c.Kind]++
		}
	case len(changes) > 0:
		log.Info("device set up", logkey.Namespace, d.Namespace, logkey.MTU, d.MTU, logkey.Repaired, changes)
	}
	return err
}

// repair brings a device into its desired state from any other, and returns what differed.
func (k *Kernel) repair(m *kernelDevice) (changes []kernel.Change, err error) {
	note := func(what string) {
		changes = append(changes, kernel.Change{Kind: kernel.KindInterface, Subject: m.want.Name, What: what})
	}
	for range 2 {
		found, err := k.find(m.want, note)
		if err != nil {
			return changes, err
		}
		if !found {
			note("was missing, made")
			if err := k.create(m.want); err != nil {
				return changes, err
			}
			m.initiated = nil
		}
		err = k.in(m.want.Namespace, func() error {
			made, err := k.settle(m)
			changes = append(changes, made...)
			return err
		})
		if !errors.Is(err, errNoSocket) {
			return changes, err
		}
		note("was cut off, removed")
		if err := k.in(m.want.Namespace, func() error { return k.deleteHere(m.want.Name) }); err != nil {
			return changes, err
		}
	}
	return changes, errNoSocket
}

// errNoSocket says that the namespace is gone in which a device was made, and with it the socket.
var errNoSocket = errors.New("the device has no socket any more")

// find looks for a device of ours, brings it into its namespace, and reports whether there is one.
func (k *Kernel) find(d Device, note func(string)) (found bool, err error) {
	for i, candidate := range append([]string{d.Namespace}, places()...) {
		here := i == 0
		err := k.in(candidate, func() error {
			link, err := k.ours(d.Name)
			if err == nil && link == nil && (here || candidate == "") {
				link, err = k.claim(d, candidate == "")
				if err == nil && link != nil {
					note("had lost its mark, marked again")
				}
			}
			if err != nil || link == nil {
				return err
			}
			found = true
			if here {
				return nil
			}
			note("was in another namespace, moved back")
			return k.move(link, d.Namespace)
		})
		if err != nil && (found || here || candidate == "") {
			return found, err
		}
		if found {
			return true, nil
		}
	}
	return false, nil
}

// claim marks a device that is ours though it has no mark: it has our private key, or, in home, we
// were interrupted when we made it. It returns nil if no interface has the name.
func (k *Kernel) claim(d Device, inHome bool) (netlink.Link, error) {
	link, err := netlinksafe.LinkByName(d.Name)
	if errors.As(err, &netlink.LinkNotFoundError{}) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("find the interface: %w", err)
	}
	foreign := fmt.Errorf("there is an interface %s that is not this daemon's (type %s, alias %q): delete or rename it", d.Name, link.Type(), link.Attrs().Alias)
	if link.Type() != kindWireGuard || link.Attrs().Alias != "" {
		return nil, foreign
	}
	state, err := readWireGuard(d.Name)
	if err != nil {
		return nil, err
	}
	unfinished := inHome && state.privateKey.IsZero() && len(state.peers) == 0 && link.Attrs().RawFlags&unix.IFF_UP == 0
	if state.privateKey != d.PrivateKey && !unfinished {
		return nil, foreign
	}
	if err := netlink.LinkSetAlias(link, k.alias(d.Name)); err != nil {
		return nil, fmt.Errorf("mark the interface: %w", err)
	}
	return link, nil
}

// create makes a device in home, where its socket then stays, and moves it into its namespace.
func (k *Kernel) create(d Device) error {
	return k.home.Do(func(ns.NetNS) error {
		link := &netlink.Wireguard{LinkAttrs: netlink.LinkAttrs{Name: d.Name, MTU: d.MTU}}
		if err := netlink.LinkAdd(link); err != nil {
			return fmt.Errorf("create the interface: %w", err)
		}
		if err := netlink.LinkSetAlias(link, k.alias(d.Name)); err != nil {
			return fmt.Errorf("mark the interface: %w", err)
		}
		return k.move(link, d.Namespace)
	})
}

// move moves an interface of the calling thread's namespace into the one at path.
func (k *Kernel) move(link netlink.Link, path string) error {
	to := k.home
	if path != "" {
		named, err := ns.GetNS(path)
		if err != nil {
			return fmt.Errorf("find the network namespace %s: %w", path, err)
		}
		defer named.Close()
		to = named
	}
	if err := netlink.LinkSetNsFd(link, int(to.Fd())); err != nil {
		return fmt.Errorf("move the interface into the network namespace %s: %w", path, err)
	}
	return nil
}

// settle configures a device in the calling thread's namespace.
func (k *Kernel) settle(m *kernelDevice) (changes []kernel.Change, err error) {
	d := m.want
	link, err := k.ours(d.Name)
	if err == nil && link == nil {
		err = kernel.ErrNoInterface
	}
	if err != nil {
		return nil, err
	}
	index, down := link.Attrs().Index, link.Attrs().RawFlags&unix.IFF_UP == 0
	if !down && link.Attrs().RawFlags&unix.IFF_LOWER_UP == 0 {
		return nil, errNoSocket
	}
	if link.Attrs().Name != d.Name {
		named, err := kernel.Repair(kernel.State{Interfaces: []kernel.Interface{{Name: d.Name, Index: index}}})
		if changes = append(changes, named...); err != nil {
			return changes, err
		}
	}
	if reversePathFiltered() && !m.applied {
		k.config.Logger.Warn("net.ipv4.conf.all.rp_filter is enabled in the interface's namespace and may drop its packets", logkey.Interface, d.Name)
	}
	c, err := configureWireGuard(d, m.declared, time.Now())
	if c.altered() {
		changes = append(changes, kernel.Change{Kind: kernel.KindInterface, Subject: d.Name, What: "had another key, port or peers"})
	}
	if err != nil {
		return changes, err
	}
	m.declared = d.endpoints()
	made, err := kernel.Repair(interfaceState(d, index))
	if changes = append(changes, made...); err != nil {
		switch {
		case errors.Is(err, unix.EADDRINUSE):
			err = fmt.Errorf("%w %d: %w", errPortTaken, d.ListenPort, err)
		case errors.Is(err, unix.ENONET):
			err = errNoSocket
		}
		return changes, err
	}
	if down {
		m.initiated = nil // what was down has lost its sessions
	}
	return changes, m.initiateHandshakes()
}

// initiateHandshakes starts a handshake with each new peer, for the reason that it is started in
// user space; but not with those that have a session, which an earlier process may have left.
func (m *kernelDevice) initiateHandshakes() error {
	state, err := readWireGuard(m.want.Name)
	if err != nil {
		return err
	}
	var dead []Key
	for _, p := range state.peers {
		if p.Endpoint.IsValid() && !m.initiated[p.PublicKey] && p.LastHandshake.IsZero() && p.PersistentKeepalive == 0 {
			dead = append(dead, p.PublicKey)
		}
	}
	m.initiated = make(map[Key]bool, len(state.peers))
	for _, p := range state.peers {
		m.initiated[p.PublicKey] = p.Endpoint.IsValid()
	}
	return sendKeepalives(m.want.Name, dead)
}

// formerDevices returns the names of the devices of the `sif link` that gives way. If it does not
// run, there are none, and it shall not restore any.
func (k *Kernel) formerDevices(ctx context.Context) (map[string]bool, error) {
	names := map[string]bool{}
	if k.config.Userspace == nil {
		return names, nil
	}
	devices, err := k.config.Userspace.Status(ctx)
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ECONNREFUSED) {
		return names, k.config.Userspace.forget(k.config.UserspaceData)
	}
	for _, d := range devices {
		names[d.Name] = true
	}
	return names, err
}
