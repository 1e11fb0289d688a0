// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package controller

import (
	"slices"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/shoenig/test/must"

	"github.com/sif-project/sif/api"
)

// What probes found stands in the metrics, by link and by pair of zones, and no node's report keeps
// others from being read.
func TestWayMetrics(t *testing.T) {
	up := api.WayFound{State: api.WayUp, Sent: 30, Lost: 3, RTT: 2_000_000, Full: 1420, Passed: 1400}
	down := api.WayFound{State: api.WayDown, Sent: 30, Lost: 30}
	s := api.Status{Nodes: []api.NodeStatus{
		{Zone: "z1", Node: "w1", Ways: []api.WayStatus{{To: "z1/w2", IPv4: up, IPv6: down}, {To: "z2", IPv4: up}}},
		{Zone: "z1", Node: "w2", Ways: []api.WayStatus{ // it lies
			{To: "z1/w1", IPv4: up}, {To: "z1/w1", IPv4: down}, {To: "z9/none", IPv4: up}, {To: "z9", IPv4: up}, {}, {To: "z2", IPv4: down}, {To: "z2", IPv4: down},
		}},
		{Zone: "z2", Node: "w1"},
	}}
	registry := prometheus.NewPedanticRegistry()
	registry.MustRegister(wayMetrics{func() api.Status { return s }})
	families, err := registry.Gather()
	must.NoError(t, err)
	values := map[string]float64{}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			var labels []string
			for _, l := range m.GetLabel() {
				labels = append(labels, l.GetValue())
			}
			slices.Sort(labels)
			values[f.GetName()+" "+strings.Join(labels, " ")] = m.GetGauge().GetValue()
		}
	}
	for name, want := range map[string]float64{
		"sif_link_up ipv4 z1/w1 z1/w2": 1, "sif_link_up ipv6 z1/w1 z1/w2": 0, "sif_link_loss_ratio ipv4 z1/w1 z1/w2": 0.1,
		"sif_link_rtt_seconds ipv4 z1/w1 z1/w2": 0.002, "sif_link_mtu_bytes ipv4 z1/w1 z1/w2": 1400,
		"sif_zone_path_up ipv4 z1 z2": 0, "sif_zone_path_loss_ratio ipv4 z1 z2": 0.7,
	} {
		must.Eq(t, want, values[name], must.Sprint(name))
	}
}
