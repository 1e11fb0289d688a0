// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

// Command watchers measures what a change of the graph costs with many nodes. It publishes a large
// graph to a Consul server of its own and starts many watchers, each with services and a connection
// of its own. Then it changes one contract at a time, and reports how long it takes until the last
// watcher has verified its documents, and what that costs Consul.
//
//	go run ./e2e/bench/watchers -consul $(which consul) [-watchers 1000] [-json]
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"runtime"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"
)

type options struct {
	consul                       string
	data, nodes                  string
	watchers, services, contract int
	interests, changes           int
	idle                         time.Duration
}

func main() {
	var o options
	flag.StringVar(&o.consul, "consul", "consul", "Consul's binary")
	flag.StringVar(&o.data, "data", os.TempDir(), "directory of Consul's data, on a disk")
	flag.StringVar(&o.nodes, "nodes", "/dev/shm", "directory of the nodes' state; not on Consul's disk, because real nodes have disks of their own")
	flag.IntVar(&o.watchers, "watchers", 1000, "number of nodes that watch the graph")
	flag.IntVar(&o.services, "services", 10_000, "services of the graph")
	flag.IntVar(&o.contract, "contracts", 50_000, "contracts of the graph")
	flag.IntVar(&o.interests, "interests", 10, "services that each node hosts")
	flag.IntVar(&o.changes, "changes", 20, "how many times one contract is changed")
	flag.DurationVar(&o.idle, "idle", 20*time.Second, "how long to measure without changes")
	asJSON := flag.Bool("json", false, "print JSON instead of a table")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	report, err := run(ctx, o)
	if err == nil && *asJSON {
		encoder := json.NewEncoder(os.Stdout)
		encoder.SetIndent("", "  ")
		err = encoder.Encode(report)
	} else if err == nil {
		report.print()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "watchers:", err)
		os.Exit(1)
	}
}

// Report contains the results of one run. Times are in milliseconds.
type Report struct {
	Date      time.Time `json:"date"`
	Machine   string    `json:"machine"`
	Load      string    `json:"load"`  // before the run
	Data      string    `json:"data"`  // directory of Consul's data
	Nodes     string    `json:"nodes"` // directory of the nodes' state
	Watchers  int       `json:"watchers"`
	Interests int       `json:"interests"` // of each watcher
	Services  int       `json:"services"`
	Contracts int       `json:"contracts"`
	Changes   int       `json:"changes"`

	Objects    int     `json:"objects"`    // objects of the first revision
	FirstWrite float64 `json:"firstWrite"` // to write them all
	Join       float64 `json:"join"`       // until every watcher had its first documents
	JoinBytes  float64 `json:"joinBytes"`  // that each watcher read for that

	Publish Spread  `json:"publish"` // to write a change
	Keys    float64 `json:"keys"`    // written per change, on average
	All     Spread  `json:"all"`     // from the return of Publish until a watcher has switched
	Touched Spread  `json:"touched"` // the same, for watchers whose documents changed
	Last    Spread  `json:"last"`    // until the last watcher has switched, per change

	TouchedWatchers float64 `json:"touchedWatchers"` // per change, on average
	// What a watcher with a changed service reads because of a change, and what a watcher without
	// one reads.
	ReadTouched   Reads `json:"readTouched"`
	ReadUntouched Reads `json:"readUntouched"`

	ConsulChanging Cost `json:"consulChanging"`
	ConsulIdle     Cost `json:"consulIdle"`
	// ByChange is the processor time that a change costs Consul in addition to idle time, in
	// milliseconds of one core.
	ByChange float64 `json:"byChange"`
}

// Spread contains percentiles of times in milliseconds.
type Spread struct {
	P50 float64 `json:"p50"`
	P99 float64 `json:"p99"`
	Max float64 `json:"max"`
}

// Reads are what one watcher reads within a second of a change, on average.
type Reads struct {
	Objects float64 `json:"objects"` // requests for objects
	Bytes   float64 `json:"bytes"`   // in total, including the pointer
}

// Cost is what the server used.
type Cost struct {
	CPU      float64 `json:"cpu"`      // of one core; 1 is a whole core
	Resident float64 `json:"resident"` // MiB at the end
	Peak     float64 `json:"peak"`     // MiB since its start
	Requests float64 `json:"requests"` // a second
}

func newReport(o options) *Report {
	load, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		load = []byte("unknown")
	}
	kernel, err := os.ReadFile("/proc/sys/kernel/osrelease")
	if err != nil {
		kernel = []byte("unknown")
	}
	return &Report{
		Date:    time.Now().UTC().Truncate(time.Second),
		Machine: fmt.Sprintf("%d cores, Linux %s, %s", runtime.NumCPU(), strings.TrimSpace(string(kernel)), runtime.Version()),
		Load:    strings.Join(strings.Fields(string(load))[:min(3, len(strings.Fields(string(load))))], " "),
		Data:    o.data, Nodes: o.nodes,
		Watchers: o.watchers, Interests: o.interests, Services: o.services, Contracts: o.contract, Changes: o.changes,
	}
}

func (r *Report) print() {
	fmt.Printf("%s, %s, load before %s\n", r.Date.Format(time.RFC3339), r.Machine, r.Load)
	fmt.Printf("Consul's data in %s, the nodes' state in %s\n", r.Data, r.Nodes)
	fmt.Printf("%d watchers of %d services each; %d services, %d contracts; %d changes of one contract\n\n",
		r.Watchers, r.Interests, r.Services, r.Contracts, r.Changes)
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintf(w, "first revision\t%d objects written in %.0f ms\n", r.Objects, r.FirstWrite)
	fmt.Fprintf(w, "every watcher has joined\t%.0f ms\t%.1f KiB read by each\n", r.Join, r.JoinBytes/1024)
	spread := func(name string, s Spread) {
		fmt.Fprintf(w, "%s\tp50 %.1f ms\tp99 %.1f ms\tmax %.1f ms\n", name, s.P50, s.P99, s.Max)
	}
	spread(fmt.Sprintf("write a change (%.1f keys)", r.Keys), r.Publish)
	spread("published to switched, every watcher", r.All)
	spread(fmt.Sprintf("the same, watchers with touched services (%.1f)", r.TouchedWatchers), r.Touched)
	spread("published to switched, the last watcher", r.Last)
	reads := func(who string, r Reads) {
		fmt.Fprintf(w, "read by %s\t%.2f requests for objects\t%.1f KiB\n", who, r.Objects, r.Bytes/1024)
	}
	reads("a touched watcher", r.ReadTouched)
	reads("another watcher", r.ReadUntouched)
	cost := func(name string, c Cost) {
		fmt.Fprintf(w, "%s\t%.2f cores\t%.0f requests/s\t%.0f MiB resident\t%.0f MiB peak\n", name, c.CPU, c.Requests, c.Resident, c.Peak)
	}
	cost("Consul while changing", r.ConsulChanging)
	fmt.Fprintf(w, "Consul's time by change, above idle\t%.0f ms of one core\n", r.ByChange)
	cost("Consul without changes", r.ConsulIdle)
	w.Flush()
}
