// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

// Package servercalls counts the HTTP requests of a daemon to Consul, Vault and Nomad. It knows
// whether a server has answered. It does not know what was asked.
package servercalls

import (
	"net/http"

	"github.com/sif-project/sif/internal/metric"
)

// Values of the label result.
const (
	answered    = "answered"
	refused     = "refused"     // status 4xx
	failed      = "failed"      // status 5xx
	unreachable = "unreachable" // no answer
)

// Requests counts the requests of this process by server ("consul", "vault", "nomad") and result.
// Those that the process gave up itself do not count.
var Requests = metric.ServerRequests.NewCounters()

type transport struct {
	base   http.RoundTripper
	server string
}

// Count returns a RoundTripper that counts in Requests what base does.
func Count(server string, base http.RoundTripper) http.RoundTripper {
	return transport{base, server}
}

// RoundTrip implements http.RoundTripper.
func (t transport) RoundTrip(r *http.Request) (*http.Response, error) {
	resp, err := t.base.RoundTrip(r)
	switch {
	case err != nil && r.Context().Err() != nil:
	case err != nil:
		t.count(unreachable)
	case resp.StatusCode >= http.StatusInternalServerError:
		t.count(failed)
	case resp.StatusCode >= http.StatusBadRequest:
		t.count(refused)
	default:
		t.count(answered)
	}
	return resp, err
}

func (t transport) count(result string) { Requests.WithLabelValues(t.server, result).Inc() }
