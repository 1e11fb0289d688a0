// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

// Package kernel keeps the network configuration that we write into a network namespace as we wrote
// it: kernel parameters, interfaces, addresses, neighbours, routes and routing rules. A State says
// what must be there. Set writes it; Repair compares it with what is there, with one dump for each
// kind, and writes what differs. So what is written first and what is put back later is described
// once.
//
// It knows netlink and /proc/sys. It must not know what an interface is for.
//
// All functions work in the network namespace of the calling thread.
package kernel

import (
	"bytes"
	"errors"
	"fmt"
	"math"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// RouteProtocol marks the routes and the rules that we write, and may remove, unless a State says
// otherwise (rtm_protocol of rtnetlink(7); 205 is not in iproute2's rt_protos).
const RouteProtocol = 205

// State is what must be in a network namespace.
type State struct {
	Sysctls    []Sysctl // by their path below /proc/sys
	Interfaces []Interface
	Blackholes []Blackhole
	Rules      []Rule
	// OnlyRules says that there are no other routing rules with our mark.
	OnlyRules bool
	// Protocol marks the routes and the rules, if not RouteProtocol does. Who shares a namespace
	// with another one has a mark of his own.
	Protocol int
}

func (s State) protocol() int {
	if s.Protocol == 0 {
		return RouteProtocol
	}
	return s.Protocol
}

// Sysctl is a kernel parameter.
type Sysctl struct{ Name, Value string }

// Interface is what must be of an interface. It must be up.
type Interface struct {
	Name string
	// Index, if not 0, says which interface it is, even if somebody gives it another name.
	Index int
	// Passing says that an interface that does not exist is not an error.
	Passing bool
	// Master says that the interface may belong to a bridge or a switch.
	Master bool
	MTU    int              // in bytes; 0: any
	MAC    net.HardwareAddr // nil: any
	// IPv4 and IPv6 are the interface's parameters, by their names in net/ipv4/conf and
	// net/ipv6/conf.
	IPv4, IPv6 []Sysctl
	Addresses  []Address
	// OnlyAddresses says that the interface has no other addresses, apart from loopback ones.
	OnlyAddresses bool
	Neighbours    []Neighbour // permanent
	Routes        []Route
	// OnlyRoutes are the tables in which the interface has no other routes with our mark.
	OnlyRoutes []int
	// Alone says that in these tables there must be no routes of others either, apart from the
	// kernel's.
	Alone bool
}

// Address is an address of an interface. There is no duplicate address detection for it.
type Address struct {
	Prefix netip.Prefix
	Scope  netlink.Scope
	// Deprecated says that the kernel chooses another address of IPv6, on whatever interface, as
	// the source of packets, unless a route names this one. It is not compared.
	Deprecated bool
}

// Neighbour is the Ethernet address of an IP address.
type Neighbour struct {
	Addr netip.Addr
	MAC  net.HardwareAddr
}

// Route is a route by an interface.
type Route struct {
	Prefix  netip.Prefix
	Table   int        // 0: the main table
	Gateway netip.Addr // zero: the prefix is on the link
	Source  netip.Addr // zero: the kernel chooses
	MTU     int        // 0: the interface's
	Local   bool       // the machine takes in what comes by the interface for the prefix
}

// Blackhole is a route that drops what no other route of its table takes.
type Blackhole struct {
	Prefix   netip.Prefix
	Table    int
	Priority int
}

// Rule is a routing rule: what is true of the packets that look into a table. There is one for IPv4
// and one for IPv6, unless it has a destination.
type Rule struct {
	Priority   int
	Interface  string       // by which they come; empty: any
	To         netip.Prefix // zero: anywhere
	Mark, Mask uint32       // the bits of Mask are those of Mark
	Table      int          // 0: the main table
	// Alone says that there is no other rule with its priority.
	Alone bool
}

// Kinds of changes.
const (
	KindSysctl    = "sysctl"
	KindInterface = "interface"
	KindAddress   = "address"
	KindNeighbour = "neighbour"
	KindRoute     = "route"
	KindRule      = "routing rule"
)

// Change is a difference that was repaired.
type Change struct {
	Kind    string `json:"kind"`
	Subject string `json:"subject"` // what differed: the same for each difference of the same thing
	What    string `json:"what"`    // how it differed, and what was done
}

func (c Change) String() string { return c.Subject + ": " + c.What }

var (
	// ErrNoIPv6 says that the kernel has no IPv6, which every endpoint and every link has.
	ErrNoIPv6 = errors.New("this kernel has no IPv6, which the fabric needs: remove ipv6.disable=1 from its command line and boot again")
	// ErrNoInterface says that an interface does not exist.
	ErrNoInterface = errors.New("the interface does not exist")
)

// step is a change that is to be made.
type step struct {
	Change
	do func() error
}

// Set writes the state, whatever is there. It stops at the first error.
func Set(s State) error {
	steps, err := plan(s, nil)
	if err != nil {
		return err
	}
	for _, st := range steps {
		if err := st.do(); err != nil {
			return err
		}
	}
	return nil
}

// passes bounds how often Repair compares: some changes make the kernel forget others, such as the
// neighbours of an interface that was down.
const passes = 4

// Repair compares the state with what is there, writes what differs, and returns it. It goes on
// after an error.
func Repair(s State) (changes []Change, err error) {
	for range passes {
		have, err := read(s)
		if err != nil {
			return changes, err
		}
		steps, planErr := plan(s, have)
		errs := []error{planErr}
		done := 0
		for _, st := range steps {
			if err := st.do(); err != nil {
				errs = append(errs, err)
				continue
			}
			done++
			// A later pass writes again what an earlier one wrote for nothing.
			if !slices.Contains(changes, st.Change) {
				changes = append(changes, st.Change)
			}
		}
		if done == 0 {
			return changes, errors.Join(errs...)
		}
	}
	return changes, fmt.Errorf("put back %s: it does not stay", changes[len(changes)-1].Subject)
}

// plan returns the steps from what is there to the state. Without have, nothing is known to be
// there.
func plan(s State, have *snapshot) ([]step, error) {
	p := &planner{have: have, ipv6: HasIPv6(), protocol: netlink.RouteProtocol(s.protocol())}
	for _, k := range s.Sysctls {
		p.sysctl(k)
	}
	for _, i := range s.Interfaces {
		p.iface(i)
	}
	for _, b := range s.Blackholes {
		p.blackhole(b)
	}
	for _, r := range s.Rules {
		p.rule(r)
	}
	if s.OnlyRules && have != nil {
		p.surplusRules(s.Rules)
	}
	if p.skipped {
		p.errs = append(p.errs, ErrNoIPv6)
	}
	return p.steps, errors.Join(p.errs...)
}

const procSys = "/proc/sys"

// HasIPv6 reports whether the kernel has IPv6.
func HasIPv6() bool {
	_, err := os.Stat(filepath.Join(procSys, "net/ipv6/conf"))
	return err == nil
}

type planner struct {
	have     *snapshot // nil: nothing is known
	protocol netlink.RouteProtocol
	ipv6     bool // the kernel has it
	skipped  bool // something was left out because the kernel has no IPv6
	steps    []step
	errs     []error
}

func (p *planner) add(kind, subject, what string, do func() error) {
	p.steps = append(p.steps, step{Change{kind, subject, what}, do})
}

// carries reports whether the kernel has the address family of a prefix.
func (p *planner) carries(a netip.Addr) bool {
	if a.Is4() || p.ipv6 {
		return true
	}
	p.skipped = true
	return false
}

func (p *planner) sysctl(k Sysctl) {
	if strings.HasPrefix(k.Name, "net/ipv6/") && !p.ipv6 {
		p.skipped = true
		return
	}
	if p.have == nil {
		// To write a parameter such as forwarding, even as it is, takes the kernel's lock of all
		// interfaces, for which the kernel does not let a writer sleep: it tries again and again.
		p.add(KindSysctl, k.subject(), "set to "+k.Value, func() error {
			if was, err := k.read(); err == nil && was == k.Value {
				return nil
			}
			return k.write()
		})
		return
	}
	switch was, err := k.read(); {
	case err != nil:
		p.errs = append(p.errs, err)
	case was != k.Value:
		p.setSysctl(k, was)
	}
}

func (k Sysctl) subject() string { return strings.ReplaceAll(k.Name, "/", ".") }

func (k Sysctl) read() (string, error) {
	text, err := os.ReadFile(filepath.Join(procSys, k.Name))
	if err != nil {
		return "", fmt.Errorf("read the kernel parameter %s: %w", k.Name, err)
	}
	return strings.TrimSpace(string(text)), nil
}

func (k Sysctl) write() error {
	if err := os.WriteFile(filepath.Join(procSys, k.Name), []byte(k.Value), 0); err != nil {
		return fmt.Errorf("set the kernel parameter %s to %s: %w", k.subject(), k.Value, err)
	}
	return nil
}

func (p *planner) setSysctl(k Sysctl, was string) {
	p.add(KindSysctl, k.subject(), fmt.Sprintf("was %s, set to %s", was, k.Value), k.write)
}

// iface plans an interface. Of one that is unknown in part, such as one that must be renamed first,
// it plans that part, and the next pass of Repair the rest.
func (p *planner) iface(want Interface) {
	link, known := p.find(want)
	if !known {
		return
	}
	handle := netlink.Link(&netlink.Device{LinkAttrs: netlink.LinkAttrs{Index: link.index, Name: want.Name}})
	if p.have != nil && link.name != want.Name {
		p.add(KindInterface, want.Name, "was renamed to "+link.name+", has its name again", func() error { return rename(handle, want.Name) })
		return
	}
	p.device(want, link, handle)
	p.settings("net/ipv4/conf/"+want.Name+"/", want.IPv4, link.ipv4)
	if p.ipv6 {
		p.settings("net/ipv6/conf/"+want.Name+"/", want.IPv6, link.ipv6)
	}
	p.skipped = p.skipped || len(want.IPv6) > 0 && !p.ipv6
	if p.have == nil || link.flags&unix.IFF_UP == 0 {
		p.add(KindInterface, want.Name, "was down, is up again", func() error {
			if err := netlink.LinkSetUp(handle); err != nil {
				return fmt.Errorf("bring up %s: %w", want.Name, err)
			}
			return nil
		})
	}
	p.addresses(want, link, handle)
	for _, n := range want.Neighbours {
		p.neighbour(want, link, n)
	}
	for _, r := range want.Routes {
		p.route(want, link, r)
	}
	p.surplus(want, link)
}

// settings plans parameters of an interface that has known ones.
func (p *planner) settings(path string, want []Sysctl, known map[string]string) {
	for _, k := range want {
		full := Sysctl{path + k.Name, k.Value}
		switch was, told := known[k.Name]; {
		case !told:
			p.sysctl(full)
		case was != k.Value:
			p.setSysctl(full, was)
		}
	}
}

// find returns what is known of the interface.
func (p *planner) find(want Interface) (device, bool) {
	if p.have == nil {
		if want.Index != 0 {
			return device{index: want.Index, name: want.Name}, true
		}
		index, err := indexOf(want.Name)
		if err != nil {
			p.errs = append(p.errs, err)
		}
		return device{index: index, name: want.Name}, err == nil
	}
	index := want.Index
	if index == 0 {
		index = p.have.names[want.Name]
	}
	// A renamed interface is known by its Ethernet address, because an index may be used again.
	if d, there := p.have.devices[index]; there && (d.name == want.Name || want.MAC == nil || bytes.Equal(d.mac, want.MAC)) {
		return d, true
	}
	if !want.Passing {
		p.errs = append(p.errs, fmt.Errorf("interface %s: %w", want.Name, ErrNoInterface))
	}
	return device{}, false
}

func indexOf(name string) (int, error) {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return 0, fmt.Errorf("find interface %s: %w", name, err)
	}
	return link.Attrs().Index, nil
}

// rename gives an interface its name. Kernels before 6.2 rename only an interface that is down.
func rename(link netlink.Link, name string) error {
	err := netlink.LinkSetName(link, name)
	if errors.Is(err, unix.EBUSY) {
		err = errors.Join(netlink.LinkSetDown(link), netlink.LinkSetName(link, name))
	}
	if err != nil {
		return fmt.Errorf("give interface %d its name %s: %w", link.Attrs().Index, name, err)
	}
	return nil
}

// device plans what IP does not see of an interface. Without have, it was made so.
func (p *planner) device(want Interface, link device, handle netlink.Link) {
	if p.have == nil {
		return
	}
	if link.master != 0 && !want.Master {
		p.add(KindInterface, want.Name, fmt.Sprintf("was put into interface %d, is its own again", link.master), func() error {
			if err := netlink.LinkSetNoMaster(handle); err != nil {
				return fmt.Errorf("take %s out of interface %d: %w", want.Name, link.master, err)
			}
			return nil
		})
	}
	if want.MTU != 0 && link.mtu != want.MTU {
		p.add(KindInterface, want.Name, fmt.Sprintf("had MTU %d, set to %d", link.mtu, want.MTU), func() error {
			if err := netlink.LinkSetMTU(handle, want.MTU); err != nil {
				return fmt.Errorf("set the MTU of %s to %d: %w", want.Name, want.MTU, err)
			}
			return nil
		})
	}
	if want.MAC != nil && !bytes.Equal(link.mac, want.MAC) {
		p.add(KindInterface, want.Name, fmt.Sprintf("had Ethernet address %s, set to %s", link.mac, want.MAC), func() error {
			if err := netlink.LinkSetHardwareAddr(handle, want.MAC); err != nil {
				return fmt.Errorf("set the Ethernet address of %s to %s: %w", want.Name, want.MAC, err)
			}
			return nil
		})
	}
}

func (p *planner) addresses(want Interface, link device, handle netlink.Link) {
	for _, a := range want.Addresses {
		if !p.carries(a.Prefix.Addr()) || p.have != nil && slices.Contains(p.have.addresses[link.index], a.Prefix) {
			continue
		}
		p.add(KindAddress, a.Prefix.String()+" on "+want.Name, "was missing, added", func() error {
			address := &netlink.Addr{IPNet: network(a.Prefix), Scope: int(a.Scope)}
			if a.Prefix.Addr().Is6() {
				address.Flags = unix.IFA_F_NODAD
			}
			if a.Deprecated {
				address.ValidLft = math.MaxUint32 // for ever; it is preferred for 0 s
			}
			if err := netlink.AddrReplace(handle, address); err != nil {
				return fmt.Errorf("add the address %s to %s: %w", a.Prefix, want.Name, err)
			}
			return nil
		})
	}
	if p.have == nil || !want.OnlyAddresses {
		return
	}
	for _, have := range p.have.addresses[link.index] {
		if have.Addr().IsLoopback() || slices.ContainsFunc(want.Addresses, func(a Address) bool { return a.Prefix == have }) {
			continue
		}
		p.add(KindAddress, have.String()+" on "+want.Name, "is not ours, removed", func() error {
			if err := netlink.AddrDel(handle, &netlink.Addr{IPNet: network(have)}); err != nil {
				return fmt.Errorf("remove the address %s from %s: %w", have, want.Name, err)
			}
			return nil
		})
	}
}

func (p *planner) neighbour(want Interface, link device, n Neighbour) {
	if !p.carries(n.Addr) {
		return
	}
	what := "was missing, added"
	if p.have != nil {
		mac, there := p.have.neighbours[neighbourKey{link.index, n.Addr}]
		if there && bytes.Equal(mac, n.MAC) {
			return
		}
		if there {
			what = fmt.Sprintf("had Ethernet address %s, set to %s", mac, n.MAC)
		}
	}
	p.add(KindNeighbour, n.Addr.String()+" on "+want.Name, what, func() error {
		err := netlink.NeighSet(&netlink.Neigh{
			LinkIndex: link.index, Family: familyOf(n.Addr), State: netlink.NUD_PERMANENT, IP: n.Addr.AsSlice(), HardwareAddr: n.MAC,
		})
		if err != nil {
			return fmt.Errorf("set the neighbour %s on %s: %w", n.Addr, want.Name, err)
		}
		return nil
	})
}

func (p *planner) route(want Interface, link device, r Route) {
	if !p.carries(r.Prefix.Addr()) {
		return
	}
	r.Table = tableOf(r.Table)
	if p.have != nil && slices.Contains(p.have.routes[link.index], r) {
		return
	}
	p.add(KindRoute, routeSubject(r.Prefix, r.Table)+" to "+want.Name, "was missing or altered, set", func() error {
		x := &netlink.Route{
			LinkIndex: link.index, Dst: network(r.Prefix), Table: r.Table, Family: familyOf(r.Prefix.Addr()), Protocol: p.protocol, MTU: r.MTU,
		}
		if r.Gateway.IsValid() {
			x.Gw, x.Flags = r.Gateway.AsSlice(), int(netlink.FLAG_ONLINK)
		} else if r.Prefix.Addr().Is4() {
			x.Scope = netlink.SCOPE_LINK
		}
		if r.Local {
			x.Type, x.Scope = unix.RTN_LOCAL, netlink.SCOPE_HOST
		}
		if r.Source.IsValid() {
			x.Src = r.Source.AsSlice()
		}
		if err := netlink.RouteReplace(x); err != nil {
			return fmt.Errorf("route %s to %s: %w", routeSubject(r.Prefix, r.Table), want.Name, err)
		}
		return nil
	})
}

func routeSubject(p netip.Prefix, table int) string {
	if table == unix.RT_TABLE_MAIN {
		return p.String()
	}
	return fmt.Sprintf("%s of table %d", p, table)
}

// surplus plans the removal of routes that the interface must not have.
func (p *planner) surplus(want Interface, link device) {
	if p.have == nil {
		return
	}
	in := func(table int) bool {
		return slices.ContainsFunc(want.OnlyRoutes, func(t int) bool { return tableOf(t) == table })
	}
	for _, have := range p.have.routes[link.index] {
		// A wanted route with other attributes is replaced.
		wanted := slices.ContainsFunc(want.Routes, func(r Route) bool { return r.Prefix == have.Prefix && tableOf(r.Table) == have.Table })
		if in(have.Table) && !wanted {
			p.remove(want, route{have, link.index}, p.protocol)
		}
	}
	for have, protocol := range p.have.others {
		if want.Alone && have.index == link.index && in(have.Table) {
			p.remove(want, have, protocol)
		}
	}
}

func (p *planner) remove(want Interface, r route, protocol netlink.RouteProtocol) {
	p.add(KindRoute, routeSubject(r.Prefix, r.Table)+" to "+want.Name, "is not wanted, removed", func() error {
		err := netlink.RouteDel(&netlink.Route{
			LinkIndex: r.index, Dst: network(r.Prefix), Table: r.Table, Family: familyOf(r.Prefix.Addr()), Protocol: protocol,
			Scope: netlink.SCOPE_NOWHERE, // any
		})
		if err != nil {
			return fmt.Errorf("remove the route %s to %s: %w", routeSubject(r.Prefix, r.Table), want.Name, err)
		}
		return nil
	})
}

func (p *planner) blackhole(b Blackhole) {
	if !p.carries(b.Prefix.Addr()) || p.have != nil && slices.Contains(p.have.blackholes, b) {
		return
	}
	p.add(KindRoute, "blackhole "+routeSubject(b.Prefix, b.Table), "was missing, added", func() error {
		err := netlink.RouteReplace(&netlink.Route{
			Dst: network(b.Prefix), Table: b.Table, Family: familyOf(b.Prefix.Addr()), Protocol: p.protocol,
			Type: unix.RTN_BLACKHOLE, Priority: b.Priority,
		})
		if err != nil {
			return fmt.Errorf("add the blackhole route %s: %w", routeSubject(b.Prefix, b.Table), err)
		}
		return nil
	})
}

func tableOf(t int) int {
	if t == 0 {
		return unix.RT_TABLE_MAIN
	}
	return t
}

func familyOf(a netip.Addr) int {
	if a.Is4() {
		return netlink.FAMILY_V4
	}
	return netlink.FAMILY_V6
}

func network(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// RestoreName gives the interface with an index and an Ethernet address its name back, and returns
// the change. It returns nil if there is no such interface, or if its index is 0, which none has.
func RestoreName(index int, mac net.HardwareAddr, name string) (*Change, error) {
	if index == 0 {
		return nil, nil
	}
	link, err := netlink.LinkByIndex(index)
	if errors.As(err, &netlink.LinkNotFoundError{}) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("find interface %d: %w", index, err)
	}
	was := link.Attrs()
	if was.Name == name || !bytes.Equal(was.HardwareAddr, mac) {
		return nil, nil
	}
	return &Change{KindInterface, name, "was renamed to " + was.Name + ", has its name again"}, rename(link, name)
}
