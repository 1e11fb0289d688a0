// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package engine

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containernetworking/plugins/pkg/ns"
	"github.com/hashicorp/go-hclog"
	"golang.org/x/sync/errgroup"

	"github.com/sif-project/sif/api"
	"github.com/sif-project/sif/engine/exit"
	"github.com/sif-project/sif/engine/ovs"
	"github.com/sif-project/sif/engine/port"
	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/fabric/desired"
	"github.com/sif-project/sif/internal/clock"
	"github.com/sif-project/sif/internal/config"
	"github.com/sif-project/sif/internal/expiry"
	"github.com/sif-project/sif/internal/logkey"
	"github.com/sif-project/sif/internal/node/daemon"
	"github.com/sif-project/sif/internal/node/number"
	"github.com/sif-project/sif/internal/node/rpc"
	"github.com/sif-project/sif/internal/outside/registered"
	"github.com/sif-project/sif/internal/outside/resolve"
	"github.com/sif-project/sif/internal/retry"
	"github.com/sif-project/sif/internal/supervisor"
	"github.com/sif-project/sif/internal/trust/roster"
)

// reconcileInterval is the time between comparisons of the switch with the desired state, and
// between complete lists to other daemons.
const reconcileInterval = 5 * time.Second

// introduction limits the time to bring a newly connected daemon up to date.
const introduction = time.Minute

// Daemon is the engine with its connections: to the agents of its zone and, if it has one, to the
// switch, and through it, inside the encrypted links, to the engines of other zones.
type Daemon struct {
	*Engine
	node   *daemon.Node
	bridge *bridge // nil without a switch
	ports  *ports  // likewise
	server *rpc.Server

	registered *registered.Watcher // nil without a switch
}

// Start starts the engine of the node. It takes over the state of an earlier engine in the switch
// and on disk. Call Run next.
func Start(ctx context.Context, c *config.Config, log hclog.Logger) (*Daemon, error) {
	n, err := daemon.Join(ctx, c, fabric.KindProcessor, log)
	if err != nil {
		return nil, err
	}
	d := &Daemon{node: n}
	options := Options{
		Self: n.Self, Log: log, Verifier: n.Verifier(), Documents: n.Revision,
		Leases: filepath.Join(c.DataDir, "leases.json"), Outage: n.Outage.Began, Nodes: n.Nodes,
		Known: d.known, Topology: n.Topology, Enforcing: n.Enforcing,
	}
	if n.Self.Boundary() {
		options.Standing = &Standing{
			States: n.States, Sign: n.Identity.Sign, Expiry: n.Identity.Expiry, Live: n.Live, Tunnels: n.Tunnels,
			Enforces: func() bool { return d.bridge.enforces() },
		}
		changed := func() { d.node.Degrade("refresh", d.reprogram.Call()) }
		if d.registered, err = registered.Open(filepath.Join(c.DataDir, "registered.json"), n.Consul, log.Named("registered"), changed); err != nil {
			return nil, err
		}
		n.OnServers(changed)
		num, err := number.Open(filepath.Join(c.DataDir, "numbers.json"))
		if err != nil {
			return nil, err
		}
		if err := d.openSwitch(ctx, num); err != nil {
			return nil, err
		}
		options.Switch, options.Numbers, options.Exit = d.bridge, num, func() Exit { return Exit{d.bridge.leadsOutside(), d.ports.exit.Leads()} }
		options.Names, options.Report = filepath.Join(c.DataDir, "names.json"), n.Degrade
		options.Resolver = resolve.NewResolver(resolve.NewClient(netip.AddrPort{}, c.DNS.Resolvers(), resolve.SystemConf), clock.Now)
	}
	if n.Firewall != nil {
		if _, err := n.Firewall.Apply(); err != nil {
			return nil, err
		}
	}
	if d.Engine, err = New(options); err != nil {
		return nil, err
	}
	n.OnLive(d.stand.look)
	if d.server, err = rpc.NewServer(n.Identity.ServerTLS(tls.RequireAndVerifyClientCert), n.Identity, d.welcome, d.Handle); err != nil {
		return nil, err
	}
	if d.bridge != nil {
		d.server.PassOn(d.passOn)
	}
	return d, nil
}

// known returns what is known of the outside besides documents and names.
func (d *Daemon) known() fabric.Outside {
	known := fabric.Outside{Ranges: d.node.Inside(), Reserved: d.node.Reserved()}
	if d.registered != nil {
		d.registered.Follow(d.documents())
		known.Registered = d.registered.Registered()
	}
	return known
}

// openSwitch takes over the switch.
func (d *Daemon) openSwitch(ctx context.Context, num registry) error {
	c := d.node.Config
	sw := newSwitch(c)
	if err := sw.Create(ctx); err != nil {
		return err
	}
	if err := sw.LimitConnections(ctx, conntrackZone, c.Connections.Limits()); err != nil {
		return err
	}
	d.bridge = newBridge(sw, num, d.node.Log)
	d.bridge.rates = rates(c.Connections.Limits())
	outside := d.exit(sw)
	d.ports = &ports{
		self: d.node.Self, prefix: c.Engine.Namespaces, sw: sw, bridge: d.bridge, repaired: d.node.Repaired, linkMTU: d.node.BoundaryMTU, complete: map[string]port.Config{},
		exit: exit.New(outside), exitMTU: outside.MTU,
	}
	d.node.Links.Home = d.ports
	// It is there before a workload can ask for it. What it lacks is tried again, because the
	// fabric does not depend on the outside.
	d.node.Degrade("exit", d.ports.leadOutside())
	return nil
}

// exit returns how the switch reaches the outside.
func (d *Daemon) exit(sw *ovs.Switch) exit.Config {
	c := d.node.Config
	limits := c.Connections.Limits()
	x := exit.Config{
		Underlay: c.Underlay.Interface, UnderlayAddress: c.Underlay.Addr(), Ranges: d.node.Self.Ranges, Interfaces: c.Exit.Interfaces,
		MTU:         exit.MTU(sw.Datapath(), daemon.SwitchMTU(c.Link.MTU)),
		PerEndpoint: limits.ExitPerEndpoint, NewPerSecond: limits.ExitNewPerSecond,
	}
	x.Address4, x.Address6 = c.Exit.Addrs()
	return x
}

// Run serves until ctx ends, and tells sup when it answers agents. The switch keeps enforcing after
// that.
func (d *Daemon) Run(ctx context.Context, sup *supervisor.Supervisor) error {
	refresh := make(chan struct{}, 1)
	trigger := func() {
		select {
		case refresh <- struct{}{}:
		default:
		}
	}
	// The switch follows at once. What the trigger starts may wait for daemons that do not answer.
	// Before it was taken over, nothing may be removed from it.
	var resumed atomic.Bool
	changed := func() {
		if resumed.Load() {
			go func() { d.node.Degrade("leases", d.Expire()) }()
			go func() { d.node.Degrade("refresh", d.reprogram.Call()) }()
		}
		trigger()
	}
	d.node.Revision.OnChange(func(fabric.Pointer, map[fabric.Ref]fabric.Document) { changed() })
	d.node.Roster.OnChange(func([]roster.Member) { changed() })
	d.node.Removals.OnChange(changed)
	d.node.Honoured = func() int { return d.leases.Honoured(d.now()) }
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return d.node.Run(ctx, d.Status) })
	// The links come first, because the flows to be taken over refer to their ports.
	if err := d.awaitPorts(ctx); err != nil {
		d.log.Warn("some links have no port yet, continuing without them", logkey.Error, err)
	}
	if ctx.Err() != nil {
		return group.Wait() // Resume would remove the flows of ports that are not known yet
	}
	if err := d.Resume(ctx); err != nil {
		d.node.Degrade("switch", err)
	}
	resumed.Store(true)
	group.Go(func() error { return d.serveAgents(ctx, sup) })
	group.Go(func() error { return d.keep(ctx, refresh) })
	if d.bridge != nil {
		group.Go(func() error { return d.registered.Run(ctx) })
		group.Go(func() error { return d.meetEngines(ctx) })
		group.Go(func() error { return d.answerEngines(ctx) })
		group.Go(func() error {
			d.bridge.follow(ctx)
			return nil
		})
		group.Go(func() error { return d.serveTasks(ctx) })
		group.Go(func() error { return d.watchSwitch(ctx) })
		group.Go(func() error {
			d.keepStanding(ctx, func(err error) { d.node.Degrade("state of the processor", err) })
			return nil
		})
	}
	group.Go(func() error {
		// The switch comes first, because updating the agents can take long.
		expiry.Watch(ctx, d.now, d.docs.Documents, func() {
			d.node.Degrade("refresh", d.reprogram.Call())
			trigger()
		})
		return nil
	})
	group.Go(func() error { return d.repair(ctx, sup) })
	return group.Wait()
}

// watchSwitch notices within a second when the switch does not answer. One that answers again may
// have lost its flows.
func (d *Daemon) watchSwitch(ctx context.Context) error {
	d.bridge.keepAsking(ctx, func(answers bool) {
		d.stand.look()
		if answers && !d.bridge.enforces() {
			go func() { d.node.Degrade("refresh", d.reprogram.Call()) }()
		}
	})
	return nil
}

// awaitPorts waits until the bridge has a port for every link in the stored roster. Otherwise
// taking over would remove flows of ports that are not known yet.
func (d *Daemon) awaitPorts(ctx context.Context) error {
	if d.bridge == nil {
		return nil
	}
	deadline := time.Now().Add(10 * time.Second)
	for {
		want := 1 + len(linkedZones(d.self.ID(), d.node.Tunnels()))
		if have := d.bridge.portCount(); have >= want && len(d.node.Nodes()) > 0 {
			return nil
		} else if time.Now().After(deadline) {
			return fmt.Errorf("%d of %d ports of the switch are there", have, want)
		}
		if !retry.Sleep(ctx, 50*time.Millisecond) {
			return ctx.Err()
		}
	}
}

// repair compares the switch and the firewall with the desired state at each interval. It never
// waits for another daemon.
func (d *Daemon) repair(ctx context.Context, sup *supervisor.Supervisor) error {
	tick := time.NewTicker(reconcileInterval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		if d.bridge != nil {
			d.repairSwitch(ctx)
			d.node.Degrade("instances registered outside", d.registered.Trouble())
		}
		d.node.Degrade("firewall", d.node.RepairFirewall())
		d.node.Degrade("leases on disk", d.leases.Stored())
		sup.Alive(fmt.Sprintf("enforcing revision %d", d.node.Revision.Pointer().Sequence), d.node.Degraded())
	}
}

func (d *Daemon) repairSwitch(ctx context.Context) {
	settings, err := d.ports.repairSwitch(ctx)
	d.node.PutBack("switch", settings)
	d.node.Degrade("switch settings", err)
	d.node.Report("switch", d.ports.findings())
	d.node.Degrade("exit", d.ports.leadOutside())
	d.node.Report("exit", d.ports.exit.Findings())
	began := time.Now()
	flows, err := d.bridge.Reconcile()
	d.node.PutBack("flow", flows)
	d.node.Degrade("switch", err)
	if err == nil {
		d.programming.Lock()
		dump := d.bridge.programmedDump()
		dump.Outside = d.writtenOutside
		d.programming.Unlock()
		d.node.Compared(began, dump, len(flows))
	}
}

// keep updates switch and peers after changes, ends expired leases, and synchronises with all
// peers.
func (d *Daemon) keep(ctx context.Context, refresh <-chan struct{}) error {
	tick := time.NewTicker(reconcileInterval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-refresh:
			d.node.Degrade("refresh", d.Refresh(ctx))
			d.log.Info("revision enforced", logkey.Revision, d.node.Revision.Pointer().Sequence)
		case <-tick.C:
			d.node.Degrade("leases", d.Expire())
			d.node.Degrade("outside names in force", d.tendNames())
			d.node.Revision.Retain(d.leased)
			d.node.Degrade("refresh", d.Refresh(ctx))
			d.Sync(ctx)
		}
	}
}

// serveAgents answers the agents of the zone.
func (d *Daemon) serveAgents(ctx context.Context, sup *supervisor.Supervisor) error {
	l, err := net.Listen("tcp", d.node.Config.Engine.Listen)
	if err != nil {
		return fmt.Errorf("listen for agents: %w", err)
	}
	sup.Ready()
	return d.server.Serve(ctx, l)
}

// Handle answers calls of agents and of other engines.
func (d *Daemon) Handle(ctx context.Context, from rpc.Peer, method string, params json.RawMessage) (any, error) {
	if method == rpc.MethodRevocations {
		return d.node.Revocations(from, params)
	}
	return d.Engine.Handle(ctx, from, method, params)
}

// welcome handles a new connection.
func (d *Daemon) welcome(ctx context.Context, c *rpc.Conn) {
	d.node.Relay(c.Peer().NodeID, c)
	ctx, cancel := context.WithTimeout(ctx, introduction)
	defer cancel()
	if err := d.Welcome(ctx, c); err != nil {
		d.log.Warn("cannot serve the connection", logkey.Error, err)
		c.Close()
	}
}

// meetEngines keeps a connection with each engine of the other zones, inside the encrypted links
// between processors, because nothing else passes between zones. Of two engines, the one with the
// lower node ID connects and the other listens.
func (d *Daemon) meetEngines(ctx context.Context) error {
	mine := func(n fabric.Node) bool {
		return n.Zone != d.self.Zone && n.Boundary() && fabric.CompareNodeIDs(d.self.ID(), n.ID()) < 0
	}
	return d.node.KeepEngines(ctx, mine, fabric.Node.Health4, d.call)
}

// call connects to the engine of another zone, by its tunnels and through other engines in turn. It
// returns when the connection ends.
func (d *Daemon) call(ctx context.Context, n fabric.Node) error {
	attempt := 0
	dial := func(ctx context.Context) (*rpc.Conn, error) {
		ctx, cancel := context.WithTimeout(ctx, callTimeout)
		defer cancel()
		paths := pathsTo(d.self.ID(), n.ID(), d.node.Tunnels(), attempt)
		if len(paths) == 0 {
			return nil, fmt.Errorf("no link leads to %s", n.ID())
		}
		path := paths[attempt%len(paths)]
		attempt++
		conn, err := d.reach(ctx, n, path)
		if err != nil {
			return nil, fmt.Errorf("reach the engine of %s: %w", n.ID(), err)
		}
		return conn, nil
	}
	err := rpc.Stay(ctx, dial, func(ctx context.Context, conn *rpc.Conn) error {
		ctx, cancel := context.WithTimeout(ctx, introduction)
		defer cancel()
		d.node.Relay(n.ID(), conn)
		if err := d.Welcome(ctx, conn); err != nil {
			return err
		}
		d.node.Degrade("engine "+n.ID().String(), nil)
		return nil
	})
	if err == rpc.ErrClosed {
		return fmt.Errorf("the connection to the engine of %s was lost", n.ID())
	}
	return err
}

// answerEngines listens for the engines of other zones at this end of each tunnel, until ctx ends.
func (d *Daemon) answerEngines(ctx context.Context) error {
	var listening sync.WaitGroup
	defer listening.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stops := map[desired.Hop]context.CancelFunc{}
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		hops := map[desired.Hop]bool{}
		for _, n := range d.nodes() {
			if n.Zone == d.self.Zone || !n.Boundary() {
				continue
			}
			for _, hop := range d.node.Links.Tunnels(n.ID()) {
				hops[hop] = true
			}
		}
		for hop, stop := range stops {
			if !hops[hop] {
				stop()
				delete(stops, hop)
			}
		}
		for hop := range hops {
			if stops[hop] != nil {
				continue
			}
			each, stop := context.WithCancel(ctx)
			stops[hop] = stop
			listening.Go(func() {
				for each.Err() == nil {
					d.node.Degrade("tunnel to "+hop.String(), d.answerBy(each, hop))
					retry.Sleep(each, time.Second)
				}
			})
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// answerBy listens at this end of a tunnel. It returns nil when ctx ends.
func (d *Daemon) answerBy(ctx context.Context, tunnel desired.Hop) error {
	var l net.Listener
	err := d.inLink(tunnel, func() (err error) {
		l, err = net.Listen("tcp", netip.AddrPortFrom(d.self.Health4(), d.self.Engine).String())
		return err
	})
	if err != nil {
		return fmt.Errorf("listen for engines at the tunnel to %s: %w", tunnel, err)
	}
	d.node.Degrade("tunnel to "+tunnel.String(), nil)
	return d.server.Serve(ctx, l)
}

// inLink runs do in the network namespace of a tunnel. Sockets that do opens stay in that
// namespace.
func (d *Daemon) inLink(tunnel desired.Hop, do func() error) error {
	device, ok := d.node.Links.Interface(tunnel)
	if !ok {
		return fmt.Errorf("there is no link to %s yet", tunnel)
	}
	return ns.WithNetNSPath(d.ports.namespace(device), func(ns.NetNS) error { return do() })
}

// Status returns the state of the engine.
func (d *Daemon) Status() api.NodeStatus {
	s := api.NodeStatus{Refused: d.server.Refused(), Degraded: d.unheard()}
	s.Authorities = &api.AuthorityStatus{Statements: d.leases.Signed(d.now())}
	if d.bridge == nil {
		s.Degraded = append(s.Degraded, shutIn(d.self.Zone, d.nodes())...)
		return s
	}
	s.State = d.published()
	for _, x := range d.ports.exit.Addresses() {
		s.Exit = append(s.Exit, api.ExitAddress{Address: x.Addr, Interface: x.Interface})
	}
	drops, err := d.bridge.Drops()
	d.node.Degrade("switch counters", err)
	s.Drops = map[string]uint64{}
	maps.Copy(s.Drops, drops)
	dropped, err := d.ports.exit.Counters()
	d.node.Degrade("exit counters", err)
	for reason, n := range dropped {
		s.Drops["nftables: "+reason] = n
	}
	d.resolver.describe(&s)
	if d.bridge.pipe.PassAll() {
		s.Degraded = append(s.Degraded, "the switch lets everything pass (test override)")
	}
	return s
}

// shutIn describes what a zone lacks if there are other zones and none of its engines has a switch.
func shutIn(zone string, nodes []fabric.Node) []string {
	others := map[string]bool{}
	for _, n := range nodes {
		switch {
		case n.Zone != zone:
			others[n.Zone] = true
		case n.Boundary():
			return nil
		}
	}
	if len(others) == 0 {
		return nil
	}
	return []string{fmt.Sprintf("no engine of zone %s has a switch, so nothing passes between it and %s: let a processor node without workloads have Open vSwitch, write a block \"ovs\" into its engine's configuration, and restart sif engine there",
		zone, strings.Join(slices.Sorted(maps.Keys(others)), ", "))}
}
