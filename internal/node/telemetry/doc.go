// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

// Package telemetry serves the metrics of a node's daemon in Prometheus' format. It knows the
// status that a daemon reports to the controller. It does not know what the daemon does, nor who
// reads the metrics.
package telemetry
