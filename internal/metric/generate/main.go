// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

// Command generate writes the reference of the metrics to docs/. It is run in the directory of
// package metric, by go generate.
package main

import (
	"fmt"
	"log"
	"os"
	"strings"

	"github.com/sif-project/sif/internal/metric"
)

func main() {
	if err := os.WriteFile("../../docs/metrics.md", []byte(written()), 0o644); err != nil {
		log.Fatal(err)
	}
}

const introduction = `# Metrics

This file is generated from the definitions of the metrics by ` + "`make generate`" + `.

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
		for _, m := range metric.All() {
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
