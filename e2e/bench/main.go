// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

// Command bench measures a whole fabric against its alternatives, in one run on one machine, in a
// lab of its own that it brings up and removes. It needs root and what `make setup build` makes.
//
// It knows the fabric's targets and measures them from outside: with TCP sockets in workloads'
// namespaces, at the CNI socket, in daemons' logs. It must not reach into a daemon's memory. It
// alternates between both sides of each ratio, because ratios mean more than absolute figures.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"github.com/sif-project/sif/e2e/lab"
	model "github.com/sif-project/sif/fabric"
)

// onlySizes is the measurement that is made only if it is named.
const onlySizes = "sizes"

func main() {
	if core := os.Getenv(spinVariable); core != "" {
		spin(core)
		return
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	if err := run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context) (err error) {
	name := flag.String("lab", "bench", "name of the lab")
	bin := flag.String("bin", "bin", "directory of sif, sif-cni and sif-demo")
	nebula := flag.String("nebula", "", "directory of nebula and nebula-cert; without it the comparison with Nebula is left out")
	asJSON := flag.Bool("json", false, "print JSON instead of a table")
	only := flag.String("only", "", "measure only this: nodes, zones, egress, names, graph, attach or sizes; sizes, which takes four minutes, is left out otherwise")
	attach := flag.String("bpf-attach", "", "bpf_attach of the agent whose endpoints are attached: auto (default), tcx or clsact")
	keep := flag.Bool("keep", false, "leave the lab up for inspection; a run without -keep removes it")
	logs := flag.String("logs", "", "directory to copy the daemons' logs to")
	flag.Parse()
	// Daemons and nebula-cert run in directories of their own, so their paths must be absolute.
	if *bin, err = filepath.Abs(*bin); err != nil {
		return err
	}
	if *nebula != "" {
		if *nebula, err = filepath.Abs(*nebula); err != nil {
			return err
		}
	}
	began := time.Now()
	r := newReport()
	var f *fabric
	// The lab must be removed even if ctx has ended or bringUp failed half-way.
	defer func() {
		down, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Minute)
		defer cancel()
		if *logs != "" && ctx.Err() == nil {
			if dir := lab.LogDir(*name); exists(dir) {
				err = errors.Join(err, os.CopyFS(*logs, os.DirFS(dir)))
			}
		}
		if !*keep {
			err = errors.Join(err, lab.Down(down, *name), f.removeNamespaces())
		}
	}()
	f, err = bringUp(ctx, lab.Options{Name: *name, Bin: *bin, Out: os.Stderr}, func(t *lab.Topology) {
		t.Node(clientNode).BPFAttach = *attach
		if *only == onlySizes {
			t.Node(nextNode).Kind = string(model.KindBoth) // so that there is an engine without a switch
		}
	})
	if err != nil {
		return err
	}
	defer os.RemoveAll(f.dir)
	for _, step := range []struct {
		name, what string
		run        func(context.Context, *fabric, *Report) error
	}{
		{"nodes", "one node, one zone", withinZone},
		{"zones", "two zones", func(ctx context.Context, f *fabric, r *Report) error { return betweenZones(ctx, f, r, *nebula) }},
		{"egress", "to the outside", egress},
		{"names", "outside names", outsideNames},
		{"graph", "changes of the graph", graphs},
		{"attach", "attachments", attaching},
		{onlySizes, "sizes of daemons", sizes},
	} {
		if *only != step.name && (*only != "" || step.name == onlySizes) {
			continue
		}
		fmt.Fprintf(os.Stderr, "measuring: %s\n", step.what)
		if err := step.run(ctx, f, r); err != nil {
			return fmt.Errorf("%s: %w", step.what, err)
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
	r.After = load()
	r.Took = time.Since(began).Round(time.Second).String()
	if *asJSON {
		e := json.NewEncoder(os.Stdout)
		e.SetIndent("", "  ")
		return e.Encode(r)
	}
	return r.write(os.Stdout)
}

// withinZone measures paths on one node and between two nodes of one zone, each against namespaces
// that are connected in the same way but without programs.
func withinZone(ctx context.Context, f *fabric, r *Report) error {
	var plain [3]endpoint
	for i, p := range []struct {
		node string
		like endpoint
	}{{clientNode, f.client}, {clientNode, f.near}, {nextNode, f.next}} {
		var err error
		if plain[i], err = f.plain(ctx, p.node, p.like, i+1); err != nil {
			return err
		}
	}
	m, err := f.measure([]int{1},
		path{"one node", f.client, f.near}, path{"one node, no programs", plain[0], plain[1]},
	)
	if err != nil {
		return err
	}
	r.compare("one node: policy at both endpoints, against the same veth pairs without programs", "no programs", m[0], m[1], ratioAtLeast(0.97), none)
	if m, err = f.measure([]int{1},
		path{"one zone", f.client, f.next}, path{"one zone, no programs", plain[0], plain[2]},
	); err != nil {
		return err
	}
	r.compare("one zone, two nodes, against plain routing over the same WireGuard link", "no programs", m[0], m[1], ratioAtLeast(0.95), ratioAtMost(1.1))
	r.note("one zone, while sending, of one core: %s", shares(m[0].cpu))
	return nil
}

// betweenZones measures the path between two zones through both processors, against the plain
// underlay and, if available, Nebula.
func betweenZones(ctx context.Context, f *fabric, r *Report, nebula string) error {
	a, err := f.bare(ctx, "east")
	if err != nil {
		return err
	}
	b, err := f.bare(ctx, "west")
	if err != nil {
		return err
	}
	paths := []path{{"two zones", f.client, f.far}, {"underlay", a, b}}
	if nebula != "" {
		x, y, stop, err := f.nebula(ctx, nebula, a, b)
		if err != nil {
			return err
		}
		defer stop()
		paths = append(paths, path{"Nebula", x, y})
	} else {
		r.note("Nebula was not measured: run with -nebula=DIR")
	}
	m, err := f.measure([]int{1}, paths...)
	if err != nil {
		return err
	}
	r.compare("two zones through two processors, against the bare underlay", "underlay", m[0], m[1], none, none)
	if nebula != "" {
		r.compare("two zones through two processors, against Nebula directly", "Nebula", m[0], m[2], ratioAtLeast(1), ratioAtMost(4))
	}
	r.note("two zones, while sending, of one core: %s", shares(m[0].cpu))
	r.note("two zones, processor time for each byte: links %s, switches %s", m[0].perByte("link"), m[0].perByte("ovs-vswitchd"))
	return nil
}

func graphs(ctx context.Context, f *fabric, r *Report) error {
	e, err := f.enforced(ctx)
	if err != nil {
		return err
	}
	group := fmt.Sprintf("change of the graph, %d times, on %d nodes", applies, len(f.Topology.Nodes(lab.Processor, lab.Workload)))
	r.times(group, "sif graph apply returned → enforced", e.returned, atMost(10), atMost(50))
	r.times(group, "pointer made → enforced", e.decided, none, none)
	r.times(group, "sif graph apply", e.command, none, none)
	return nil
}

func attaching(ctx context.Context, f *fabric, r *Report) error {
	for _, run := range []struct {
		name     string
		count    int
		atOnce   bool
		p50, p99 bound
	}{
		{"20, one after the other", 20, false, atMost(20), atMost(100)},
		{"100, one after the other, as Nomad calls", 100, false, atMost(20), atMost(100)},
		{"100 at once", 100, true, none, none},
	} {
		a, err := f.attached(ctx, run.count, run.atOnce)
		if err != nil {
			return fmt.Errorf("%s: %w", run.name, err)
		}
		group := "CNI ADD inside the agent, in force in both zones: " + run.name
		r.times(group, "ADD", a.took, run.p50, run.p99)
		r.costs(group, "processor time of each ADD", a.costs)
		r.note("CNI ADD, %s: %s each, averaged over the whole run; %d not in force everywhere when ADD returned; parts, p50: %s",
			run.name, milliseconds(a.whole/time.Duration(run.count)), a.pending, a.partsText())
	}
	return nil
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}
