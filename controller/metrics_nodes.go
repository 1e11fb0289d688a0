// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package controller

import (
	"slices"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/sif-project/sif/api"
	"github.com/sif-project/sif/internal/metric"
)

// nodeMetrics says how long the daemons of the nodes can last by what they hold, and what of the
// list of removals and revocations is in force.
type nodeMetrics struct{ status func() api.Status }

// Describe implements prometheus.Collector.
func (n nodeMetrics) Describe(to chan<- *prometheus.Desc) {
	for _, m := range []*metric.Metric{
		metric.NodeCertificate, metric.NodeLasts, metric.NodeReported, metric.NodeRevocationsSequence,
		metric.NodeKeyVersion, metric.NodeLinkKeyMade,
		metric.RevocationsSequence, metric.Revocations, metric.RevocationsBehind,
	} {
		to <- m.Desc()
	}
}

// Collect implements prometheus.Collector.
func (n nodeMetrics) Collect(to chan<- prometheus.Metric) {
	add := func(m *metric.Metric, value float64, labels ...string) { to <- m.Value(value, labels...) }
	s := n.status()
	for _, d := range s.Nodes {
		if d.Reported.IsZero() {
			continue
		}
		labels := []string{d.ID().String(), d.Daemon()}
		add(metric.NodeReported, float64(d.Reported.Unix()), labels...)
		add(metric.NodeRevocationsSequence, float64(d.Revocations), labels...)
		if d.Authorities != nil && len(d.Authorities.Keys) > 0 {
			add(metric.NodeKeyVersion, float64(slices.Max(d.Authorities.Keys)), labels...)
		}
		if d.LinkKey != nil {
			add(metric.NodeLinkKeyMade, float64(d.LinkKey.Made.Unix()), labels...)
		}
		if !d.CertificateExpires.IsZero() {
			add(metric.NodeCertificate, float64(d.CertificateExpires.Unix()), labels...)
		}
		if until, _ := d.Lasts(); !until.IsZero() {
			add(metric.NodeLasts, float64(until.Unix()), labels...)
		}
	}
	r := s.Revocations
	add(metric.RevocationsSequence, float64(r.Sequence))
	add(metric.RevocationsBehind, float64(len(r.Behind)))
	for kind, count := range map[string]int{"node": r.Removed, "service": r.Services, "endpoint": r.Endpoints, "certificate": r.Certificates} {
		add(metric.Revocations, float64(count), kind)
	}
}
