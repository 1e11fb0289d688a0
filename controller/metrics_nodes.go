// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package controller

import (
	"slices"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/sif-project/sif/api"
)

// nodeMetrics says how long the daemons of the nodes can last by what they hold, and what of the
// list of removals and revocations is in force.
type nodeMetrics struct {
	status                                                                      func() api.Status
	certificate, lasts, reported, list, sequence, revoked, behind, key, linkKey *prometheus.Desc
}

func newNodeMetrics(status func() api.Status) *nodeMetrics {
	daemon := []string{"node", "daemon"}
	return &nodeMetrics{
		status:      status,
		certificate: prometheus.NewDesc("sif_node_certificate_expiry_seconds", "Unix time at which the certificate of a daemon expires.", daemon, nil),
		linkKey:     prometheus.NewDesc("sif_node_link_key_made_seconds", "Unix time at which the WireGuard key of a node's links was made.", daemon, nil),
		lasts:       prometheus.NewDesc("sif_node_lasts_until_seconds", "Unix time at which the first of what a daemon holds expires: its certificate, or an admission or a service's certificate of an endpoint.", daemon, nil),
		reported:    prometheus.NewDesc("sif_node_reported_seconds", "Unix time of the last report of a daemon.", daemon, nil),
		list:        prometheus.NewDesc("sif_node_revocations_sequence", "Sequence of the list of removals and revocations that a daemon heeds.", daemon, nil),
		key:         prometheus.NewDesc("sif_node_key_version", "Newest version of the fabric's key that a daemon knows.", daemon, nil),
		sequence:    prometheus.NewDesc("sif_revocations_sequence", "Sequence of the newest list of removals and revocations.", nil, nil),
		revoked:     prometheus.NewDesc("sif_revocations", "What is removed or revoked, by kind.", []string{"kind"}, nil),
		behind:      prometheus.NewDesc("sif_revocations_behind", "Daemons that do not heed the newest list of removals and revocations.", nil, nil),
	}
}

// Describe implements prometheus.Collector.
func (m *nodeMetrics) Describe(to chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{m.certificate, m.lasts, m.reported, m.list, m.sequence, m.revoked, m.behind, m.key, m.linkKey} {
		to <- d
	}
}

// Collect implements prometheus.Collector.
func (m *nodeMetrics) Collect(to chan<- prometheus.Metric) {
	gauge := func(desc *prometheus.Desc, value float64, labels ...string) {
		to <- prometheus.MustNewConstMetric(desc, prometheus.GaugeValue, value, labels...)
	}
	s := m.status()
	for _, n := range s.Nodes {
		if n.Reported.IsZero() {
			continue
		}
		labels := []string{n.ID().String(), n.Daemon()}
		gauge(m.reported, float64(n.Reported.Unix()), labels...)
		gauge(m.list, float64(n.Revocations), labels...)
		if n.Authorities != nil && len(n.Authorities.Keys) > 0 {
			gauge(m.key, float64(slices.Max(n.Authorities.Keys)), labels...)
		}
		if !n.CertificateExpires.IsZero() {
			gauge(m.certificate, float64(n.CertificateExpires.Unix()), labels...)
		}
		if n.LinkKey != nil {
			gauge(m.linkKey, float64(n.LinkKey.Made.Unix()), labels...)
		}
		if until, _ := n.Lasts(); !until.IsZero() {
			gauge(m.lasts, float64(until.Unix()), labels...)
		}
	}
	r := s.Revocations
	gauge(m.sequence, float64(r.Sequence))
	gauge(m.behind, float64(len(r.Behind)))
	for kind, count := range map[string]int{"node": r.Removed, "service": r.Services, "endpoint": r.Endpoints, "certificate": r.Certificates} {
		gauge(m.revoked, float64(count), kind)
	}
}
