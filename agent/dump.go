// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package agent

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"github.com/sif-project/sif/api"
	"github.com/sif-project/sif/bpf"
	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/fabric/desired"
)

// dump reads back what the kernel enforces.
func (a *Agent) dump(context.Context) (api.Dump, error) {
	a.programming.Lock()
	im, err := readImage(a.kernel)
	pointer, outside, ways := a.node.Revision.Pointer(), a.writtenOutside, a.wayNames()
	a.programming.Unlock()
	if err != nil {
		return api.Dump{}, fmt.Errorf("read the data path: %w", err)
	}
	d, err := a.describe(im, ways)
	if err != nil {
		return d, err
	}
	d.Node, d.Sequence, d.Root, d.Outside = a.node.Self.ID(), pointer.Sequence, pointer.Root, outside
	d.Problems = append(d.Problems, a.unguarded()...)
	if a.kernel.PassAll() {
		d.Problems = append(d.Problems, "eBPF lets everything pass (test override)")
	}
	return d, nil
}

// unguarded names the endpoints whose interfaces do not have their programs. One that is being
// detached has none any more, and one that ended meanwhile is nobody's.
func (a *Agent) unguarded() (problems []string) {
	for _, ep := range a.live() {
		err := a.data.Guarded(ep.HostIf)
		if err == nil || a.locks.Busy(ep.Attachment) {
			continue
		}
		if still, known := a.endpoints.get(ep.Attachment); known && still.HostIndex == ep.HostIndex {
			problems = append(problems, fmt.Sprintf("endpoint %s is not guarded: %v", ep.ID, err))
		}
	}
	return problems
}

// describe translates the content of the maps into words.
func (a *Agent) describe(im image, ways wayNames) (api.Dump, error) {
	underlay, err := linkIndex(a.node.Config.Underlay.Interface)
	if err != nil {
		return api.Dump{}, err
	}
	links, err := a.links()
	if err != nil {
		return api.Dump{}, err
	}
	return dumpOf(im, a.num, ways, links, uint32(underlay)), nil
}

// dumpOf translates the content of the maps into words. links are the interfaces of the links,
// underlay is the interface by which externals come.
func dumpOf(im image, n keys, ways wayNames, links map[desired.Way]uint32, underlay uint32) api.Dump {
	d := api.Dump{Layer: api.LayerEBPF}
	problem := func(format string, args ...any) { d.Problems = append(d.Problems, fmt.Sprintf(format, args...)) }
	identity := func(number uint32) string {
		if p, ok := partyOf(n, number); ok {
			return p.String()
		}
		problem("the maps contain identity %d, which this node never assigned", number)
		return fmt.Sprintf("number %d", number)
	}
	for index, ep := range im.endpoints {
		e := api.DumpEndpoint{IPv4: ep.IPv4, IPv6: ep.IPv6, Identity: identity(ep.Identity)}
		for c := range im.checks {
			if c.Interface == index {
				e.Checks = append(e.Checks, fabric.Check{Protocol: fabric.Protocol(c.Protocol), Port: c.Port})
			}
		}
		slices.SortFunc(e.Checks, compareChecks)
		d.Guarded = append(d.Guarded, e)
	}
	for _, p := range im.peers {
		if p.Gone {
			continue // it has nothing to say
		}
		via := fmt.Sprintf("interface %d", p.Interface)
		if p.Ways {
			var known bool
			if via, known = ways.via(p); !known {
				problem("the maps contain peers of group %d, which this node never assigned", p.Group)
			}
		}
		for way, index := range links {
			if index == p.Interface {
				via = way.String()
			}
		}
		if ep, own := im.endpoints[p.Interface]; own && (ep.IPv4 == p.Address || ep.IPv6 == p.Address) {
			via = desired.OwnInterface.String()
		}
		d.Peers = append(d.Peers, api.DumpPeer{Address: p.Address, Identity: identity(p.Identity), Via: via})
	}
	for _, index := range im.links {
		if !slices.Contains(slices.Collect(maps.Values(links)), index) {
			problem("packets of other zones are let in by interface %d, which is no link", index)
		}
	}
	list, problems := ways.dump(im.ways)
	d.Ways, d.Problems = list, append(d.Problems, problems...)
	externals := map[netip.Prefix]api.DumpExternal{}
	for _, x := range im.externals {
		e := externals[x.Prefix]
		e.Prefix = x.Prefix
		if x.Identity != 0 {
			who := identity(x.Identity)
			if e.Identity != "" && e.Identity != who {
				problem("external %s is both %s and %s", x.Prefix, e.Identity, who)
			}
			e.Identity = who
			switch {
			case x.Interface == 0:
				e.Out = true
			case x.Interface == bpf.FromNode:
				e.In = true
			case x.Interface != underlay && !slices.Contains(slices.Collect(maps.Values(links)), x.Interface):
				problem("external %s is expected on interface %d, which is neither the underlay's nor a link", x.Prefix, x.Interface)
			}
		}
		externals[x.Prefix] = e
	}
	d.External = slices.Collect(maps.Values(externals))
	for pair, rules := range im.pairs {
		if len(rules) == 0 {
			problem("the maps are inconsistent for identities %d and %d", pair.Source, pair.Destination)
			continue
		}
		from, to := identity(pair.Source), identity(pair.Destination)
		for _, r := range rules {
			exit := fabric.ExitZone
			if r.ExitNode {
				exit = fabric.ExitNode
			}
			contract, ok := contractOf(n, r.Contract)
			if !ok {
				problem("the maps contain contract %d, which this node never assigned", r.Contract&^bpf.AuditContract)
			}
			d.Rules = append(d.Rules, api.DumpRule{From: from, To: to, Protocol: fabric.Protocol(r.Protocol),
				Ports: fabric.PortRange{From: r.From, To: r.To}, Contract: contract.String(), Audit: r.Contract&bpf.AuditContract != 0, Exit: exit,
				Path: string(ways.classes[im.classes[r.Contract&^bpf.AuditContract]])})
		}
	}
	sortDump(&d)
	return d
}

func sortDump(d *api.Dump) {
	slices.SortFunc(d.Guarded, func(a, b api.DumpEndpoint) int { return a.IPv4.Compare(b.IPv4) })
	slices.SortFunc(d.Peers, func(a, b api.DumpPeer) int { return a.Address.Compare(b.Address) })
	slices.SortFunc(d.External, func(a, b api.DumpExternal) int { return a.Prefix.Compare(b.Prefix) })
	slices.SortFunc(d.Rules, func(a, b api.DumpRule) int {
		return cmp.Or(cmp.Compare(a.From, b.From), cmp.Compare(a.To, b.To), cmp.Compare(a.Protocol, b.Protocol), cmp.Compare(a.Ports.From, b.Ports.From))
	})
	slices.SortFunc(d.Ways, func(a, b api.DumpWay) int {
		return cmp.Or(cmp.Compare(a.To, b.To), cmp.Compare(a.Path, b.Path))
	})
	slices.Sort(d.Problems)
	d.Problems = slices.Compact(d.Problems)
}

func compareChecks(a, b fabric.Check) int {
	return cmp.Or(cmp.Compare(a.Protocol, b.Protocol), cmp.Compare(a.Port, b.Port))
}
