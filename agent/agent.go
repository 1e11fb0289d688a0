// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package agent

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"

	"github.com/sif-project/sif/agent/catalog"
	"github.com/sif-project/sif/agent/probe"
	"github.com/sif-project/sif/agent/workloadapi"
	"github.com/sif-project/sif/bpf"
	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/internal/clock"
	"github.com/sif-project/sif/internal/coalesce"
	"github.com/sif-project/sif/internal/config"
	"github.com/sif-project/sif/internal/expiry"
	"github.com/sif-project/sif/internal/keylock"
	"github.com/sif-project/sif/internal/logkey"
	"github.com/sif-project/sif/internal/metric"
	"github.com/sif-project/sif/internal/node/cnicall"
	"github.com/sif-project/sif/internal/node/daemon"
	"github.com/sif-project/sif/internal/node/firewall"
	"github.com/sif-project/sif/internal/node/flowlog"
	"github.com/sif-project/sif/internal/node/host"
	"github.com/sif-project/sif/internal/node/lease"
	"github.com/sif-project/sif/internal/node/number"
	"github.com/sif-project/sif/internal/outside/registered"
	"github.com/sif-project/sif/internal/outside/resolve"
	"github.com/sif-project/sif/internal/supervisor"
	"github.com/sif-project/sif/internal/trust/identity"
	"github.com/sif-project/sif/internal/trust/jwtkey"
	"github.com/sif-project/sif/internal/wellknown"
)

// cniTimeout limits a CNI call. Nomad sets no limit, and one slow call blocks every allocation of
// the node. The plugin's own timeout is no longer.
const cniTimeout = 30 * time.Second

// reconcileInterval is the time between comparisons of the kernel's state with the desired state.
const reconcileInterval = 5 * time.Second

// endFlowsInterval is the time between two looks for flows that have ended.
const endFlowsInterval = 2 * time.Second

// Agent is the policy agent of one workload node.
type Agent struct {
	node         *daemon.Node
	log          hclog.Logger
	now          func() time.Time
	data         Datapath
	kernel       *bpf.Datapath
	num          *number.Registry
	endpoints    *endpoints
	standings    *standings
	counterparts *lease.Set
	services     *identity.ServiceKeys
	engines      *engines
	exits        *exits
	firewall     *firewall.Firewall
	ports        *ports
	exposed      []firewall.Exposed // what the node offers to its workloads
	registrar    *catalog.Registrar
	health       *catalog.Health
	lives        lives
	observers    probe.Observers
	namespaces   probe.Finder
	guests       guests
	audited      audited
	flows        *flowlog.Log
	exporter     flowlog.Exporter // idle if there is no file of flows
	observing    atomic.Int32     // observers of flows
	questions    questions
	resolver     *resolver
	registered   *registered.Watcher
	stalled      stalled
	processes    processes
	ended        ended
	workloadAPI  *workloadapi.Server
	jwtKeys      *jwtkey.Source
	calls        *prometheus.HistogramVec

	locks       keylock.Locks[cnicall.Attachment]
	attachments keylock.Locks[string] // by interface: programs are attached to it by one at a time
	keys        sync.Mutex            // serialises asking for services' certificates
	addresses   *addresses
	releases    releases
	reprogram   *coalesce.Func // of program
	reconcile   *coalesce.Func // of Reconcile, for CHECK: Nomad makes one for each allocation
	programming sync.Mutex     // serialises computing and writing the data path
	written     image          // empty before the first Reconcile; guarded by programming
	target      image          // what the last program wanted to write, empty if that is not known; guarded by programming
	// writtenOutside is what target was computed with; guarded by programming.
	writtenOutside fabric.Outside
	turn           int          // of repairWorkloads
	installed      installation // what listenCNI installed; only the repair changes it
	lacking        *unnumbered  // what target lacks, or nil; guarded by programming
	wayNumbers     *wayNumbers  // nil until the first ways; guarded by programming
}

// Start starts the agent of the node. It takes over the kernel state and the files of an earlier
// agent. Call Run next.
func Start(ctx context.Context, c *config.Config, log hclog.Logger) (*Agent, error) {
	n, err := daemon.Join(ctx, c, fabric.KindWorkload, log)
	if err != nil {
		return nil, err
	}
	a := &Agent{node: n, log: log, now: clock.Now, exits: newExits(), flows: flowlog.New(c.Flows.Keep), calls: metric.AgentCNI.NewHistograms()}
	n.Metrics.MustRegister(a.calls)
	a.reprogram, a.reconcile = coalesce.New(a.program), coalesce.New(a.Reconcile)
	a.engines = newEngines(a, log)
	if a.num, err = number.Open(filepath.Join(c.DataDir, "numbers.json")); err != nil {
		return nil, err
	}
	if a.endpoints, err = openEndpoints(endpointsFile(c)); err != nil {
		return nil, err
	}
	if a.standings, err = openStandings(filepath.Join(c.DataDir, "attached.json")); err != nil {
		return nil, err
	}
	if a.counterparts, err = lease.Open(filepath.Join(c.DataDir, "counterparts.json"), n.Outage.Began, log); err != nil {
		return nil, err
	}
	client := resolve.NewClient(host.Resolver, c.DNS.Resolvers(), resolve.SystemConf)
	if a.registered, err = registered.Open(filepath.Join(c.DataDir, "registered.json"), n.Consul, log.Named("registered"), func() {
		n.Degrade("data path", a.reprogram.Call())
	}); err != nil {
		return nil, err
	}
	if a.resolver, err = a.openResolver(filepath.Join(c.DataDir, "names.json"), client); err != nil {
		return nil, err
	}
	if a.services, err = identity.OpenServiceKeys(filepath.Join(c.DataDir, "services"), c.TrustDomain, n.Identity.Superseded); err != nil {
		return nil, err
	}
	if a.addresses, err = openAddresses(filepath.Join(c.DataDir, "addresses.json"), n.Self.Pool4, n.Self.Pool6); err != nil {
		return nil, err
	}
	for _, ep := range a.endpoints.all() {
		a.addresses.reserve(ep.IPv4)
	}
	if _, err := mountBPF(c); err != nil {
		return nil, err
	}
	if a.kernel, err = openDatapath(c, n.Self.Ranges, log); err != nil {
		return nil, err
	}
	log.Info("eBPF programs are loaded", logkey.Mechanism, a.kernel.Mechanism())
	a.data = a.kernel
	a.firewall, a.exposed = n.Firewall, n.Firewall.Exposed()
	if _, err := a.firewall.Apply(); err != nil {
		return nil, err
	}
	if err := a.takeOver(ctx); err != nil {
		return nil, err
	}
	if err := a.resumeExits(); err != nil {
		return nil, err
	}
	own, err := newOwnPorts(c.Underlay)
	if err != nil {
		return nil, err
	}
	a.ports = newPorts(c.Underlay.Interface, own, a.firewall.SetPorts)
	n.Degrade("ports", a.keepPorts())
	n.OnServers(func() { n.Degrade("data path", a.reprogram.Call()) })
	a.registrar = catalog.NewRegistrar(catalog.RegistrarConfig{
		Consul: n.Consul, Zone: n.Self.Zone, Node: n.Self.Name, Identity: n.Identity, Want: a.registrations, Log: log.Named("catalog"),
		Report: func(err error) { n.Degrade("consul catalog", err) },
	})
	a.health = catalog.NewHealth(catalog.HealthConfig{Consul: n.Consul, Verify: a.verifyRecord, Speaker: a.speaker, Log: log.Named("catalog")})
	if a.engines.zone, err = newNeighbours(a); err != nil {
		return nil, err
	}
	if err := a.openWorkloadAPI(); err != nil {
		return nil, err
	}
	n.Degrade("data path", a.Reconcile()) // what one endpoint cannot have must not keep the others from their agent
	n.Degrade("host", a.repairHost())
	n.Degrade("processes of the node", a.keepProcesses(nil))
	return a, nil
}

// takeOver finds the endpoints whose interfaces still exist, and removes interfaces that an earlier
// agent did not finish. repairHost replaces the programs after Reconcile has filled the maps.
func (a *Agent) takeOver(ctx context.Context) error {
	attached, err := a.data.Attached()
	if err != nil {
		return err
	}
	guests, err := a.data.Guests()
	if err != nil {
		return err
	}
	var existing []string
	for _, name := range attached {
		index, err := linkIndex(name)
		if err != nil {
			return err
		}
		if index != 0 {
			existing = append(existing, name)
		}
	}
	if err := a.endpoints.lost(existing); err != nil {
		return err
	}
	known := map[string]bool{}
	for _, ep := range a.endpoints.all() {
		known[ep.HostIf] = true
		there, err := a.present(ep)
		if err != nil {
			return err
		}
		if !there {
			// The interface disappeared, for example in a reboot. Nomad may call ADD again, and
			// another interface may have the index now.
			a.endpoints.change(ep.Attachment, func(ep *endpoint) { ep.HostIndex = 0 })
			continue
		}
		if _, err := a.node.Revision.Document(ctx, ep.Admission.Service); err != nil {
			a.log.Warn("the revision in force has no document of the service, so the service has no rights", logkey.Service, ep.Admission.Service, logkey.Error, err)
		}
	}
	for _, name := range slices.Concat(attached, guests) {
		if known[name] {
			continue
		}
		if err := a.dismantle(name); err != nil {
			return err
		}
	}
	return nil
}

// openDatapath takes over the maps that an earlier agent pinned. Maps of another version stay with
// the attached programs, which keep working until the new maps are filled and new programs replace
// them.
func openDatapath(c *config.Config, ranges []netip.Prefix, log hclog.Logger) (*bpf.Datapath, error) {
	dir := filepath.Join(c.BPFDir, "sif")
	options := bpf.Options{
		Resolver4: wellknown.LinkLocal4, Node4: wellknown.LinkLocal4, Node6: wellknown.LinkLocal6, NodeExit: wellknown.ExitMarkNode,
		Fabric: ranges, Limits: c.Connections.Limits(),
	}
	if c.BPFAttach != "auto" {
		options.Mechanism = bpf.Mechanism(c.BPFAttach)
	}
	d, err := bpf.Open(dir, options)
	if !errors.Is(err, bpf.ErrIncompatible) {
		return d, err
	}
	log.Warn("the data path has another version and is created again; open connections are checked like new ones", logkey.Error, err)
	if err := bpf.DiscardMaps(dir); err != nil {
		return nil, err
	}
	return bpf.Open(dir, options)
}

// Run serves until ctx ends, and tells sup when it answers CNI calls. The kernel keeps enforcing
// after that.
func (a *Agent) Run(ctx context.Context, sup *supervisor.Supervisor) error {
	defer a.kernel.Close()
	cni, err := a.listenCNI()
	if err != nil {
		return err
	}
	a.node.Revision.OnChange(func(p fabric.Pointer, _ map[fabric.Ref]fabric.Document) {
		err := a.reprogram.Call()
		a.node.Degrade("data path", err)
		a.engines.zone.hurry() // there may be other counterparts
		a.log.Info("revision enforced", logkey.Revision, p.Sequence)
	})
	a.node.Removals.OnChange(func() { go a.heed(ctx) })
	a.node.Honoured = a.honoured
	a.engines.silent, a.engines.moved = a.silent, a.moveExits
	a.node.OnExits(func() { go a.moveExits() }) // pulses go on meanwhile
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return a.node.Run(ctx, a.Status) })
	group.Go(func() error {
		a.heed(ctx) // the list may have changed since the agent before
		return nil
	})
	group.Go(func() error { return a.engines.run(ctx) })
	group.Go(func() error { return a.engines.zone.serve(ctx, a.node) })
	group.Go(func() error { return a.engines.zone.run(ctx) })
	group.Go(func() error { return cnicall.Serve(ctx, cni, cniTimeout, a.Handle, a.listAttached) })
	sup.Ready()
	group.Go(func() error { return a.serveDNS(ctx) })
	group.Go(func() error { return a.registrar.Run(ctx) })
	group.Go(func() error { return a.watchLives(ctx) })
	group.Go(func() error { return a.registered.Run(ctx) })
	group.Go(func() error { return a.health.Run(ctx) })
	group.Go(func() error { return a.repair(ctx, sup) })
	group.Go(func() error { return a.tend(ctx) })
	group.Go(func() error {
		return every(ctx, tendAttachedInterval, func() { a.node.Degrade("attached workloads", a.tendAttached(ctx)) })
	})
	group.Go(func() error {
		return every(ctx, time.Second, func() { a.node.Degrade("cgroups and ports of processes of the node", a.processes.refresh()) })
	})
	group.Go(func() error {
		return every(ctx, time.Second, func() { a.node.Degrade("outside names in force", a.tendNames(ctx)) })
	})
	group.Go(func() error {
		return every(ctx, time.Second, func() {
			_, err := a.kernel.RouseCut()
			a.node.Degrade("connections that are cut", err)
		})
	})
	group.Go(func() error {
		return every(ctx, endFlowsInterval, func() { a.node.Degrade("flows", a.kernel.EndFlows()) })
	})
	group.Go(func() error { return a.serveTasks(ctx) })
	group.Go(func() error { return a.jwtKeys.Run(ctx) })
	group.Go(func() error { return a.workloadAPI.Run(ctx) })
	group.Go(func() error {
		expiry.Watch(ctx, a.now, a.node.Revision.Documents, func() { a.node.Degrade("data path", a.reprogram.Call()) })
		return nil
	})
	group.Go(func() error { return a.watchEvents(ctx) })
	group.Go(func() error { return a.exportFlows(ctx) })
	return group.Wait()
}

// repair compares the kernel's state with the desired state at each interval. It never waits for
// another daemon.
func (a *Agent) repair(ctx context.Context, sup *supervisor.Supervisor) error {
	return every(ctx, reconcileInterval, func() {
		a.node.Degrade("counterparts", a.forget(a.departed()))
		a.node.Degrade("data path", a.Reconcile())
		a.node.Degrade("state on disk", errors.Join(a.endpoints.saved.Again(), a.standings.saved.Again(), a.counterparts.Stored(), a.addresses.stored(a.now())))
		a.node.Degrade("idle connections", a.kernel.SweepConnections())
		a.node.Degrade("host", a.repairHost())
		a.node.Degrade("workloads", a.repairWorkloads())
		a.node.Degrade("guests", a.repairGuests())
		a.node.Degrade("processes of the node", a.keepProcesses(nil))
		a.node.Degrade("firewall", a.node.RepairFirewall())
		a.node.Degrade("cni", a.repairCNI())
		a.node.Degrade("instances registered outside", a.registered.Trouble())
		a.node.Report("agent", a.findings())
		a.followHealth()
		sup.Alive(fmt.Sprintf("enforcing revision %d for %d endpoints", a.node.Revision.Pointer().Sequence, len(a.endpoints.all())), a.node.Degraded())
	})
}

// tend renews and re-announces endpoints, for which it needs the controller and the engines.
func (a *Agent) tend(ctx context.Context) error {
	return every(ctx, reconcileInterval, func() {
		a.sweep(ctx)
		a.node.Degrade("ports", a.keepPorts())
		a.node.Degrade("services", a.leave())
		a.renew(ctx)
		if a.releases.due() {
			ctx, cancel := context.WithTimeout(ctx, renewTimeout)
			a.node.Degrade("releases", a.releaseLost(ctx))
			cancel()
		}
		a.retryPending(ctx)
		a.engines.syncAll(ctx)
	})
}

// every calls do immediately and then at each interval, until ctx ends.
func every(ctx context.Context, interval time.Duration, do func()) error {
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for {
		do()
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// listenCNI opens the socket that the CNI plugin calls, and installs the plugin and its network
// configuration on the node.
func (a *Agent) listenCNI() (*net.UnixListener, error) {
	c := a.node.Config.CNI
	if err := os.MkdirAll(filepath.Dir(c.Socket), 0o700); err != nil {
		return nil, fmt.Errorf("create the directory of the CNI socket: %w", err)
	}
	if err := os.Remove(c.Socket); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("remove the CNI socket of an earlier agent: %w", err)
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: c.Socket, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("listen for CNI calls: %w", err)
	}
	if err := os.Chmod(c.Socket, 0o600); err != nil {
		return nil, fmt.Errorf("set the permissions of the CNI socket: %w", err)
	}
	if err := installCNI(c.PluginDir, c.ConfigDir, c.Socket); err != nil {
		return nil, err
	}
	a.installed = inspectCNI(c.PluginDir, c.ConfigDir)
	return l, nil
}
