// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package controller

import (
	"math"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/shoenig/test/must"

	"github.com/sif-project/sif/internal/metric"
)

// An age that is not known is no small one: an alert on it must not sleep.
func TestAgeMetric(t *testing.T) {
	c := &Controller{peers: &peers{}}
	must.Eq(t, math.Inf(1), c.ageSeconds())
	c.peers.view = time.Now().Add(-time.Minute)
	must.GreaterEq(t, 60, c.ageSeconds())
}

// The controller has the metrics that are defined for it, and no others of SIF's.
func TestMetricsAreDefined(t *testing.T) {
	var want []string
	for _, m := range metric.All() {
		if slices.Contains(m.Of, "controller") {
			want = append(want, m.Name)
		}
	}
	descs := make(chan *prometheus.Desc, 1000)
	newMetrics(&Controller{}).registry.Describe(descs)
	close(descs)
	var got []string
	for d := range descs {
		if _, name, _ := strings.Cut(d.String(), `fqName: "`); strings.HasPrefix(name, "sif_") {
			name, _, _ = strings.Cut(name, `"`)
			got = append(got, name)
		}
	}
	slices.Sort(got)
	must.Eq(t, want, got)
}
