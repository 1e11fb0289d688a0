// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package metric

import (
	"flag"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/shoenig/test/must"
)

var update = flag.Bool("update", false, "write docs/metrics.md")

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

const document = "../../docs/metrics.md"

// The document lists the metrics that are defined here. `go test ./internal/metric -update` writes
// it.
func TestDocumentIsUpToDate(t *testing.T) {
	text := written()
	if *update {
		must.NoError(t, os.WriteFile(document, []byte(text), 0o644))
	}
	found, err := os.ReadFile(document)
	must.NoError(t, err)
	must.Eq(t, text, string(found), must.Sprint("run go test ./internal/metric -update"))
}

const introduction = `# Metrics

This file is generated from the definitions of the metrics: ` + "`go test ./internal/metric -update`" + `.

Every daemon serves its metrics in [Prometheus](https://prometheus.io)' format at ` + "`/metrics`" + `:

| daemon | where |
|---|---|
| controller | at its API, port 8440, over TLS, without a token |
| agent | ` + "`127.0.0.1:8445`" + `, or what ` + "`telemetry { listen }`" + ` says |
| engine | ` + "`127.0.0.1:8446`" + `, or what ` + "`telemetry { listen }`" + ` says |

` + "`sif link`" + ` has none: the agent or the engine of its node has those of its links.

    telemetry {
      listen = "10.101.0.11:8445"                    # of the network that Prometheus scrapes from
    # listen = "unix:///run/sif/agent-metrics.sock"  # for a collector on the node; root and its group may read
    # listen = "off"
    }

A port that is not of the loopback interface is opened in [the node's own firewall](operations.md#ports) by the daemon
that has the firewall; on a machine with agent and engine that is the agent, so list the engine's port in
` + "`underlay { management }`" + `. There is no TLS and no token: whoever reaches the port may read. What is read there says how
much passes among which services; no metric has an address or an endpoint, a key or a token.

The values are those that the daemon last reported to the controller, up to two seconds old. A counter begins at 0 when
its daemon starts, unless it is of the kernel or the switch. Besides those below there are the usual metrics of Go and of
the process. [Alerts](operations.md#alerts) come with the packages.

`

func written() string {
	var b strings.Builder
	b.WriteString(introduction)
	for _, d := range []struct{ name, title string }{{"controller", "Controller"}, {"agent", "Agent"}, {"engine", "Engine"}} {
		fmt.Fprintf(&b, "## %s\n\n| metric | type | labels | meaning |\n|---|---|---|---|\n", d.title)
		for _, m := range All() {
			for _, of := range m.Of {
				if of == d.name {
					labels := ""
					if len(m.Labels) > 0 {
						labels = "`" + strings.Join(m.Labels, "`, `") + "`"
					}
					fmt.Fprintf(&b, "| `%s` | %s | %s | %s |\n", m.Name, m.Kind, labels, m.Help)
				}
			}
		}
		b.WriteString("\n")
	}
	return strings.TrimSuffix(b.String(), "\n")
}
