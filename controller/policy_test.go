// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package controller

import (
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	consulapi "github.com/hashicorp/consul/api"
	"github.com/shoenig/test/must"

	"github.com/sif-project/sif/api"
	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/internal/kvkey"
	"github.com/sif-project/sif/internal/trust/revision"
)

func TestPolicy(t *testing.T) {
	w := newWorld(t)
	t.Run("apply", func(t *testing.T) { testApply(t, w) })
	t.Run("bad graphs change nothing", func(t *testing.T) { testBadGraphs(t, w) })
	t.Run("concurrent applies lose nothing", func(t *testing.T) { testConcurrent(t, w) })
	t.Run("tampered pointer", func(t *testing.T) { testTampered(t, w) })
	t.Run("nulls", func(t *testing.T) { testNulls(t, w) })
	t.Run("altered object", func(t *testing.T) { testAlteredObject(t, w) })
	t.Run("leadership", func(t *testing.T) { testLeadership(t, w) })
}

// put sends a body as it is, past the client's types.
func (r *running) put(t *testing.T, conf *tls.Config, path, token, body string) (status int, reply string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPut, "https://"+r.address+path, strings.NewReader(body))
	must.NoError(t, err)
	req.Header.Set(api.TokenHeader, token)
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: conf, DisableKeepAlives: true}}
	resp, err := client.Do(req)
	must.NoError(t, err)
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	must.NoError(t, err)
	return resp.StatusCode, string(text)
}

// What JSON can express and the language cannot is refused with its place: an operator of one
// domain can neither publish what nobody can read, nor keep the controller from leading again.
func testNulls(t *testing.T, w *world) {
	c, ctx := w.fresh(t, nil), t.Context()
	must.NoError(t, func() error {
		_, err := c.operator.Apply(ctx, api.GraphRequest{Domains: domains(testDomain("app"))})
		return err
	}())
	const rules = `[{"protocol":"tcp","ports":["80"]}]`
	evil := func(externals, contract string) string {
		return `{"domains":{"evil":{"name":"evil","services":[{"name":"web","selectors":[]}],"externals":[` + externals + `],"contracts":[` + contract + `]}}}`
	}
	for name, body := range map[string]string{
		"null originator":          evil("", `{"name":"c","originators":[null,"evil/web"],"responders":["evil/web"],"rules":`+rules+`}`),
		"null responder":           evil("", `{"name":"c","originators":["evil/web"],"responders":[null],"rules":`+rules+`}`),
		"null prefix":              evil(`{"name":"x","prefixes":[null]}`, `{"name":"c","originators":["evil/x"],"responders":["evil/web"],"rules":`+rules+`}`),
		"null rule":                evil("", `{"name":"c","originators":["evil/web"],"responders":["evil/web"],"rules":[null]}`),
		"null contract":            evil("", `null`),
		"null domain":              `{"domains":{"evil":null}}`,
		"null guardrail":           `{"guardrails":[null]}`,
		"null denial":              `{"guardrails":[{"name":"g","deny":[null]}]}`,
		"null binding":             `{"bindings":[null]}`,
		"null scope":               `{"bindings":[{"domain":"app","nomad":[null],"nodes":[null]}]}`,
		"null prefix of a binding": `{"bindings":[{"domain":"app","outside":[{"prefixes":[null],"ports":[null]}]}]}`,
	} {
		status, reply := c.put(t, &tls.Config{RootCAs: c.cfg.Identity.Roots()}, "/v1/graph", w.tokens.Operator, body)
		must.Between(t, 400, status, 499, must.Sprint(name, reply))
	}
	reply, err := c.operator.Graph(ctx)
	must.NoError(t, err)
	must.Eq(t, 1, reply.Pointer.Sequence)
	c.stop()
	c = w.start(t, c.dir, nil, false)
	_, err = c.operator.Apply(ctx, api.GraphRequest{Domains: domains(testDomain("other"))})
	must.NoError(t, err) // it leads again
}

func testApply(t *testing.T, w *world) {
	c, ctx := w.fresh(t, nil), t.Context()
	empty, err := c.operator.Graph(ctx)
	must.NoError(t, err)
	must.Eq(t, 0, empty.Pointer.Sequence)

	a := testDomain("app")
	reply, err := c.operator.Apply(ctx, api.GraphRequest{Domains: domains(a), Message: "first"})
	must.NoError(t, err)
	must.True(t, reply.Changed)
	must.Eq(t, 1, reply.Pointer.Sequence)

	signed, _, err := revision.ReadCurrent(ctx, w.consul)
	must.NoError(t, err)
	var pointer fabric.Pointer
	must.NoError(t, c.cfg.Identity.Keys().Verify(signed, fabric.KindPointer, &pointer))
	must.Eq(t, reply.Pointer, pointer)
	must.Eq(t, fabric.Compile(&fabric.Graph{Domains: domains(a)}).Root, pointer.Root)

	reply, err = c.operator.Apply(ctx, api.GraphRequest{Domains: domains(a)})
	must.NoError(t, err)
	must.False(t, reply.Changed)
	must.Eq(t, 1, reply.Pointer.Sequence)

	seen := uint64(0)
	_, err = c.operator.Apply(ctx, api.GraphRequest{Domains: domains(testDomain("other")), CAS: &seen})
	code(t, api.CodeConflict, err)
	seen = 1
	reply, err = c.operator.Apply(ctx, api.GraphRequest{Domains: domains(testDomain("other")), CAS: &seen})
	must.NoError(t, err)
	must.Eq(t, pointer.Root, reply.Pointer.Previous)
	must.MapLen(t, 2, reply.Graph.Domains)

	_, err = c.operator.DeleteDomain(ctx, "nothing")
	code(t, api.CodeNotFound, err)
	reply, err = c.operator.DeleteDomain(ctx, "other")
	must.NoError(t, err)
	must.Eq(t, 3, reply.Pointer.Sequence)
	must.Eq(t, pointer.Root, reply.Pointer.Root)

	first := auditLines(t, filepath.Join(c.dir, auditFile))[0]
	must.Eq(t, "graph.apply", first.Action)
	must.Eq(t, "first", first.Message)
	must.Eq(t, 1, first.Revision)
	must.StrHasPrefix(t, "token ", first.Actor)
}

func testBadGraphs(t *testing.T, w *world) {
	c, ctx := w.fresh(t, nil), t.Context()
	bad := testDomain("app")
	bad.Contracts[0].Responders[0].Name = "svx"
	bad.Contracts[0].Pos = fabric.Position{File: "app.sif.hcl", Line: 7, Column: 3}
	_, err := c.operator.Apply(ctx, api.GraphRequest{Domains: domains(bad)})
	e := code(t, api.CodeProblems, err)
	must.Eq(t, 422, e.Status)
	must.Len(t, 1, e.Details.Problems)
	must.StrContains(t, err.Error(), `app.sif.hcl:7:3: contract "frontend" names an unknown service "svx" among its responders; did you mean "svc"?`)

	problems, err := c.operator.Validate(ctx, api.GraphRequest{Domains: domains(bad)})
	must.NoError(t, err)
	must.Eq(t, e.Details.Problems, problems)

	_, err = c.operator.Apply(ctx, api.GraphRequest{})
	code(t, api.CodeInvalid, err)
	_, err = c.operator.Apply(ctx, api.GraphRequest{Domains: map[string]*fabric.Domain{"x": testDomain("y")}})
	code(t, api.CodeInvalid, err)

	_, _, err = revision.ReadCurrent(ctx, w.consul)
	must.ErrorIs(t, err, revision.ErrNoRevision)
}

// Two controllers that both consider themselves the leader, each with several applies at once.
func testConcurrent(t *testing.T, w *world) {
	c, ctx := w.fresh(t, nil), t.Context()
	cfg := c.cfg
	cfg.DataDir = t.TempDir()
	second := newPolicy(cfg)
	must.NoError(t, second.load(ctx))
	const each = 12
	var wg sync.WaitGroup
	for i := range each {
		wg.Go(func() {
			_, err := c.operator.Apply(ctx, api.GraphRequest{Domains: domains(testDomain(fmt.Sprintf("a%d", i)))})
			if err != nil {
				t.Error(err)
			}
		})
		wg.Go(func() {
			_, err := second.apply(ctx, api.GraphRequest{Domains: domains(testDomain(fmt.Sprintf("b%d", i)))}, "", "")
			if err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	eventually(t, func() error {
		g, err := c.operator.Graph(ctx)
		if err != nil {
			return err
		}
		if g.Pointer.Sequence != 2*each || len(g.Graph.Domains) != 2*each {
			return fmt.Errorf("sequence %d with %d domains, want %d", g.Pointer.Sequence, len(g.Graph.Domains), 2*each)
		}
		return nil
	})
}

func testTampered(t *testing.T, w *world) {
	c, ctx := w.fresh(t, nil), t.Context()
	apply := func(name string) error {
		_, err := c.operator.Apply(ctx, api.GraphRequest{Domains: domains(testDomain(name))})
		return err
	}
	put := func(value []byte) {
		_, err := w.consul.KV().Put(&consulapi.KVPair{Key: kvkey.Current, Value: value}, nil)
		must.NoError(t, err)
	}
	must.NoError(t, apply("one"))
	older, _, err := w.consul.KV().Get(kvkey.Current, nil)
	must.NoError(t, err)
	must.NoError(t, apply("two"))
	newest, _, err := w.consul.KV().Get(kvkey.Current, nil)
	must.NoError(t, err)

	forged := func(edit func(*fabric.Pointer)) []byte {
		var s fabric.Signed
		must.NoError(t, json.Unmarshal(newest.Value, &s))
		var p fabric.Pointer
		must.NoError(t, json.Unmarshal(s.Payload, &p))
		edit(&p)
		s.Payload, err = json.Marshal(p)
		must.NoError(t, err)
		value, err := json.Marshal(s)
		must.NoError(t, err)
		return value
	}
	refused := func(why string) {
		t.Helper()
		e := code(t, api.CodeRevision, apply("three"))
		must.StrContains(t, e.Message, why)
		must.StrContains(t, e.Message, "consul kv put sif/v1/current @"+filepath.Join(c.dir, "revision/pointer.json"))
		status, err := c.operator.Status(ctx)
		must.NoError(t, err)
		must.Len(t, 1, status.Controller.Degraded)
		must.StrContains(t, status.Controller.Degraded[0], why)
		must.Eq(t, 2, status.Pointer.Sequence)
	}
	put(older.Value)
	refused("it has sequence 1, but this controller has seen 2")
	put([]byte("{"))
	refused("decode")
	put(forged(func(p *fabric.Pointer) { p.Root[0] ^= 1 }))
	refused("does not verify")
	put(forged(func(p *fabric.Pointer) { p.Sequence = 7 }))
	refused("does not verify")
	_, err = w.consul.KV().Delete(kvkey.Current, nil)
	must.NoError(t, err)
	refused("it was deleted, but this controller has seen sequence 2")

	// The controller knows the sequence after a restart.
	put(older.Value)
	c.stop()
	c = w.start(t, c.dir, nil, false)
	refused("it has sequence 1, but this controller has seen 2")

	// The documented recovery.
	kept, err := os.ReadFile(filepath.Join(c.dir, "revision", "pointer.json"))
	must.NoError(t, err)
	must.Eq(t, string(newest.Value), string(kept))
	put(kept)
	must.NoError(t, apply("three"))
	status, err := c.operator.Status(ctx)
	must.NoError(t, err)
	must.SliceEmpty(t, status.Controller.Degraded)
	must.Eq(t, 3, status.Pointer.Sequence)
	g, err := c.operator.Graph(ctx)
	must.NoError(t, err)
	must.MapLen(t, 3, g.Graph.Domains)

	// A controller without a stored revision reads the graph from Consul.
	c.stop()
	c = w.start(t, t.TempDir(), nil, false)
	g2, err := c.operator.Graph(ctx)
	must.NoError(t, err)
	must.Eq(t, g, g2)
}

func testAlteredObject(t *testing.T, w *world) {
	c, ctx := w.fresh(t, nil), t.Context()
	d := testDomain("app")
	reply, err := c.operator.Apply(ctx, api.GraphRequest{Domains: domains(d)})
	must.NoError(t, err)
	var root fabric.Root
	must.NoError(t, revision.ReadObject(ctx, w.consul, reply.Pointer.Root, &root))
	var index fabric.DomainIndex
	must.NoError(t, revision.ReadObject(ctx, w.consul, root.Domains, &index))
	key := kvkey.Object(index["app"]).String()
	_, err = w.consul.KV().Put(&consulapi.KVPair{Key: key, Value: []byte(`{"name":"app"}`)}, nil)
	must.NoError(t, err)

	// A controller without a stored revision refuses the altered object ...
	c.stop()
	other := w.start(t, t.TempDir(), nil, false)
	_, err = other.operator.Apply(ctx, api.GraphRequest{Domains: domains(testDomain("new"))})
	e := code(t, api.CodeRevision, err)
	must.StrContains(t, e.Message, "it was altered")
	other.stop()

	// ... and one that has it writes it again when the graph is applied.
	c = w.start(t, c.dir, nil, false)
	reply, err = c.operator.Apply(ctx, api.GraphRequest{Domains: domains(d)})
	must.NoError(t, err)
	must.False(t, reply.Changed)
	must.NoError(t, revision.ReadObject(ctx, w.consul, index["app"], &fabric.Domain{}))
}

func testLeadership(t *testing.T, w *world) {
	first, ctx := w.fresh(t, nil), t.Context()
	second := w.start(t, t.TempDir(), nil, true)
	_, err := second.operator.Apply(ctx, api.GraphRequest{Domains: domains(testDomain("app"))})
	e := code(t, api.CodeNotLeader, err)
	must.Eq(t, 503, e.Status)
	must.Eq(t, first.address, e.Details.Leader)
	_, err = first.operator.Apply(ctx, api.GraphRequest{Domains: domains(testDomain("app"))})
	must.NoError(t, err)
	standby, err := second.operator.Graph(ctx) // every controller answers reads
	must.NoError(t, err)
	must.Eq(t, 1, standby.Pointer.Sequence)
	_, err = New(first.cfg)
	must.ErrorContains(t, err, "in use by another controller")

	first.stop()
	eventually(t, func() error {
		_, err := second.operator.Apply(ctx, api.GraphRequest{Domains: domains(testDomain("after"))})
		return err
	})

	// The session of a killed controller still holds the lock. The next controller with the same
	// data directory does not wait for its expiry.
	second.stop()
	left, _, err := w.consul.Session().CreateNoChecks(&consulapi.SessionEntry{TTL: "600s", LockDelay: time.Millisecond}, nil)
	must.NoError(t, err)
	lock, err := w.consul.LockOpts(&consulapi.LockOptions{Key: kvkey.Leader, Session: left, Value: []byte(`{"address":"dead"}`)})
	must.NoError(t, err)
	_, err = lock.Lock(nil)
	must.NoError(t, err)
	must.NoError(t, os.WriteFile(filepath.Join(second.dir, "session"), []byte(left), 0o600))
	begin := time.Now()
	w.start(t, second.dir, nil, false)
	must.Less(t, 8*time.Second, time.Since(begin))
}
