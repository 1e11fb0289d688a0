// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package agent

import (
	"fmt"
	"maps"
	"slices"

	"github.com/sif-project/sif/agent/catalog"
	"github.com/sif-project/sif/api"
	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/internal/node/firewall"
	"github.com/sif-project/sif/internal/trust/revocation"
)

// Status returns the state of the agent and of what it enforces.
func (a *Agent) Status() api.NodeStatus {
	s := api.NodeStatus{Drops: map[string]uint64{}}
	for _, e := range a.exposed {
		s.Exposed = append(s.Exposed, api.ExposedPort{Protocol: e.Protocol, Port: e.Port, To: e.To})
	}
	for _, ep := range a.endpoints.all() {
		if ep.HostIndex == 0 {
			continue // its interface no longer exists
		}
		pending := a.engines.pendingOf(ep.Attachment)
		s.Endpoints = append(s.Endpoints, api.EndpointStatus{
			Endpoint: ep.ID, Origin: ep.Admission.Origin, Service: ep.Admission.Service, Roles: ep.Admission.Roles, IPv4: ep.IPv4, IPv6: ep.IPv6,
			Expires: ep.Admission.Expires, Honoured: !a.now().Before(ep.Admission.Expires) && a.holds(ep, a.now()), InForce: len(pending) == 0, Pending: pending, Withheld: a.withheld(ep),
			Revoked:            a.whyRevoked(ep),
			CertificateExpires: a.services.Expiry(ep.Admission.Service), Checks: ep.Admission.Checks, Ports: published(a.ports.of(ep.Attachment)), Process: a.processes.status(ep),
		})
	}
	s.Authorities = &api.AuthorityStatus{Issued: a.issuers(), Statements: a.signed(), TokenKeys: a.jwtKeys.IDs()}
	s.Waiting = a.waiting()
	counters, err := a.kernel.Counters()
	a.node.Degrade("counters", err)
	for _, c := range counters.Verdicts {
		if !c.Reason.Allowed() {
			s.Drops["ebpf "+c.Direction.String()+": "+c.Reason.String()] += c.Packets
		}
	}
	s.Recorded = a.recordedStatus(counters)
	s.Told = map[string]uint64{}
	for kind, n := range map[string]uint64{"reset": counters.Refusals.Resets, "prohibited": counters.Refusals.Prohibited, "limited": counters.Refusals.Limited} {
		if n > 0 {
			s.Told[kind] = n
		}
	}
	connections, err := a.kernel.Connections()
	a.node.Degrade("connections", err)
	s.Flows, s.Audited = flows(a.num, connections, a.now()), a.audited.all()
	underlay, err := a.firewall.Counters()
	a.node.Degrade("firewall counters", err)
	for reason, n := range underlay {
		s.Drops["nftables: "+reason] += n
	}
	a.node.Degrade("guests' counters", a.guestDrops(s.Drops))
	dropped, err := a.processes.host.Counters()
	a.node.Degrade("counters of processes of the node", err)
	for reason, n := range dropped {
		s.Drops["nftables: "+reason] += n
	}
	filtered, limited := a.resolver.handler.Counts()
	s.Drops["dns: limited"], s.Drops["dns: outside"] = a.questions.limited.Load()+limited, a.questions.notGranted.Load()
	s.Drops["dns: reserved address"] = filtered
	s.OutsideNames, s.RefusedNames = a.resolver.names.Named(), a.resolver.refused.all()
	s.OutsideNames = s.OutsideNames[:min(len(s.OutsideNames), maxToldNames)]
	s.Degraded = append(s.Degraded, a.resolver.names.Full()...)
	docs, told := a.documents(), map[fabric.Ref]bool{}
	for _, ep := range a.endpoints.all() {
		if service := ep.Admission.Service; !told[service] {
			told[service] = true
			s.Degraded = append(s.Degraded, docs[service].Unenforced()...)
		}
	}
	s.Degraded = append(s.Degraded, a.engines.uncompared()...)
	if s.Refused = a.engines.zone.refused(); a.engines.zone.out() {
		s.Degraded = append(s.Degraded, fmt.Sprintf("no engine of zone %s answers: workloads start and reach one another within the zone, of which its agents tell one another; other zones and the outside learn of new ones when an engine is back", a.node.Self.Zone))
	}
	s.Degraded = append(s.Degraded, a.stranded()...)
	if a.kernel.PassAll() {
		s.Degraded = append(s.Degraded, "eBPF lets everything pass (test override)")
	}
	for _, refused := range a.health.Refused() {
		s.Degraded = append(s.Degraded, "consul catalog: "+refused)
	}
	return s
}

func published(mappings []firewall.PortMapping) []api.PublishedPort {
	var list []api.PublishedPort
	for _, m := range mappings {
		list = append(list, api.PublishedPort{Protocol: m.Protocol, From: m.From, To: m.To})
	}
	return list
}

// registrations returns the endpoints of this node for the Consul catalog.
func (a *Agent) registrations() []catalog.Registration {
	var list []catalog.Registration
	for _, ep := range a.endpoints.all() {
		if a.revoked(ep) != nil {
			continue
		}
		list = append(list, catalog.Registration{Admission: ep.Admission, Signed: ep.Request.Admission, Source: a.sourceOf(ep), Life: a.lifeOf(ep)})
	}
	return list
}

// verifyRecord verifies the admission in a catalog record.
func (a *Agent) verifyRecord(s fabric.Signed) (fabric.Admission, error) {
	var adm fabric.Admission
	if err := a.node.Identity.Keys().Verify(s, fabric.KindAdmission, &adm); err != nil {
		return adm, err
	}
	now := a.now()
	if began := a.node.Outage.Began(); !now.Before(adm.Expires) && a.node.Holds(adm.Expires, now) {
		now = began
	}
	if err := adm.Current(a.node.Self.Fabric, now); err != nil {
		return adm, err
	}
	if a.node.Verifier().Ended(adm) {
		return adm, catalog.ErrRemoved
	}
	for _, n := range a.node.Nodes() {
		if n.Zone == adm.Zone && n.Name == adm.Node {
			return adm, adm.PlacedOn(n)
		}
	}
	return adm, fmt.Errorf("endpoint %s was admitted on %s, which is not a node of the fabric", adm.Endpoint, adm.Host())
}

// speaker returns the workload node that signed what a catalog record says about health.
func (a *Agent) speaker(chain [][]byte, msg, sig []byte) (fabric.NodeID, error) {
	signer, leaf, err := a.node.Identity.VerifyBy(chain, msg, sig)
	if err == nil {
		err = revocation.Certificate(a.node.Removals.List(), signer, leaf)
	}
	if err != nil {
		return fabric.NodeID{}, err
	}
	if !signer.Node.Kind.Has(fabric.KindWorkload) {
		return fabric.NodeID{}, fmt.Errorf("%s is not a workload node", signer)
	}
	return signer.Node.NodeID, nil
}

// followed returns the services whose health a node with these endpoints needs: those that they
// call, which DNS answers with, and their own.
func followed(endpoints []endpoint, docs map[fabric.Ref]fabric.Document) []fabric.Ref {
	set := map[fabric.Ref]bool{}
	for _, ep := range endpoints {
		id := ep.Admission.Identity()
		set[id.Service] = true
		called := docs[id.Service]
		called.Responds = nil // DNS tells nobody of who calls him
		for _, r := range fabric.Counterparts(id, called) {
			set[r] = true
		}
	}
	return slices.SortedFunc(maps.Keys(set), fabric.CompareRefs)
}

// refreshCatalog updates the Consul catalog, and what is read from it, after endpoints or
// counterparts changed.
func (a *Agent) refreshCatalog() {
	a.registrar.Refresh()
	a.followHealth()
}

func (a *Agent) followHealth() {
	a.health.Follow(followed(a.endpoints.all(), a.documents()))
}
