// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package machine

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"syscall"
	"time"

	"github.com/sif-project/sif/internal/leftover"
	"github.com/sif-project/sif/internal/wellknown"
)

// grace is how long a daemon may take to end.
const grace = 10 * time.Second

// Running returns the daemons of this machine that run or are enabled, to be stopped in this order:
// by their units where systemd runs the machine, and the processes with the machine's files.
func Running(ctx context.Context, l Layout) ([]leftover.Leftover, error) {
	var list []leftover.Leftover
	if HasSystemd() {
		for _, unit := range AllUnits() {
			state, _ := Systemctl(ctx, "show", "--property=LoadState,ActiveState,UnitFileState", unit)
			loaded := bytes.Contains([]byte(state), []byte("LoadState=loaded"))
			idle := bytes.Contains([]byte(state), []byte("ActiveState=inactive")) && !bytes.Contains([]byte(state), []byte("UnitFileState=enabled"))
			if !loaded || idle {
				continue
			}
			list = append(list, leftover.Leftover{Kind: "unit", Name: unit, Remove: func(ctx context.Context) error {
				_, err := Systemctl(ctx, "disable", "--now", unit)
				_, _ = Systemctl(ctx, "reset-failed", unit) // an error if it has not failed
				return err
			}})
		}
	}
	processes, err := processesOf(l)
	if err != nil {
		return list, err
	}
	for _, p := range processes {
		list = append(list, leftover.Leftover{Kind: "process", Name: fmt.Sprintf("%d (%s)", p.pid, p.name), Remove: p.end})
	}
	return list, nil
}

type process struct {
	pid   int
	name  string
	start string // of the process, in the kernel's clock, so that another one with its ID is left alone
}

// processesOf returns the processes of the machine's daemons, in the order in which they stop.
func processesOf(l Layout) ([]process, error) {
	marks := []struct{ command, option string }{
		{"agent", "-config=" + l.ConfigFile("agent")}, {"engine", "-config=" + l.ConfigFile("engine")},
		{"link", "-run-dir=" + filepath.Join(l.RunDir, wellknown.LinkDir)}, {"controller", "-config=" + l.ConfigFile("controller")},
	}
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, fmt.Errorf("look for daemons: %w", err)
	}
	found := make([][]process, len(marks))
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || pid == os.Getpid() {
			continue
		}
		text, err := os.ReadFile(filepath.Join("/proc", e.Name(), "cmdline"))
		if err != nil {
			continue
		}
		args := bytes.Split(text, []byte{0})
		if len(args) < 2 {
			continue
		}
		for i, m := range marks {
			standard := l == DefaultLayout() && len(args) == 3 && filepath.Base(string(args[0])) == "sif" // as the units start them
			named := slices.ContainsFunc(args[2:], func(a []byte) bool { return string(a) == m.option || string(a) == "-"+m.option })
			if string(args[1]) == m.command && (named || standard) {
				found[i] = append(found[i], process{pid, "sif " + m.command, startOf(pid)})
			}
		}
	}
	return slices.Concat(found...), nil
}

// startOf returns when a process started, in ticks since the boot: field 22 of proc_pid_stat(5).
func startOf(pid int) string {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return ""
	}
	_, rest, _ := bytes.Cut(text[bytes.LastIndexByte(text, ')')+1:], []byte{' '})
	fields := bytes.Fields(rest)
	if len(fields) < 20 {
		return ""
	}
	return string(fields[19])
}

func (p process) end(ctx context.Context) error {
	alive := func() bool { return p.start != "" && startOf(p.pid) == p.start && !zombie(p.pid) }
	for _, signal := range []syscall.Signal{syscall.SIGTERM, syscall.SIGKILL} {
		if !alive() {
			return nil
		}
		if err := syscall.Kill(p.pid, signal); err != nil && !errors.Is(err, syscall.ESRCH) {
			return fmt.Errorf("end %s, process %d: %w", p.name, p.pid, err)
		}
		for begin := time.Now(); alive() && time.Since(begin) < grace; time.Sleep(50 * time.Millisecond) {
			if err := context.Cause(ctx); err != nil {
				return err
			}
		}
	}
	if alive() {
		return fmt.Errorf("end %s: process %d does not end", p.name, p.pid)
	}
	return nil
}

// zombie reports whether a process has ended, and only its parent has not noticed.
func zombie(pid int) bool {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return true
	}
	rest := bytes.TrimSpace(text[bytes.LastIndexByte(text, ')')+1:])
	return len(rest) > 0 && rest[0] == 'Z'
}
