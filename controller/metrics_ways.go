// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package controller

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/sif-project/sif/api"
)

// wayMetrics is what probes of the nodes found, by link and by pair of zones.
type wayMetrics struct {
	status func() api.Status
	link   wayDescs
	zones  wayDescs
}

type wayDescs struct{ up, loss, rtt, mtu *prometheus.Desc }

func newWayMetrics(status func() api.Status) *wayMetrics {
	descs := func(prefix, what string, labels ...string) wayDescs {
		desc := func(name, help string) *prometheus.Desc {
			return prometheus.NewDesc("sif_"+prefix+"_"+name, help+" of "+what+", by probes.", append(labels, "family"), nil)
		}
		return wayDescs{
			up:   desc("up", "1 unless the last probes were lost"),
			loss: desc("loss_ratio", "Share of the last small packets that were lost"),
			rtt:  desc("rtt_seconds", "Median round-trip time"),
			mtu:  desc("mtu_bytes", "Largest packet that passed"),
		}
	}
	return &wayMetrics{status, descs("link", "a link", "node", "peer"), descs("zone_path", "the paths between two zones", "from", "to")}
}

// Describe implements prometheus.Collector.
func (m *wayMetrics) Describe(to chan<- *prometheus.Desc) {
	for _, d := range []wayDescs{m.link, m.zones} {
		for _, desc := range []*prometheus.Desc{d.up, d.loss, d.rtt, d.mtu} {
			to <- desc
		}
	}
}

// Collect implements prometheus.Collector. What a node reports of ways that cannot be, or of one
// way twice, is left out: one such metric would fail all of them.
func (m *wayMetrics) Collect(to chan<- prometheus.Metric) {
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
				m.link.collect(to, w.IPv4, w.IPv6, n.ID().String(), w.To)
			}
		}
	}
	for _, p := range s.ZonePairs() {
		if zones[p.To] {
			m.zones.collect(to, p.IPv4, p.IPv6, p.From, p.To)
		}
	}
}

func (d wayDescs) collect(to chan<- prometheus.Metric, four, six api.WayFound, labels ...string) {
	for family, f := range map[string]api.WayFound{"ipv4": four, "ipv6": six} {
		if f.Sent == 0 {
			continue // not measured yet
		}
		gauge := func(desc *prometheus.Desc, value float64) {
			to <- prometheus.MustNewConstMetric(desc, prometheus.GaugeValue, value, append(labels, family)...)
		}
		up := 1.0
		if f.State == api.WayDown {
			up = 0
		}
		gauge(d.up, up)
		gauge(d.loss, float64(f.Lost)/float64(f.Sent))
		if f.RTT > 0 {
			gauge(d.rtt, f.RTT.Seconds())
		}
		if f.Passed > 0 {
			gauge(d.mtu, float64(f.Passed))
		}
	}
}
