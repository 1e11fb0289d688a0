// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package controller

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net/netip"
	"path/filepath"
	"reflect"
	"slices"
	"sync"
	"time"

	consulapi "github.com/hashicorp/consul/api"
	"github.com/hashicorp/go-hclog"

	"github.com/sif-project/sif/api"
	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/internal/clock"
	"github.com/sif-project/sif/internal/kvkey"
	"github.com/sif-project/sif/internal/logkey"
	"github.com/sif-project/sif/internal/statefile"
	"github.com/sif-project/sif/internal/trust/identity"
	"github.com/sif-project/sif/internal/trust/revocation"
)

// member is a registered node.
type member struct {
	record fabric.NodeRecord
	node   fabric.Node // the payload of record.Node
	link   fabric.Link // decoded from record.Link; zero if there is none
	index  uint64      // the modify index of the record in Consul
}

// registry contains the nodes of the fabric and their pools. Both are stored in Consul.
type registry struct {
	cfg     Config
	removed func() fabric.Revocations
	log     hclog.Logger

	file statefile.File[map[string]fabric.NodeRecord] // the newest records by zone/node, from which Consul cannot go back

	mu      sync.Mutex
	members map[fabric.NodeID]*member
	pools   map[int]assignment // by number of the pair of pools
	refused map[string]string  // what is wrong with keys in Consul, for people
	trouble error              // with the disk
}

func newRegistry(cfg Config, removed func() fabric.Revocations) *registry {
	return &registry{
		cfg: cfg, removed: removed, log: cfg.Log.Named("registry"),
		file:    statefile.File[map[string]fabric.NodeRecord]{Path: filepath.Join(cfg.DataDir, "nodes.json"), What: "the node records"},
		members: map[fabric.NodeID]*member{}, pools: map[int]assignment{}, refused: map[string]string{},
	}
}

// load reads the records of nodes and the assignments of pools from Consul, and the newest records
// that this controller signed from its disk. What does not verify is left out and reported.
func (r *registry) load(ctx context.Context) error {
	q := (&consulapi.QueryOptions{RequireConsistent: true}).WithContext(ctx)
	pools, _, err := r.cfg.Consul().KV().List(kvkey.Pools, q)
	if err != nil {
		return fmt.Errorf("read the pools from Consul: %w", err)
	}
	records, _, err := r.cfg.Consul().KV().List(kvkey.Nodes, q)
	if err != nil {
		return fmt.Errorf("read the nodes from Consul: %w", err)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	seen := r.members
	r.members, r.pools, r.refused = map[fabric.NodeID]*member{}, map[int]assignment{}, map[string]string{}
	r.loadPools(ctx, pools)
	for _, kv := range records {
		if id, err := kvkey.ParseNode(kv.Key); err == nil && seen[fabric.NodeID(id)].readAt(kv, r.cfg.Identity.Keys()) {
			r.admit(seen[fabric.NodeID(id)])
			continue
		}
		m, err := r.verify(kv)
		if err != nil {
			r.refused[kv.Key] = fmt.Sprintf("%s: %v; it is replaced when the node registers again", kv.Key, err)
			r.log.Error("node record refused", logkey.Key, kv.Key, logkey.Error, err)
			continue
		}
		r.admit(m)
	}
	stored, _, err := r.file.Read()
	if err != nil {
		return err
	}
	for name, record := range stored {
		if id, err := fabric.ParseNodeID(name); err == nil && r.members[id] != nil && reflect.DeepEqual(r.members[id].record, record) {
			continue // Consul has it, too
		}
		m := &member{record: record}
		if err := r.decode(m); err != nil { // by a version of the key that was retired, perhaps
			r.log.Warn("node record on disk not used", logkey.Node, name, logkey.Error, err)
			continue
		}
		r.admit(m)
	}
	r.leaveOutOld()
	r.save() // also of one that stands by: it may be the one that is left
	return nil
}

// admit makes m a member unless the node was removed, or a newer record of it is known. The caller
// holds r.mu.
func (r *registry) admit(m *member) {
	if _, ended := r.removed().EndsMember(m.node, m.link); ended {
		return // purge deletes it
	}
	if known := r.members[m.node.ID()]; known == nil || m.node.Issued.After(known.node.Issued) || signedAgain(known.record.Node, m.record.Node) {
		r.members[m.node.ID()] = m
	}
}

// over reports whether no node could believe the record any more, even in degraded mode.
func (m *member) over(now time.Time) bool {
	return now.After(m.node.Issued.Add(fabric.TombstoneLife))
}

// leaveOutOld leaves out records that nobody has renewed for so long that a removal of the node
// would have been forgotten, if they are only on disk or their pools are those of another node. The
// caller holds r.mu.
func (r *registry) leaveOutOld() {
	now := clock.Now()
	for id, m := range r.members {
		if !m.over(now) {
			continue
		}
		if _, taken := r.rival(id, m.node.Pool4, m.node.Pool6); taken || m.index == 0 {
			delete(r.members, id)
		}
	}
}

// readAt reports whether m was read from this value of Consul, and is signed by a key that counts.
func (m *member) readAt(kv *consulapi.KVPair, keys fabric.KeySet) bool {
	return m != nil && m.index == kv.ModifyIndex && keys.Accepts(m.record.Node.Version)
}

// verify decodes a node record from Consul. The controller's part must be signed, and be of the
// node of the key.
func (r *registry) verify(kv *consulapi.KVPair) (*member, error) {
	m := &member{index: kv.ModifyIndex}
	if err := json.Unmarshal(kv.Value, &m.record); err != nil {
		return nil, err
	}
	if err := r.decode(m); err != nil {
		return nil, err
	}
	if kv.Key != kvkey.Node(m.node.ID()).String() {
		return nil, fmt.Errorf("it is the record of node %s", m.node.ID())
	}
	return m, nil
}

// decode decodes and verifies the record of m.
func (r *registry) decode(m *member) error {
	if err := r.cfg.Identity.Keys().Verify(m.record.Node, fabric.KindNode, &m.node); err != nil {
		return err
	}
	if m.node.Fabric != r.cfg.Fabric {
		return fmt.Errorf("it is of fabric %q, not %q", m.node.Fabric, r.cfg.Fabric)
	}
	if len(m.record.Link) > 0 {
		if err := json.Unmarshal(m.record.Link, &m.link); err != nil {
			return fmt.Errorf("decode its link: %w", err)
		}
	}
	return nil
}

// save stores the records on disk. A failure is reported: the records are in Consul, too. The
// caller holds r.mu.
func (r *registry) save() {
	records := make(map[string]fabric.NodeRecord, len(r.members))
	for id, m := range r.members {
		records[id.String()] = m.record
	}
	r.trouble = r.file.Update(records)
}

// degraded returns what is wrong with the registry, for people.
func (r *registry) degraded() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	list := slices.Sorted(maps.Values(r.refused))
	if r.trouble != nil {
		list = append(list, r.trouble.Error())
	}
	owners := map[netip.Prefix]*member{}
	for _, id := range slices.SortedFunc(maps.Keys(r.members), fabric.CompareNodeIDs) {
		m := r.members[id]
		for _, pool := range []netip.Prefix{m.node.Pool4, m.node.Pool6} {
			if other := owners[pool]; other != nil {
				list = append(list, rivals(other.node.ID(), id, m.node.Pool4, m.node.Pool6).Error())
				break
			}
			owners[pool] = m
		}
	}
	return list
}

// get returns a registered node, and whether it is registered.
func (r *registry) get(id fabric.NodeID) (fabric.Node, bool) {
	m, ok := r.member(id)
	return m.node, ok
}

// member returns a registered node with its record, and whether it is registered.
func (r *registry) member(id fabric.NodeID) (member, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	m, ok := r.members[id]
	if !ok {
		return member{}, false
	}
	return *m, true
}

// all returns the registered nodes ordered by zone and name.
func (r *registry) all() []fabric.Node {
	r.mu.Lock()
	defer r.mu.Unlock()
	list := make([]fabric.Node, 0, len(r.members))
	for _, m := range r.members {
		list = append(list, m.node)
	}
	slices.SortFunc(list, func(a, b fabric.Node) int { return fabric.CompareNodeIDs(a.ID(), b.ID()) })
	return list
}

// register stores the record of the calling node. A request that changes nothing returns the record
// that exists. A node that has no pool yet gets one with prefix bits, or of the fabric's size if
// that is 0.
func (r *registry) register(ctx context.Context, who identity.Node, req api.NodeRequest, prefix int) (fabric.NodeRecord, error) {
	if err := r.checkNode(who, req); err != nil {
		return fabric.NodeRecord{}, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	link, err := r.checkLink(who, req)
	if err != nil {
		return fabric.NodeRecord{}, err
	}
	known := r.members[who.NodeID]
	own, err := r.newest(who, known, req.Record)
	if err != nil {
		return fabric.NodeRecord{}, err
	}
	next := fabric.NodeRecord{Link: req.Link, Certificate: req.Certificate, Signature: req.Signature}
	dropsLinks := req.NoSwitch && !who.Kind.Has(fabric.KindWorkload)
	if len(req.Link) == 0 && known != nil && !dropsLinks { // the link stays as it is
		next.Link, next.Certificate, next.Signature, link = known.record.Link, known.record.Certificate, known.record.Signature, known.link
	}
	node := fabric.Node{
		Fabric: r.cfg.Fabric, Zone: who.Zone, Name: who.Name, Kind: who.Kind,
		Underlay: req.Underlay, Engine: req.Engine, NoSwitch: who.Kind == fabric.KindBoth || req.NoSwitch, Ranges: []netip.Prefix{r.cfg.Pool4, r.cfg.Pool6}, Issued: clock.Now().Truncate(time.Millisecond),
	}
	// Of a node with two daemons, the agent registers the links and the engine its port.
	if who.Kind == fabric.KindBoth && req.Engine == 0 && own != nil {
		node.Engine = own.Engine
	}
	node.Draining = own != nil && own.Draining
	// Nodes refuse an older record than they know, and the clock may have been set back.
	if known != nil && !node.Issued.After(known.node.Issued) {
		node.Issued = known.node.Issued.Add(time.Millisecond)
	}
	if node.Pool4, node.Pool6, err = r.poolOf(ctx, who.NodeID, own, r.poolBits(who, prefix)); err != nil {
		return fabric.NodeRecord{}, err
	}
	if known != nil && r.unchanged(known, node, next) {
		return known.record, nil
	}
	node.Issued = r.issueTime(node.Issued, who.NodeID, own)
	if err := r.store(ctx, &member{record: next, node: node, link: link}); err != nil {
		return fabric.NodeRecord{}, err
	}
	r.log.Info("node registered", logkey.Node, who.NodeID, logkey.Address, node.Underlay.String(), logkey.Pool, node.Pool4.String())
	return r.members[who.NodeID].record, nil
}

// store signs the record of m's node and stores it. The caller holds r.mu.
func (r *registry) store(ctx context.Context, m *member) error {
	id := m.node.ID()
	payload, err := json.Marshal(m.node)
	if err != nil {
		return fmt.Errorf("encode the record of node %s: %w", id, err)
	}
	if m.record.Node, err = r.cfg.Signer.Sign(ctx, fabric.KindNode, payload); err != nil {
		return unavailable("%v", err)
	}
	if m.index, err = r.write(ctx, m.node, m.record); err != nil {
		return err
	}
	r.members[id] = m
	delete(r.refused, kvkey.Node(id).String())
	r.save()
	return nil
}

// drain says whether packets shall pass a processor, and returns its record.
func (r *registry) drain(ctx context.Context, id fabric.NodeID, draining bool) (fabric.Node, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	known, registered := r.members[id]
	switch {
	case !registered:
		return fabric.Node{}, conflict("node %s was removed a moment ago", id)
	case !known.node.Boundary():
		return fabric.Node{}, invalid("no packets of other zones pass node %s: it has no switch", id)
	case known.node.Draining == draining:
		return known.node, nil
	}
	next := *known
	next.node.Draining, next.node.Issued = draining, r.issueTime(clock.Now().Truncate(time.Millisecond), id, &known.node)
	if err := r.store(ctx, &next); err != nil {
		return fabric.Node{}, err
	}
	r.log.Info("whether packets shall pass a processor has changed", logkey.Node, id, logkey.State, map[bool]string{true: "draining", false: "in use"}[draining])
	return next.node, nil
}

// newest returns the newest record of the calling node that the controller signed: the one that is
// known, or the one that the node holds. Without it, a controller whose Consul was set back could
// give the node other pools. It is nil for a new node.
func (r *registry) newest(who identity.Node, known *member, held *fabric.Signed) (*fabric.Node, error) {
	var own *fabric.Node
	if known != nil {
		own = &known.node
	}
	if held == nil {
		return own, nil
	}
	var n fabric.Node
	if err := r.cfg.Identity.Keys().Verify(*held, fabric.KindNode, &n); err != nil {
		r.log.Warn("the record that the node holds is not used", logkey.Node, who.NodeID, logkey.Error, err)
		return own, nil
	}
	if n.Fabric != r.cfg.Fabric || n.ID() != who.NodeID {
		return nil, forbidden("node %s holds the record of node %s of fabric %s; delete its data_dir before it joins another fabric or takes another name", who.NodeID, n.ID(), n.Fabric)
	}
	if _, ended := r.removed().Ends(n.ID(), n.Issued); ended || own != nil && !n.Issued.After(own.Issued) {
		return own, nil
	}
	return &n, nil
}

// issueTime returns the time at which a new record of a node is issued: now, but later than its
// newest one, and than a removal of the node. The clock may have been set back, or be another
// controller's.
func (r *registry) issueTime(now time.Time, id fabric.NodeID, own *fabric.Node) time.Time {
	if own != nil && !now.After(own.Issued) {
		now = own.Issued.Add(time.Millisecond)
	}
	if t, ended := r.removed().Ends(id, now); ended {
		now = t.Removed.Add(time.Millisecond)
	}
	return now
}

// unchanged reports whether the record that is known has the content of the new one, and still is
// in Consul.
func (r *registry) unchanged(known *member, node fabric.Node, next fabric.NodeRecord) bool {
	node.Issued = known.node.Issued
	if !reflect.DeepEqual(node, known.node) || !bytes.Equal(next.Link, known.record.Link) || !bytes.Equal(next.Signature, known.record.Signature) {
		return false
	}
	kv, _, err := r.cfg.Consul().KV().Get(kvkey.Node(node.ID()).String(), nil)
	return err == nil && kv != nil && kv.ModifyIndex == known.index
}

// write stores the record of a node in Consul, and returns its modify index.
func (r *registry) write(ctx context.Context, node fabric.Node, record fabric.NodeRecord) (uint64, error) {
	value, err := json.Marshal(record)
	if err != nil {
		return 0, fmt.Errorf("encode the record of node %s: %w", node.ID(), err)
	}
	if err := storable("the record of node "+node.ID().String(), value); err != nil {
		return 0, err
	}
	return r.cfg.fence.replace(ctx, r.cfg.Consul(), kvkey.Node(node.ID()).String(), value)
}

// checkNode refuses a registration whose addresses or engine cannot be right.
func (r *registry) checkNode(who identity.Node, req api.NodeRequest) error {
	if !req.Underlay.IsValid() || req.Underlay.IsUnspecified() || req.Underlay.IsMulticast() {
		return invalid("node %s: underlay address %q must be a unicast address that other nodes reach", who.NodeID, req.Underlay)
	}
	for _, p := range []netip.Prefix{r.cfg.Pool4, r.cfg.Pool6} {
		if p.Contains(req.Underlay) {
			return invalid("node %s: underlay address %s must not be in the fabric's pool %s", who.NodeID, req.Underlay, p)
		}
	}
	if !who.Kind.Has(fabric.KindProcessor) && (req.Engine != 0 || req.NoSwitch) {
		return forbidden("the certificate of node %s is of a %s node; only a processor node can have an engine", who.NodeID, who.Kind)
	}
	if who.Kind == fabric.KindBoth && req.Engine != 0 && !req.NoSwitch {
		return invalid("node %s also runs workloads, so its engine cannot have a switch: remove the block \"ovs\" from the engine's configuration, or make the processor a node of its own, on a machine without workloads", who.NodeID)
	}
	return nil
}

// clockSkew is how far a node's clock may be ahead. Readers refuse a link that was issued before
// the last one, so a link from the future would keep the node from ever publishing another key.
const clockSkew = 10 * time.Minute

// checkLink verifies a node's link statement. It must be signed with a certificate of that node, be
// about that node, and have a public key that no other node has. The caller holds r.mu.
func (r *registry) checkLink(who identity.Node, req api.NodeRequest) (fabric.Link, error) {
	var link fabric.Link
	if len(req.Link) == 0 {
		return link, nil
	}
	signer, leaf, err := identity.VerifyBy(r.cfg.Identity.Roots(), r.cfg.TrustDomain, req.Certificate, fabric.LinkSigningInput(req.Link), req.Signature)
	if err == nil {
		err = revocation.Certificate(r.removed(), signer, leaf)
	}
	if err != nil {
		return link, invalid("link of node %s: verify its signature: %v", who.NodeID, err)
	}
	if signer != (identity.Subject{Node: who}) {
		return link, forbidden("link of node %s: it is signed by %s", who.NodeID, signer)
	}
	if err := json.Unmarshal(req.Link, &link); err != nil {
		return link, invalid("link of node %s: decode it: %v", who.NodeID, err)
	}
	if link.Node != who.NodeID {
		return link, forbidden("link of node %s: it is about node %s", who.NodeID, link.Node)
	}
	if err := link.Check(who.NodeID); err != nil {
		return link, invalid("link of node %s: %v", who.NodeID, err)
	}
	if ahead := link.Issued.Sub(clock.Now()); ahead > clockSkew {
		return link, invalid("link of node %s: it was issued %s in the future; correct the clock of the node", who.NodeID, ahead.Round(time.Second))
	}
	if t, ended := r.removed().EndsKey(who.NodeID, link.PublicKey); ended {
		return link, wasRemoved(t, "the public key of its links is from before that")
	}
	for id, m := range r.members {
		if id != who.NodeID && link.SharesKey(m.link) {
			return link, forbidden("link of node %s: node %s has the same public key", who.NodeID, id)
		}
	}
	return link, nil
}
