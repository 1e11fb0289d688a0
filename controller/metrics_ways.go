// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package controller

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/sif-project/sif/api"
	"github.com/sif-project/sif/internal/metric"
)

// wayMetrics is what probes of the nodes found, by link and by pair of zones.
type wayMetrics struct{ status func() api.Status }

// found are the metrics of a way.
type found struct{ up, loss, rtt, mtu *metric.Metric }

var (
	ofLink  = found{metric.LinkUp, metric.LinkLoss, metric.LinkRTT, metric.LinkMTU}
	ofZones = found{metric.ZonePathUp, metric.ZonePathLoss, metric.ZonePathRTT, metric.ZonePathMTU}
)

// Describe implements prometheus.Collector.
func (wayMetrics) Describe(to chan<- *prometheus.Desc) {
	for _, f := range []found{ofLink, ofZones} {
		for _, m := range []*metric.Metric{f.up, f.loss, f.rtt, f.mtu} {
			to <- m.Desc()
		}
	}
}

// Collect implements prometheus.Collector. What a node reports of ways that cannot be, or of one
// way twice, is left out: one such metric would fail all of them.
func (m wayMetrics) Collect(to chan<- prometheus.Metric) {
	s := m.status()
	nodes, zones := map[string]bool{}, map[string]bool{}
	for _, n := range s.Nodes {
		nodes[n.ID().String()], zones[n.Zone] = true, true
	}
	told := map[[2]string]bool{}
	for _, n := range s.Nodes {
		for _, w := range n.Ways {
			if way := [2]string{n.ID().String(), w.To}; nodes[w.To] && !told[way] {
				told[way] = true
				ofLink.collect(to, w.IPv4, w.IPv6, n.ID().String(), w.To)
			}
		}
	}
	for _, p := range s.ZonePairs() {
		if zones[p.To] {
			ofZones.collect(to, p.IPv4, p.IPv6, p.From, p.To)
		}
	}
}

func (f found) collect(to chan<- prometheus.Metric, four, six api.WayFound, labels ...string) {
	for family, w := range map[string]api.WayFound{"ipv4": four, "ipv6": six} {
		if w.Sent == 0 {
			continue // not measured yet
		}
		add := func(m *metric.Metric, value float64) { to <- m.Value(value, append(labels, family)...) }
		up := 1.0
		if w.State == api.WayDown {
			up = 0
		}
		add(f.up, up)
		add(f.loss, float64(w.Lost)/float64(w.Sent))
		if w.RTT > 0 {
			add(f.rtt, w.RTT.Seconds())
		}
		if w.Passed > 0 {
			add(f.mtu, float64(w.Passed))
		}
	}
}
