// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

// Package metric defines the metrics of all daemons: their names, types, labels and meanings, of
// which docs/metrics.md is made. It does not know how a value is measured.
//
// Labels name services, contracts, zones and nodes, never addresses or endpoints, of which there is
// any number over time.
package metric

//go:generate go run ./generate

import (
	"slices"

	"github.com/prometheus/client_golang/prometheus"
)

// Kind is the type of a metric.
type Kind string

// The kinds.
const (
	Gauge     Kind = "gauge"
	Counter   Kind = "counter"
	Histogram Kind = "histogram"
)

// Metric is a metric of SIF.
type Metric struct {
	Kind   Kind
	Name   string
	Help   string // a sentence, with the unit unless the name has it
	Labels []string
	// Of names the daemons that have it: "controller", "agent", "engine".
	Of []string

	desc    *prometheus.Desc
	buckets []float64
}

// The daemons.
var (
	controller = []string{"controller"}
	agent      = []string{"agent"}
	engine     = []string{"engine"}
	node       = []string{"agent", "engine"}
	every      = []string{"controller", "agent", "engine"}
)

var all []*Metric

func define(of []string, kind Kind, name, help string, labels ...string) *Metric {
	m := &Metric{Kind: kind, Name: name, Help: help, Labels: labels, Of: of, desc: prometheus.NewDesc(name, help, labels, nil)}
	all = append(all, m)
	return m
}

// All returns the metrics, by name.
func All() []*Metric {
	return slices.SortedFunc(slices.Values(all), func(a, b *Metric) int {
		switch {
		case a.Name < b.Name:
			return -1
		case a.Name > b.Name:
			return 1
		}
		return 0
	})
}

// Desc describes the metric to a registry.
func (m *Metric) Desc() *prometheus.Desc { return m.desc }

// Value returns a value of a gauge or a counter, with a value for each label.
func (m *Metric) Value(value float64, labels ...string) prometheus.Metric {
	kind := prometheus.GaugeValue
	if m.Kind == Counter {
		kind = prometheus.CounterValue
	}
	return prometheus.MustNewConstMetric(m.desc, kind, value, labels...)
}

// NewCounters returns counters of the metric, one for each combination of labels.
func (m *Metric) NewCounters() *prometheus.CounterVec {
	return prometheus.NewCounterVec(prometheus.CounterOpts{Name: m.Name, Help: m.Help}, m.Labels)
}

// NewHistograms returns histograms of the metric, one for each combination of labels.
func (m *Metric) NewHistograms() *prometheus.HistogramVec {
	return prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: m.Name, Help: m.Help, Buckets: m.buckets}, m.Labels)
}

// within sets the buckets of a histogram: count of them, each twice as large as the one before.
func (m *Metric) within(first float64, count int) *Metric {
	m.buckets = prometheus.ExponentialBuckets(first, 2, count)
	return m
}
