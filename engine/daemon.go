// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package engine

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"net/netip"
	"path/filepath"
	"strings"
	"time"

	"github.com/containernetworking/plugins/pkg/ns"
	"github.com/hashicorp/go-hclog"
	"golang.org/x/sync/errgroup"

	"github.com/sif-project/sif/api"
	"github.com/sif-project/sif/engine/ovs"
	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/internal/config"
	"github.com/sif-project/sif/internal/expiry"
	"github.com/sif-project/sif/internal/logkey"
	"github.com/sif-project/sif/internal/node/daemon"
	"github.com/sif-project/sif/internal/node/firewall"
	"github.com/sif-project/sif/internal/node/number"
	"github.com/sif-project/sif/internal/node/rpc"
	"github.com/sif-project/sif/internal/trust/identity"
	"github.com/sif-project/sif/internal/trust/roster"
)

// reconcileInterval is how often the switch is compared with what it should
// hold, and everybody with what they were told.
const reconcileInterval = 5 * time.Second

// introduction bounds bringing a daemon that has connected up to date.
const introduction = time.Minute

// Daemon is the engine with its connections: to the switch, to the agents of
// its zone, and, inside the encrypted links, to the engines of other zones.
type Daemon struct {
	*Engine
	node     *daemon.Node
	bridge   *bridge
	ports    *ports
	firewall *firewall.Firewall
}

// Start makes this process the engine of its node. It takes over what an
// earlier one left in the switch and on disk.
func Start(ctx context.Context, c *config.Config, log hclog.Logger) (*Daemon, error) {
	n, err := daemon.Join(ctx, c, fabric.KindProcessor, log)
	if err != nil {
		return nil, err
	}
	num, err := number.Open(filepath.Join(c.DataDir, "numbers.json"))
	if err != nil {
		return nil, err
	}
	sw := ovs.NewSwitch(ovs.Config{RunDir: c.OVS.RunDir, Database: strings.TrimPrefix(c.OVS.DB, "unix:"), Control: c.OVS.Control, Bridge: c.OVS.Bridge})
	if err := sw.Create(ctx); err != nil {
		return nil, err
	}
	d := &Daemon{node: n, bridge: newBridge(sw, num, log)}
	d.ports = &ports{self: n.Self, prefix: c.Engine.Namespaces, sw: sw, bridge: d.bridge}
	n.Links.Home = d.ports
	if d.firewall, err = n.Firewall(); err != nil {
		return nil, err
	}
	if err := d.firewall.Apply(); err != nil {
		return nil, err
	}
	d.Engine, err = New(Options{
		Self: n.Self, Log: log, Verifier: n.Verifier(), Documents: n.Revision,
		Leases: filepath.Join(c.DataDir, "leases.json"), Switch: d.bridge, Numbers: num, Nodes: n.Nodes,
	})
	return d, err
}

// Run serves until ctx ends. What is enforced stays enforced after that.
func (d *Daemon) Run(ctx context.Context) error {
	refresh := make(chan struct{}, 1)
	trigger := func() {
		select {
		case refresh <- struct{}{}:
		default:
		}
	}
	d.node.Revision.OnChange(func(fabric.Pointer, map[fabric.Ref]fabric.Document) { trigger() })
	d.node.Roster.OnChange(func([]roster.Member) { trigger() })
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return d.node.Run(ctx, d.Status) })
	// The links come first: the ports that they lead to are part of what the
	// switch takes over.
	if err := d.awaitPorts(ctx); err != nil {
		d.log.Warn("not all links are up yet", logkey.Error, err)
	}
	if ctx.Err() != nil {
		return group.Wait() // what the switch holds is not to shrink to the ports known so far
	}
	if err := d.Resume(ctx); err != nil {
		d.node.Degrade("switch", err)
	}
	group.Go(func() error { return d.serveAgents(ctx) })
	group.Go(func() error { return d.meetEngines(ctx) })
	group.Go(func() error { return d.keep(ctx, refresh) })
	group.Go(func() error { return d.serveTasks(ctx) })
	group.Go(func() error {
		// The switch first: bringing agents up to date may take its time.
		expiry.Watch(ctx, d.now, d.docs.Documents, func() {
			d.node.Degrade("refresh", d.reprogram.Call())
			trigger()
		})
		return nil
	})
	group.Go(func() error { return d.repair(ctx) })
	return group.Wait()
}

// awaitPorts waits until the bridge has the port of every link that the roster
// on disk asks for, so that taking over does not remove flows of ports that
// are only not yet known.
func (d *Daemon) awaitPorts(ctx context.Context) error {
	deadline := time.Now().Add(10 * time.Second)
	for {
		want := 1 + len(d.otherZones())
		if have := d.bridge.portCount(); have >= want && len(d.node.Nodes()) > 0 {
			return nil
		} else if time.Now().After(deadline) {
			return fmt.Errorf("%d of %d ports of the switch are there", have, want)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// repair compares switch and firewall with what they should be, always. It waits
// for nobody else.
func (d *Daemon) repair(ctx context.Context) error {
	tick := time.NewTicker(reconcileInterval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		_, err := d.bridge.Reconcile()
		d.node.Degrade("switch", err)
		d.node.Degrade("firewall", d.firewall.Apply())
	}
}

// keep refreshes on every change, ends leases, and keeps everybody in step.
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
			d.node.Revision.Retain(d.leased)
			d.node.Degrade("refresh", d.Refresh(ctx))
			d.Sync(ctx)
		}
	}
}

// serveAgents answers the agents of the zone.
func (d *Daemon) serveAgents(ctx context.Context) error {
	l, err := net.Listen("tcp", d.node.Config.Engine.Listen)
	if err != nil {
		return fmt.Errorf("listen for agents: %w", err)
	}
	return d.serve(ctx, l)
}

func (d *Daemon) serve(ctx context.Context, l net.Listener) error {
	config := d.node.Identity.ServerTLS(tls.RequireAndVerifyClientCert)
	return rpc.Serve(ctx, l, config, d.node.Config.TrustDomain, func(c *rpc.Conn) { d.welcome(ctx, c) }, d.Handle)
}

// welcome brings a daemon that has connected up to date.
func (d *Daemon) welcome(ctx context.Context, c *rpc.Conn) {
	ctx, cancel := context.WithTimeout(ctx, introduction)
	defer cancel()
	if err := d.Attach(ctx, c); err != nil {
		d.log.Warn("connection refused or not brought up to date", logkey.Error, err)
		c.Close()
	}
}

// meetEngines keeps a connection with each engine of the other zones. It runs
// inside the encrypted link between the two processors, because nothing else
// crosses between zones. Of two engines the one that comes first by name
// connects, the other one listens.
func (d *Daemon) meetEngines(ctx context.Context) error {
	elsewhere := func(n fabric.Node) bool { return n.Zone != d.self.Zone }
	return d.node.KeepEngines(ctx, elsewhere, fabric.Node.Gateway4, func(ctx context.Context, n fabric.Node) error {
		if fabric.CompareNodeIDs(d.self.ID(), n.ID()) < 0 {
			return d.call(ctx, n)
		}
		return d.answer(ctx, n)
	})
}

// call connects to another zone's engine and stays until the connection ends.
func (d *Daemon) call(ctx context.Context, n fabric.Node) error {
	config := d.node.Identity.ClientTLS(identity.OfNode(n))
	dialing, cancel := context.WithTimeout(ctx, settle)
	defer cancel()
	var conn *rpc.Conn
	err := d.inLink(n, func() (err error) {
		conn, err = rpc.Dial(dialing, netip.AddrPortFrom(n.Gateway4(), n.Engine).String(), config, d.node.Config.TrustDomain, d.Handle)
		return err
	})
	if err != nil {
		return fmt.Errorf("reach the engine of %s: %w", n.ID(), err)
	}
	defer conn.Close()
	introducing, cancel := context.WithTimeout(ctx, introduction)
	defer cancel()
	if err := d.Attach(introducing, conn); err != nil {
		return err
	}
	d.node.Degrade("engine "+n.ID().String(), nil)
	select {
	case <-ctx.Done():
		return nil
	case <-conn.Done():
		return fmt.Errorf("the connection to the engine of %s was lost", n.ID())
	}
}

// answer listens for another zone's engine at this end of the link.
func (d *Daemon) answer(ctx context.Context, n fabric.Node) error {
	var l net.Listener
	err := d.inLink(n, func() (err error) {
		l, err = net.Listen("tcp", netip.AddrPortFrom(d.self.Gateway4(), d.self.Engine).String())
		return err
	})
	if err != nil {
		return fmt.Errorf("listen for the engine of %s: %w", n.ID(), err)
	}
	d.node.Degrade("engine "+n.ID().String(), nil)
	return d.serve(ctx, l)
}

// inLink runs do in the namespace of the link towards n: sockets that it opens
// stay there.
func (d *Daemon) inLink(n fabric.Node, do func() error) error {
	device, ok := d.node.Links.Interface(n.ID())
	if !ok {
		return fmt.Errorf("there is no link to %s yet", n.ID())
	}
	return ns.WithNetNSPath(d.ports.namespace(device), func(ns.NetNS) error { return do() })
}

// Status reports how the engine is.
func (d *Daemon) Status() api.NodeStatus {
	s := api.NodeStatus{}
	drops, err := d.bridge.Drops()
	d.node.Degrade("switch counters", err)
	s.Drops = drops
	for zone, ids := range d.otherZones() {
		if d.engineOf(ids) == nil {
			s.Degraded = append(s.Degraded, "zone "+zone+": its engine is not connected")
		}
	}
	if d.bridge.pipe.PassAll() {
		s.Degraded = append(s.Degraded, "the switch lets everything pass (test override)")
	}
	return s
}
