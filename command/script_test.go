// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package command

import (
	"encoding/json"
	"encoding/pem"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"testing"

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

func (s *graphServer) answer(r *http.Request) (*api.GraphReply, *api.Error) {
	switch {
	case r.Header.Get(api.TokenHeader) != testToken:
		return nil, api.Errorf(http.StatusForbidden, api.CodeForbidden, "the token may not do this")
	case r.Method == http.MethodGet && r.URL.Path == "/v1/graph":
		return &api.GraphReply{Pointer: s.pointer, Graph: s.graph}, nil
	case r.Method != http.MethodPut || r.URL.Path != "/v1/graph":
		return nil, api.Errorf(http.StatusNotFound, api.CodeNotFound, "no such path")
	}
	var req api.GraphRequest
	if err := json.NewDecoder(r.Body).Decode(&req); err != nil {
		return nil, api.Errorf(http.StatusBadRequest, api.CodeInvalid, "%s", err)
	}
	if req.CAS != nil && *req.CAS != s.pointer.Sequence {
		return nil, api.Errorf(http.StatusConflict, api.CodeConflict, "the graph has sequence %d, not %d", s.pointer.Sequence, *req.CAS)
	}
	if d := req.Domains["refused"]; d != nil {
		e := api.Errorf(http.StatusUnprocessableEntity, api.CodeProblems, "the graph has 1 problem")
		e.Details.Problems = []fabric.Problem{{Pos: d.Pos, Summary: "domain \"refused\" may not be declared here", Remedy: "Ask its owner."}}
		return nil, e
	}
	for name, d := range req.Domains {
		s.graph.Domains[name] = d
	}
	root := fabric.Compile(s.graph).Root
	changed := root != s.pointer.Root
	if changed {
		s.pointer.Sequence++
		s.pointer.Previous, s.pointer.Root = s.pointer.Root, root
	}
	return &api.GraphReply{Pointer: s.pointer, Changed: changed}, nil
}
