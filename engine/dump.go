// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package engine

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"

	"github.com/sif-project/sif/api"
	"github.com/sif-project/sif/engine/ovs"
	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/fabric/desired"
	"github.com/sif-project/sif/internal/node/daemon"
)

// serveTasks reads back the switch for `sif verify` and `sif explain`. An engine has no endpoints
// for other tasks.
func (d *Daemon) serveTasks(ctx context.Context) error {
	return d.node.ServeTasks(ctx, func(tasks []api.Task) {
		for _, t := range tasks {
			if t.Kind != api.TaskDump {
				d.node.TaskDone(ctx, api.TaskResult{ID: t.ID, Error: fmt.Sprintf("unknown kind of task %q", t.Kind)})
				continue
			}
			d.node.TaskDone(ctx, daemon.DumpTask(ctx, t, d.dump))
		}
	})
}

// dump reads back what the switch enforces.
func (d *Daemon) dump(ctx context.Context) (api.Dump, error) {
	d.programming.Lock()
	state, diff, ports, names, err := d.bridge.inspect(ctx)
	pointer, outside := d.node.Revision.Pointer(), d.writtenOutside
	d.programming.Unlock()
	if err != nil {
		return api.Dump{}, err
	}
	dump := dumpOf(state, ports, names)
	dump.Node, dump.Sequence, dump.Root, dump.Outside = d.node.Self.ID(), pointer.Sequence, pointer.Root, outside
	dump.Problems = append(dump.Problems, diff.Describe(names)...)
	if d.bridge.pipe.PassAll() {
		dump.Problems = append(dump.Problems, "the switch lets everything pass (test override)")
	}
	slices.Sort(dump.Problems)
	return dump, nil
}

// programmedDump is what the switch contains after Reconcile, in words.
func (b *bridge) programmedDump() api.Dump {
	b.mu.Lock()
	defer b.mu.Unlock()
	return dumpOf(b.state(), b.ports, b.describes())
}

// inspect reads back the switch. ports are the ports that it should have, by hop.
func (b *bridge) inspect(ctx context.Context) (ovs.State, ovs.Diff, map[desired.Hop]ovs.Port, switchNames, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	state, diff, err := b.pipe.Inspect(ctx)
	return state, diff, maps.Clone(b.ports), b.describes(), err
}

// describes returns the names of the numbers that the bridge uses now.
func (b *bridge) describes() switchNames {
	n := newSwitchNames(b.ports, b.names)
	for group, number := range b.wanted.Groups {
		n.groups[number] = group
	}
	for class, number := range b.wanted.Classes {
		n.classes[number] = class
	}
	for zone, hops := range b.wanted.Sources {
		n.sources[zone] = b.sources(hops)
	}
	return n
}

// registry returns the text of the key that a number stands for.
type registry interface{ Name(uint32) string }

// switchNames translates the numbers in the switch into words.
type switchNames struct {
	registry registry
	hops     map[uint32]desired.Hop // by port
	groups   map[uint16]desired.Group
	classes  map[uint16]desired.Class
	sources  map[string][]uint32 // the ports by which packets of a zone may come, in order
}

func newSwitchNames(ports map[desired.Hop]ovs.Port, registry registry) switchNames {
	n := switchNames{registry, map[uint32]desired.Hop{}, map[uint16]desired.Group{}, map[uint16]desired.Class{}, map[string][]uint32{}}
	for hop, port := range ports {
		n.hops[port.No] = hop
	}
	return n
}

// party returns the party that has a class.
func (n switchNames) party(class uint32) (p desired.Party, known bool) {
	if class == ovs.ProbeClass {
		return desired.Health, true
	}
	key, err := desired.ParseKey(n.registry.Name(class))
	if err != nil {
		return "", false
	}
	k, known := key.(desired.PartyKey)
	return k.Party, known
}

// entry returns the key that the number of an entry stands for.
func (n switchNames) entry(id uint64) (k desired.EntryKey, known bool) {
	if id > math.MaxUint32 {
		return k, false
	}
	key, err := desired.ParseKey(n.registry.Name(uint32(id)))
	if err != nil {
		return k, false
	}
	k, known = key.(desired.EntryKey)
	return k, known
}

// Class implements ovs.Names.
func (n switchNames) Class(class uint32) string {
	if p, ok := n.party(class); ok {
		return strconv.Quote(p.String())
	}
	return fmt.Sprintf("unassigned class %d", class)
}

// Port implements ovs.Names.
func (n switchNames) Port(no uint32) string {
	switch hop, ok := n.hops[no]; {
	case !ok:
		return fmt.Sprintf("unknown port %d", no)
	case hop == zoneHop:
		return "the port to the zone's nodes"
	case hop == outsidePeer:
		return "the port to the outside"
	default:
		return "the port to " + hop.String()
	}
}

func (n switchNames) list(ports []uint32) string {
	var list []string
	for _, no := range ports {
		list = append(list, n.Port(no))
	}
	return cmp.Or(strings.Join(list, " and "), "no port")
}

// Entry implements ovs.Names.
func (n switchNames) Entry(id uint64) string {
	if k, ok := n.entry(id); ok {
		return fmt.Sprintf("contract %s over %s/%s", k.Contract, k.Protocol, k.Ports)
	}
	return fmt.Sprintf("unknown entry %d", id)
}

// Group implements ovs.Names.
func (n switchNames) Group(group uint16) string {
	if g, ok := n.groups[group]; ok {
		return "nodes of " + g.String()
	}
	return fmt.Sprintf("unassigned group %d", group)
}

// Path implements ovs.Names.
func (n switchNames) Path(class uint16) string {
	if c, ok := n.classes[class]; ok {
		return strconv.Quote(string(c))
	}
	return fmt.Sprintf("unassigned path %d", class)
}

// dumpOf translates the content of the switch into words. ports are the ports that it should have.
func dumpOf(s ovs.State, ports map[desired.Hop]ovs.Port, names switchNames) api.Dump {
	d := api.Dump{Layer: api.LayerSwitch}
	problem := func(format string, args ...any) { d.Problems = append(d.Problems, fmt.Sprintf(format, args...)) }
	for _, port := range ports {
		if !slices.Contains(s.Ports, port) {
			problem("%s is missing or altered", names.Port(port.No))
		}
	}
	for _, p := range s.Ports {
		if _, known := names.hops[p.No]; !known {
			problem("unknown port %d", p.No)
		}
	}
	identity := func(class uint32) string {
		p, ok := names.party(class)
		if !ok {
			problem("the switch contains class %d, which this engine never assigned", class)
			return fmt.Sprintf("number %d", class)
		}
		return p.String()
	}
	for _, e := range s.Endpoints {
		if hop, ok := names.hops[e.OutPort]; e.Hole || ok && hop == outsidePeer {
			for _, p := range e.Prefixes {
				x := api.DumpExternal{Prefix: p}
				if !e.Hole {
					x.Identity, x.Out = identity(e.Class), true
				}
				d.External = append(d.External, x)
			}
			if !e.Hole && !slices.Equal(e.SourcePorts, []uint32{e.OutPort}) {
				problem("packets from %v may come in by %s, but packets to it go out by %s", e.Prefixes, names.list(e.SourcePorts), names.Port(e.OutPort))
			}
			continue
		}
		via := fmt.Sprintf("port %d", e.OutPort)
		if hop, ok := names.hops[e.OutPort]; ok {
			via = desired.Through(hop.Processor).String()
		}
		if e.OutPort == 0 && e.Group != 0 {
			via = desired.ViaWays(names.groups[e.Group], e.Number)
			if want := names.sources[names.groups[e.Group].Zone]; !slices.Equal(e.SourcePorts, want) {
				problem("packets from %v may come in by %s, but must by %s", e.Prefixes, names.list(e.SourcePorts), names.list(want))
			}
		}
		for _, p := range e.Prefixes {
			if !p.IsSingleIP() {
				problem("%s has one owner", p)
			}
			if e.OutPort != 0 && !slices.Equal(e.SourcePorts, []uint32{e.OutPort}) {
				problem("packets from %s may come in by %s, but packets to it go out by %s", p.Addr(), names.list(e.SourcePorts), names.Port(e.OutPort))
			}
			d.Peers = append(d.Peers, api.DumpPeer{Address: p.Addr(), Identity: identity(e.Class), Via: via})
		}
	}
	for _, e := range s.Entries {
		key, ok := names.entry(e.ID)
		contract, protocol := key.Contract.String(), key.Protocol
		if !ok {
			problem("the switch contains entry %d, which this engine never assigned", e.ID)
			contract, protocol = fmt.Sprintf("number %d", e.ID), fabric.Protocol(e.Protocol)
		} else if key.Source != e.Src || key.Destination != e.Dst {
			problem("the entry of %s is from %s to %s, but was made for other identities", names.Entry(e.ID), names.Class(e.Src), names.Class(e.Dst))
		}
		if len(e.Ports) > 0 && uint8(protocol) != e.Protocol {
			problem("the entry of %s admits %s", names.Entry(e.ID), fabric.Protocol(e.Protocol))
			protocol = fabric.Protocol(e.Protocol)
		}
		rule := api.DumpRule{From: identity(e.Src), To: identity(e.Dst), Protocol: protocol, Contract: contract, Path: string(names.classes[e.Class])}
		for _, p := range e.Ports {
			rule.Ports = fabric.PortRange{From: p.First, To: p.Last}
			d.Rules = append(d.Rules, rule)
		}
		if len(e.Ports) == 0 {
			rule.Shadowed = true
			d.Rules = append(d.Rules, rule)
		}
	}
	d.Ways = dumpWays(s.Ways, names, problem)
	slices.Sort(d.Problems)
	d.Problems = slices.Compact(d.Problems)
	return d
}

// dumpWays says which tunnel each bucket has. What routers report has no group to come from, and no
// way of its own to compare.
func dumpWays(ways []ovs.Way, names switchNames, problem func(format string, args ...any)) (list []api.DumpWay) {
	all, one := map[ovs.Course]uint32{}, map[ovs.Course][desired.Buckets]uint32{}
	for _, w := range ways {
		if w.From == 0 {
			continue
		}
		c := w.Course
		c.Bucket = ovs.AllBuckets
		ports := one[c]
		if w.Bucket == ovs.AllBuckets {
			all[c] = w.Port
		} else {
			ports[w.Bucket] = w.Port
		}
		one[c] = ports
	}
	for c, ports := range one {
		var next [desired.Buckets]desired.Hop
		for bucket, port := range ports {
			port = cmp.Or(port, all[c])
			hop, known := names.hops[port]
			if port != 0 && !known {
				problem("a way leads to unknown port %d", port)
			}
			next[bucket] = hop
		}
		for _, group := range []uint16{c.From, c.To} {
			if _, known := names.groups[group]; !known {
				problem("the switch contains a way of group %d, which this engine does not use", group)
			}
		}
		if _, known := names.classes[c.Class]; !known && c.Class != 0 {
			problem("the switch contains a way of path %d, which this engine does not use", c.Class)
		}
		list = append(list, api.DumpWay{
			From: names.groups[c.From].String(), To: names.groups[c.To].String(), Path: string(names.classes[c.Class]), Next: desired.Shares(next),
		})
	}
	slices.SortFunc(list, func(a, b api.DumpWay) int {
		return cmp.Or(cmp.Compare(a.From, b.From), cmp.Compare(a.To, b.To), cmp.Compare(a.Path, b.Path))
	})
	return list
}
