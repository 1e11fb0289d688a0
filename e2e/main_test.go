// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

//go:build e2e

// Package e2e tests the fabric's promises on a real fabric: two clouds of network namespaces with
// Consul, Vault, Nomad, Docker and Open vSwitch, both demo applications, and every SIF daemon,
// brought up once for all tests.
//
// It knows the product from outside: the sif command, Nomad, Consul, packets and counters. It must
// not reach into a daemon's memory.
package e2e

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	nomad "github.com/hashicorp/nomad/api"

	"github.com/sif-project/sif/e2e/lab"
)

// attachVariable makes the tests use a lab that is already up, and leave it up: "existing" means
// that of `make dev`, anything else is a lab's name.
const attachVariable = "SIF_E2E_LAB"

// topologyVariable names the topology file of the tests' own lab, if it is not the default one.
// TestOneZone needs that of one zone, TestTwoExits and TestFailover that of pairs, TestControllers
// that of three controllers, and all other tests the default one.
const topologyVariable = "SIF_E2E_TOPOLOGY"

// longVariable has the tests run that take long and guard what seldom breaks.
const longVariable = "SIF_E2E_LONG"

// long skips a test unless longVariable is set or the tests use a lab that is up.
func long(t *testing.T) {
	t.Helper()
	if os.Getenv(longVariable) == "" && os.Getenv(attachVariable) == "" {
		t.Skipf("it takes long; set %s=1, as `make test-e2e-long` does", longVariable)
	}
}

// labName is the tests' own lab, which can run next to that of `make dev`.
var labName = "e2e"

// applications are the directories of the applications to deploy before the tests, relative to the
// root of the repository.
var applications = []string{"jobs/getaway", "jobs/voting"}

// world is the fabric under test.
var world *fabricUnderTest

func TestMain(m *testing.M) { os.Exit(testMain(m)) }

func testMain(m *testing.M) int {
	if os.Geteuid() != 0 {
		fmt.Println("these tests need root: they make network namespaces and load eBPF programs")
		if os.Getenv("CI") == "true" {
			return 1
		}
		return 0
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	root, err := filepath.Abs("..")
	if err != nil {
		return failed(err)
	}
	if name := os.Getenv(attachVariable); name != "" {
		if name == "existing" {
			name = "dev"
		}
		l, err := lab.Open(name)
		if err != nil {
			return failed(err)
		}
		if world, err = newWorld(ctx, l, root); err != nil {
			return failed(err)
		}
		return m.Run()
	}
	if file := os.Getenv(partVariable); file != "" {
		labName = filepath.Base(file)
		code, allocs := withLab(ctx, m, root)
		if err := os.WriteFile(file, []byte(strings.Join(allocs, "\n")), 0o600); err != nil {
			return failed(err)
		}
		return code
	}
	if limit := os.Getenv(partsVariable); limit != "" {
		return inParts(ctx, limit)
	}
	if err := lab.Down(ctx, labName); err != nil {
		return failed(err)
	}
	before := lab.Machine(labName)
	code, allocs := withLab(ctx, m, root)
	return nothingLeft(code, before, allocs)
}

// nothingLeft fails the tests if something of their fabric is left on the machine.
func nothingLeft(code int, before map[string]bool, allocs []string) int {
	if left := lab.Remains(labName, before, allocs, 15*time.Second); len(left) > 0 {
		return failed(fmt.Errorf("the fabric was removed, but these differences are left:\n  %s", strings.Join(left, "\n  ")))
	}
	return code
}

// withLab brings the fabric up, runs the tests and removes the fabric. It returns the IDs of the
// allocations that Nomad made.
func withLab(ctx context.Context, m *testing.M, root string) (code int, allocs []string) {
	defer func() {
		// The lab must be removed even if ctx has ended.
		down, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Minute)
		defer cancel()
		if err := lab.Down(down, labName); err != nil {
			code = failed(err)
		}
	}()
	began := time.Now()
	options := lab.Options{Name: labName, Bin: filepath.Join(root, "bin"), Out: os.Stdout}
	if os.Getenv(rotationVariable) != "" {
		options.CertTTL = rotationLife
		if os.Getenv(linkKeysVariable) != "" {
			options.KeyPeriod = rotationLife
		}
	}
	if os.Getenv(goneVariable) != "" {
		options.CertTTL, options.AdmissionLife, options.OutageBound = goneCertificate, goneAdmission, goneBound
	}
	if file := os.Getenv(topologyVariable); file != "" {
		topology, err := lab.LoadTopology(file)
		if err != nil {
			return failed(err), nil
		}
		options.Topology = topology
	}
	l, err := lab.Up(ctx, options)
	if err != nil {
		return failed(err), nil
	}
	var dirs []string
	deployed := applications
	switch {
	case os.Getenv(topologyVariable) != "":
		deployed = applications[:1] // the other one needs the zones of the default topology
	case os.Getenv(kindsVariable) != "":
		deployed = nil
	}
	for _, a := range deployed {
		dirs = append(dirs, filepath.Join(root, a))
	}
	if len(dirs) > 0 {
		if err := l.RunApplications(ctx, dirs...); err != nil {
			keepLogs()
			return failed(err), nil
		}
	}
	fmt.Printf("the fabric was up after %.0f s\n", time.Since(began).Seconds())
	if world, err = newWorld(ctx, l, root); err != nil {
		return failed(err), nil
	}
	code = m.Run()
	if code != 0 {
		keepLogs()
	}
	list, _, err := world.nomad.Allocations().List(&nomad.QueryOptions{Namespace: "*"})
	if err != nil {
		return failed(err), nil
	}
	for _, a := range list {
		allocs = append(allocs, a.ID)
	}
	return code, allocs
}

// keepLogs copies the daemons' logs to the directory in SIF_E2E_LOGS, before the lab is removed.
func keepLogs() {
	dir := os.Getenv("SIF_E2E_LOGS")
	if dir == "" {
		return
	}
	if err := os.CopyFS(dir, os.DirFS(lab.LogDir(labName))); err != nil {
		fmt.Println("cannot keep the logs:", err)
	}
}

func failed(err error) int {
	fmt.Println("FAIL:", err)
	return 1
}
