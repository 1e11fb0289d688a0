// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package servercalls

import (
	"context"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/shoenig/test/must"
)

func TestCount(t *testing.T) {
	status := http.StatusOK
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(status) }))
	c := &http.Client{Transport: Count("vault", http.DefaultTransport)}
	get := func(ctx context.Context) {
		r, err := http.NewRequestWithContext(ctx, http.MethodGet, s.URL, nil)
		must.NoError(t, err)
		if resp, err := c.Do(r); err == nil {
			resp.Body.Close()
		}
	}
	for _, status = range []int{http.StatusOK, http.StatusForbidden, http.StatusNotFound, http.StatusServiceUnavailable} {
		get(t.Context())
	}
	given, cancel := context.WithCancel(t.Context())
	cancel()
	get(given)
	s.Close()
	get(t.Context())
	for result, n := range map[string]float64{answered: 1, refused: 2, failed: 1, unreachable: 1} {
		must.Eq(t, n, testutil.ToFloat64(Requests.WithLabelValues("vault", result)), must.Sprint(result))
	}
}
