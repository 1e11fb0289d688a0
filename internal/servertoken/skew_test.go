// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package servertoken_test

import (
	"context"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"github.com/sif-project/sif/internal/servertoken"
)

// By the clock of a machine that is ahead, a new token has ended already. It is used all the same:
// a log-in for each request would fill the server with tokens.
func TestClockAhead(t *testing.T) {
	server := httptest.NewServer(http.NotFoundHandler())
	defer server.Close()
	logins := 0
	client := &http.Client{Transport: servertoken.New(http.DefaultTransport, "X-Token", &servertoken.Login{New: func(context.Context) (servertoken.Token, error) {
		logins++
		return servertoken.Token{Secret: "secret", Expires: time.Now().Add(-time.Hour)}, nil
	}})}
	for range 5 {
		req, err := http.NewRequest(http.MethodGet, server.URL, nil)
		must.NoError(t, err)
		req.Header.Set("X-Token", servertoken.Placeholder)
		resp, err := client.Do(req)
		must.NoError(t, err)
		must.NoError(t, resp.Body.Close())
	}
	must.Eq(t, 1, logins)
}
