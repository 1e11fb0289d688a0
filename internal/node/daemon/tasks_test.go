// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package daemon

import (
	"context"
	"crypto/tls"
	"net/http"
	"testing"

	"github.com/hashicorp/go-hclog"
	"github.com/shoenig/test/must"

	"github.com/sif-project/sif/api"
	"github.com/sif-project/sif/internal/trust/identity/identitytest"
)

// After a request that failed, the next one is answered at once, and the node is well again.
func TestTasksAfterAFailure(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var n *Node
	var waits, problems []string
	ca := identitytest.NewCA(t)
	s := ca.Controller(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		waits, problems = append(waits, r.URL.Query().Get("wait")), append(problems, n.problem("tasks"))
		switch len(waits) {
		case 1:
			w.WriteHeader(http.StatusServiceUnavailable)
		case 2:
			_, _ = w.Write([]byte("[]"))
		default:
			cancel()
		}
	}))
	defer s.Close()
	controller, err := api.NewClient(api.Config{Address: s.URL, TLS: &tls.Config{RootCAs: ca.Roots()}})
	must.NoError(t, err)
	n = &Node{Controller: controller, Log: hclog.NewNullLogger()}
	must.NoError(t, n.ServeTasks(ctx, func([]api.Task) {}))
	must.Eq(t, []string{taskWait.String(), "0s", taskWait.String()}, waits)
	must.Eq(t, "", problems[0])
	must.NotEq(t, "", problems[1])
	must.Eq(t, "", problems[2])
}
