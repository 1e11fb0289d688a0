// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package daemon

import (
	"context"

	"github.com/prometheus/client_golang/prometheus/collectors"

	"github.com/sif-project/sif/api"
	"github.com/sif-project/sif/internal/config"
	"github.com/sif-project/sif/internal/node/telemetry"
	"github.com/sif-project/sif/internal/servercalls"
)

// serveMetrics serves the metrics of the daemon, those that it registered itself included.
func (n *Node) serveMetrics(ctx context.Context) error {
	at := n.Config.Telemetry.Listen
	if at == "" || at == config.TelemetryOff {
		return nil
	}
	n.Metrics.MustRegister(
		telemetry.Status{Last: n.lastReported}, servercalls.Requests,
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
	)
	return telemetry.Serve(ctx, at, n.Metrics, func(err error) { n.Degrade("metrics", err) })
}

// lastReported returns the last status of the daemon, and whether there is one.
func (n *Node) lastReported() (api.NodeStatus, bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.reported == nil {
		return api.NodeStatus{}, false
	}
	return *n.reported, true
}
