// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package engine

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/sif-project/sif/engine/openflow"
	"github.com/sif-project/sif/engine/ovs"
	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/fabric/desired"
	"github.com/sif-project/sif/internal/connlimit"
	"github.com/sif-project/sif/internal/logkey"
	"github.com/sif-project/sif/internal/retry"
)

// conntrackZone is the connection tracking zone of the bridge.
const conntrackZone = 1

// switchTimeout bounds a call to the switch. A change has endpointTimeout more for each endpoint:
// on two busy cores, Open vSwitch needs up to 100 µs to load one.
const (
	switchTimeout   = 10 * time.Second
	endpointTimeout = 500 * time.Microsecond
)

// outsidePeer stands for the outside among the hops that ports lead to, and zoneHop for the nodes
// of the own zone.
var (
	outsidePeer = desired.Hop{Processor: fabric.NodeID{Name: "outside"}}
	zoneHop     = desired.Hop{}
)

// bridge is the Switch that is a bridge of Open vSwitch.
type bridge struct {
	log   hclog.Logger
	sw    *ovs.Switch
	pipe  *ovs.Pipeline
	names registry
	rates ovs.Rates

	mu         sync.Mutex
	conn       *openflow.Conn           // to the switch; nil before the first and after one was lost
	ports      map[desired.Hop]ovs.Port // by what each leads to
	wanted     SwitchState              // of the last Program
	programmed bool                     // Program was called; until then the switch keeps what an earlier process wrote
	leftOut    error                    // what the switch cannot have, of the last change
	moves      moves
	moved      []ovs.Course // that the last change was told of
	placed     placed
	pulse      pulse
	ignoring   bool // the switch was told to ignore windows of TCP
	now        func() time.Time
}

func newBridge(sw *ovs.Switch, names registry, log hclog.Logger) *bridge {
	return &bridge{log: log, sw: sw, names: names, pipe: ovs.NewPipeline(conntrackZone, sw.Revalidated), ports: map[desired.Hop]ovs.Port{}, now: time.Now}
}

// setPort tells the bridge by which port a hop is reached.
func (b *bridge) setPort(hop desired.Hop, port ovs.Port) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.ports[hop] == port {
		return nil
	}
	// Open vSwitch gives the number of a port that is gone to a new one.
	maps.DeleteFunc(b.ports, func(_ desired.Hop, other ovs.Port) bool { return other.No == port.No })
	b.ports[hop] = port
	b.placed = placed{}
	if !b.programmed {
		return nil
	}
	return b.write()
}

// removePort tells the bridge that nothing is reached by the port of a number any more.
func (b *bridge) removePort(no uint32) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	before := len(b.ports)
	maps.DeleteFunc(b.ports, func(_ desired.Hop, other ovs.Port) bool { return other.No == no })
	if len(b.ports) == before {
		return nil
	}
	b.placed = placed{}
	if !b.programmed {
		return nil
	}
	return b.write()
}

// portTo returns the port that leads to a processor or, for the zero one, to the zone's own nodes.
// Of several tunnels it is that whose link's name comes first. The caller must hold mu.
func (b *bridge) portTo(processor fabric.NodeID) (port ovs.Port, ok bool) {
	var first desired.Hop
	for hop, p := range b.ports {
		if hop.Processor == processor && (!ok || hop.Link < first.Link) {
			first, port, ok = hop, p, true
		}
	}
	return port, ok
}

// setExit tells the bridge by which port the outside is reached.
func (b *bridge) setExit(port ovs.Port) error { return b.setPort(outsidePeer, port) }

// Program implements Switch.
func (b *bridge) Program(want SwitchState) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.wanted, b.programmed = want, true
	return b.write()
}

// write makes the switch enforce what is wanted.
func (b *bridge) write() error {
	ctx, cancel := b.changeContext()
	defer cancel()
	b.pulse.changing.Store(int64(time.Duration(len(b.wanted.Endpoints)+len(b.wanted.Externals)) * endpointTimeout))
	defer b.pulse.changing.Store(0)
	if _, err := b.connect(ctx); err != nil {
		return err
	}
	if len(b.wanted.Ways) > 0 && !b.ignoring {
		if err := b.sw.IgnoreWindows(ctx); err != nil {
			return err
		}
		b.ignoring = true
	}
	b.moved = b.moves.note(b.wanted.Ways, b.now())
	if err := b.leaveOut(b.pipe.Set(ctx, b.state())); err != nil {
		b.pulse.enforcing.Store(nil)
		return err
	}
	b.pulse.enforcing.Store(b.conn)
	return nil
}

// leaveOut keeps what was left out of a change for the next Reconcile to report: it must not make
// the change fail for everything else.
func (b *bridge) leaveOut(err error) error {
	b.leftOut = nil
	left := new(ovs.LeftOutError)
	if !errors.As(err, &left) {
		return err
	}
	names := map[uint64]string{}
	for name := range b.wanted.Endpoints {
		names[endpointNumber(name)] = "endpoint " + name
	}
	for node := range b.wanted.Probes {
		names[endpointNumber(probeName(node))] = "the health address of " + node.String()
	}
	for prefix := range b.wanted.Externals {
		names[endpointNumber(externalName(prefix))] = externalName(prefix)
	}
	var errs []error
	for _, p := range left.Parts {
		err := p.Err
		if name := names[p.Endpoint]; name != "" {
			err = fmt.Errorf("%s: %w", name, err)
		}
		errs = append(errs, err)
	}
	b.leftOut = fmt.Errorf("left out of the switch, which has everything else: %w", errors.Join(errs...))
	return nil
}

// externalName is the name of a prefix outside the fabric among the names of endpoints.
func externalName(p netip.Prefix) string { return "external " + p.String() }

// probeName is the name of a node's health addresses among the names of endpoints.
func probeName(node fabric.NodeID) string { return "node " + node.String() }

// changeContext bounds a change of the switch.
func (b *bridge) changeContext() (context.Context, context.CancelFunc) {
	limit := switchTimeout + time.Duration(len(b.wanted.Endpoints)+len(b.wanted.Externals))*endpointTimeout
	return context.WithTimeout(context.Background(), limit)
}

// connect opens a connection to the switch unless there is one, and says whether it did.
func (b *bridge) connect(ctx context.Context) (opened bool, err error) {
	if b.conn != nil {
		err := b.conn.Err()
		if err == nil {
			return false, nil
		}
		b.log.Warn("lost the connection to the switch, connecting again", logkey.Error, err)
		b.conn = nil
	}
	if b.conn, err = b.sw.Dial(ctx); err != nil {
		return false, err
	}
	b.pipe.UseConn(b.conn)
	b.moves.forget()
	b.ignoring = false
	return true, nil
}

// state translates what is wanted for the pipeline. It leaves out endpoints whose port does not
// exist yet.
func (b *bridge) state() ovs.State {
	s := ovs.State{Ports: slices.Collect(maps.Values(b.ports))}
	var externals []ovs.Endpoint
	if exit, ok := b.ports[outsidePeer]; ok {
		for prefix, class := range b.wanted.Externals {
			e := ovs.Endpoint{ID: endpointNumber(externalName(prefix)), Prefixes: []netip.Prefix{prefix}, Class: class, Hole: class == 0}
			if !e.Hole {
				e.OutPort, e.SourcePorts = exit.No, []uint32{exit.No}
			}
			externals = append(externals, e)
		}
	}
	s.Endpoints = merge(b.placed.list(b), externals)
	for _, e := range b.wanted.Entries {
		s.Entries = append(s.Entries, e.entry())
	}
	s.Ways, s.Moved = b.ways(), b.moved
	s.Gates, s.Rates = b.gates(), b.rates
	return s
}

// burstSeconds is for how many seconds connections may open at once that did not before: all those
// of a processor that died come to another one within a moment.
const burstSeconds = 5

// rates translates how fast connections may open.
func rates(l connlimit.Limits) ovs.Rates {
	rate := func(n int) ovs.Rate { return ovs.Rate{PerSecond: uint32(n), Burst: burstSeconds * uint32(n)} }
	return ovs.Rates{Endpoint: rate(l.SwitchNewPerSecond), Zone: rate(l.ZoneNewPerSecond)}
}

// gates says to which zone each group belongs. The first zone stands for all that has no group.
func (b *bridge) gates() []ovs.Gate {
	zones := map[string]uint16{}
	for group := range b.wanted.Groups {
		zones[group.Zone] = 0
	}
	list := []ovs.Gate{{Group: 0, Zone: 1}}
	for i, zone := range slices.Sorted(maps.Keys(zones)) {
		zones[zone] = uint16(i + 2)
	}
	for group, number := range b.wanted.Groups {
		list = append(list, ovs.Gate{Group: number, Zone: zones[group.Zone]})
	}
	return list
}

// sources returns the ports of those hops that have one, in order.
func (b *bridge) sources(hops []desired.Hop) (list []uint32) {
	for _, hop := range hops {
		if port, ok := b.ports[hop]; ok {
			list = append(list, port.No)
		}
	}
	slices.Sort(list)
	return list
}

// entry translates e for the pipeline.
func (e SwitchEntry) entry() ovs.Entry {
	to := ovs.Entry{ID: uint64(e.Number), Src: e.Src, Dst: e.Dst, Class: e.Class, Protocol: uint8(e.Protocol)}
	for _, p := range e.Ports {
		to.Ports = append(to.Ports, ovs.PortRange{First: p.From, Last: p.To})
	}
	return to
}

// endpointNumber returns the pipeline's number of an endpoint: 55 bits of its name's hash, which
// needs no table of numbers in use.
func endpointNumber(name string) uint64 {
	sum := sha256.Sum256([]byte(name))
	return binary.BigEndian.Uint64(sum[:])>>9 | 1
}

// Reconcile implements Switch.
func (b *bridge) Reconcile() (repaired []string, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	ctx, cancel := b.changeContext()
	defer cancel()
	if !b.programmed {
		return nil, nil
	}
	opened, err := b.connect(ctx)
	if err != nil {
		return nil, err
	}
	if opened {
		// Not Reconcile: a switch that restarted lacks every flow, and the log need not list them.
		if err := b.write(); err != nil {
			return nil, err
		}
		return nil, b.leftOut
	}
	if b.moves.over(b.now()) {
		if err := b.write(); err != nil {
			return nil, err
		}
	}
	diff, err := b.pipe.Reconcile(ctx, b.state())
	if err = b.leaveOut(err); err == nil {
		err = b.leftOut
	}
	repaired = diff.Describe(b.describes())
	return repaired, err
}

// awaitInterval is how often follow looks for a switch that is away, and refillInterval the pause
// after it could not be filled.
const (
	awaitInterval  = 5 * time.Millisecond
	refillInterval = time.Second
)

// follow fills the switch as soon as it is there again after a restart, which lost its flows. It
// returns when ctx ends. That the switch stays away is for Reconcile to say.
func (b *bridge) follow(ctx context.Context) {
	pause := awaitInterval
	for retry.Sleep(ctx, pause) {
		b.mu.Lock()
		conn := b.conn
		b.mu.Unlock()
		if conn != nil {
			select {
			case <-ctx.Done():
				return
			case <-conn.Done():
			}
		}
		pause = awaitInterval
		if err := b.fill(); err != nil {
			b.log.Warn("cannot fill the switch that had restarted, trying again", logkey.Error, err)
			pause = refillInterval
		}
	}
}

// fill connects to a switch that is there and not connected, and writes its flows. It does nothing
// before the first Program.
func (b *bridge) fill() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.programmed {
		return nil
	}
	ctx, cancel := b.changeContext()
	defer cancel()
	began := time.Now()
	if opened, err := b.connect(ctx); err != nil || !opened {
		return nil // it is away, or another call was faster
	}
	if err := b.write(); err != nil {
		_ = b.conn.Close() // the next attempt must find out what is there
		return err
	}
	b.pulse.enforcing.Store(b.conn)
	b.log.Info("the switch had restarted and was filled again", logkey.Duration, time.Since(began))
	return nil
}

// Drops implements Switch.
func (b *bridge) Drops() (map[string]uint64, error) {
	ctx, cancel := context.WithTimeout(context.Background(), switchTimeout)
	defer cancel()
	drops, err := b.pipe.Drops(ctx)
	if err != nil {
		b.log.Debug("cannot read the drop counters of the switch", logkey.Error, err)
	}
	return drops, err
}

// leadsOutside reports whether packets can leave the fabric by the switch.
func (b *bridge) leadsOutside() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	_, has := b.ports[outsidePeer]
	return has && b.programmed
}

// portCount returns how many peers can be reached through the switch, the outside not among them.
func (b *bridge) portCount() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	n := len(b.ports)
	if _, has := b.ports[outsidePeer]; has {
		n--
	}
	return n
}
