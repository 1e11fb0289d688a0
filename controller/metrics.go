// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package controller

import (
	"math"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
)

// metrics are the metrics at /metrics.
type metrics struct {
	registry  *prometheus.Registry
	requests  *prometheus.CounterVec
	admission prometheus.Histogram
	refused   *prometheus.CounterVec
}

func newMetrics(c *Controller) *metrics {
	m := &metrics{
		registry: prometheus.NewRegistry(),
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "sif_controller_requests_total", Help: "API calls by route and error code; the code is ok if there was no error.",
		}, []string{"route", "code"}),
		admission: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "sif_controller_admission_seconds", Help: "Time to grant an admission.",
			Buckets: prometheus.ExponentialBuckets(0.001, 2, 14),
		}),
	}
	m.refused = prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "sif_controller_refused_total", Help: "Connections, calls and audit entries refused because of a limit, by limit.",
	}, []string{"limit"})
	gauge := func(name, help string, value func() float64) {
		m.registry.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, value))
	}
	gauge("sif_controller_leader", "1 while this controller leads.", func() float64 {
		if c.leads() {
			return 1
		}
		return 0
	})
	gauge("sif_controller_peers", "Other controllers that answer this one.", func() float64 { return float64(len(c.peers.addresses()) - 1) })
	gauge("sif_controller_peers_away", "Other controllers that do not answer this one.", func() float64 {
		away := 0.0
		for _, s := range c.peers.states() {
			if s.Away != "" {
				away++
			}
		}
		return away
	})
	gauge("sif_controller_age_seconds", "How old what this controller knows of the nodes can be: 0 while it leads, +Inf if it has heard of none yet.", c.ageSeconds)
	gauge("sif_controller_revision", "Sequence of the revision in force.", func() float64 { return float64(c.policy.pointer().Sequence) })
	gauge("sif_controller_degraded", "Number of problems that sif status reports of the controller.", func() float64 { return float64(len(c.degraded())) })
	gauge("sif_controller_nodes", "Registered nodes.", func() float64 { return float64(len(c.nodes.all())) })
	gauge("sif_controller_admissions", "Live admissions.", func() float64 { return float64(c.table.count()) })
	gauge("sif_controller_key_version", "Version of the fabric's key with which this controller has statements signed; 0 before it knows.", func() float64 {
		return float64(c.cfg.Identity.Signing())
	})
	gauge("sif_controller_certificate_expiry_seconds", "Unix time at which the controller's certificate expires.", func() float64 {
		return float64(c.cfg.Identity.Expiry().Unix())
	})
	m.registry.MustRegister(m.requests, m.admission, m.refused, newWayMetrics(c.status), newNodeMetrics(c.status), collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return m
}

// ageSeconds is the age of what nodes report, without end if this controller does not know it.
func (c *Controller) ageSeconds() float64 {
	if age := c.age(true); age >= 0 {
		return age.Seconds()
	}
	return math.Inf(1)
}
