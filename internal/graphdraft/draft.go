// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

// Package graphdraft drafts a service graph from the jobs that Nomad runs: a service for each
// group, a contract for each connection that a job declares, the bindings of the domains, and for
// each of them where it comes from.
//
// It knows what Nomad's jobs say of connections. It does not read them from Nomad, and does not
// know how a graph is written.
package graphdraft

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"

	nomadapi "github.com/hashicorp/nomad/api"

	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/internal/nomadjob"
)

// dynamicPorts is the range from which Nomad's clients choose ports unless they are told otherwise.
var dynamicPorts = fabric.PortRange{From: 20000, To: 32000}

// Draft is a graph with the reasons for what is in it, a line each.
type Draft struct {
	Graph               *fabric.Graph
	Domains, Bindings   map[string][]string
	Services, Contracts map[fabric.Ref][]string
}

// party is a group of a job, which becomes a service.
type party struct {
	job   *nomadapi.Job
	group *nomadapi.TaskGroup
	ref   fabric.Ref
	offer []nomadjob.Offer
}

func namespaceOf(job *nomadapi.Job) string {
	if job.Namespace == nil || *job.Namespace == "" {
		return nomadapi.DefaultNamespace
	}
	return *job.Namespace
}

// source names the group for people.
func (p party) source() string {
	return fmt.Sprintf("job %q, group %q, namespace %q", *p.job.ID, *p.group.Name, namespaceOf(p.job))
}

// Runs reports whether a job is one whose groups run today, or will by themselves. The children of
// periodic and parameterized jobs do not count: what selects their parent selects them.
func Runs(job *nomadapi.Job) bool {
	stopped := job.Stop != nil && *job.Stop
	child := job.ParentID != nil && *job.ParentID != ""
	return !stopped && !child && (job.Status == nil || *job.Status != "dead")
}

// Make drafts the graph of jobs. All of it is in one domain if one is given; otherwise each Nomad
// namespace is a domain. The result depends on the jobs alone, not on their order.
func Make(jobs []*nomadapi.Job, domain string) Draft {
	d := Draft{
		Graph: &fabric.Graph{Domains: map[string]*fabric.Domain{}}, Domains: map[string][]string{}, Bindings: map[string][]string{},
		Services: map[fabric.Ref][]string{}, Contracts: map[fabric.Ref][]string{},
	}
	jobs = slices.DeleteFunc(slices.Clone(jobs), func(j *nomadapi.Job) bool { return !Runs(j) })
	slices.SortFunc(jobs, func(a, b *nomadapi.Job) int {
		return cmp.Or(cmp.Compare(namespaceOf(a), namespaceOf(b)), cmp.Compare(*a.ID, *b.ID))
	})
	parties := d.services(jobs, domain)
	d.contracts(parties)
	d.bindings(parties)
	return d
}

// services makes domains and services.
func (d *Draft) services(jobs []*nomadapi.Job, domain string) []*party {
	var namespaces []string
	for _, j := range jobs {
		namespaces = append(namespaces, namespaceOf(j))
	}
	named := names(slices.Compact(namespaces), fabric.ReservedDomain)
	var parties []*party
	wanted := map[string][]string{} // names of services, by domain
	for _, j := range jobs {
		home := cmp.Or(domain, named[namespaceOf(j)])
		for _, g := range j.TaskGroups {
			p := &party{job: j, group: g, ref: fabric.Ref{Domain: home}, offer: nomadjob.Offers(j, g)}
			parties = append(parties, p)
			wanted[home] = append(wanted[home], p.wanted(domain != "" && len(named) > 1))
		}
	}
	assigned := map[string]map[string]string{}
	for home, list := range wanted {
		assigned[home] = names(list)
	}
	for _, p := range parties {
		p.ref.Name = assigned[p.ref.Domain][p.wanted(domain != "" && len(named) > 1)]
		home := d.Graph.Domains[p.ref.Domain]
		if home == nil {
			home = &fabric.Domain{Name: p.ref.Domain, Mode: fabric.ModeAudit}
			d.Graph.Domains[home.Name] = home
			d.Domains[home.Name] = []string{
				"Audit mode: every flow between services of the domain passes, and sif status lists those that",
				"no contract allows. Add contracts until it lists nothing new, then remove the mode.",
			}
		}
		home.Services = append(home.Services, fabric.Service{Name: p.ref.Name, Selectors: []fabric.Selector{{
			Kind: fabric.SelectNomad, Namespace: namespaceOf(p.job), Job: *p.job.ID, Group: *p.group.Name,
		}}})
		d.Services[p.ref] = p.remarks()
	}
	return parties
}

// wanted is the name that the service would have if every name were one. Groups of two namespaces
// in one domain, and groups of two jobs, have different ones.
func (p party) wanted(withNamespace bool) string {
	name := *p.job.ID
	if withNamespace && namespaceOf(p.job) != nomadapi.DefaultNamespace {
		name = namespaceOf(p.job) + afterBoundary + name
	}
	if len(p.job.TaskGroups) > 1 {
		name += separator + *p.group.Name
	}
	return name
}

// remarks says where a service comes from, and what a move into the fabric must look at.
func (p party) remarks() []string {
	list := []string{p.source()}
	modes := []string{}
	for _, n := range p.group.Networks {
		modes = append(modes, cmp.Or(n.Mode, "host"))
	}
	if mode := strings.Join(modes, ", "); mode == "" {
		list = append(list, "It has no network block, so it is in host mode today.")
	} else if mode != "cni/sif" {
		list = append(list, fmt.Sprintf("Network mode today: %s.", mode))
	}
	for _, e := range nomadjob.Escapes(p.group) {
		if e.Leaves {
			list = append(list, fmt.Sprintf("Before it moves: %s. %s", e, e.Remedy))
		}
	}
	if ports := nomadjob.StaticPorts(p.group); len(ports) > 0 {
		var texts []string
		for _, n := range ports {
			texts = append(texts, fmt.Sprint(n))
		}
		list = append(list, fmt.Sprintf("It publishes the ports %s of its node: clients outside need an external and a contract.", strings.Join(texts, ", ")))
	}
	return list
}

// edge is a pair of services of which one calls the other.
type edge struct{ from, to fabric.Ref }

// reason is why there is a contract, and the ports that it is about.
type reason struct {
	ports []fabric.PortRange
	lines []string
}

// contracts makes a contract for each pair of services of which one names the other.
func (d *Draft) contracts(parties []*party) {
	edges := map[edge]*reason{}
	for _, p := range parties {
		for _, need := range needs(p.job, p.group) {
			targets := find(parties, p, need)
			if len(targets) == 0 {
				d.Services[p.ref] = append(d.Services[p.ref],
					fmt.Sprintf("It also calls %q (%s), which no job here offers: in the fabric it needs an external.", need.name, need.why))
			}
			for _, t := range targets {
				e := edge{p.ref, t.party.ref}
				if edges[e] == nil {
					edges[e] = &reason{}
				}
				d.connect(edges[e], p, t, need)
			}
		}
	}
	list := slices.SortedFunc(maps.Keys(edges), func(a, b edge) int {
		return cmp.Or(cmp.Compare(a.from.String(), b.from.String()), cmp.Compare(a.to.String(), b.to.String()))
	})
	wanted := map[string][]string{}
	for _, e := range list {
		if len(edges[e].ports) > 0 {
			wanted[e.from.Domain] = append(wanted[e.from.Domain], e.name())
		}
	}
	assigned := map[string]map[string]string{}
	for home, all := range wanted {
		assigned[home] = names(all, fabric.AuditContract)
	}
	for _, e := range list {
		r := edges[e]
		if len(r.ports) == 0 {
			d.Services[e.from] = append(d.Services[e.from], r.lines...)
			continue
		}
		home := d.Graph.Domains[e.from.Domain]
		ref := fabric.Ref{Domain: home.Name, Name: assigned[home.Name][e.name()]}
		home.Contracts = append(home.Contracts, fabric.Contract{
			Name: ref.Name, Originators: []fabric.Ref{e.from}, Responders: []fabric.Ref{e.to},
			Rules: []fabric.Rule{{Protocol: fabric.TCP, Ports: r.ports}},
		})
		d.Contracts[ref] = r.lines
		if e.to.Domain != home.Name {
			other := d.Graph.Domains[e.to.Domain]
			other.Accepts = append(other.Accepts, fabric.Accept{Contract: ref, Services: []string{e.to.Name}})
		}
	}
	for _, home := range d.Graph.Domains {
		slices.SortFunc(home.Accepts, func(a, b fabric.Accept) int { return cmp.Compare(a.Contract.String(), b.Contract.String()) })
	}
}

func (e edge) name() string {
	if e.to.Domain != e.from.Domain {
		return e.from.Name + separator + e.to.Domain + afterBoundary + e.to.Name
	}
	return e.from.Name + separator + e.to.Name
}

// connect adds what a need says about a pair of services.
func (d *Draft) connect(r *reason, from *party, to target, n need) {
	line := fmt.Sprintf("job %q, group %q calls the service %q by %s.", *from.job.ID, *from.group.Name, n.name, n.why)
	port := to.offer.Port
	if c := to.offer.Service.Connect; n.mesh && c != nil && c.SidecarService != nil && c.SidecarService.Proxy != nil && c.SidecarService.Proxy.LocalServicePort > 0 {
		port = uint16(c.SidecarService.Proxy.LocalServicePort)
	}
	var ports fabric.PortRange
	switch {
	case port != 0:
		ports = fabric.PortRange{From: port, To: port}
	case to.offer.Label != "":
		ports = dynamicPorts
		line += fmt.Sprintf(" Its port %q has no number inside: give it one by \"to\", and write that here.", to.offer.Label)
	default:
		line += " That service has no port, so there is no contract."
	}
	if !slices.Contains(r.lines, line) {
		r.lines = append(r.lines, line)
	}
	if ports != (fabric.PortRange{}) && !slices.Contains(r.ports, ports) {
		r.ports = append(r.ports, ports)
		slices.SortFunc(r.ports, func(a, b fabric.PortRange) int { return cmp.Or(cmp.Compare(a.From, b.From), cmp.Compare(a.To, b.To)) })
	}
}

// target is a service block that answers a need.
type target struct {
	party *party
	offer nomadjob.Offer
}

// find returns who offers what a group needs. Consul has one catalog, Nomad one for each namespace.
func find(parties []*party, from *party, n need) []target {
	var list []target
	for _, p := range parties {
		for _, o := range p.offer {
			if o.Name == n.name && o.Provider == n.provider && (n.provider == "consul" || namespaceOf(p.job) == namespaceOf(from.job)) {
				list = append(list, target{p, o})
			}
		}
	}
	return list
}

// bindings makes the binding of each domain: the jobs that it selects, and the ports of nodes that
// they publish.
func (d *Draft) bindings(parties []*party) {
	for _, home := range slices.Sorted(maps.Keys(d.Graph.Domains)) {
		bound := fabric.Binding{Domain: home}
		jobs := map[string][]string{} // by namespace
		var ports []fabric.PortRange
		for _, p := range parties {
			if p.ref.Domain != home {
				continue
			}
			jobs[namespaceOf(p.job)] = append(jobs[namespaceOf(p.job)], *p.job.ID)
			for _, n := range nomadjob.StaticPorts(p.group) {
				ports = append(ports, fabric.PortRange{From: n, To: n})
			}
		}
		for _, namespace := range slices.Sorted(maps.Keys(jobs)) {
			bound.Nomad = append(bound.Nomad, fabric.NomadScope{Namespace: namespace, Jobs: slices.Compact(jobs[namespace])})
		}
		comment := []string{"For the operators: what the domain may select."}
		if len(ports) > 0 {
			slices.SortFunc(ports, func(a, b fabric.PortRange) int { return cmp.Compare(a.From, b.From) })
			bound.Outside = []fabric.OutsideGrants{{Ports: slices.Compact(ports)}}
			comment = append(comment, "The ports of nodes are those that its jobs publish today; the prefixes of their clients are not known.")
		}
		d.Graph.Bindings = append(d.Graph.Bindings, bound)
		d.Bindings[home] = comment
	}
}
