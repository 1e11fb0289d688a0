// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package link

import (
	"context"
	"fmt"
	"os"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/hashicorp/go-hclog"
	"golang.org/x/sys/unix"

	"github.com/sif-project/sif/internal/logkey"
)

// The Go runtime's monitor thread sleeps while no goroutine runs, and the first system call after
// that wakes it. In a process that waits for the next packet most of the time, that is for every
// packet: half of all context switches of a request, and more than half for each megabyte. The
// monitor does not sleep if it has to print the scheduler's state from time to time. It then looks
// after the process at most every 10 ms, which takes 0.2 % of a core. The time is the longest that
// there is, 24 days.
const (
	runtimeVariable = "GODEBUG"
	monitorSetting  = "schedtrace"
	monitorAwake    = monitorSetting + "=2147483647" // ms
)

// KeepMonitorAwake starts the program again in the same process, with the setting of the Go runtime
// that this process needs and that it reads at start only. It returns nil if the setting is there,
// also if somebody chose another value.
func KeepMonitorAwake() error {
	environ, changed := withMonitorAwake(os.Environ())
	if !changed {
		return nil
	}
	// The link in /proc leads to the program that runs, also after another took its place.
	if err := syscall.Exec("/proc/self/exe", os.Args, environ); err != nil {
		return fmt.Errorf("start again with %s=%s: %w", runtimeVariable, monitorAwake, err)
	}
	return nil
}

// withMonitorAwake adds the setting, unless it is there.
func withMonitorAwake(environ []string) (_ []string, changed bool) {
	settings := []string{monitorAwake}
	var others []string
	for _, v := range environ {
		name, value, _ := strings.Cut(v, "=")
		switch {
		case name != runtimeVariable:
			others = append(others, v)
		case slices.ContainsFunc(strings.Split(value, ","), func(s string) bool { return strings.HasPrefix(s, monitorSetting+"=") }):
			return environ, false
		case value != "":
			settings = append(settings, value)
		}
	}
	return append(others, runtimeVariable+"="+strings.Join(settings, ",")), true
}

// coresInterval is how often the number of cores is adapted to the traffic. It is short against the
// start of a long transfer, and long against its bursts.
const coresInterval = 200 * time.Millisecond

// AdaptCores keeps the number of cores on which this process runs Go code as small as its traffic
// allows, between one and most, until ctx ends. Each packet passes several goroutines. On one core
// that costs no wake-up of another thread; a second core pays only when the first has no time left.
// If most is 0, it is half of the cores that the process may use, because traffic that keeps the
// links busy has senders, receivers and switches on the same node. If the environment variable
// GOMAXPROCS is set, AdaptCores changes nothing.
func AdaptCores(ctx context.Context, most int, logger hclog.Logger) {
	if os.Getenv("GOMAXPROCS") != "" {
		return
	}
	if most == 0 {
		most = max(1, runtime.GOMAXPROCS(0)/2)
	}
	cores := 1
	runtime.GOMAXPROCS(cores)
	logger.Info("using one core, and so many when traffic needs them", logkey.Count, most)
	if most == 1 {
		return
	}
	tick := time.NewTicker(coresInterval)
	defer tick.Stop()
	spent, at := processorTime(), time.Now()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		was, since := spent, at
		spent, at = processorTime(), time.Now()
		next := nextCores(cores, most, (spent-was).Seconds()/at.Sub(since).Seconds())
		if next != cores {
			runtime.GOMAXPROCS(next)
			logger.Debug("adapted the number of cores to the traffic", logkey.Count, next)
			cores = next
		}
	}
}

// nextCores returns how many cores to use after an interval in which so many were busy. What is
// enough to take one more is more than what keeps it, so that steady traffic keeps the number.
func nextCores(cores, most int, busy float64) int {
	switch {
	case cores < most && busy > 0.8*float64(cores):
		return cores + 1
	case cores > 1 && busy < 0.6*float64(cores-1):
		return cores - 1
	default:
		return cores
	}
}

// processorTime returns what this process has used so far.
func processorTime() time.Duration {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
