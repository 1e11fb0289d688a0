// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package hostport

import (
	"cmp"
	"crypto/sha256"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/containernetworking/plugins/pkg/netlinksafe"
	"github.com/containernetworking/plugins/pkg/ns"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/sif-project/sif/internal/node/kernel"
	"github.com/sif-project/sif/internal/node/listener"
	"github.com/sif-project/sif/internal/wellknown"
)

// routeProtocol marks our routes and rules (rtm_protocol).
const routeProtocol = 208

// Placed is an attachment and its endpoint's namespace.
type Placed struct {
	Attachment
	// Namespace, if it is nil, is not at hand now: what is in it stays as it is.
	Namespace ns.NetNS
}

// Host manages the attachments of a node. The zero Host is ready to use, and has not changed the
// kernel. It is safe for concurrent use.
type Host struct {
	mu     sync.Mutex
	table  table
	inside map[int]*inside // by slot
	last   []placed        // of the last Ensure or Refresh
}

// inside is what was written into a namespace.
type inside struct {
	namespace string // its device and inode
	table     table
}

// Ensure makes of the node what the list says, and returns what others had changed, or what was
// missing. The list must be complete: what belongs to other slots is taken away. What is wrong with
// one attachment does not keep the others from being made. Connections that exist go on.
func (h *Host) Ensure(list []Placed) (changes []kernel.Change, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	var errs []error
	fail := func(a Attachment, err error) {
		if err != nil {
			errs = append(errs, fmt.Errorf("the way between the node and endpoint %s: %w", a.IPv4, err))
		}
	}
	list = slices.Clone(list)
	slices.SortFunc(list, func(a, b Placed) int { return cmp.Compare(a.Slot, b.Slot) })
	wanted := map[int]bool{}
	list = slices.DeleteFunc(list, func(p Placed) bool {
		err := p.Check()
		if err == nil && wanted[p.Slot] {
			err = fmt.Errorf("slot %d is taken", p.Slot)
		}
		if err == nil {
			wanted[p.Slot] = true
		}
		fail(p.Attachment, err)
		return err != nil
	})
	errs = append(errs, h.vacate(wanted))
	found, err := lookAround(list)
	errs = append(errs, err)
	// The rules come before the ways that they guard, and go after them.
	if len(list) > 0 {
		repaired, err := h.table.apply(nodeTable(found))
		if err != nil {
			return changes, errors.Join(append(errs, err)...)
		}
		changes = append(changes, repairedTable(repaired, "")...)
	}
	h.last = found
	state := kernel.State{Protocol: routeProtocol, OnlyRules: true}
	for _, p := range list {
		if p.Namespace != nil {
			made, err := h.enter(p)
			changes = append(changes, made...)
			fail(p.Attachment, err)
		}
		state.Interfaces = append(state.Interfaces, p.nearSide())
		state.Rules = append(state.Rules, kernel.Rule{
			Priority: wellknown.HostPriority, Mark: wellknown.HostMark(p.Slot), Mask: ^uint32(0), Table: wellknown.HostTable(p.Slot),
		})
	}
	made, err := kernel.Repair(state)
	changes = append(changes, made...)
	errs = append(errs, err)
	if len(list) == 0 {
		errs = append(errs, h.clear())
	}
	for _, c := range changes {
		if c.Kind == kernel.KindInterface {
			awaitCarrier(list)
			break
		}
	}
	return changes, errors.Join(errs...)
}

// awaitCarrier waits, for a second or two, until the kernel sends by the pairs: it learns of the
// carrier of an interface in the background, and drops packets until then.
func awaitCarrier(list []Placed) {
	for deadline := time.Now().Add(2 * time.Second); time.Now().Before(deadline); time.Sleep(2 * time.Millisecond) {
		if !slices.ContainsFunc(list, func(p Placed) bool { return p.Namespace != nil && !p.carries() }) {
			return
		}
	}
}

// carries reports whether both ends of a pair are known to have a carrier.
func (p Placed) carries() bool {
	up := func(name string) bool {
		link, err := find(name)
		return err == nil && link != nil && link.Attrs().OperState == netlink.OperUp
	}
	far := false
	_ = p.Namespace.Do(func(ns.NetNS) error {
		far = up(wellknown.HostPeer)
		return nil
	})
	return far && up(p.device())
}

// clear removes the table of a node that has no attachments.
func (h *Host) clear() error {
	there, err := exists()
	if err != nil || !there {
		return err
	}
	return h.table.remove()
}

func repairedTable(repaired bool, where string) []kernel.Change {
	if !repaired {
		return nil
	}
	return []kernel.Change{{Kind: "firewall", Subject: "the nftables table inet " + tableName + where, What: "put back"}}
}

// Refresh looks again at what attachments need that others make: cgroups and sockets. It changes
// nothing else, so that it can be called often. Reached and spared addresses are replaced for the
// slots that are given.
func (h *Host) Refresh(addresses map[int]Addresses) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.last) == 0 {
		return nil
	}
	var list []Placed
	for _, p := range h.last {
		if now, given := addresses[p.Slot]; given {
			p.Reached, p.Spared = now.Reached, now.Spared
		}
		list = append(list, Placed{Attachment: p.Attachment})
	}
	found, err := lookAround(list)
	if err != nil {
		return err
	}
	h.last = found
	there, err := exists()
	if err != nil || !there {
		return err // the next Ensure puts it back
	}
	_, err = h.table.apply(nodeTable(found))
	return err
}

// Addresses are those that the processes of a cgroup reach by their endpoint, and those of them
// that they do not.
type Addresses struct{ Reached, Spared []netip.Prefix }

// Status is what was last found of an attachment.
type Status struct {
	Slot   int
	Silent []Port // ports on which nobody listens
	// NoGroup says that the cgroup does not exist, so that nothing is sent by the endpoint.
	NoGroup bool
}

// Status returns what was found in the last Ensure or Refresh.
func (h *Host) Status() []Status {
	h.mu.Lock()
	defer h.mu.Unlock()
	var list []Status
	for _, p := range h.last {
		s := Status{Slot: p.Slot, NoGroup: p.Group != "" && p.group == 0}
		for _, port := range p.Ports {
			if !p.heard[port] {
				s.Silent = append(s.Silent, port)
			}
		}
		list = append(list, s)
	}
	return list
}

// Counters returns the number of dropped packets by reason, since the table was made; none if the
// node has no attachments.
func (h *Host) Counters() (map[string]uint64, error) {
	conn, err := newConn()
	if err != nil {
		return nil, err
	}
	return counters(conn)
}

// lookAround finds out about the sockets and the cgroups of attachments.
func lookAround(list []Placed) ([]placed, error) {
	if len(list) == 0 {
		return nil, nil
	}
	sockets, err := listener.All()
	errs := []error{err}
	var found []placed
	for _, a := range list {
		p := placed{Attachment: a.Attachment, listens: map[Port][2]netip.Addr{}, looped: map[Port][2]bool{}, heard: map[Port]bool{}}
		if p.Group != "" {
			// Without its cgroup nothing goes out, which is the safe side.
			if p.group, err = p.Group.number(); err != nil {
				errs = append(errs, err)
			}
		}
		for _, port := range p.Ports {
			var at [2]netip.Addr
			var looped [2]bool
			for i, f := range families {
				near, _, _ := p.ends(f)
				var heard bool
				at[i], looped[i], heard = listensAt(sockets, port, f, near)
				p.heard[port] = p.heard[port] || heard
			}
			p.listens[port], p.looped[port] = at, looped
		}
		found = append(found, p)
	}
	return found, errors.Join(errs...)
}

// listensAt returns the address to which a port is led if no socket receives at near, whether a
// socket is bound to just the loopback address, and whether any socket has the port.
func listensAt(sockets []listener.Socket, port Port, f family, near netip.Addr) (at netip.Addr, looped, heard bool) {
	at = f.loopback
	best := 0
	for _, s := range sockets {
		a := s.Address.Addr()
		if s.Protocol != port.Protocol || s.Address.Port() != port.Number {
			continue
		}
		if s.Receives(port.Protocol, netip.AddrPortFrom(near, port.Number)) {
			heard = true
			continue
		}
		rank := 0
		switch {
		case a.Is6() != f.ipv6 || a.IsUnspecified() || a.IsLinkLocalUnicast() || a.IsMulticast():
			continue
		case a == f.loopback:
			rank = 3
		case a.IsLoopback():
			rank = 2
		default:
			rank = 1
		}
		heard = true
		if rank > best || rank == best && a.Less(at) {
			best, at = rank, a
		}
	}
	return at, best == 3, heard
}

// macs returns the Ethernet addresses of a pair's ends: in the node's namespace, and in the
// endpoint's. They follow from the slot, so that they can be compared.
func macs(device string) (near, far net.HardwareAddr) {
	sum := sha256.Sum256([]byte("sif host " + device))
	near, far = slices.Clone(sum[:6]), slices.Clone(sum[6:12])
	for _, m := range []net.HardwareAddr{near, far} {
		m[0] = m[0]&^1 | 2 // unicast, locally administered
	}
	return near, far
}

// widest is the MTU of the pairs, in bytes. It is larger than that of the way into the fabric, so
// that it is the endpoint's namespace that tells a sender of the latter, in the usual way.
const widest = 65535

// nearSide is what must be of the end in the node's namespace.
func (a Attachment) nearSide() kernel.Interface {
	near, far := macs(a.device())
	side := kernel.Interface{
		Name: a.device(), Passing: true, MTU: widest, MAC: near,
		IPv4: []kernel.Sysctl{
			{Name: "accept_redirects", Value: "0"}, {Name: "send_redirects", Value: "0"},
			{Name: "route_localnet", Value: "1"}, // to 127.0.0.1, which the table allows only for ports
			{Name: "src_valid_mark", Value: "1"}, // a strict rp_filter asks by the mark
		},
		IPv6: []kernel.Sysctl{
			{Name: "disable_ipv6", Value: "0"}, {Name: "accept_ra", Value: "0"}, {Name: "accept_dad", Value: "0"},
			{Name: "accept_redirects", Value: "0"}, {Name: "addr_gen_mode", Value: "1"},
		},
		OnlyAddresses: true, OnlyRoutes: []int{unix.RT_TABLE_MAIN, wellknown.HostTable(a.Slot)}, Alone: true,
	}
	for _, f := range families {
		own, peer, _ := a.ends(f)
		// The scope keeps the kernel from choosing the IPv4 address for other packets.
		side.Addresses = append(side.Addresses, kernel.Address{Prefix: single(own), Scope: unix.RT_SCOPE_LINK, Deprecated: f.ipv6})
		side.Neighbours = append(side.Neighbours, kernel.Neighbour{Addr: peer, MAC: far})
		anywhere := netip.PrefixFrom(netip.IPv4Unspecified(), 0)
		if f.ipv6 {
			anywhere = netip.PrefixFrom(netip.IPv6Unspecified(), 0)
		}
		side.Routes = append(side.Routes,
			kernel.Route{Prefix: single(peer), Source: own, MTU: a.MTU},
			kernel.Route{Prefix: anywhere, Table: wellknown.HostTable(a.Slot), Gateway: peer, Source: own})
		if f.ipv6 {
			// The kernel takes in what is for ::1 only where a route of the interface says so.
			side.Routes = append(side.Routes, kernel.Route{Prefix: single(f.loopback), Table: wellknown.HostTable(a.Slot), Local: true})
		}
	}
	return side
}

// farSide is what must be in the endpoint's namespace.
func (a Attachment) farSide() kernel.State {
	near, far := macs(a.device())
	side := kernel.Interface{
		Name: wellknown.HostPeer, Passing: true, MTU: widest, MAC: far,
		IPv4: []kernel.Sysctl{{Name: "accept_redirects", Value: "0"}, {Name: "send_redirects", Value: "0"}},
		IPv6: []kernel.Sysctl{
			{Name: "disable_ipv6", Value: "0"}, {Name: "accept_ra", Value: "0"}, {Name: "accept_dad", Value: "0"},
			{Name: "accept_redirects", Value: "0"}, {Name: "addr_gen_mode", Value: "1"},
		},
		OnlyAddresses: true, OnlyRoutes: []int{unix.RT_TABLE_MAIN},
	}
	for _, f := range families {
		peer, own, _ := a.ends(f)
		side.Addresses = append(side.Addresses, kernel.Address{Prefix: single(own), Scope: unix.RT_SCOPE_LINK})
		side.Neighbours = append(side.Neighbours, kernel.Neighbour{Addr: peer, MAC: near})
		side.Routes = append(side.Routes, kernel.Route{Prefix: single(peer), Source: own})
	}
	return kernel.State{
		Protocol:   routeProtocol,
		Sysctls:    []kernel.Sysctl{{Name: "net/ipv4/ip_forward", Value: "1"}, {Name: "net/ipv6/conf/all/forwarding", Value: "1"}},
		Interfaces: []kernel.Interface{side},
	}
}

// enter makes or repairs the pair and what is in the endpoint's namespace.
func (h *Host) enter(p Placed) (changes []kernel.Change, err error) {
	var stat unix.Stat_t
	if err := unix.Fstat(int(p.Namespace.Fd()), &stat); err != nil {
		return nil, fmt.Errorf("look at the endpoint's namespace: %w", err)
	}
	identity := fmt.Sprint(stat.Dev, " ", stat.Ino)
	in := h.inside[p.Slot]
	if in == nil || in.namespace != identity {
		in = &inside{namespace: identity}
		if h.inside == nil {
			h.inside = map[int]*inside{}
		}
		h.inside[p.Slot] = in
	}
	where := " in the namespace of endpoint " + p.IPv4.String()
	peer := 0
	err = p.Namespace.Do(func(ns.NetNS) error {
		repaired, err := in.table.apply(endpointTable(p.Attachment))
		changes = append(changes, repairedTable(repaired, where)...)
		if err != nil {
			return err
		}
		link, err := find(wellknown.HostPeer)
		if link != nil {
			peer = link.Attrs().ParentIndex
		}
		return err
	})
	if err != nil {
		return changes, err
	}
	near, err := find(p.device())
	if err != nil {
		return changes, err
	}
	if near == nil || peer != near.Attrs().Index {
		if err := p.makePair(near); err != nil {
			return changes, err
		}
		changes = append(changes, kernel.Change{Kind: kernel.KindInterface, Subject: p.device(), What: "was missing or unpaired, made"})
	}
	err = p.Namespace.Do(func(ns.NetNS) error {
		made, err := kernel.Repair(p.farSide())
		for i := range made {
			made[i].Subject += where
		}
		changes = append(changes, made...)
		return err
	})
	return changes, err
}

// makePair makes the pair, in place of what remains of another one.
func (p Placed) makePair(near netlink.Link) error {
	if near != nil {
		if err := netlink.LinkDel(near); err != nil {
			return fmt.Errorf("remove the remaining interface %s: %w", p.device(), err)
		}
	}
	err := p.Namespace.Do(func(ns.NetNS) error {
		far, err := find(wellknown.HostPeer)
		if err != nil || far == nil {
			return err
		}
		return netlink.LinkDel(far)
	})
	if err != nil {
		return fmt.Errorf("remove the remaining interface %s of the endpoint's namespace: %w", wellknown.HostPeer, err)
	}
	if err := forget(p.Slot); err != nil {
		return err
	}
	own, far := macs(p.device())
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU, attrs.HardwareAddr = p.device(), widest, own
	pair := &netlink.Veth{
		LinkAttrs: attrs, PeerName: wellknown.HostPeer, PeerNamespace: netlink.NsFd(int(p.Namespace.Fd())), PeerMTU: widest, PeerHardwareAddr: far,
	}
	if err := netlink.LinkAdd(pair); err != nil {
		return fmt.Errorf("make the interface pair %s: %w", p.device(), err)
	}
	return nil
}

// find returns an interface, nil if there is none.
func find(name string) (netlink.Link, error) {
	link, err := netlinksafe.LinkByName(name)
	if errors.As(err, &netlink.LinkNotFoundError{}) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("find interface %s: %w", name, err)
	}
	return link, nil
}

// slotInterface is the form of wellknown.HostInterface.
var slotInterface = regexp.MustCompile(`^` + wellknown.HostPrefix + `([0-9]+)$`)

// vacate takes away the interfaces of other slots than the wanted ones, and what the kernel
// remembers of their connections: it would go on translating what is sent in them.
func (h *Host) vacate(wanted map[int]bool) error {
	links, err := netlinksafe.LinkList()
	if err != nil {
		return fmt.Errorf("list the interfaces: %w", err)
	}
	var errs []error
	for _, l := range links {
		name := l.Attrs().Name
		match := slotInterface.FindStringSubmatch(name)
		if match == nil {
			continue
		}
		slot, err := strconv.Atoi(match[1])
		if err == nil && wanted[slot] && name == wellknown.HostInterface(slot) {
			continue
		}
		delete(h.inside, slot)
		if err := netlink.LinkDel(l); err != nil {
			errs = append(errs, fmt.Errorf("remove interface %s: %w", name, err))
			continue
		}
		errs = append(errs, forget(slot))
	}
	return errors.Join(errs...)
}

// forget ends what the kernel remembers of the connections of a slot.
func forget(slot int) error {
	for _, family := range []netlink.InetFamily{unix.AF_INET, unix.AF_INET6} {
		if _, err := netlink.ConntrackDeleteFilters(netlink.ConntrackTable, family, connectionsOf(slot)); err != nil {
			return fmt.Errorf("end the connections of interface %s: %w", wellknown.HostInterface(slot), err)
		}
	}
	return nil
}

// connectionsOf matches the connections of a slot.
type connectionsOf int

// MatchConntrackFlow implements netlink.CustomConntrackFilter.
func (c connectionsOf) MatchConntrackFlow(flow *netlink.ConntrackFlow) bool {
	slot := int(c)
	if flow.Mark == wellknown.HostMark(slot) {
		return true
	}
	for _, ip := range []net.IP{flow.Forward.SrcIP, flow.Forward.DstIP, flow.Reverse.SrcIP, flow.Reverse.DstIP} {
		a, _ := netip.AddrFromSlice(ip)
		a = a.Unmap()
		for _, p := range []netip.Prefix{wellknown.HostNear4, wellknown.HostFar4, wellknown.HostNear6, wellknown.HostFar6} {
			if p.Contains(a) && a == wellknown.HostAddress(p, slot) {
				return true
			}
		}
	}
	return false
}
