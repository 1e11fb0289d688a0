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

// reports is what the nodes last said of themselves. It lives in memory: a
// new leader knows it as soon as the nodes report again.
type reports struct {
	mu   sync.Mutex
	last map[fabric.NodeID]api.NodeStatus
	bell *bell // rings at each report
}

// newReports begins with an index beyond those of leaders before, so that
// whoever waited there does not wait for ever here.
func newReports() *reports {
	r := &reports{last: map[fabric.NodeID]api.NodeStatus{}, bell: newBell()}
	r.bell.ring(uint64(time.Now().UnixMilli()))
	return r
}

// put keeps a report under the name and kind that the certificate attests.
func (r *reports) put(who identity.Node, s api.NodeStatus) {
	s.Zone, s.Node, s.Kind, s.Reported = who.Zone, who.Name, who.Kind, time.Now().UTC()
	r.mu.Lock()
	defer r.mu.Unlock()
	r.last[who.NodeID] = s
	r.bell.bump()
}

func (r *reports) get(id fabric.NodeID) (api.NodeStatus, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	s, ok := r.last[id]
	return s, ok
}

// ahead names a node that enforces a newer revision than sequence, if any
// says so.
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

// status assembles the state of the fabric.
func (c *Controller) status() api.Status {
	s := api.Status{Fabric: c.cfg.Fabric, Pointer: c.policy.pointer(), Controller: c.self(), Nodes: []api.NodeStatus{}}
	for _, n := range c.nodes.all() {
		report, ok := c.reports.get(n.ID())
		if !ok {
			report = api.NodeStatus{Zone: n.Zone, Node: n.Name, Kind: n.Kind}
		}
		s.Nodes = append(s.Nodes, report)
	}
	return s
}

func (c *Controller) self() api.ControllerStatus {
	return api.ControllerStatus{
		Address: c.cfg.Address, Version: c.cfg.Version, Leader: c.leading.Load(),
		CertificateExpires: c.cfg.Identity.Expiry(), Degraded: c.degraded(),
	}
}
