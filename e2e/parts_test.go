// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

//go:build e2e

package e2e

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/sif-project/sif/e2e/lab"
)

// partsVariable has the tests run in parts, as many at a time as it says, each in a lab of its own:
// most of their time is waiting.
const partsVariable = "SIF_E2E_PARTS"

// partVariable tells the program that runs a part where to write the IDs of the allocations that
// Nomad made. The file's name is that of the part's lab.
const partVariable = "SIF_E2E_PART"

// parts are together all tests, TestOneZone with the topology that it needs. The first ones take
// about as long as one another.
var parts = []struct {
	lab, topology string
	args          []string
}{
	{"north", "", []string{"-test.run=^Test[A-L]"}},
	{"south", "", []string{"-test.skip=^Test[A-L]"}},
	{"single", "lab/topology/one-zone.hcl", []string{"-test.run=^TestOneZone$"}},
}

// inParts runs the parts, and checks that nothing is left of their labs. Each one's output appears
// when it has ended.
func inParts(ctx context.Context, limit string) (code int) {
	atOnce, err := strconv.Atoi(limit)
	if err != nil || atOnce < 1 {
		return failed(fmt.Errorf("%s must be the number of parts that run at a time", partsVariable))
	}
	dir, err := os.MkdirTemp("", "sif-e2e-")
	if err != nil {
		return failed(err)
	}
	defer os.RemoveAll(dir)
	for _, p := range parts {
		if err := lab.Down(ctx, p.lab); err != nil {
			return failed(err)
		}
	}
	before, allocs := lab.Machine(labName), []string{}
	// What the go command has the program record is recorded by this process alone.
	flags := slices.DeleteFunc(slices.Clone(os.Args[1:]), func(a string) bool { return strings.HasPrefix(a, "-test.testlogfile") })
	var mu sync.Mutex
	var group errgroup.Group
	group.SetLimit(atOnce)
	for _, p := range parts {
		group.Go(func() error {
			began, file := time.Now(), filepath.Join(dir, p.lab)
			cmd := exec.CommandContext(ctx, os.Args[0], slices.Concat(flags, p.args)...)
			cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) } // it removes its lab
			cmd.Env = append(os.Environ(), partVariable+"="+file)
			if p.topology != "" {
				cmd.Env = append(cmd.Env, topologyVariable+"="+p.topology)
			}
			var out bytes.Buffer
			cmd.Stdout, cmd.Stderr = &out, &out
			failed := cmd.Run()
			mu.Lock()
			defer mu.Unlock()
			fmt.Printf("=== the tests in lab %s (%.0f s)\n%s", p.lab, time.Since(began).Seconds(), out.String())
			if failed != nil {
				fmt.Printf("FAIL: the tests in lab %s: %v\n", p.lab, failed)
				code = 1
			}
			made, err := os.ReadFile(file)
			allocs = append(allocs, strings.Fields(string(made))...)
			return err
		})
	}
	if err := group.Wait(); err != nil {
		return failed(fmt.Errorf("a part has not ended by itself: %w", err))
	}
	return nothingLeft(code, before, allocs)
}
