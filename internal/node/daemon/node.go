// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

// Package daemon is what agent and engine have in common as daemons of a node: they obtain the
// node's identity, register with the controller, follow the revision and the roster, keep the
// node's encrypted links up, and report their status. It does not know endpoints, leases or any
// data path.
package daemon

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	consulapi "github.com/hashicorp/consul/api"
	"github.com/hashicorp/go-hclog"
	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"

	"github.com/sif-project/sif/api"
	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/internal/clock"
	"github.com/sif-project/sif/internal/config"
	"github.com/sif-project/sif/internal/dirlock"
	"github.com/sif-project/sif/internal/logkey"
	"github.com/sif-project/sif/internal/node/firewall"
	"github.com/sif-project/sif/internal/node/health"
	"github.com/sif-project/sif/internal/node/states"
	"github.com/sif-project/sif/internal/outage"
	"github.com/sif-project/sif/internal/statefile"
	"github.com/sif-project/sif/internal/trust/admission"
	"github.com/sif-project/sif/internal/trust/identity"
	"github.com/sif-project/sif/internal/trust/revision"
	"github.com/sif-project/sif/internal/trust/revocation"
	"github.com/sif-project/sif/internal/trust/roster"
	"github.com/sif-project/sif/internal/version"
	"github.com/sif-project/sif/internal/wellknown"
)

// reportInterval is how often a node reports its status to the controller.
const reportInterval = 2 * time.Second

// linkInterval is how often the links are compared with the roster, and linkRetry the pause after a
// failure.
const (
	linkInterval = 5 * time.Second
	linkRetry    = 500 * time.Millisecond
)

// joinTimeout bounds how long Join waits for Vault and the controller.
const joinTimeout = 30 * time.Second

// Node is a node that has joined the fabric.
type Node struct {
	Config     *config.Config
	Kind       fabric.NodeKind // of this daemon: workload for an agent, processor for an engine
	Log        hclog.Logger
	Identity   *identity.Source
	Consul     *consulapi.Client
	Controller *api.Client
	Revision   *revision.Follower
	Removals   *revocation.Watcher
	Roster     *roster.Watcher
	States     *states.Set
	Links      *Links             // nil for an engine without a switch, which has none
	Self       fabric.Node        // as the controller signed it
	Firewall   *firewall.Firewall // nil for the engine of a node with an agent, which has one for both
	Outage     *outage.Outage
	// Honoured returns the number of endpoints that are in force beyond their end because of an
	// outage. It must be set before Run.
	Honoured func() int
	Metrics  *prometheus.Registry

	lock   *os.File // of the data directory
	host   bool     // it looks after the host: of a node with two daemons, the agent does
	prober *health.Prober
	mode   *mode // of the firewall; nil without one

	servers   *servers
	onServers func()
	relay     relay

	mu         sync.Mutex
	broadcasts []netip.Addr        // of the machine's subnets
	problems   map[string]string   // errors by subject
	findings   map[string][]string // by who found them
	repairs    repairs
	enforced   api.Enforced    // by the last comparison of the data path, but for the age
	compared   time.Time       // when that was
	inForce    inForce         // what the data path enforces
	nomad      string          // the ID of the node's Nomad client, empty before it is known
	reported   *api.NodeStatus // the last status, whether or not the controller has it
	// registered is the record as the controller last returned it. It is zero before that.
	registered fabric.NodeRecord
}

// Join makes this process the daemon of its node. If Vault, Consul or the controller cannot be
// reached, a node that has joined before starts with what is on disk. A new node needs all three.
func Join(ctx context.Context, c *config.Config, kind fabric.NodeKind, log hclog.Logger) (*Node, error) {
	ctx, cancel := context.WithTimeout(ctx, joinTimeout)
	defer cancel()
	n := &Node{Config: c, Kind: kind, Log: log, relay: relay{wake: make(chan struct{}, 1)}}
	n.Metrics = prometheus.NewRegistry()
	var err error
	for _, dir := range []string{c.DataDir, c.RunDir} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, fmt.Errorf("create the node's directory: %w", err)
		}
	}
	if n.lock, err = dirlock.Take(c.DataDir, "lock"); errors.Is(err, dirlock.ErrLocked) {
		return nil, fmt.Errorf("data directory %s is in use by another daemon; stop it, or configure another data_dir", c.DataDir)
	} else if err != nil {
		return nil, err
	}
	if err := remember(c); err != nil {
		return nil, err
	}
	if n.Outage, err = outage.Open(filepath.Join(c.DataDir, "outage.json"), c.Outage(), clock.Now, log.Named("outage")); err != nil {
		return nil, err
	}
	id := c.Identity()
	id.Outage = n.Outage.Began
	if n.Identity, err = identity.Open(ctx, id, log.Named("identity")); err != nil {
		return nil, err
	}
	if n.Consul, err = c.ConsulClient(n.Identity.JWT); err != nil {
		return nil, err
	}
	tls := n.Identity.ClientTLS(identity.Subject{Controller: true})
	if n.Controller, err = n.newController(tls); err != nil {
		return nil, err
	}
	at, hasSwitch := c.Switch()
	if kind == fabric.KindWorkload || hasSwitch {
		if n.Links, err = openLinks(c, kind, log); err != nil {
			return nil, err
		}
	}
	_, joined, err := n.record().Read()
	if err != nil {
		return nil, err
	}
	if n.Self, err = n.register(ctx); api.IsCode(err, api.CodeRemoved) {
		return nil, errors.Join(err, n.Identity.Discard())
	} else if err != nil {
		if loadErr := n.loadSelf(); loadErr != nil {
			return nil, errors.Join(err, loadErr)
		}
		log.Warn("cannot reach the controller, starting with the node record on disk", logkey.Error, err)
		n.Degrade("controller", err)
	}
	if kind == fabric.KindProcessor {
		if n.Self.NoSwitch = !hasSwitch; hasSwitch && n.Self.Kind == fabric.KindBoth {
			return nil, fmt.Errorf("%s: ovs: node %s also runs workloads, so its engine cannot have a switch: remove the block, or make the processor a node of its own, on a machine without workloads", at, n.Self.ID())
		}
	}
	n.host = kind == fabric.KindWorkload || n.Self.Kind != fabric.KindBoth
	if !joined && n.host {
		if err := n.refuse(); err != nil {
			return nil, err
		}
	}
	if n.host {
		if err := n.newFirewall(); err != nil {
			return nil, err
		}
	}
	n.servers = openServers(filepath.Join(c.DataDir, "servers.json"), c, n.Consul)
	if _, err := n.lookAtSubnets(); err != nil {
		return nil, err
	}
	n.prober = health.New(n.Self.Health4(), n.Self.Health6())
	dir := filepath.Join(c.DataDir, "revision")
	if n.Revision, err = revision.NewFollower(n.Consul, dir, n.Self.Fabric, n.Identity.Keys, log.Named("revision")); err != nil {
		return nil, err
	}
	dir = filepath.Join(c.DataDir, "revocation")
	if n.Removals, err = revocation.New(func() *consulapi.Client { return n.Consul }, dir, n.Self.Fabric, n.Identity.Keys, log.Named("revocation")); err != nil {
		return nil, err
	}
	n.Identity.SetRevoked(func(s identity.Subject, leaf *x509.Certificate) error {
		return revocation.Certificate(n.Removals.List(), s, leaf)
	})
	n.Identity.Review() // its own certificate may be revoked
	dir = filepath.Join(c.DataDir, "roster")
	n.Roster, err = roster.New(n.Consul, dir, n.Self.Fabric, c.TrustDomain, n.Identity.Keys, n.Identity.Roots, n.Removals.List, log.Named("roster"))
	if err != nil {
		return nil, err
	}
	n.States = n.newStates()
	return n, nil
}

// Verifier returns the verifier of connectivity requests.
func (n *Node) Verifier() admission.Verifier {
	return admission.Verifier{
		Fabric: n.Self.Fabric, TrustDomain: n.Config.TrustDomain,
		Keys: n.Identity.Keys, Roots: n.Identity.Roots, Node: n.member, Removed: n.Removals.List,
	}
}

func (n *Node) member(id fabric.NodeID) (fabric.Node, bool) {
	m, ok := n.Roster.Member(id)
	return m.Node, ok
}

// Nodes returns the nodes of the fabric.
func (n *Node) Nodes() []fabric.Node { return nodesOf(n.Roster.Members()) }

// Inside returns the prefixes that are never an external's, whatever a binding lists: the fabric's,
// and the addresses at which workloads reach their own node.
func (n *Node) Inside() []netip.Prefix { return append(wellknown.HostPrefixes(), n.Self.Ranges...) }

// Reserved returns the addresses that no external reaches unless a binding lists exactly them,
// besides those of every fabric: the underlay addresses of the nodes, the servers that these work
// with, and the broadcast addresses of this machine's subnets.
func (n *Node) Reserved() []netip.Prefix { return n.reserved(n.Nodes()) }

func (n *Node) reserved(nodes []fabric.Node) []netip.Prefix {
	var list []netip.Prefix
	for _, other := range append(nodes, n.Self) {
		if a := other.Underlay; a.IsValid() {
			list = append(list, netip.PrefixFrom(a, a.BitLen()))
		}
	}
	if n.Roster != nil {
		for _, m := range n.Roster.Members() {
			for _, a := range m.Link.Addresses {
				list = append(list, netip.PrefixFrom(a, a.BitLen()))
			}
		}
	}
	if n.servers != nil {
		for _, a := range n.servers.addresses() {
			list = append(list, netip.PrefixFrom(a, a.BitLen()))
		}
	}
	n.mu.Lock()
	for _, a := range n.broadcasts {
		list = append(list, netip.PrefixFrom(a, a.BitLen()))
	}
	n.mu.Unlock()
	slices.SortFunc(list, netip.Prefix.Compare)
	return slices.Compact(list)
}

// linkRules returns the links that the revision in force declares.
func (n *Node) linkRules() []fabric.LinkRule {
	if n.Revision == nil {
		return nil
	}
	return n.Revision.Links()
}

// BoundaryMTU returns the MTU, in bytes, that the links to and between processors have at least:
// the smallest one of the node's own configuration and of the links that the fabric declares.
func (n *Node) BoundaryMTU() int { return leastMTU(n.Config.Link.MTU, n.linkRules()) }

// leastMTU returns the smallest MTU of the links between zones. mtu is that of links that set none.
func leastMTU(mtu int, rules []fabric.LinkRule) int {
	for _, l := range rules {
		if !l.Disabled && l.MTU > 0 {
			mtu = min(mtu, l.MTU)
		}
	}
	return mtu
}

func nodesOf(members []roster.Member) []fabric.Node {
	var nodes []fabric.Node
	for _, m := range members {
		nodes = append(nodes, m.Node)
	}
	return nodes
}

// register publishes this node's links. The controller answers with the node record, which register
// saves and returns.
func (n *Node) register(ctx context.Context) (fabric.Node, error) {
	var self fabric.Node
	req, err := n.registration()
	if err != nil {
		return self, err
	}
	record, err := n.Controller.RegisterNode(ctx, req)
	if err != nil {
		return self, fmt.Errorf("register node %s: %w", n.Config.NodeID(), err)
	}
	if err := n.Identity.Keys().Verify(record.Node, fabric.KindNode, &self); err != nil {
		return self, fmt.Errorf("register node %s: %w", n.Config.NodeID(), err)
	}
	if self.ID() != n.Config.NodeID() || !self.Kind.Has(n.Kind) {
		return self, fmt.Errorf("register node %s: the record from the controller is of %s node %s", n.Config.NodeID(), self.Kind, self.ID())
	}
	n.mu.Lock()
	n.registered = record
	n.mu.Unlock()
	n.Degrade("node record on disk", n.record().Write(record.Node))
	return self, nil
}

// registerAgain publishes changes. It does not change Self, which everything that runs was
// configured with.
func (n *Node) registerAgain(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, joinTimeout)
	defer cancel()
	self, err := n.register(ctx)
	if err == nil && (self.Pool4 != n.Self.Pool4 || self.Pool6 != n.Self.Pool6) {
		err = fmt.Errorf("the controller has assigned other pools to this node, %s and %s: restart this daemon", self.Pool4, self.Pool6)
	}
	return err
}

func (n *Node) registration() (api.NodeRequest, error) {
	req := api.NodeRequest{Underlay: n.Config.Underlay.Addr(), NomadNode: n.nomadNode()}
	if n.Kind == fabric.KindProcessor {
		_, text, err := net.SplitHostPort(n.Config.Engine.Listen)
		if err != nil {
			return req, fmt.Errorf("parse the address of the engine %q: %w", n.Config.Engine.Listen, err)
		}
		port, err := strconv.ParseUint(text, 10, 16)
		if err != nil {
			return req, fmt.Errorf("parse the port of the engine %q: %w", text, err)
		}
		req.Engine = uint16(port)
		_, hasSwitch := n.Config.Switch()
		req.NoSwitch = !hasSwitch
	}
	held, found, err := n.record().Read()
	if err != nil {
		return req, err
	}
	if found {
		req.Record = &held
	}
	if n.Links == nil {
		return req, nil
	}
	statement, err := n.Links.statement(n.Config.NodeID())
	if err != nil {
		return req, err
	}
	link, err := json.Marshal(statement)
	if err != nil {
		return req, fmt.Errorf("encode the link statement: %w", err)
	}
	sig, chain, err := n.Identity.Sign(fabric.LinkSigningInput(link))
	if err != nil {
		return req, fmt.Errorf("sign the link statement: %w", err)
	}
	req.Link, req.Certificate, req.Signature = link, chain, sig
	return req, nil
}

// record is the file with the node record.
func (n *Node) record() statefile.File[fabric.Signed] { return recordFile(n.Config.DataDir) }

func recordFile(dataDir string) statefile.File[fabric.Signed] {
	return statefile.File[fabric.Signed]{Path: filepath.Join(dataDir, "node.json"), What: "the node record"}
}

// Kept is what a node has on disk.
type Kept struct {
	Self fabric.Node   // as the controller signed it; zero before the node has joined
	Keys fabric.KeySet // of the fabric
	// Ports are the UDP ports of its links.
	Ports []uint16
}

// ReadKept reads what a node has kept in its data directory.
func ReadKept(dataDir string) (k Kept, err error) {
	record, joined, err := recordFile(dataDir).Read()
	if err != nil || !joined {
		return k, err
	}
	if k.Keys, err = identity.KeptKeys(dataDir); err != nil {
		return k, err
	}
	if err := k.Keys.Kept().Verify(record, fabric.KindNode, &k.Self); err != nil {
		return k, err
	}
	links, _, err := linksFile(dataDir).Read()
	for _, s := range links.Devices {
		k.Ports = append(k.Ports, s.Port)
	}
	return k, err
}

func (n *Node) loadSelf() error {
	record, found, err := n.record().Read()
	if err != nil {
		return err
	}
	if !found {
		return fmt.Errorf("node %s has never joined, so there is nothing on disk to start from", n.Config.NodeID())
	}
	return n.Identity.Keys().Kept().Verify(record, fabric.KindNode, &n.Self)
}

// Run keeps identity, revision, roster, links and registration up to date and reports status until
// ctx ends.
func (n *Node) Run(ctx context.Context, status func() api.NodeStatus) error {
	read := make(chan struct{}, 1)
	wake := func() {
		select {
		case read <- struct{}{}:
		default:
		}
	}
	n.Roster.OnRead(wake)
	n.Revision.OnChange(func(fabric.Pointer, map[fabric.Ref]fabric.Document) { wake() }) // its links may differ
	n.Removals.OnChange(n.Identity.Review)
	n.Removals.OnChange(n.handOn)
	n.Removals.OnChange(n.Roster.Review)
	n.repairs.begin()
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return n.Identity.Run(ctx) })
	group.Go(func() error { return n.Removals.Run(ctx) })
	group.Go(func() error { return n.followList(ctx) })
	group.Go(func() error { return n.Revision.Run(ctx) })
	group.Go(func() error { return n.Roster.Run(ctx) })
	group.Go(func() error { return n.keepLinks(ctx, read) })
	group.Go(func() error { return n.keepProbing(ctx) })
	group.Go(func() error { return n.keepReporting(ctx, status) })
	group.Go(func() error { return n.keepLooking(ctx) })
	group.Go(func() error { return n.keepNomadNode(ctx) })
	group.Go(func() error { return n.watchServers(ctx) })
	group.Go(func() error { return n.serveMetrics(ctx) })
	if n.Firewall != nil {
		group.Go(func() error { return n.serveFirewall(ctx) })
	}
	return group.Wait()
}

// keepLinks keeps the links as the roster requires, opens the node's firewall for their ports, and
// publishes these. It puts the node's record back if Consul has lost it. read is signalled when the
// records in Consul were read, and when another revision is in force.
func (n *Node) keepLinks(ctx context.Context, read <-chan struct{}) error {
	// The record contains the certificate that signed it, so each new certificate is published.
	registered := n.Identity.Expiry()
	if n.problem("controller") != "" {
		registered = time.Time{}
	}
	told := n.nomadNode()
	back := newPutBack()
	for {
		members, removed := n.Roster.Members(), n.removed()
		n.Degrade("removal", removed)
		if removed != nil {
			members = nil // the others have dropped this node, too
		}
		changed, turned, err := n.followLinks(ctx, members)
		if changed {
			n.Log.Info("the node's links have new ports", logkey.Ports, n.Links.Ports())
			n.Degrade("firewall", n.RepairFirewall())
		}
		if changed || turned {
			registered = time.Time{}
		}
		lost, pause := back.due(n.displaced(), time.Now())
		nomad := n.nomadNode()
		if expiry := n.Identity.Expiry(); removed == nil && (lost || !registered.Equal(expiry) || told != nomad) {
			registering := n.registerAgain(ctx)
			if registering == nil {
				registered, told = expiry, nomad
			}
			n.Degrade("controller", registering)
		}
		if err != nil {
			pause = min(pause, linkRetry)
		}
		if n.Links != nil && n.Links.turning() {
			pause = min(pause, turnInterval)
		}
		n.Degrade("links", err)
		select {
		case <-ctx.Done():
			return nil
		case <-read:
		case <-time.After(pause):
		}
	}
}

// followLinks sets up the links as the members require. It reports whether ports have changed, and
// whether the replacement of the key has come to another phase.
func (n *Node) followLinks(ctx context.Context, members []roster.Member) (changed, turned bool, err error) {
	if n.Links == nil {
		return false, false, nil
	}
	rules := n.linkRules()
	assigned, assigning := n.Links.assign(n.Self, members, rules)
	turned, turning := n.Links.turn(ctx, n.Self, members, rules, n.problem("controller") == "")
	if turned {
		n.Log.Info("the key of the node's links is being replaced", logkey.Phase, n.Links.keyStatus().Phase)
	}
	n.Degrade("link key", n.Links.overdue())
	moved, err := n.Links.apply(ctx, n.Self, members, rules)
	return assigned || moved, turned, errors.Join(assigning, turning, err, n.routeExits(members))
}

func (n *Node) keepReporting(ctx context.Context, status func() api.NodeStatus) error {
	tick := time.NewTicker(reportInterval)
	defer tick.Stop()
	for {
		report, cancel := context.WithTimeout(ctx, reportInterval)
		away, err := n.report(report, status())
		cancel()
		if ctx.Err() != nil {
			return nil
		}
		n.Degrade("report", err)
		n.Degrade("outage on disk", n.measure(away, err))
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// measure notes whether the controller answers, and all whom it needs.
func (n *Node) measure(away string, reporting error) error {
	switch {
	case reporting != nil:
		return n.Outage.Missed("no controller answers: " + reporting.Error())
	case away != "":
		return n.Outage.Missed(away)
	}
	valid := clock.Now().Before(n.Identity.Expiry())
	if !valid {
		n.Identity.Retry() // Vault answers the controller
	}
	return n.Outage.Reached(n.Honoured() == 0 && valid)
}

// report sends the status to the controller, and returns who does not answer that one.
func (n *Node) report(ctx context.Context, status api.NodeStatus) (away string, err error) {
	status = n.complete(ctx, status)
	n.mu.Lock()
	n.reported = &status
	n.mu.Unlock()
	reply, err := n.Controller.Report(ctx, status)
	if err != nil {
		return "", err
	}
	return reply.Away, n.exchange(ctx, reply)
}

// exchange compares the lists of removed nodes. Whichever of the two has the older one receives the
// other's, so that no removal is lost with what Consul has.
func (n *Node) exchange(ctx context.Context, reply api.ReportReply) error {
	lacks := false
	if reply.Newer != nil {
		if err := n.Removals.Offer(*reply.Newer); err != nil {
			if lacks = errors.Is(err, revocation.ErrLacks); !lacks {
				return fmt.Errorf("the controller's list of removed nodes is refused: %w", err)
			}
		}
	}
	if lacks || n.Removals.List().Sequence > reply.Revocations {
		return n.Controller.Revocations(ctx, n.Removals.Signed())
	}
	return nil
}

// removed returns an error if this node was removed from the fabric.
func (n *Node) removed() error {
	list := n.Removals.List()
	id := n.Config.NodeID()
	t, ended := list.Ends(id, n.Identity.Certificate().Leaf.NotBefore)
	if !ended && n.Links != nil {
		t, ended = list.EndsKey(id, n.Links.publicKey())
	}
	if !ended {
		return nil
	}
	return fmt.Errorf("%s, so it has no links any more; stop its daemons, and delete %s before it joins again", t, n.Config.DataDir)
}

// inForce is what a data path enforces: a revision and a list of removals and revocations.
type inForce struct {
	pointer     fabric.Pointer
	revocations uint64 // sequence of the list
}

// Enforcing is called before a daemon computes what its data path must contain. The function that
// it returns is called when the data path does contain that: only then the node reports that it
// enforces the revision and the list that it knew before.
func (n *Node) Enforcing() (done func()) {
	f := inForce{n.Revision.Pointer(), n.Removals.List().Sequence}
	return func() {
		n.mu.Lock()
		defer n.mu.Unlock()
		n.inForce = f
	}
}

// complete adds what all nodes report to the status of a daemon.
func (n *Node) complete(ctx context.Context, s api.NodeStatus) api.NodeStatus {
	s.Zone, s.Node, s.Kind, s.Version = n.Self.Zone, n.Self.Name, n.Kind, version.Version
	n.mu.Lock()
	f := n.inForce
	n.mu.Unlock()
	s.Sequence, s.Root, s.Revocations = f.pointer.Sequence, f.pointer.Root, f.revocations
	s.CertificateExpires = n.Identity.Expiry()
	s.Authorities = n.authorities(s.Authorities)
	s.Outage = n.outage()
	s.Repaired = n.repairs.total()
	s.Enforced = n.lastCompared()
	if n.Links != nil {
		var err error
		s.LinkKey = n.Links.keyStatus()
		s.Links, err = n.Links.status(ctx, n.Roster.Members(), s.Repaired)
		n.Degrade("link devices", err)
		s.Ways, err = n.prober.Status()
		n.Degrade("probes", err)
	}
	if n.Firewall != nil {
		state, err := n.mode.status(time.Now(), portsAge)
		n.Degrade("firewall ports", err)
		s.Firewall = &state
	}
	s.Degraded = atMost(slices.Concat(s.Degraded, clock.Degraded(), n.Identity.Degraded(), n.Revision.Degraded(), n.Removals.Degraded(), n.Roster.Degraded(),
		n.Degraded(), n.repairs.contested(time.Now())))
	return s
}

// Holds reports whether what ends at a time is in force at now, or is honoured beyond its end
// because it was in force when the present outage began.
func (n *Node) Holds(end, now time.Time) bool { return outage.Holds(end, now, n.Outage.Began()) }

// outage returns what the daemon has measured of an outage, or nil.
func (n *Node) outage() *api.Outage {
	o := n.Outage.Status()
	if o != nil {
		o.Honoured = n.Honoured()
	}
	return o
}

// Compared records that the data path was read back and compared at a time: what it contained after
// that many differences were repaired.
func (n *Node) Compared(at time.Time, d api.Dump, repaired int) {
	digest := d.Digest()
	n.mu.Lock()
	defer n.mu.Unlock()
	n.enforced, n.compared = api.Enforced{Digest: digest, Repaired: repaired, Outside: d.Outside}, at
}

// lastCompared returns the last comparison, or nil before the first.
func (n *Node) lastCompared() *api.Enforced {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.compared.IsZero() {
		return nil
	}
	e := n.enforced
	e.Age = time.Since(n.compared)
	return &e
}

// maxDegraded and maxSentence bound the problems in a report, which the controller refuses if it is
// too large. What others wrote into Consul can cause any number.
const (
	maxDegraded = 100
	maxSentence = 1000 // bytes
)

func atMost(problems []string) []string {
	if more := len(problems) - maxDegraded; more > 0 {
		problems = append(problems[:maxDegraded:maxDegraded], fmt.Sprintf("and %d more", more))
	}
	for i, p := range problems {
		if len(p) > maxSentence {
			problems[i] = strings.ToValidUTF8(p[:maxSentence], "") + "..."
		}
	}
	return problems
}

// Degrade records the error of a subject, or that it has recovered if the error is nil. It logs
// changes only.
func (n *Node) Degrade(subject string, err error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	old := n.problems[subject]
	switch {
	case err == nil && old != "":
		delete(n.problems, subject)
		n.Log.Info("recovered", logkey.Subject, subject)
	case err != nil && old != err.Error():
		if n.problems == nil {
			n.problems = map[string]string{}
		}
		n.problems[subject] = err.Error()
		n.Log.Warn("degraded", logkey.Subject, subject, logkey.Error, err)
	}
}

// Report records what somebody found on the host that stands against the fabric and is not the
// fabric's to change, instead of what he found before: a sentence each, with the remedy. It logs
// changes only.
func (n *Node) Report(who string, findings []string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if slices.Equal(n.findings[who], findings) {
		return
	}
	for _, f := range findings {
		if !slices.Contains(n.findings[who], f) {
			n.Log.Warn("the host stands against the fabric", logkey.Finding, f)
		}
	}
	if n.findings == nil {
		n.findings = map[string][]string{}
	}
	n.findings[who] = findings
}

func (n *Node) problem(subject string) string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.problems[subject]
}

// Degraded returns what is wrong with the node by its own account, for people.
func (n *Node) Degraded() []string {
	n.mu.Lock()
	defer n.mu.Unlock()
	var list []string
	for subject, why := range n.problems {
		list = append(list, subject+": "+why)
	}
	for _, found := range n.findings {
		for _, f := range found {
			list = append(list, "host: "+f)
		}
	}
	slices.Sort(list)
	return list
}
