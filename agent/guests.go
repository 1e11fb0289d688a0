// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package agent

import (
	"errors"
	"fmt"
	"maps"
	"net"
	"slices"
	"sync"
	"time"

	"github.com/containernetworking/plugins/pkg/netlinksafe"
	"github.com/containernetworking/plugins/pkg/ns"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/sif-project/sif/agent/guest"
	"github.com/sif-project/sif/agent/probe"
	"github.com/sif-project/sif/bpf"
	"github.com/sif-project/sif/internal/logkey"
	"github.com/sif-project/sif/internal/node/kernel"
	"github.com/sif-project/sif/internal/wellknown"
)

// tunDevice makes tap interfaces.
const tunDevice = "/dev/net/tun"

// guestMTU is the least MTU of a guest's interfaces, in bytes. Guests are told the workloads' MTU,
// but some DHCP clients do not heed it and keep Ethernet's. What such a guest sends must reach the
// node's routing, which says how long a packet may be on its way, or cuts it.
const guestMTU = 1500

// silence is how long a guest may say nothing before the node's status has a word of it: an
// emulated machine takes a minute to come up.
const silence = 5 * time.Minute

// guestMAC is the Ethernet address of every guest.
func guestMAC() net.HardwareAddr {
	mac, err := net.ParseMAC(wellknown.GuestMAC)
	if err != nil {
		panic(err) // it is a constant
	}
	return mac
}

// guestSide is what must be in the namespace of a virtual machine. The addresses are the guest's,
// so that no process in the namespace has any.
func (v veth) guestSide(ifName string) kernel.State {
	side := func(name string, mac net.HardwareAddr) kernel.Interface {
		return kernel.Interface{
			Name: name, Passing: true, MTU: v.mtu, MAC: mac, OnlyAddresses: true,
			IPv6: []kernel.Sysctl{{Name: "disable_ipv6", Value: "1"}},
		}
	}
	return kernel.State{Interfaces: []kernel.Interface{{Name: "lo"}, side(ifName, v.peerMAC), side(wellknown.GuestTap, v.hostMAC)}}
}

// keepTap makes the tap interface of a virtual machine in its namespace, down, and reports whether
// it was missing. One that is there stays: QEMU has it open, and could not open another.
func (v veth) keepTap(namespace ns.NetNS) (missing bool, err error) {
	err = namespace.Do(func(ns.NetNS) error {
		link, err := netlinksafe.LinkByName(wellknown.GuestTap)
		var absent netlink.LinkNotFoundError
		if err == nil {
			if tap, is := link.(*netlink.Tuntap); !is || tap.Mode != netlink.TUNTAP_MODE_TAP {
				return fmt.Errorf("the workload's namespace has an interface %s of type %s, where that of its virtual machine belongs: remove it", wellknown.GuestTap, link.Type())
			}
			return nil
		}
		if !errors.As(err, &absent) {
			return fmt.Errorf("find interface %s of the workload: %w", wellknown.GuestTap, err)
		}
		missing = true
		if err := makeTap(); err != nil {
			return err
		}
		if link, err = netlinksafe.LinkByName(wellknown.GuestTap); err == nil {
			err = errors.Join(netlink.LinkSetHardwareAddr(link, v.hostMAC), netlink.LinkSetMTU(link, v.mtu))
		}
		if err != nil {
			return fmt.Errorf("set up interface %s of the workload: %w", wellknown.GuestTap, err)
		}
		return nil
	})
	return missing, err
}

// makeTap makes a tap interface that stays, with headers for offloads, in the current namespace.
// It has no owner: QEMU may run as any user.
func makeTap() error {
	fd, err := unix.Open(tunDevice, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENODEV) || errors.Is(err, unix.ENXIO) {
		return fmt.Errorf("make a tap interface: the kernel has no %s: load its module tun (modprobe tun): %w", tunDevice, err)
	}
	if err != nil {
		return fmt.Errorf("make a tap interface: open %s: %w", tunDevice, err)
	}
	defer unix.Close(fd)
	request, err := unix.NewIfreq(wellknown.GuestTap)
	if err != nil {
		return fmt.Errorf("make a tap interface: %w", err)
	}
	request.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, request); err != nil {
		return fmt.Errorf("make a tap interface: %w", err)
	}
	if err := unix.IoctlSetInt(fd, unix.TUNSETPERSIST, 1); err != nil {
		return fmt.Errorf("make the tap interface stay: %w", err)
	}
	return nil
}

// removeTap removes the tap interface of an endpoint that is detached, if its namespace is still
// known: the runtime may keep it.
func (a *Agent) removeTap(d *detachment) {
	namespace := d.namespace
	if namespace == nil {
		var err error
		if namespace, err = a.namespaces.Find(d.endpoint.HostIf); err != nil {
			return // it is gone, or about to go
		}
		defer namespace.Close()
	}
	if err := vacate(wellknown.GuestTap, namespace); err != nil {
		a.log.Warn("the virtual machine's interface stays in its namespace", logkey.Endpoint, d.endpoint.ID, logkey.Error, err)
	}
}

// joinGuest attaches the programs of an endpoint's guest in its namespace, if they are not
// attached, and returns what was missing.
func (a *Agent) joinGuest(ep endpoint, namespace ns.NetNS) (missing []string, err error) {
	defer a.attachments.Lock(ep.HostIf)()
	pair := a.pairOf(ep)
	err = namespace.Do(func(ns.NetNS) error {
		missing, err = a.data.AttachGuest(ep.HostIf, wellknown.GuestTap, ep.Attachment.IfName, bpf.Guest{
			MAC: pair.peerMAC, IPv4: ep.IPv4, IPv6: ep.IPv6, MTU: pair.mtu,
			GatewayMAC: pair.hostMAC, Gateway4: wellknown.LinkLocal4, Gateway6: wellknown.LinkLocal6,
		})
		return err
	})
	return missing, err
}

// repairTap puts back the tap interface of an endpoint and the programs that join it.
func (a *Agent) repairTap(ep endpoint, namespace ns.NetNS) error {
	var changes []kernel.Change
	where := " in the namespace of endpoint " + ep.ID
	missing, err := a.pairOf(ep).keepTap(namespace)
	if missing {
		changes = append(changes, kernel.Change{Kind: kernel.KindInterface, Subject: wellknown.GuestTap + where, What: "was removed, made again: restart the virtual machine"})
	}
	if err == nil {
		var joined []string
		joined, err = a.joinGuest(ep, namespace)
		for _, what := range joined {
			changes = append(changes, kernel.Change{Kind: kindDatapath, Subject: what + where, What: "was missing or differed, put back"})
		}
	}
	a.node.Repaired(changes)
	return err
}

// guests answers the guests of the node's virtual machines. The zero guests is ready to use. It is
// safe for concurrent use.
type guests struct {
	mu   sync.Mutex
	open map[string]answering // by the host side of the endpoint's pair
	// gone counts what was dropped of guests that are gone, so that the sums never fall.
	gone map[string]uint64
}

// answering is a guest that is answered.
type answering struct {
	*guest.Responder
	since time.Time
}

func (g *guests) get(hostIf string) (answering, bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	r, ok := g.open[hostIf]
	return r, ok
}

func (g *guests) put(hostIf string, r *guest.Responder) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.open == nil {
		g.open = map[string]answering{}
	}
	g.open[hostIf] = answering{r, time.Now()}
}

// names returns the interfaces of the guests that are answered.
func (g *guests) names() []string {
	g.mu.Lock()
	defer g.mu.Unlock()
	return slices.Collect(maps.Keys(g.open))
}

// close ends the answers to a guest, if there are any.
func (g *guests) close(hostIf string) {
	g.mu.Lock()
	r, ok := g.open[hostIf]
	delete(g.open, hostIf)
	g.mu.Unlock()
	if ok {
		_ = r.Close() // it may have ended before, with its interface
	}
}

// told is what a guest is told.
func (a *Agent) told(ep endpoint) guest.Config {
	pair := a.pairOf(ep)
	return guest.Config{
		MAC: [6]byte(pair.peerMAC), GatewayMAC: [6]byte(pair.hostMAC), IPv4: ep.IPv4, IPv6: ep.IPv6, MTU: a.workloadMTU(), HostName: ep.hostName(),
	}
}

// hostName names the guest of an endpoint, as its logs and prompts show it.
func (ep endpoint) hostName() string {
	if ep.Attached != nil {
		return ep.Attached.Name
	}
	return ep.Admission.Service.Name + "-" + ep.ID[:min(8, len(ep.ID))]
}

// answered reports whether the node answers the endpoint's guest, as it now must.
func (a *Agent) answered(ep endpoint, namespace ns.NetNS) bool {
	r, ok := a.guests.get(ep.HostIf)
	if !ok || r.Ended() || r.Config() != a.told(ep) {
		return false
	}
	index := 0
	err := namespace.Do(func(ns.NetNS) (err error) {
		index, err = linkIndex(wellknown.GuestTap)
		return err
	})
	return err == nil && index == r.Index()
}

// answerGuest makes the node answer the endpoint's guest, as it now must.
func (a *Agent) answerGuest(ep endpoint, namespace ns.NetNS) error {
	if a.answered(ep, namespace) {
		return nil
	}
	a.guests.close(ep.HostIf)
	return namespace.Do(func(ns.NetNS) error {
		r, err := guest.Open(wellknown.GuestTap, a.told(ep))
		if err != nil {
			return err
		}
		a.guests.put(ep.HostIf, r)
		return nil
	})
}

// repairGuests answers the guests that are not answered, above all those of an earlier agent. It
// stops answering where nothing but the answers is left of a namespace, so that the kernel can
// remove it.
func (a *Agent) repairGuests() error {
	errs := []error{a.forgetGuests()}
	for _, ep := range a.settled() {
		if !ep.VM {
			continue
		}
		namespace, err := a.namespaces.Find(ep.HostIf)
		if errors.Is(err, probe.ErrNoNamespace) {
			a.guests.close(ep.HostIf)
			continue
		}
		if err != nil {
			continue // the interface went, and sweep sees to it
		}
		answered := a.answered(ep, namespace)
		namespace.Close()
		if answered {
			continue // repairWorkloads compares the rest, in turn
		}
		if err := a.repairWorkload(ep); err != nil {
			errs = append(errs, fmt.Errorf("answer the guest of endpoint %s: %w", ep.ID, err))
		}
	}
	return errors.Join(errs...)
}

// forgetGuests ends what a repair made again for a guest that was being detached meanwhile.
func (a *Agent) forgetGuests() error {
	names, err := a.data.Guests()
	if err != nil {
		return err
	}
	names = append(names, a.guests.names()...)
	known := map[string]bool{}
	for _, ep := range a.endpoints.all() { // read last: an endpoint is known before it has a guest
		known[ep.HostIf] = true
	}
	var errs []error
	for _, name := range names {
		if known[name] {
			continue
		}
		a.guests.close(name)
		errs = append(errs, a.data.DetachGuest(name))
	}
	return errors.Join(errs...)
}

// silentGuests names the virtual machines from whose own address nothing came for a while, with
// what there is to say of why.
func (a *Agent) silentGuests() []string {
	var list []string
	for _, ep := range a.settled() {
		r, answered := a.guests.get(ep.HostIf)
		if !ep.VM || !answered || time.Since(r.since) < silence {
			continue
		}
		frames, err := a.data.GuestFrames(ep.HostIf)
		if err != nil {
			list = append(list, err.Error())
			continue
		}
		if why := silent(frames, r.Told()); why != "" {
			list = append(list, fmt.Sprintf("virtual machine of endpoint %s at %s: %s", ep.ID, ep.IPv4, why))
		}
	}
	return list
}

// silent says why nothing came from a guest's own address, with the remedy; empty if something did.
func silent(frames map[bpf.Frame]uint64, told guest.Told) string {
	var heard uint64
	for f, n := range frames {
		if f != bpf.FrameReceived && f != bpf.FrameNotForIt {
			heard += n
		}
	}
	switch {
	case !told.Declined.IsZero():
		return "its guest says that another has its address: look for a second network interface in the guest that has it"
	case frames[bpf.FrameSent] > 0:
		return ""
	case heard == 0:
		return "nothing came from its guest yet: has QEMU \"-netdev tap,ifname=" + wellknown.GuestTap + ",script=no,downscript=no\", and is the interface up in the guest?"
	case frames[bpf.FrameForgedMAC] == heard:
		return "its guest sends from another Ethernet address: give its network device mac=" + wellknown.GuestMAC
	case told.Asked.IsZero() && frames[bpf.FrameForgedAddress] > 0:
		return "its guest has another address and never asked for its own: remove the address from the guest's configuration, and run a DHCP client"
	case told.Asked.IsZero():
		return "its guest never asked for its address: run a DHCP client in it"
	}
	return ""
}

// guestDrops adds what was dropped of the node's guests, by name, to drops.
func (a *Agent) guestDrops(drops map[string]uint64) error {
	var errs []error
	for _, ep := range a.endpoints.all() {
		if ep.VM {
			errs = append(errs, a.dropsOf(ep, drops))
		}
	}
	a.guests.mu.Lock()
	defer a.guests.mu.Unlock()
	for name, n := range a.guests.gone {
		drops[name] += n
	}
	return errors.Join(errs...)
}

// dropsOf adds what was dropped of one guest.
func (a *Agent) dropsOf(ep endpoint, drops map[string]uint64) error {
	frames, err := a.data.GuestFrames(ep.HostIf)
	for f, n := range frames {
		if f.Dropped() {
			drops["guest: "+f.String()] += n
		}
	}
	if r, ok := a.guests.get(ep.HostIf); ok {
		if n := r.Told().Limited; n > 0 {
			drops["guest: questions-limited"] += n
		}
	}
	return err
}

// endGuest ends the answers to a guest that goes, and keeps what was counted.
func (a *Agent) endGuest(ep endpoint) {
	drops := map[string]uint64{}
	_ = a.dropsOf(ep, drops) // the last count is lost, if any
	a.guests.mu.Lock()
	if a.guests.gone == nil {
		a.guests.gone = map[string]uint64{}
	}
	for name, n := range drops {
		a.guests.gone[name] += n
	}
	a.guests.mu.Unlock()
	a.guests.close(ep.HostIf)
}

// errGuest says that a task cannot be carried out for a virtual machine.
var errGuest = errors.New("the workload is a virtual machine, inside which the node can neither open a connection nor look for listeners")

// way is how probes leave the endpoint. The namespace of a virtual machine has neither addresses
// nor routes, so that frames are put on the interface there.
func (a *Agent) way(ep endpoint) probe.Way {
	if !ep.VM {
		return probe.Way{}
	}
	pair := a.pairOf(ep)
	return probe.Way{Interface: ep.Attachment.IfName, Source: pair.peerMAC, Gateway: pair.hostMAC}
}
