// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package command

import (
	"encoding/json"
	"encoding/pem"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/sif-project/sif/api"
	"github.com/sif-project/sif/fabric"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"sif": func() { os.Exit(Run(os.Args[1:])) }})
}

// TestScripts runs the command line against a server that keeps a graph as the
// controller's API promises.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir: "testdata/script", Setup: withController, RequireUniqueNames: true, RequireExplicitExec: true,
		Cmds: map[string]func(*testscript.TestScript, bool, []string){"exits": exits},
	})
}

// exits runs a program and checks its exit code: exits 2 sif job run x
func exits(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: exits code program [args...]")
	}
	err := ts.Exec(args[1], args[2:]...)
	code := "0"
	if exit, ok := err.(interface{ ExitCode() int }); ok {
		code = strconv.Itoa(exit.ExitCode())
	} else if err != nil {
		ts.Fatalf("%v", err)
	}
	if code != args[0] {
		ts.Fatalf("exit code %s, not %s", code, args[0])
	}
}

const testToken = "s3cret"

// withController starts a server of the graph API for one script and points
// the script's environment to it.
func withController(env *testscript.Env) error {
	server := httptest.NewTLSServer(&graphServer{graph: &fabric.Graph{Domains: map[string]*fabric.Domain{}}})
	env.Defer(server.Close)
	ca := filepath.Join(env.WorkDir, "ca.pem")
	block := &pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw}
	if err := os.WriteFile(ca, pem.EncodeToMemory(block), 0o600); err != nil {
		return err
	}
	env.Setenv(api.EnvAddress, server.URL)
	env.Setenv(api.EnvCACert, ca)
	env.Setenv(api.EnvToken, testToken)
	return nil
}

// graphServer is the part of the controller's API that the graph commands use.
type graphServer struct {
	mu      sync.Mutex
	graph   *fabric.Graph
	pointer fabric.Pointer
	past    []past // by sequence, less one
}

type past struct {
	change fabric.Change
	graph  *fabric.Graph
}

func (s *graphServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	reply, err := s.answer(r)
	if err != nil {
		w.WriteHeader(err.Status)
		_ = json.NewEncoder(w).Encode(err)
		return
	}
	_ = json.NewEncoder(w).Encode(reply)
}

func (s *graphServer) answer(r *http.Request) (any, *api.Error) {
	if r.Header.Get(api.TokenHeader) != testToken {
		return nil, api.Errorf(http.StatusForbidden, api.CodeForbidden, "the token may not do this")
	}
	var req struct {
		api.GraphRequest
		From, To, Revision uint64
		DryRun             bool
	}
	if r.Method != http.MethodGet {
		if err := json.NewDecoder(r.Body).Decode(&req); err != nil {
			return nil, api.Errorf(http.StatusBadRequest, api.CodeInvalid, "%s", err)
		}
	}
	switch r.Method + " " + r.URL.Path {
	case "GET /v1/graph":
		if text := r.URL.Query().Get("revision"); text != "" {
			n, _ := strconv.ParseUint(text, 10, 64)
			old, err := s.at(n)
			return api.GraphReply{Pointer: s.pointer, Graph: old.graph, Change: &old.change}, err
		}
		return api.GraphReply{Pointer: s.pointer, Graph: s.graph, Waiting: s.graph.Waiting()}, nil
	case "GET /v1/history":
		h := api.History{Pointer: s.pointer}
		for _, p := range slices.Backward(s.past) {
			h.Changes = append(h.Changes, p.change)
		}
		return h, nil
	case "POST /v1/graph/plan":
		next := s.merged(req.GraphRequest)
		p := api.Plan{Format: api.PlanFormat, Sequence: s.pointer.Sequence, Base: s.pointer.Root, Root: fabric.Compile(next).Root, Request: req.GraphRequest}
		p.Changed, p.Delta, p.Problems = p.Root != p.Base, fabric.Compare(s.graph, next, time.Now()), next.Check(time.Now())
		p.Seal()
		return p, nil
	case "POST /v1/graph/diff":
		from, err := s.at(req.From)
		if err != nil {
			return nil, err
		}
		to, err := s.at(req.To)
		return api.DiffReply{From: from.change.Sequence, To: to.change.Sequence, Delta: fabric.Compare(from.graph, to.graph, time.Now())}, err
	case "POST /v1/graph/rollback":
		old, err := s.at(req.Revision)
		if err != nil {
			return nil, err
		}
		reply := api.RollbackReply{Pointer: s.pointer, Changed: true, Delta: fabric.Compare(s.graph, old.graph, time.Now())}
		if !req.DryRun {
			s.hold(old.graph, fabric.Change{Rollback: req.Revision, Message: req.Message})
			reply.Pointer = s.pointer
		}
		return reply, nil
	case "PUT /v1/graph":
		return s.apply(req.GraphRequest)
	}
	return nil, api.Errorf(http.StatusNotFound, api.CodeNotFound, "no such path")
}

func (s *graphServer) at(sequence uint64) (past, *api.Error) {
	if sequence == 0 {
		sequence = s.pointer.Sequence
	}
	if sequence > uint64(len(s.past)) {
		return past{}, api.Errorf(http.StatusNotFound, api.CodeNotFound, "revision %d is not kept", sequence)
	}
	return s.past[sequence-1], nil
}

func (s *graphServer) merged(req api.GraphRequest) *fabric.Graph {
	next := &fabric.Graph{Domains: maps.Clone(s.graph.Domains), Guardrails: append(slices.Clone(s.graph.Guardrails), req.Guardrails...)}
	maps.Copy(next.Domains, req.Domains)
	for _, name := range req.RemoveDomains {
		delete(next.Domains, name)
	}
	return next
}

func (s *graphServer) hold(g *fabric.Graph, change fabric.Change) {
	s.graph = g
	s.pointer.Sequence++
	s.pointer.Previous, s.pointer.Root = s.pointer.Root, fabric.Compile(g).Root
	change.Sequence, change.Root, change.Author = s.pointer.Sequence, s.pointer.Root, "token t1 (anna)"
	change.Time = time.Date(2026, 11, 23, 8, 0, int(change.Sequence), 0, time.UTC)
	s.past = append(s.past, past{change, g})
}

func (s *graphServer) apply(req api.GraphRequest) (any, *api.Error) {
	if req.CAS != nil && *req.CAS != s.pointer.Sequence {
		return nil, api.Errorf(http.StatusConflict, api.CodeConflict, "the graph has sequence %d, not %d", s.pointer.Sequence, *req.CAS)
	}
	if d := req.Domains["refused"]; d != nil {
		e := api.Errorf(http.StatusUnprocessableEntity, api.CodeProblems, "the graph has 1 problem")
		e.Details.Problems = []fabric.Problem{{Pos: d.Pos, Summary: "domain \"refused\" may not be declared here", Remedy: "Ask its owner."}}
		return nil, e
	}
	next := s.merged(req)
	changed := fabric.Compile(next).Root != s.pointer.Root
	if changed {
		s.hold(next, fabric.Change{Message: req.Message, Files: req.Files})
	}
	return api.GraphReply{Pointer: s.pointer, Changed: changed, Waiting: s.graph.Waiting()}, nil
}
