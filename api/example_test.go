// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package api_test

import (
	"context"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"log"
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/sif-project/sif/api"
	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/internal/trust/identity/identitytest"
)

func ExampleClient_Apply() {
	client, err := api.NewClient(api.DefaultConfig()) // SIF_HTTP_ADDR, SIF_TOKEN, SIF_CACERT
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()

	web, db := fabric.Ref{Domain: "shop", Name: "web"}, fabric.Ref{Domain: "shop", Name: "db"}
	shop := &fabric.Domain{
		Name: "shop",
		Services: []fabric.Service{
			{Name: "web", Selectors: []fabric.Selector{{Kind: fabric.SelectNomad, Namespace: "default", Job: "shop", Group: "web"}}},
			{Name: "db", Selectors: []fabric.Selector{{Kind: fabric.SelectNomad, Namespace: "default", Job: "shop", Group: "db"}}},
		},
		Contracts: []fabric.Contract{{
			Name: "sql", Originators: []fabric.Ref{web}, Responders: []fabric.Ref{db},
			Rules: []fabric.Rule{{Protocol: fabric.TCP, Ports: []fabric.PortRange{{From: 5432, To: 5432}}}},
		}},
	}
	reply, err := client.Apply(context.Background(), api.GraphRequest{
		Domains: map[string]*fabric.Domain{"shop": shop}, // other domains stay as they are
		Message: "web needs the database",
	})
	if api.IsCode(err, api.CodeProblems) {
		log.Fatal("the graph has problems: ", err)
	}
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("revision %d, changed: %t\n", reply.Pointer.Sequence, reply.Changed)
	// Output: revision 8, changed: true
}

// A plan can be shown, and kept in a file, before it is applied. Applying it makes exactly the
// graph that was shown, or fails with CodeConflict if the graph was changed since.
func ExampleClient_Plan() {
	client, err := api.NewClient(api.DefaultConfig())
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()

	plan, err := client.Plan(context.Background(), api.GraphRequest{RemoveDomains: []string{"shop"}})
	if err != nil {
		log.Fatal(err)
	}
	for _, p := range plan.Problems {
		fmt.Println("cannot be applied:", p)
	}
	for _, c := range plan.Delta.Reach {
		fmt.Printf("%s to %s: gained %t, rules %v\n", c.From, c.To, c.Gains(), c.Rules)
	}
	reply, err := client.Apply(context.Background(), plan.Apply())
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println("revision", reply.Pointer.Sequence)
	// Output:
	// shop/web to shop/db: gained false, rules [tcp/5432]
	// revision 8
}

func ExampleClient_Explain() {
	client, err := api.NewClient(api.DefaultConfig())
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()

	answer, err := client.Explain(context.Background(), api.Question{
		From: "shop/web", To: "shop/db", Protocol: fabric.TCP, Port: 5432,
	})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println("allowed:", answer.Allowed, "enforced as declared:", answer.Agree)
	for _, flow := range answer.Flows {
		for _, reason := range flow.Declared.Reasons {
			fmt.Println(reason)
		}
		for _, layer := range flow.Layers {
			fmt.Println(layer)
		}
	}
	// Output:
	// allowed: true enforced as declared: true
	// contract shop/sql (shop.sif.hcl:12:12): allows it
	// z1/w1 ebpf at the sender: passes: contract shop/sql
	// z1/w2 ebpf at the receiver: passes: contract shop/sql
}

// A blocking query returns when the graph is newer than the index of the last answer, or when its
// wait time is over, with the same index then. After an error, wait before asking again.
func ExampleClient_WatchGraph() {
	client, err := api.NewClient(api.DefaultConfig())
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()

	ctx, cancel := context.WithTimeout(context.Background(), time.Hour)
	defer cancel()
	query := api.Query{Wait: 5 * time.Minute} // without an index the first answer comes at once
	for ctx.Err() == nil {
		reply, index, err := client.WatchGraph(ctx, query)
		if err != nil {
			log.Fatal(err)
		}
		if index == query.Index {
			continue // nothing has changed
		}
		query.Index = index
		fmt.Println("revision", reply.Pointer.Sequence)
		if reply.Pointer.Sequence == 8 {
			return
		}
	}
	// Output:
	// revision 7
	// revision 8
}

// TestMain serves the examples, so that they can use the environment as a program does.
func TestMain(m *testing.M) {
	os.Exit(func() int {
		server := identitytest.NewCA(fatal{}).Controller(controller())
		defer server.Close()
		dir, err := os.MkdirTemp("", "sif-api")
		if err != nil {
			log.Fatal(err)
		}
		defer os.RemoveAll(dir)
		ca := filepath.Join(dir, "ca.pem")
		if err := os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw}), 0o600); err != nil {
			log.Fatal(err)
		}
		os.Setenv(api.EnvAddress, server.URL)
		os.Setenv(api.EnvCACert, ca)
		return m.Run()
	}())
}

// fatal stands for the test that TestMain does not have.
type fatal struct{ testing.TB }

func (fatal) Helper()           {}
func (fatal) Fatal(args ...any) { log.Fatal(args...) }

// controller answers the calls of the examples. The graph in force is revision 7; it stores no
// change.
func controller() http.Handler {
	web, db, sql := fabric.Ref{Domain: "shop", Name: "web"}, fabric.Ref{Domain: "shop", Name: "db"}, fabric.Ref{Domain: "shop", Name: "sql"}
	graph := &fabric.Graph{Domains: map[string]*fabric.Domain{"shop": {
		Name: "shop", Services: []fabric.Service{{Name: "web"}, {Name: "db"}},
		Contracts: []fabric.Contract{{Name: "sql", Originators: []fabric.Ref{web}, Responders: []fabric.Ref{db},
			Rules: []fabric.Rule{{Protocol: fabric.TCP, Ports: []fabric.PortRange{{From: 5432, To: 5432}}}}}},
	}}}
	reply := func(w http.ResponseWriter, v any) {
		if err := json.NewEncoder(w).Encode(v); err != nil {
			log.Print(err)
		}
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/graph", func(w http.ResponseWriter, r *http.Request) {
		sequence, index := uint64(7), "40"
		if r.URL.Query().Get("index") == index { // a change arrives while the query blocks
			sequence, index = 8, "41"
		}
		w.Header().Set(api.IndexHeader, index)
		reply(w, api.GraphReply{Pointer: fabric.Pointer{Sequence: sequence}, Graph: graph})
	})
	mux.HandleFunc("PUT /v1/graph", func(w http.ResponseWriter, _ *http.Request) {
		reply(w, api.GraphReply{Pointer: fabric.Pointer{Sequence: 8}, Changed: true})
	})
	mux.HandleFunc("POST /v1/graph/plan", func(w http.ResponseWriter, r *http.Request) {
		plan := api.Plan{Format: api.PlanFormat, Sequence: 7, Changed: true, Delta: fabric.Compare(graph, &fabric.Graph{}, time.Now())}
		if err := json.NewDecoder(r.Body).Decode(&plan.Request); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		plan.Seal()
		reply(w, plan)
	})
	mux.HandleFunc("GET /v1/explain", func(w http.ResponseWriter, _ *http.Request) {
		layer := func(node, place string) api.ExplainedLayer {
			return api.ExplainedLayer{Node: "z1/" + node, Layer: api.LayerEBPF, Place: place, Allowed: true, Why: "contract shop/sql"}
		}
		reply(w, api.Explanation{Protocol: fabric.TCP, Port: 5432, Allowed: true, Agree: true, Flows: []api.ExplainedFlow{{
			From: api.Party{Service: web}, To: api.Party{Service: db},
			Declared: api.Declared{Allowed: true, Contract: sql, Reasons: []api.Reason{
				{Contract: sql, Pos: fabric.Position{File: "shop.sif.hcl", Line: 12, Column: 12}, Why: "allows it"},
			}},
			Layers: []api.ExplainedLayer{layer("w1", "sender"), layer("w2", "receiver")},
		}}})
	})
	return mux
}
