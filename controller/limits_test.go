// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package controller

import (
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"github.com/sif-project/sif/api"
)

// flooder is the source of floods; everybody else calls from 127.0.0.1.
const flooder = "127.0.0.2"

// A member that takes as much as it can gets its share, and everybody else goes on.
func TestFloodOfOneMember(t *testing.T) {
	w := newWorld(t)
	for name, test := range map[string]func(*testing.T, *world, *running){
		"connections":           floodOfConnections,
		"bodies without token":  floodOfBodies,
		"unauthenticated calls": floodOfStrangers,
		"registrations":         floodOfRegistrations,
		"long polls":            floodOfLongPolls,
	} {
		t.Run(name, func(t *testing.T) {
			r := w.fresh(t, &fakeScheduler{})
			test(t, w, r)
			w.others(t, r)
		})
	}
}

// others checks that operators and nodes are served.
func (w *world) others(t *testing.T, r *running) {
	t.Helper()
	_, err := r.operator.Status(t.Context())
	must.NoError(t, err)
	_, err = r.operator.Health(t.Context())
	must.NoError(t, err)
	n := w.node(t, r, "w2")
	n.register(t, "10.1.0.12")
	_, err = n.Tasks(t.Context(), time.Millisecond)
	must.NoError(t, err)
}

// refused returns what the metric of a limit counts.
func (r *running) refused(t *testing.T, which string) int {
	t.Helper()
	families, err := r.metrics.registry.Gather()
	must.NoError(t, err)
	for _, f := range families {
		for _, m := range f.GetMetric() {
			if f.GetName() == "sif_controller_refused_total" && m.GetLabel()[0].GetValue() == which {
				return int(m.GetCounter().GetValue())
			}
		}
	}
	return 0
}

func floodOfConnections(t *testing.T, w *world, r *running) {
	const more = 50
	closed := make(chan struct{}, maxConnsEach+more)
	for range maxConnsEach + more {
		conn, err := dialer(flooder).Dial("tcp", r.address)
		must.NoError(t, err)
		t.Cleanup(func() { conn.Close() })
		go func() {
			_, _ = conn.Read(make([]byte, 1))
			closed <- struct{}{}
		}()
	}
	for range more {
		<-closed
	}
	must.Eq(t, more, r.refused(t, limitConns))
	w.others(t, r)
}

// endless is a body of the given size that counts what was taken of it.
type endless struct {
	left  int
	taken *atomic.Int64
}

func (e *endless) Read(p []byte) (int, error) {
	if e.left == 0 {
		return 0, io.EOF
	}
	n := min(len(p), e.left)
	for i := range n {
		p[i] = ' '
	}
	e.left -= n
	e.taken.Add(int64(n))
	return n, nil
}

func floodOfBodies(t *testing.T, w *world, r *running) {
	client := w.rawClient(t, flooder, nil)
	var taken atomic.Int64
	const calls = 8
	var all sync.WaitGroup
	for range calls {
		all.Go(func() {
			req, err := http.NewRequest(http.MethodPut, "https://"+r.address+"/v1/graph", &endless{left: maxLargeBody, taken: &taken})
			must.NoError(t, err)
			resp, err := client.Do(req)
			if err != nil { // the connection was closed while the body was sent
				return
			}
			defer resp.Body.Close()
			must.Eq(t, http.StatusUnauthorized, resp.StatusCode)
		})
	}
	all.Wait()
	must.Less(t, calls*(4<<20), taken.Load()) // what fits into the buffers on the way

	// A body that is too large, of somebody who may call.
	_, err := r.operator.Diff(t.Context(), api.DiffRequest{})
	must.False(t, api.IsCode(err, api.CodeTooMany))
	status := w.call(t, w.rawClient(t, flooder, nil), r, "/v1/graph/diff", w.tokens.Operator, strings.NewReader(strings.Repeat(" ", maxBody+1)))
	must.Eq(t, http.StatusRequestEntityTooLarge, status)
	must.Eq(t, 1, r.refused(t, limitBody))
}

// call makes a call with a body and returns the status of the answer.
func (w *world) call(t *testing.T, client *http.Client, r *running, path, token string, body io.Reader) int {
	t.Helper()
	method := http.MethodPut
	if path == "/v1/graph/diff" {
		method = http.MethodPost
	}
	req, err := http.NewRequest(method, "https://"+r.address+path, body)
	must.NoError(t, err)
	req.Header.Set(api.TokenHeader, token)
	resp, err := client.Do(req)
	must.NoError(t, err)
	defer resp.Body.Close()
	if resp.StatusCode == http.StatusTooManyRequests {
		must.NotEq(t, "", resp.Header.Get("Retry-After"))
	}
	return resp.StatusCode
}

func floodOfStrangers(t *testing.T, w *world, r *running) {
	client := w.rawClient(t, flooder, nil)
	const calls = 3 * strangerBurst
	tooMany := 0
	for range calls {
		if w.call(t, client, r, "/v1/graph", "11111111-2222-3333-4444-555555555555", http.NoBody) == http.StatusTooManyRequests {
			tooMany++
		}
	}
	must.Positive(t, tooMany)
	must.Eq(t, tooMany, r.refused(t, limitStrangers))
	w.others(t, r)
	// Those of nodes of the same source, and those that need no token, are not among them.
	status, _, _ := get(t, w.rawClient(t, flooder, w.issue(t, "w1", time.Hour)), "https://"+r.address+"/v1/node/tasks?wait=1ms")
	must.Eq(t, http.StatusOK, status)
	for range 2 * strangerBurst {
		get(t, client, "https://"+r.address+"/v1/health")
	}
	must.Positive(t, r.refused(t, limitPublic))

	// The audit log has some of the refused calls, and one entry that counts the others.
	r.stop()
	entries, leftOut := 0, 0
	for _, e := range auditLines(t, auditFiles(t, r.dir)...) {
		if e.Actor != unknownActor {
			continue
		}
		if e.Action == summaryAction {
			must.Eq(t, flooder+"/32", e.Remote)
			must.Zero(t, leftOut)
			leftOut = e.LeftOut
			continue
		}
		entries++
	}
	must.Positive(t, leftOut)
	must.Eq(t, calls-tooMany, entries+leftOut)
	must.Eq(t, leftOut, r.refused(t, limitAudit))
	*r = *w.start(t, r.dir, &fakeScheduler{}, false)
}

func floodOfRegistrations(t *testing.T, w *world, r *running) {
	client := w.rawClient(t, flooder, w.issue(t, "w1", time.Hour))
	tooMany := 0
	for range 100 {
		if w.call(t, client, r, "/v1/node", "", strings.NewReader(`{"underlay":"10.1.0.11"}`)) == http.StatusTooManyRequests {
			tooMany++
		}
	}
	must.Positive(t, tooMany)
	must.Eq(t, tooMany, r.refused(t, limitRate))
}

func floodOfLongPolls(t *testing.T, w *world, r *running) {
	cert := w.issue(t, "w1", time.Hour)
	answers := make(chan int, 2*maxCalls)
	clients := []*http.Client{w.rawClient(t, flooder, cert), w.rawClient(t, flooder, cert)}
	for _, client := range clients { // each uses one connection for all of its calls
		status, _, _ := get(t, client, fmt.Sprintf("https://%s/v1/node/tasks?wait=1ms", r.address))
		must.Eq(t, http.StatusOK, status)
	}
	for _, client := range clients {
		for range maxCalls {
			go func() {
				resp, err := client.Get(fmt.Sprintf("https://%s/v1/node/tasks?wait=5s", r.address))
				if err != nil {
					answers <- 0
					return
				}
				resp.Body.Close()
				answers <- resp.StatusCode
			}()
		}
	}
	for range maxCalls { // those beyond the limit are answered at once, the others wait
		must.Eq(t, http.StatusTooManyRequests, <-answers)
	}
	w.others(t, r)
	for range maxCalls {
		must.Eq(t, http.StatusOK, <-answers)
	}
	must.Eq(t, maxCalls, r.refused(t, limitCalls))
}
