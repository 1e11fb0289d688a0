// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

//go:build e2e

package e2e

import (
	"context"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
	"github.com/shoenig/test/must"

	"github.com/sif-project/sif/e2e/lab"
	"github.com/sif-project/sif/internal/metric"
	"github.com/sif-project/sif/internal/wellknown"
)

// scrape reads the metrics of a node's daemon as Prometheus would on the node.
func scrape(t *testing.T, n *lab.Node) map[string]*dto.MetricFamily {
	t.Helper()
	port := wellknown.AgentMetricsPort
	if n.Kind == lab.Processor {
		port = wellknown.EngineMetricsPort
	}
	address := netip.MustParseAddrPort("127.0.0.1:" + port)
	c := &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(context.Context, string, string) (net.Conn, error) {
			return dial(world.NetNS(n.Name), address, 5*time.Second)
		},
	}}
	resp, err := c.Get("http://" + address.String() + "/metrics")
	must.NoError(t, err)
	defer resp.Body.Close()
	must.Eq(t, http.StatusOK, resp.StatusCode)
	parser := expfmt.NewTextParser(model.LegacyValidation)
	families, err := parser.TextToMetricFamilies(resp.Body)
	must.NoError(t, err)
	return families
}

// TestMetrics reads the metrics of all nodes: they are the documented ones, and say what
// `sif status` says.
func TestMetrics(t *testing.T) {
	world.allWell(t, time.Minute)
	endpoints, listed := 0.0, 0
	for _, n := range world.status(t).Nodes {
		listed += len(n.Endpoints)
	}
	for _, n := range world.Topology.Nodes() {
		if n.Kind != lab.Processor && n.Kind != lab.Workload {
			continue
		}
		families := scrape(t, n)
		for name := range families {
			if strings.HasPrefix(name, "sif_") {
				must.True(t, slices.ContainsFunc(metric.All(), func(m *metric.Metric) bool {
					return m.Name == name && slices.Contains(m.Of, daemonOf(n))
				}), must.Sprintf("%s of %s is not defined", name, n.Name))
			}
		}
		value := func(m *metric.Metric) (sum float64) {
			for _, one := range families[m.Name].GetMetric() {
				sum += one.GetGauge().GetValue() + one.GetCounter().GetValue()
			}
			return sum
		}
		must.Eq(t, 1, value(metric.DaemonInfo))
		must.Eq(t, 0, value(metric.DaemonDegraded), must.Sprint(n.Name))
		must.Greater(t, 0, value(metric.DaemonRevision))
		must.Greater(t, 0, value(metric.LinkReceived))
		must.Greater(t, 0, value(metric.ServerRequests))
		if n.Kind == lab.Processor {
			must.Eq(t, 1, value(metric.ProcessorReady))
			continue
		}
		endpoints += value(metric.AgentEndpoints)
	}
	must.Eq(t, float64(listed), endpoints)
}
