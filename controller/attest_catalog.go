// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package controller

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	consulapi "github.com/hashicorp/consul/api"

	"github.com/sif-project/sif/api"
	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/internal/kvkey"
	"github.com/sif-project/sif/internal/logkey"
)

const (
	// metaOfNode is the metadata of a Consul agent that says which node of the fabric it is on, as
	// zone/name. It is needed only if the agent has another address than the node.
	metaOfNode = "sif-node"
	// maxInstances bounds how often a Consul agent may have one service, of those that count.
	maxInstances = 16
	// maxRegistration bounds what is kept of a registration, in bytes of JSON.
	maxRegistration = 32 << 10
	// nomadTime is how long Nomad may take to answer what is not needed.
	nomadTime = 2 * time.Second
)

// byCatalog knows workloads outside Nomad. What lets them in is the certificate of their node
// together with a binding that names it; that Consul has the service on the node's own Consul agent
// is a condition on top, for whoever is new: whoever writes the catalog can end nothing.
type byCatalog struct {
	cfg   Config
	bound *bindings
	nodes *registry
	table *table
}

// registration is what Consul has of a workload outside Nomad, and Nomad of its node.
type registration struct {
	Datacenter string                   `json:"datacenter"` // Consul's
	NodeClass  string                   `json:"nodeClass,omitempty"`
	NodePool   string                   `json:"nodePool,omitempty"`
	Services   []fabric.WorkloadService `json:"services"`
	Ports      []fabric.NamedPort       `json:"ports,omitempty"`
	Checks     []fabric.Check           `json:"checks,omitempty"`
}

// hash returns the hash that an admission has of r; zero if r is nil.
func (r *registration) hash() fabric.Hash {
	if r == nil {
		return fabric.Hash{}
	}
	text, err := json.Marshal(r)
	if err != nil { // strings and numbers only
		panic(err)
	}
	return fabric.HashOf(text)
}

// of returns the workload on a node that has the registration.
func (r *registration) of(node fabric.NodeID) fabric.Workload {
	return fabric.Workload{
		Attached: true, Zone: node.Zone, Node: node.Name,
		Datacenter: r.Datacenter, NodeClass: r.NodeClass, NodePool: r.NodePool, Services: r.Services,
	}
}

// attest implements attester.
func (c byCatalog) attest(ctx context.Context, node fabric.Node, req api.AdmissionRequest) (attested, error) {
	w := *req.Attached
	if err := w.Check(); err != nil {
		return attested{}, invalid("%v", err)
	}
	before, err := c.before(ctx, node, req.Allocation, w)
	if err != nil {
		return attested{}, err
	}
	machine, unknown := c.machine(ctx, node)
	if unknown != nil && before != nil {
		machine.Class, machine.Pool, unknown = before.NodeClass, before.NodePool, nil
	}
	r, err := c.registered(ctx, node, machine, w)
	if err != nil {
		if before == nil {
			return attested{}, err
		}
		c.cfg.Log.Warn("attached workload keeps its admission without its registration in Consul", logkey.Endpoint, req.Allocation, logkey.Node, node.ID().String(), logkey.Error, err)
		kept := *before
		r = &kept
	}
	r.NodeClass, r.NodePool = machine.Class, machine.Pool
	return attested{
		workload: r.of(node.ID()),
		wanted:   stanza{service: w.Service, originate: w.Originate, respond: w.Respond},
		checks:   r.Checks, ports: r.Ports,
		origin:  fabric.Origin{Consul: w.ConsulService, Attached: w.Name, VM: req.VM},
		unknown: unknown, registered: r,
	}, nil
}

// before returns what Consul had of a workload that is admitted on the node; nil if it is new. It
// refuses the ID of an endpoint of another node or kind: nodes and engines keep one endpoint of an
// ID.
func (c byCatalog) before(ctx context.Context, node fabric.Node, id string, w fabric.Attached) (*registration, error) {
	taken := func(format string, args ...any) error {
		return api.Errorf(http.StatusConflict, api.CodeTaken, "%q cannot be attached as endpoint %s: "+format+"; attach it under a new ID", append([]any{w.Name, id}, args...)...)
	}
	if other, is := c.table.elsewhere(id, node.ID()); is {
		return nil, taken("that is an endpoint of node %s", other)
	}
	if g := c.table.get(kvkey.Admission{Node: node.ID(), Endpoint: id}); g != nil && g.live(c.table.now()) {
		switch o := g.admission.Origin; {
		case o.Attached == "":
			return nil, taken("that is allocation %s of Nomad", id)
		case o.Attached != w.Name || o.Consul != w.ConsulService:
			return nil, taken("that is %q, attached as Consul service %q", o.Attached, o.Consul)
		}
		if g.Registered != nil { // nil: it was altered in Consul
			return g.Registered, nil
		}
	}
	// An allocation that is admitted later takes its ID anyhow, so Nomad need not answer.
	ctx, cancel := context.WithTimeout(ctx, nomadTime)
	defer cancel()
	if _, err := c.cfg.Scheduler.Placement(ctx, id, ""); err == nil {
		return nil, taken("that is allocation %s of Nomad", id)
	}
	return nil, nil
}

// machine returns the Nomad node that the node is bound to, whose class bindings may name. unknown
// says why it is not known; nil if the node has none.
func (c byCatalog) machine(ctx context.Context, node fabric.Node) (m Machine, unknown error) {
	id := c.bound.of(node.ID()).ID
	if id == "" {
		return Machine{}, nil
	}
	ctx, cancel := context.WithTimeout(ctx, nomadTime)
	defer cancel()
	m, err := c.cfg.Scheduler.Machine(ctx, id)
	if err != nil && !errors.Is(err, ErrNoMachine) {
		return Machine{}, err
	}
	return m, nil
}

// registered returns what Consul's catalog has of the service on the Consul agent that the workload
// names, which must be the node's own.
func (c byCatalog) registered(ctx context.Context, node fabric.Node, m Machine, w fabric.Attached) (*registration, error) {
	query := func(filter string) *consulapi.QueryOptions {
		return (&consulapi.QueryOptions{Filter: filter}).WithContext(ctx)
	}
	failed := func(err error) error {
		return unavailable("ask Consul for service %q on Consul agent %q: %v", w.ConsulService, w.ConsulNode, err)
	}
	on, _, err := c.cfg.Consul().Catalog().NodeServiceList(w.ConsulNode, query("Service == "+strconv.Quote(w.ConsulService)))
	if err != nil {
		return nil, failed(err)
	}
	if on == nil || on.Node == nil {
		return nil, api.Errorf(http.StatusForbidden, api.CodeUnregistered, "Consul knows no agent %q, on which Consul service %q would be registered; if `consul catalog nodes` lists it, `sif setup -check` says whether the controller may read it", w.ConsulNode, w.ConsulService)
	}
	if err := c.ownAgent(node, m, on.Node); err != nil {
		return nil, err
	}
	instances := instancesOf(on.Services, w.Name)
	switch n := len(instances); {
	case n == 0:
		return nil, api.Errorf(http.StatusForbidden, api.CodeUnregistered, "Consul service %q is not registered with Consul agent %q of node %s; register it there first", w.ConsulService, w.ConsulNode, node.ID())
	case n > maxInstances:
		return nil, invalid("Consul agent %q has %d instances of Consul service %q, at most %d count; attach a workload under the ID of its instance", w.ConsulNode, n, w.ConsulService, maxInstances)
	}
	checks, _, err := c.cfg.Consul().Health().Node(w.ConsulNode, query("ServiceName == "+strconv.Quote(w.ConsulService)))
	if err != nil {
		return nil, failed(err)
	}
	r := registrationOf(on.Node.Datacenter, instances, checks)
	if text, err := json.Marshal(r); err != nil || len(text) > maxRegistration {
		return nil, invalid("the tags and metadata of Consul service %q on Consul agent %q have %d bytes, at most %d are allowed", w.ConsulService, w.ConsulNode, len(text), maxRegistration)
	}
	return r, nil
}

// instancesOf returns the instance whose ID is the name of the workload, else all of them.
func instancesOf(services []*consulapi.AgentService, name string) []*consulapi.AgentService {
	for _, s := range services {
		if s.ID == name {
			return []*consulapi.AgentService{s}
		}
	}
	return services
}

// registrationOf returns what counts of the instances of a service and of the checks of their node.
func registrationOf(datacenter string, instances []*consulapi.AgentService, checks consulapi.HealthChecks) *registration {
	r := &registration{Datacenter: datacenter}
	for _, s := range instances {
		r.Services = append(r.Services, fabric.WorkloadService{Name: s.Service, Tags: s.Tags, Meta: s.Meta})
		port := uint16(0)
		if s.Port > 0 && s.Port <= int(fabric.AllPorts.To) {
			port = uint16(s.Port)
			r.Ports = append(r.Ports, fabric.NamedPort{Name: s.Service, Port: port})
		}
		for _, check := range checks {
			if check.ServiceID != s.ID {
				continue
			}
			if to, ok := checkedPort(check, port); ok && !slices.Contains(r.Checks, to) && len(r.Checks) < maxInstances {
				r.Checks = append(r.Checks, to)
			}
		}
	}
	r.Ports = slices.Compact(r.Ports)
	return r
}

// checkedPort returns the port to which a check connects: the one in its definition, which Consul
// has only of checks that were registered in the catalog itself, or that of the service.
func checkedPort(check *consulapi.HealthCheck, port uint16) (to fabric.Check, ok bool) {
	to = fabric.Check{Protocol: fabric.TCP, Port: port}
	d := check.Definition
	address := ""
	switch strings.ToLower(check.Type) {
	case "http":
		if _, rest, found := strings.Cut(d.HTTP, "://"); found {
			address, _, _ = strings.Cut(rest, "/")
		}
	case "tcp":
		address = d.TCP
	case "grpc":
		address, _, _ = strings.Cut(d.GRPC, "/")
	case "h2ping":
	case "udp":
		to.Protocol, address = fabric.UDP, d.UDP
	default: // it connects to nothing, or Consul does not say
		return to, false
	}
	if i := strings.LastIndexByte(address, ':'); i >= 0 {
		if n, err := strconv.ParseUint(address[i+1:], 10, 16); err == nil {
			to.Port = uint16(n)
		}
	}
	return to, to.Port != 0
}

// ownAgent refuses a Consul agent that is not on the node. An agent that has the node's address is
// the node's, and one with the address of another node is that one's, whatever else is said.
// Otherwise the agent's metadata decides, or Nomad's word about the machine.
func (c byCatalog) ownAgent(node fabric.Node, m Machine, agent *consulapi.Node) error {
	addresses := addressesOf(agent)
	if slices.Contains(addresses, node.Underlay) {
		return nil
	}
	elsewhere := func(format string, args ...any) error {
		return api.Errorf(http.StatusForbidden, api.CodeElsewhere, "Consul agent %q is not that of node %s: "+format, append([]any{agent.Node, node.ID()}, args...)...)
	}
	for _, other := range c.nodes.all() {
		if slices.Contains(addresses, other.Underlay) {
			return elsewhere("%s is the address of node %s; attach the workload there", other.Underlay, other.ID())
		}
	}
	if said := agent.Meta[metaOfNode]; said == node.ID().String() {
		return nil
	} else if said != "" {
		return elsewhere("its metadata %s says %q", metaOfNode, said)
	}
	if slices.ContainsFunc(addresses, func(a netip.Addr) bool { return slices.Contains(m.Addresses, a) }) {
		return nil
	}
	return elsewhere("its addresses are %v, but the address of the node is %s; if it is the same machine, set node_meta { %s = %q } in the configuration of the Consul agent",
		addresses, node.Underlay, metaOfNode, node.ID())
}

func addressesOf(agent *consulapi.Node) []netip.Addr {
	var list []netip.Addr
	add := func(text string) {
		if a, err := netip.ParseAddr(text); err == nil && !a.IsUnspecified() && !slices.Contains(list, a.Unmap()) {
			list = append(list, a.Unmap())
		}
	}
	add(agent.Address)
	for _, text := range agent.TaggedAddresses {
		add(text)
	}
	slices.SortFunc(list, netip.Addr.Compare)
	return list
}
