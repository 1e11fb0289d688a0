// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

// Command sif-chaos lets faults happen to a fabric in a lab of its own, and says what did not hold.
// It is a thin front end of package e2e/chaos.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/sif-project/sif/e2e/chaos"
	"github.com/sif-project/sif/e2e/chaos/schedule"
	"github.com/sif-project/sif/e2e/lab"
)

const usage = `Usage: sif-chaos [options]

  Brings a fabric up, lets faults happen to it under traffic, applies, new
  workloads and rotation of certificates, and removes it. Prints the schedule of
  the faults, which the seed alone decides, what happened, and each thing that
  did not hold. Needs root. Exits with 0 if all held, with 1 if not, with 2 if
  the run could not be made.

  -seeds=<n>,<n>     One run for each, all in one fabric. Default: the time.
  -for=<time>        Length of a run. Default: 3m.
  -schedule=<file>   A schedule as it was printed, instead of that of a seed.
  -lab=<name>        Name of the lab. Default: chaos
  -topology=<file>   Default: e2e/lab/topology/chaos.hcl
  -bin=<dir>         Directory of sif, sif-cni and sif-demo. Default: that of
                     sif-chaos.
  -cert-ttl=<time>   Life of the fabric's certificates. Default: 2m.
  -logs=<dir>        Where the daemons' logs and a picture of a history that no
                     order explains are kept if something did not hold.
  -early             End a run with the first thing that does not hold.
  -keep              Leave the fabric up.
`

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	held, err := run(ctx, os.Args[1:])
	switch {
	case errors.Is(err, flag.ErrHelp):
		fmt.Print(usage)
	case err != nil:
		fmt.Fprintln(os.Stderr, "sif-chaos:", err)
		os.Exit(2)
	case !held:
		os.Exit(1)
	}
}

// options are those of the command line.
type options struct {
	lab, topology, bin, logs, schedule string
	seeds                              []uint64
	length, certTTL                    time.Duration
	early, keep                        bool
}

func parse(args []string) (o options, err error) {
	self, err := os.Executable()
	if err != nil {
		return o, err
	}
	flags := flag.NewFlagSet("sif-chaos", flag.ContinueOnError)
	flags.SetOutput(io.Discard)
	seeds := flags.String("seeds", fmt.Sprint(time.Now().Unix()), "")
	flags.DurationVar(&o.length, "for", 3*time.Minute, "")
	flags.StringVar(&o.schedule, "schedule", "", "")
	flags.StringVar(&o.lab, "lab", "chaos", "")
	flags.StringVar(&o.topology, "topology", "e2e/lab/topology/chaos.hcl", "")
	flags.StringVar(&o.bin, "bin", filepath.Dir(self), "")
	flags.DurationVar(&o.certTTL, "cert-ttl", 2*time.Minute, "")
	flags.StringVar(&o.logs, "logs", "", "")
	flags.BoolVar(&o.early, "early", false, "")
	flags.BoolVar(&o.keep, "keep", false, "")
	if err := flags.Parse(args); err != nil {
		return o, err
	}
	if flags.NArg() > 0 {
		return o, fmt.Errorf("unexpected argument %q; see sif-chaos -h", flags.Arg(0))
	}
	for text := range strings.SplitSeq(*seeds, ",") {
		n, err := strconv.ParseUint(text, 10, 64)
		if err != nil {
			return o, fmt.Errorf("-seeds: expected numbers separated by commas: %w", err)
		}
		o.seeds = append(o.seeds, n)
	}
	return o, nil
}

func run(ctx context.Context, args []string) (held bool, err error) {
	o, err := parse(args)
	if err != nil {
		return false, err
	}
	var faults []schedule.Fault
	if o.schedule != "" {
		f, err := os.Open(o.schedule)
		if err != nil {
			return false, err
		}
		defer f.Close()
		if faults, err = schedule.Read(f); err != nil {
			return false, fmt.Errorf("%s: %w", o.schedule, err)
		}
		if len(faults) == 0 {
			return false, fmt.Errorf("%s has no fault; a line is one, as sif-chaos prints it", o.schedule)
		}
	}
	topology, err := lab.LoadTopology(o.topology)
	if err != nil {
		return false, err
	}
	if err := lab.Down(ctx, o.lab); err != nil {
		return false, err
	}
	before := lab.Machine(o.lab)
	held, allocs, err := inLab(ctx, o, topology, faults)
	if err != nil || o.keep {
		return held, err
	}
	if left := lab.Remains(o.lab, before, allocs, 15*time.Second); len(left) > 0 {
		fmt.Printf("DID NOT HOLD: the fabric was removed, but these differences are left:\n  %s\n", strings.Join(left, "\n  "))
		return false, nil
	}
	fmt.Println("nothing is left of the fabric")
	return held, nil
}

// inLab brings the fabric up, makes a run for each seed and removes the fabric.
func inLab(ctx context.Context, o options, topology *lab.Topology, faults []schedule.Fault) (held bool, allocs []string, err error) {
	defer func() {
		if o.logs != "" && (!held || err != nil) {
			err = errors.Join(err, keep(lab.LogDir(o.lab), o.logs))
		}
		if !o.keep {
			down, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Minute)
			defer cancel()
			err = errors.Join(err, lab.Down(down, o.lab))
		}
	}()
	l, err := lab.Up(ctx, lab.Options{Name: o.lab, Topology: topology, Bin: o.bin, CertTTL: o.certTTL, Out: os.Stdout})
	if err != nil {
		return false, nil, err
	}
	prepared, err := chaos.Prepare(ctx, l)
	if err != nil {
		return false, nil, err
	}
	held = true
	var report strings.Builder
	for _, seed := range o.seeds {
		began := time.Now()
		options := chaos.Options{Seed: seed, Length: o.length, Faults: faults, Out: os.Stdout, Early: o.early}
		if o.logs != "" {
			options.Picture = filepath.Join(o.logs, fmt.Sprintf("history-%d.html", seed))
		}
		result, err := chaos.Run(ctx, prepared, options)
		if err != nil {
			return false, allocs, fmt.Errorf("seed %d: %w", seed, err)
		}
		allocs = append(allocs, result.Allocs...)
		for _, v := range result.Violations {
			held = false
			fmt.Printf("DID NOT HOLD: %s\n", v)
		}
		fmt.Fprintf(&report, "seed %d: %d things did not hold (%s)\n", seed, len(result.Violations), time.Since(began).Round(time.Second))
	}
	fmt.Print(report.String())
	return held, allocs, nil
}

func keep(logs, dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	return os.CopyFS(filepath.Join(dir, time.Now().Format("150405")), os.DirFS(logs))
}
