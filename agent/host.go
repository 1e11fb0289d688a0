// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package agent

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"

	"github.com/containernetworking/plugins/pkg/netlinksafe"
	"github.com/containernetworking/plugins/pkg/ns"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/sif-project/sif/agent/probe"
	"github.com/sif-project/sif/bpf"
	"github.com/sif-project/sif/internal/node/daemon"
	"github.com/sif-project/sif/internal/node/firewall"
	"github.com/sif-project/sif/internal/node/kernel"
	"github.com/sif-project/sif/internal/wellknown"
)

// Kinds of what the agent puts back, besides those of package kernel.
const (
	kindDatapath = "data path"
	kindEntry    = "map entry"
	kindCNI      = "cni"
)

// namespacesAtOnce is the number of workloads' namespaces that are compared at each interval, in
// turn.
const namespacesAtOnce = 16

// repairHost compares what the agent wrote into the node with what is there, and puts back what
// differs: the node's own parameters and addresses, and for each endpoint its programs, its
// interface, neighbours and routes. It returns what it could not put back. Endpoints that are being
// attached or detached are left alone: an interface must not be up before it has its programs.
func (a *Agent) repairHost() error {
	changes, err := a.repairDatapath()
	errs := []error{err}
	state := router(a.node.Self)
	for _, ep := range a.settled() {
		there, err := a.present(ep)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		if !there {
			continue
		}
		missing, err := a.attachPrograms(ep.HostIf)
		for _, what := range missing {
			changes = append(changes, kernel.Change{Kind: kindDatapath, Subject: what + " of " + ep.HostIf, What: "was missing, attached"})
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("attach the programs to %s: %w", ep.HostIf, err), a.closeUnguarded(ep))
			continue
		}
		state.Interfaces = append(state.Interfaces, a.pairOf(ep).hostSide(ep.IPv4, ep.IPv6))
	}
	more, err := kernel.Repair(state)
	a.node.Repaired(append(changes, more...))
	return errors.Join(append(errs, err)...)
}

// closeUnguarded sets the interface of an endpoint down if its programs are missing: everything
// would pass it. When they can be attached again, repairHost sets it up again.
func (a *Agent) closeUnguarded(ep endpoint) error {
	missing := a.data.Guarded(ep.HostIf)
	if !errors.Is(missing, bpf.ErrNotGuarded) {
		return nil
	}
	if err := netlink.LinkSetDown(&netlink.GenericLink{LinkAttrs: netlink.LinkAttrs{Index: ep.HostIndex}}); err != nil {
		return fmt.Errorf("set down interface %s, which is %w", ep.HostIf, errors.Join(missing, err))
	}
	return fmt.Errorf("endpoint %s is cut off, its interface %s was set down, so that nothing passes without the programs: %w", ep.ID, ep.HostIf, missing)
}

// repairDatapath puts back what the data path has beside its entries and programs.
func (a *Agent) repairDatapath() (changes []kernel.Change, err error) {
	mounted, err := mountBPF(a.node.Config)
	if err != nil {
		return nil, err
	}
	if mounted {
		changes = append(changes, kernel.Change{Kind: kindDatapath, Subject: a.node.Config.BPFDir, What: "was not mounted, mounted"})
	}
	list, err := a.data.Repair()
	for _, what := range list {
		changes = append(changes, kernel.Change{Kind: kindDatapath, Subject: what, What: "differed, put back"})
	}
	if err != nil {
		return changes, fmt.Errorf("repair the data path: %w", err)
	}
	return changes, nil
}

// settled returns the endpoints that have an interface and that no call concerns now.
func (a *Agent) settled() []endpoint {
	var list []endpoint
	for _, ep := range a.endpoints.all() {
		if ep.HostIndex != 0 && !a.locks.Busy(ep.Attachment) {
			list = append(list, ep)
		}
	}
	return list
}

// present reports whether the interface of an endpoint exists. If somebody has given it another
// name, it gets its own again.
func (a *Agent) present(ep endpoint) (bool, error) {
	index, err := linkIndex(ep.HostIf)
	if err != nil || index != 0 {
		return index != 0 && index == ep.HostIndex, err
	}
	own, _ := macs(ep.HostIf)
	change, err := kernel.RestoreName(ep.HostIndex, own, ep.HostIf)
	if err != nil || change == nil {
		return false, err
	}
	a.node.Repaired([]kernel.Change{*change})
	return true, nil
}

// pairOf describes the pair of interfaces of an endpoint.
func (a *Agent) pairOf(ep endpoint) veth {
	v := veth{host: ep.HostIf, hostIndex: ep.HostIndex, mtu: a.workloadMTU(), loopback: a.leadsToLoopback(), guest: ep.VM}
	v.hostMAC, v.peerMAC = macs(ep.HostIf)
	if v.guest {
		v.peerMAC, v.mtu = guestMAC(), max(v.mtu, guestMTU)
	}
	return v
}

// leadsToLoopback reports whether a port of the node that is open to workloads is one of loopback.
func (a *Agent) leadsToLoopback() bool {
	return slices.ContainsFunc(a.exposed, firewall.Exposed.Loopback)
}

func (a *Agent) workloadMTU() int {
	return daemon.WorkloadMTU(daemon.SwitchMTU(a.node.BoundaryMTU()))
}

// repairWorkloads compares the namespaces of some workloads, in turn.
func (a *Agent) repairWorkloads() error {
	list := a.settled()
	var errs []error
	for range min(namespacesAtOnce, len(list)) {
		a.turn = (a.turn + 1) % len(list)
		if err := a.repairWorkload(list[a.turn]); err != nil {
			errs = append(errs, fmt.Errorf("repair the namespace of endpoint %s: %w", list[a.turn].ID, err))
		}
	}
	return errors.Join(errs...)
}

func (a *Agent) repairWorkload(ep endpoint) error {
	if there, err := a.present(ep); err != nil || !there {
		return err
	}
	namespace, err := a.namespaces.Find(ep.HostIf)
	if errors.Is(err, probe.ErrNoNamespace) {
		return nil // it is about to go
	}
	if err != nil {
		return err
	}
	defer namespace.Close()
	if ep.VM {
		if err := a.repairTap(ep, namespace); err != nil {
			return err
		}
	}
	err = namespace.Do(func(ns.NetNS) error {
		changes, err := kernel.Repair(a.pairOf(ep).workloadSide(ep.Attachment.IfName, ep.IPv4, ep.IPv6))
		for i := range changes {
			changes[i].Subject += " in the namespace of endpoint " + ep.ID
		}
		a.node.Repaired(changes)
		return err
	})
	if ep.VM {
		err = errors.Join(err, a.answerGuest(ep, namespace))
	}
	return err
}

// findings returns what of the node stands against the endpoints and is not the agent's to change,
// one sentence each with the remedy.
func (a *Agent) findings() []string {
	var list []string
	for _, ep := range a.settled() {
		if there, err := a.present(ep); err != nil || !there {
			continue
		}
		if err := a.data.Guarded(ep.HostIf); err != nil {
			list = append(list, fmt.Sprintf("endpoint %s is not guarded by the fabric alone: %v", ep.ID, err))
		}
	}
	socket := a.node.Config.CNI.Socket
	if _, err := os.Stat(socket); errors.Is(err, os.ErrNotExist) {
		list = append(list, fmt.Sprintf("the socket %s was removed, so no workload can start: restart the agent", socket))
	}
	return slices.Concat(list, a.misrouted(), a.deadEnds(), a.nearlyFull(), a.silentGuests())
}

// deadEnds names the ports that the node offers to its workloads and that lead nowhere.
func (a *Agent) deadEnds() []string {
	var list []string
	for _, e := range a.exposed {
		addresses, err := net.InterfaceAddrs()
		if err != nil {
			return []string{fmt.Sprintf("cannot list the addresses of this node: %v", err)}
		}
		at := e.To.Addr()
		own := at.IsLoopback() || at == wellknown.LinkLocal4 || at == wellknown.LinkLocal6 || slices.ContainsFunc(addresses, func(a net.Addr) bool {
			p, err := netip.ParsePrefix(a.String())
			return err == nil && p.Addr() == at
		})
		if !own {
			list = append(list, fmt.Sprintf("the configuration exposes %s, which is no address of this node: correct \"to\" of that block \"expose\"", e))
		}
	}
	return list
}

// misrouted asks the kernel where it would send packets to endpoints.
func (a *Agent) misrouted() []string {
	handle, err := netlinksafe.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return []string{fmt.Sprintf("cannot ask the kernel for routes: %v", err)}
	}
	defer handle.Close()
	var list []string
	for _, ep := range a.settled() {
		for _, addr := range []netip.Addr{ep.IPv4, ep.IPv6} {
			routes, err := handle.RouteGet(addr.AsSlice())
			if err == nil && len(routes) > 0 && routes[0].LinkIndex == ep.HostIndex {
				continue
			}
			if there, _ := a.present(ep); !there {
				break
			}
			list = append(list, fmt.Sprintf("packets to endpoint %s at %s do not reach its interface %s, because a routing rule or another table comes first: "+
				"see \"ip rule\" and \"ip route get %s\", and remove the rule, or add one before it: ip rule add pref 1 to %s lookup main",
				ep.ID, addr, ep.HostIf, addr, addr))
		}
	}
	return list
}
