// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package controller

import (
	"math"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"github.com/sif-project/sif/internal/metric"
	"github.com/sif-project/sif/internal/servercalls"
)

// metrics are the metrics at /metrics.
type metrics struct {
	registry  *prometheus.Registry
	requests  *prometheus.CounterVec
	admission *prometheus.HistogramVec
	refused   *prometheus.CounterVec
}

func newMetrics(c *Controller) *metrics {
	m := &metrics{
		registry: prometheus.NewRegistry(), requests: metric.ControllerRequests.NewCounters(),
		admission: metric.ControllerAdmission.NewHistograms(), refused: metric.ControllerRefused.NewCounters(),
	}
	m.registry.MustRegister(m.requests, m.admission, m.refused, gauges{c}, servercalls.Requests, wayMetrics{c.status}, nodeMetrics{c.status}, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return m
}

// gauges are the metrics of the controller itself, as they are when they are read.
type gauges struct{ *Controller }

func (c gauges) values() map[*metric.Metric]float64 {
	leads, away := 0.0, 0.0
	if c.leads() {
		leads = 1
	}
	for _, s := range c.peers.states() {
		if s.Away != "" {
			away++
		}
	}
	return map[*metric.Metric]float64{
		metric.ControllerLeader:      leads,
		metric.ControllerPeers:       float64(len(c.peers.addresses()) - 1),
		metric.ControllerPeersAway:   away,
		metric.ControllerAge:         c.ageSeconds(),
		metric.ControllerRevision:    float64(c.policy.pointer().Sequence),
		metric.ControllerDegraded:    float64(len(c.degraded())),
		metric.ControllerNodes:       float64(len(c.nodes.all())),
		metric.ControllerAdmissions:  float64(c.table.count()),
		metric.ControllerKeyVersion:  float64(c.cfg.Identity.Signing()),
		metric.ControllerCertificate: float64(c.cfg.Identity.Expiry().Unix()),
	}
}

// Describe implements prometheus.Collector.
func (c gauges) Describe(to chan<- *prometheus.Desc) {
	for _, m := range []*metric.Metric{
		metric.ControllerLeader, metric.ControllerPeers, metric.ControllerPeersAway, metric.ControllerAge, metric.ControllerRevision,
		metric.ControllerDegraded, metric.ControllerNodes, metric.ControllerAdmissions, metric.ControllerKeyVersion, metric.ControllerCertificate,
	} {
		to <- m.Desc()
	}
}

// Collect implements prometheus.Collector.
func (c gauges) Collect(to chan<- prometheus.Metric) {
	for m, value := range c.values() {
		to <- m.Value(value)
	}
}

// ageSeconds is the age of what nodes report, without end if this controller does not know it.
func (c *Controller) ageSeconds() float64 {
	if age := c.age(true); age >= 0 {
		return age.Seconds()
	}
	return math.Inf(1)
}
