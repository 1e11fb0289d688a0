// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package controller

import (
	"context"
	"maps"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/sif-project/sif/api"
	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/internal/trust/identity"
)

// reporter is a daemon that reports: a node may have an agent and an engine.
type reporter struct {
	fabric.NodeID
	kind fabric.NodeKind
}

// reports contains the last report of each daemon. It is only in memory: a new leader knows it when
// the nodes have reported again.
type reports struct {
	mu   sync.Mutex
	last map[reporter]api.NodeStatus
	bell *bell // rings at each report
}

// newReports returns reports whose index begins above that of any earlier leader. Otherwise a
// client that knows an index of that leader would wait here without need.
func newReports() *reports {
	r := &reports{last: map[reporter]api.NodeStatus{}, bell: newBell()}
	r.bell.ring(uint64(time.Now().UnixMilli()))
	return r
}

// put stores a report under the name in the certificate of the node, and the kind of daemon, which
// must be one that the certificate names.
func (r *reports) put(who identity.Node, s api.NodeStatus) error {
	if who.Kind != fabric.KindBoth {
		s.Kind = who.Kind
	} else if s.Kind != fabric.KindWorkload && s.Kind != fabric.KindProcessor {
		return invalid("node %s: the report is of a daemon of kind %q, expected %q or %q", who.NodeID, s.Kind, fabric.KindWorkload, fabric.KindProcessor)
	}
	s.Zone, s.Node, s.Reported = who.Zone, who.Name, time.Now().UTC()
	r.mu.Lock()
	defer r.mu.Unlock()
	r.last[reporter{who.NodeID, s.Kind}] = s
	r.bell.bump()
	return nil
}

// of returns the last report of each daemon of a node, without a time if there is none.
func (r *reports) of(n fabric.Node) []api.NodeStatus {
	r.mu.Lock()
	defer r.mu.Unlock()
	var list []api.NodeStatus
	for _, unit := range n.Kind.Units() {
		kind := fabric.NodeKind(unit)
		s := r.last[reporter{n.ID(), kind}]
		s.Zone, s.Node, s.Kind, s.NoSwitch = n.Zone, n.Name, kind, kind == fabric.KindProcessor && !n.Boundary()
		s.Pool4, s.Pool6 = n.Pool4, n.Pool6
		list = append(list, s)
	}
	return list
}

// replace puts the reports that another controller has in the place of all. None is older than the
// one that it replaces.
func (r *reports) replace(list []api.NodeStatus) {
	r.mu.Lock()
	defer r.mu.Unlock()
	next := map[reporter]api.NodeStatus{}
	for _, s := range list {
		by := reporter{s.ID(), s.Kind}
		if own := r.last[by]; own.Reported.After(s.Reported) {
			s = own
		}
		if !s.Reported.IsZero() {
			next[by] = s
		}
	}
	r.last = next
	r.bell.bump()
}

// drop forgets the reports of a node that was removed.
func (r *reports) drop(id fabric.NodeID) {
	r.mu.Lock()
	defer r.mu.Unlock()
	maps.DeleteFunc(r.last, func(by reporter, _ api.NodeStatus) bool { return by.NodeID == id })
	r.bell.bump()
}

// ahead returns the node that reports the newest revision above sequence, and that revision; 0 if
// there is none.
func (r *reports) ahead(sequence uint64) (node fabric.NodeID, has uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for by, s := range r.last {
		if s.Sequence > max(sequence, has) {
			node, has = by.NodeID, s.Sequence
		}
	}
	return node, has
}

// status returns the state of the fabric.
func (c *Controller) status() api.Status {
	s := api.Status{Fabric: c.cfg.Fabric, Pointer: c.policy.pointer(), Controller: c.self(), Nodes: []api.NodeStatus{}, Warnings: c.policy.current.Load().warnings()}
	for _, n := range c.nodes.all() {
		s.Nodes = append(s.Nodes, c.reports.of(n)...)
	}
	s.Controllers = c.peers.states()
	if age := c.age(true); age >= 0 {
		s.Age = age
	}
	c.markRevoked(&s)
	if c.leads() { // another one has judged what it was told
		c.agreement.judge(&s)
	}
	return s
}

// age returns how old what this controller knows can be, or -1 if it does not know that. reported
// says that it is about what nodes report to the leader; otherwise it is about what is in Consul.
func (c *Controller) age(reported bool) time.Duration {
	if c.leads() {
		return 0
	}
	at := c.peers.viewed()
	if !reported {
		at = time.Time{}
		if nanos := c.policy.compared.Load(); nanos != 0 {
			at = time.Unix(0, nanos)
		}
	}
	if at.IsZero() {
		return -1
	}
	return max(0, time.Since(at))
}

// answeredBy says in the header who answers a call, how old the answer can be, and which
// controllers there are.
func (c *Controller) answeredBy(w http.ResponseWriter, r route) {
	h := w.Header()
	h.Set(api.ControllerHeader, c.cfg.Address)
	h.Set(api.LeaderHeader, strconv.FormatBool(c.leads()))
	h.Set(api.ControllersHeader, strings.Join(c.peers.addresses(), ","))
	if r.led == byAny {
		if age := c.age(r.reported); age >= 0 {
			h.Set(api.AgeHeader, strconv.FormatFloat(age.Seconds(), 'f', 3, 64))
		}
	}
}

// compareTimeout bounds how long a controller that stands by asks Consul for the pointer before it
// answers with the graph that it knows.
const compareTimeout = 2 * time.Second

// catchUp compares the graph with the pointer in Consul, if another controller may have moved it.
func (c *Controller) catchUp(ctx context.Context) {
	if c.leads() {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, compareTimeout)
	defer cancel()
	c.policy.mu.Lock()
	defer c.policy.mu.Unlock()
	_, _ = c.policy.examine(ctx) // the header says how old the answer is
}

func (c *Controller) getController(context.Context, request) (any, error) { return c.self(), nil }

func (c *Controller) getView(context.Context, request) (any, error) { return c.status(), nil }

// self returns the state of this controller.
func (c *Controller) self() api.ControllerStatus {
	return api.ControllerStatus{
		Address: c.cfg.Address, Version: c.cfg.Version, Leader: c.leads(),
		CertificateExpires: c.cfg.Identity.Expiry(), Degraded: c.degraded(), Revision: c.policy.pointer().Sequence,
		Authorities: c.authorities(), Signs: c.cfg.Identity.Signing(), Tokens: c.tokens.left(time.Now()),
		Since: time.Unix(0, c.since.Load()).UTC(), Outage: c.outage(),
	}
}
