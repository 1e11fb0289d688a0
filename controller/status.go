// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package controller

import (
	"sync"
	"time"

	"github.com/sif-project/sif/api"
	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/internal/trust/identity"
)

// reports contains the last report of each node. It is only in memory: a new leader knows it when
// the nodes have reported again.
type reports struct {
	mu   sync.Mutex
	last map[fabric.NodeID]api.NodeStatus
	bell *bell // rings at each report
}

// newReports returns reports whose index begins above that of any earlier leader. Otherwise a
// client that knows an index of that leader would wait here without need.
func newReports() *reports {
	r := &reports{last: map[fabric.NodeID]api.NodeStatus{}, bell: newBell()}
	r.bell.ring(uint64(time.Now().UnixMilli()))
	return r
}

// put stores a report under the name and kind in the certificate of the node.
func (r *reports) put(who identity.Node, s api.NodeStatus) {
	s.Zone, s.Node, s.Kind, s.Reported = who.Zone, who.Name, who.Kind, time.Now().UTC()
	r.mu.Lock()
	defer r.mu.Unlock()
	r.last[who.NodeID] = s
	r.bell.bump()
}

// get returns the last report of a node, and whether there is one.
func (r *reports) get(id fabric.NodeID) (api.NodeStatus, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	s, ok := r.last[id]
	return s, ok
}

// drop forgets the report of a node that was removed.
func (r *reports) drop(id fabric.NodeID) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.last, id)
	r.bell.bump()
}

// ahead returns the node that reports the newest revision above sequence, and that revision; 0 if
// there is none.
func (r *reports) ahead(sequence uint64) (node fabric.NodeID, has uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for id, s := range r.last {
		if s.Sequence > max(sequence, has) {
			node, has = id, s.Sequence
		}
	}
	return node, has
}

// status returns the state of the fabric.
func (c *Controller) status() api.Status {
	s := api.Status{Fabric: c.cfg.Fabric, Pointer: c.policy.pointer(), Controller: c.self(), Nodes: []api.NodeStatus{}, Warnings: c.policy.current.Load().warnings()}
	for _, n := range c.nodes.all() {
		report, ok := c.reports.get(n.ID())
		if !ok {
			report = api.NodeStatus{Zone: n.Zone, Node: n.Name, Kind: n.Kind}
		}
		report.Pool4, report.Pool6 = n.Pool4, n.Pool6
		s.Nodes = append(s.Nodes, report)
	}
	c.agreement.judge(&s)
	return s
}

// self returns the state of this controller.
func (c *Controller) self() api.ControllerStatus {
	return api.ControllerStatus{
		Address: c.cfg.Address, Version: c.cfg.Version, Leader: c.leading.Load(),
		CertificateExpires: c.cfg.Identity.Expiry(), Degraded: c.degraded(),
	}
}
