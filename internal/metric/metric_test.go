// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package metric

import (
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/shoenig/test/must"
)

// The names are as Prometheus' own linter wants them.
func TestNamesAreConventional(t *testing.T) {
	registry := prometheus.NewRegistry()
	for _, m := range All() {
		values := make([]string, len(m.Labels))
		switch m.Kind {
		case Counter:
			v := m.NewCounters()
			v.WithLabelValues(values...).Inc()
			registry.MustRegister(v)
		case Histogram:
			v := m.NewHistograms()
			v.WithLabelValues(values...).Observe(1)
			registry.MustRegister(v)
		case Gauge:
			registry.MustRegister(one{m, values})
		default:
			t.Fatalf("%s has no kind", m.Name)
		}
		must.StrHasPrefix(t, "sif_", m.Name)
		must.StrHasSuffix(t, ".", m.Help, must.Sprint(m.Name))
		must.SliceNotEmpty(t, m.Of, must.Sprint(m.Name))
	}
	problems, err := testutil.GatherAndLint(registry)
	must.NoError(t, err)
	must.SliceEmpty(t, problems)
}

type one struct {
	m      *Metric
	values []string
}

func (o one) Describe(to chan<- *prometheus.Desc) { to <- o.m.Desc() }
func (o one) Collect(to chan<- prometheus.Metric) { to <- o.m.Value(1, o.values...) }
