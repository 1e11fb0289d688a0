// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package telemetry

import (
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/sif-project/sif/api"
	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/internal/metric"
)

// Values of the label state of endpoints.
const (
	inForce  = "in_force"
	pending  = "pending"  // not in force everywhere
	withheld = "withheld" // DNS does not answer with it
	revoked  = "revoked"
)

var all = []*metric.Metric{
	metric.DaemonInfo, metric.DaemonDegraded, metric.DaemonRevision, metric.DaemonRevocations, metric.DaemonCertificate, metric.DaemonLasts,
	metric.DaemonComparison, metric.DaemonRepaired, metric.DaemonRefused, metric.DroppedPackets, metric.AgentTold, metric.AgentEndpoints,
	metric.AgentWaiting, metric.AgentConnections, metric.AgentAudited, metric.LinkReceived, metric.LinkSent, metric.LinkHandshake,
	metric.ProcessorReady, metric.ProcessorDraining, metric.ProcessorSilent, metric.ProcessorUnreached,
}

// Status are the metrics of a daemon's status, as it was reported last. It implements
// prometheus.Collector.
type Status struct {
	// Last returns the status, and whether there is one yet.
	Last func() (api.NodeStatus, bool)
}

// Describe implements prometheus.Collector.
func (s Status) Describe(to chan<- *prometheus.Desc) {
	for _, m := range all {
		to <- m.Desc()
	}
}

// Collect implements prometheus.Collector.
func (s Status) Collect(to chan<- prometheus.Metric) {
	status, known := s.Last()
	if !known {
		return
	}
	add := func(m *metric.Metric, value float64, labels ...string) {
		to <- m.Value(value, labels...)
	}
	at := func(m *metric.Metric, t time.Time, labels ...string) {
		if !t.IsZero() {
			add(m, float64(t.UnixMilli())/1e3, labels...)
		}
	}
	by := func(m *metric.Metric, counts map[string]uint64) {
		for label, n := range counts {
			add(m, float64(n), label)
		}
	}
	add(metric.DaemonInfo, 1, status.Zone, status.Node, status.Daemon(), status.Version)
	add(metric.DaemonDegraded, float64(len(status.Degraded)))
	add(metric.DaemonRevision, float64(status.Sequence))
	add(metric.DaemonRevocations, float64(status.Revocations))
	at(metric.DaemonCertificate, status.CertificateExpires)
	until, _ := status.Lasts()
	at(metric.DaemonLasts, until)
	if status.Enforced != nil {
		add(metric.DaemonComparison, status.Enforced.Age.Seconds())
	}
	by(metric.DaemonRepaired, status.Repaired)
	by(metric.DaemonRefused, status.Refused)
	for key, n := range status.Drops {
		where, reason, found := strings.Cut(key, ": ")
		if !found {
			where, reason = "switch", key
		}
		add(metric.DroppedPackets, float64(n), where, reason)
	}
	addLinks(add, at, status.Links)
	if status.Daemon() == "agent" {
		by(metric.AgentTold, status.Told)
		addEndpoints(add, status)
	}
	if p := status.State; p != nil {
		add(metric.ProcessorReady, one(p.Ready))
		add(metric.ProcessorDraining, one(p.Draining))
		add(metric.ProcessorSilent, float64(len(p.Silent)))
		add(metric.ProcessorUnreached, float64(len(p.Unreached)))
	}
}

func one(is bool) float64 {
	if is {
		return 1
	}
	return 0
}

// addLinks adds the metrics of links. Two of one name to one node, as while the node changes its
// key, are one.
func addLinks(add func(*metric.Metric, float64, ...string), at func(*metric.Metric, time.Time, ...string), links []api.LinkStatus) {
	type key struct{ peer, link string }
	sums := map[key]api.LinkStatus{}
	for _, l := range links {
		k := key{l.Peer, l.Link}
		sum := sums[k]
		sum.Rx, sum.Tx = sum.Rx+l.Rx, sum.Tx+l.Tx
		if l.LastHandshake.After(sum.LastHandshake) {
			sum.LastHandshake = l.LastHandshake
		}
		sums[k] = sum
	}
	for k, l := range sums {
		add(metric.LinkReceived, float64(l.Rx), k.peer, k.link)
		add(metric.LinkSent, float64(l.Tx), k.peer, k.link)
		at(metric.LinkHandshake, l.LastHandshake, k.peer, k.link)
	}
}

// addEndpoints adds what an agent has of its endpoints and their connections.
func addEndpoints(add func(*metric.Metric, float64, ...string), status api.NodeStatus) {
	type key struct{ service, state string }
	counts := map[key]int{}
	for _, e := range status.Endpoints {
		counts[key{e.Service.String(), stateOf(e)}]++
	}
	for k, n := range counts {
		add(metric.AgentEndpoints, float64(n), k.service, k.state)
	}
	add(metric.AgentWaiting, float64(len(status.Waiting)))
	addFlows(add, metric.AgentConnections, status.Flows)
	addFlows(add, metric.AgentAudited, status.Audited)
}

func stateOf(e api.EndpointStatus) string {
	switch {
	case e.Revoked != "":
		return revoked
	case !e.InForce:
		return pending
	case e.Withheld != "":
		return withheld
	}
	return inForce
}

// addFlows adds flows by who opens them to whom and by which contract, whatever their ports.
func addFlows(add func(*metric.Metric, float64, ...string), m *metric.Metric, flows []api.FlowStatus) {
	type key struct{ from, to, contract string }
	counts := map[key]uint64{}
	for _, f := range flows {
		counts[key{name(f.From), name(f.To), name(f.Contract)}] += f.Count
	}
	for k, n := range counts {
		add(m, float64(n), k.from, k.to, k.contract)
	}
}

// name is empty where a flow has none, as the contract of one that a check opens.
func name(r fabric.Ref) string {
	if r.IsZero() {
		return ""
	}
	return r.String()
}
