// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package engine

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/sif-project/sif/api"
	"github.com/sif-project/sif/engine/openflow"
	"github.com/sif-project/sif/engine/ovs"
	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/internal/node"
)

// serveTasks reads back what the switch enforces for `sif verify` and
// `sif explain`; an engine has no endpoints for other tasks.
func (d *Daemon) serveTasks(ctx context.Context) error {
	return d.node.ServeTasks(ctx, func(tasks []api.Task) {
		for _, t := range tasks {
			if t.Kind != api.TaskDump {
				d.node.TaskDone(ctx, api.TaskResult{ID: t.ID, Error: fmt.Sprintf("an engine does not know tasks of kind %q", t.Kind)})
				continue
			}
			d.node.TaskDone(ctx, node.DumpTask(ctx, t, d.dump))
		}
	})
}

// dump reads back what the switch really enforces.
func (d *Daemon) dump(ctx context.Context) (api.Dump, error) {
	d.programming.Lock()
	state, diff, ports, err := d.bridge.inspect(ctx)
	pointer := d.node.Revision.Pointer()
	d.programming.Unlock()
	if err != nil {
		return api.Dump{}, err
	}
	dump := dumpOf(state, ports, d.names)
	dump.Node, dump.Sequence, dump.Root = d.node.Self.ID(), pointer.Sequence, pointer.Root
	for what, flows := range map[string][]openflow.Flow{"missing": diff.Added, "altered": diff.Changed, "foreign": diff.Removed} {
		for _, f := range flows {
			dump.Problems = append(dump.Problems, fmt.Sprintf("%s flow: %v", what, f))
		}
	}
	if d.bridge.pipe.PassAll() {
		dump.Problems = append(dump.Problems, "the switch lets everything pass (test override)")
	}
	slices.Sort(dump.Problems)
	return dump, nil
}

// inspect reads the switch back. ports are those that it should have, by the
// peer that each leads to.
func (b *bridge) inspect(ctx context.Context) (ovs.State, ovs.Diff, map[string]ovs.Port, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.attached {
		return ovs.State{}, ovs.Diff{}, nil, fmt.Errorf("inspect the switch: %w", ovs.ErrDetached)
	}
	state, diff, err := b.pipe.Inspect(ctx)
	return state, diff, maps.Clone(b.ports), err
}

// registry tells which name has a number.
type registry interface{ Name(uint32) string }

// dumpOf puts names to what the switch holds.
func dumpOf(s ovs.State, ports map[string]ovs.Port, names registry) api.Dump {
	d := api.Dump{Layer: api.LayerSwitch}
	problem := func(format string, args ...any) { d.Problems = append(d.Problems, fmt.Sprintf(format, args...)) }
	ways := map[uint32]string{}
	for peer, port := range ports {
		ways[port.No] = peer
		if peer == zonePort {
			ways[port.No] = api.ViaZone
		}
		if !slices.Contains(s.Ports, port) {
			problem("the port towards %s is missing or altered", ways[port.No])
		}
	}
	for _, p := range s.Ports {
		if _, known := ways[p.No]; !known {
			problem("port %d leads to nobody that this engine knows", p.No)
		}
	}
	identity := func(class uint32) string {
		key, ok := strings.CutPrefix(names.Name(class), "identity ")
		if !ok {
			problem("the switch names class %d, which this engine never gave to anybody", class)
			return fmt.Sprintf("number %d", class)
		}
		return key
	}
	for _, e := range s.Endpoints {
		way, ok := ways[e.OutPort]
		if !ok {
			way = fmt.Sprintf("port %d", e.OutPort)
		}
		for _, p := range e.Prefixes {
			if !p.IsSingleIP() {
				problem("%s has one owner", p)
			}
			if !slices.Equal(e.SourcePorts, []uint32{e.OutPort}) {
				problem("packets of %s may come in by ports %v, but go out by %d", p.Addr(), e.SourcePorts, e.OutPort)
			}
			d.Peers = append(d.Peers, api.DumpPeer{Address: p.Addr(), Identity: identity(e.Class), Via: way})
		}
	}
	for _, e := range s.Entries {
		// Entries are numbered by flows, below.
		kind, rest, _ := strings.Cut(names.Name(uint32(e.ID>>8)), " ")
		parts := strings.Fields(rest)
		if kind != "entry" || len(parts) != 3 {
			problem("the switch has an entry %d, which this engine never numbered", e.ID)
			parts = []string{"", "", fmt.Sprintf("number %d", e.ID)}
		} else if parts[0] != fmt.Sprint(e.Src) || parts[1] != fmt.Sprint(e.Dst) {
			problem("entry %d is of classes %d and %d, but was made for %s and %s", e.ID, e.Src, e.Dst, parts[0], parts[1])
		}
		protocol := fabric.Protocol(e.ID & 0xff)
		if len(e.Ports) > 0 && uint8(protocol) != e.Protocol {
			problem("entry %d is of %s, but was made for %s", e.ID, fabric.Protocol(e.Protocol), protocol)
			protocol = fabric.Protocol(e.Protocol)
		}
		rule := api.DumpRule{From: identity(e.Src), To: identity(e.Dst), Protocol: protocol, Contract: parts[2]}
		for _, p := range e.Ports {
			rule.Ports = fabric.PortRange{From: p.First, To: p.Last}
			d.Rules = append(d.Rules, rule)
		}
		if len(e.Ports) == 0 {
			rule.Shadowed = true
			d.Rules = append(d.Rules, rule)
		}
	}
	slices.Sort(d.Problems)
	d.Problems = slices.Compact(d.Problems)
	return d
}
