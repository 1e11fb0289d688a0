// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/prometheus/procfs"

	"github.com/sif-project/sif/internal/atomicfile"
)

// Process is one daemon of the lab. Another program finds it by its file in the lab's proc
// directory.
type Process struct {
	Node string
	Name string   // consul, vault, nomad, dockerd, controller, ...
	Args []string // the program and its arguments
	Env  []string // in addition to PATH, HOME and the lab's variables
	PID  int      // 0 until it is started
	Born uint64   // start time in clock ticks since boot: distinguishes it from a later process with the same PID
}

func (p *Process) String() string { return p.Node + "/" + p.Name }

// labVariable is the environment variable that identifies a lab's process even if its file is lost.
const labVariable = "SIF_LAB"

func (l *Lab) processFile(p *Process) string {
	return filepath.Join(l.varDir("proc"), p.Node+"."+p.Name+".json")
}

// LogFile returns the file that receives a process's output.
func (l *Lab) LogFile(node, name string) string {
	return filepath.Join(LogDir(l.Name), node+"."+name+".log")
}

// start runs the process in its node's network namespace, in a session of its own.
func (l *Lab) start(p *Process) error {
	log, err := os.OpenFile(l.LogFile(p.Node, p.Name), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return fmt.Errorf("start %s: %w", p, err)
	}
	defer log.Close()
	// Enter only the network namespace: a private mount namespace would hide pins and allocations
	// from other processes.
	cmd := exec.Command("nsenter", slices.Concat([]string{"--net=" + l.NetNS(p.Node), "--"}, p.Args)...)
	cmd.Env = slices.Concat([]string{
		"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root",
		labVariable + "=" + l.Name, "SIF_LAB_PROCESS=" + p.String(),
	}, l.lives(), p.Env)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start %s: %w", p, err)
	}
	p.PID = cmd.Process.Pid
	go l.reap(*p, cmd) // alive reads its state from /proc
	if p.Born, err = bornAt(p.PID); err != nil {
		return fmt.Errorf("start %s: it ended immediately: %s", p, l.Tail(p.Node, p.Name))
	}
	return writeJSON(l.processFile(p), p)
}

// reap waits for the end of a process. If nobody asked for that, by Stop, Signal or SIGKILL, it
// says so with the end of the log: nothing starts the process again, as systemd would.
func (l *Lab) reap(p Process, cmd *exec.Cmd) {
	_ = cmd.Wait()
	status, _ := cmd.ProcessState.Sys().(syscall.WaitStatus)
	if _, asked := l.asked.LoadAndDelete(p.PID); !asked && status.Signal() != syscall.SIGKILL {
		l.progress.line("%s has ended by itself: %s; the end of its log:\n%s", &p, cmd.ProcessState, l.Tail(p.Node, p.Name))
	}
}

// alive reports whether this process still runs, not another one with its PID.
func (p *Process) alive() bool {
	born, err := bornAt(p.PID)
	return p.PID > 0 && err == nil && born == p.Born
}

// bornAt returns the start time of a process, or an error if it has ended. A zombie has ended, once
// its other threads have: until then its files are open, and their locks are held.
func bornAt(pid int) (uint64, error) {
	proc, err := procfs.NewProc(pid)
	if err != nil {
		return 0, err
	}
	stat, err := proc.Stat()
	if err != nil {
		return 0, err
	}
	if (stat.State == "Z" || stat.State == "X") && stat.NumThreads <= 1 {
		return 0, fmt.Errorf("process %d has ended", pid)
	}
	return stat.Starttime, nil
}

// Processes lists the lab's daemons, by node and name.
func (l *Lab) Processes() ([]*Process, error) {
	files, err := filepath.Glob(filepath.Join(l.varDir("proc"), "*.json"))
	if err != nil {
		return nil, err
	}
	var processes []*Process
	for _, f := range files {
		var p Process
		if err := readJSON(f, &p); err != nil {
			return nil, err
		}
		processes = append(processes, &p)
	}
	return processes, nil
}

// Process finds a daemon by node and name.
func (l *Lab) Process(node, name string) (*Process, error) {
	p := Process{Node: node, Name: name}
	if err := readJSON(l.processFile(&p), &p); err != nil {
		return nil, fmt.Errorf("no process %s/%s in lab %s: %w", node, name, l.Name, err)
	}
	return &p, nil
}

// Alive reports whether a daemon of the lab runs.
func (l *Lab) Alive(node, name string) bool {
	p, err := l.Process(node, name)
	return err == nil && p.alive()
}

// Signal sends a signal to one daemon of the lab. After SIGKILL it waits for the end, so that the
// daemon can be started again.
func (l *Lab) Signal(node, name string, s syscall.Signal) error {
	p, err := l.Process(node, name)
	if err != nil {
		return err
	}
	if !p.alive() {
		return fmt.Errorf("%s is not running", p)
	}
	if s == syscall.SIGTERM || s == syscall.SIGINT {
		l.asked.Store(p.PID, nil)
	}
	if err := syscall.Kill(p.PID, s); err != nil {
		return fmt.Errorf("send %s to %s: %w", s, p, err)
	}
	if s == syscall.SIGKILL {
		return waitGone([]int{p.PID}, 5*time.Second)
	}
	return nil
}

// Stop ends a daemon: it sends SIGTERM, and SIGKILL after 5 s or at the deadline of ctx.
func (l *Lab) Stop(ctx context.Context, node, name string) error {
	p, err := l.Process(node, name)
	if err != nil {
		return err
	}
	if p.alive() {
		l.asked.Store(p.PID, nil)
	}
	return p.stop(ctx, 5*time.Second)
}

// Start starts a daemon again, as it was first started. It does nothing if the daemon runs.
func (l *Lab) Start(node, name string) error {
	p, err := l.Process(node, name)
	if err != nil {
		return err
	}
	if p.alive() {
		return nil
	}
	return l.start(p)
}

func (p *Process) stop(ctx context.Context, grace time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, grace)
	defer cancel()
	for _, s := range []syscall.Signal{syscall.SIGCONT, syscall.SIGTERM} {
		if !p.alive() {
			return nil
		}
		if err := syscall.Kill(p.PID, s); err != nil && !errors.Is(err, syscall.ESRCH) {
			return fmt.Errorf("stop %s: %w", p, err)
		}
	}
	for p.alive() {
		select {
		case <-ctx.Done():
			if err := syscall.Kill(p.PID, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
				return fmt.Errorf("kill %s: %w", p, err)
			}
			return waitGone([]int{p.PID}, 5*time.Second)
		case <-time.After(20 * time.Millisecond):
		}
	}
	return nil
}

// waitGone waits until all processes have ended; zombies count as ended.
func waitGone(pids []int, within time.Duration) error {
	deadline := time.Now().Add(within)
	for {
		left := slices.DeleteFunc(slices.Clone(pids), func(pid int) bool { _, err := bornAt(pid); return err != nil })
		if len(left) == 0 {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("processes %v did not end in %s", left, within)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// await calls probe until it succeeds. If the process ends first or the time is over, the error
// contains the last lines of the process's log.
func (l *Lab) await(ctx context.Context, p *Process, within time.Duration, probe func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	for {
		attempt, done := context.WithTimeout(ctx, 3*time.Second)
		err := probe(attempt)
		done()
		if err == nil {
			return nil
		}
		if !p.alive() {
			return fmt.Errorf("%s ended before it was ready; the end of %s:\n%s", p, l.LogFile(p.Node, p.Name), l.Tail(p.Node, p.Name))
		}
		select {
		case <-ctx.Done():
			if errors.Is(ctx.Err(), context.Canceled) {
				return ctx.Err()
			}
			return fmt.Errorf("%s is not ready after %s: %w; the end of %s:\n%s", p, within, err, l.LogFile(p.Node, p.Name), l.Tail(p.Node, p.Name))
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// launch starts a process and waits until it is ready.
func (l *Lab) launch(ctx context.Context, p *Process, within time.Duration, probe func(context.Context) error) error {
	if err := l.start(p); err != nil {
		return err
	}
	return l.await(ctx, p, within, probe)
}

// Tail returns the last lines of a process's log.
func (l *Lab) Tail(node, name string) string {
	const lines = 15
	data, err := os.ReadFile(l.LogFile(node, name))
	if err != nil {
		return err.Error()
	}
	all := strings.Split(strings.TrimRight(string(data), "\n"), "\n")
	return "  " + strings.Join(all[max(0, len(all)-lines):], "\n  ")
}

func writeJSON(path string, v any) error {
	data, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return fmt.Errorf("encode %s: %w", path, err)
	}
	return atomicfile.WriteLazily(path, data, 0o600)
}

func readJSON(path string, v any) error {
	data, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(data, v); err != nil {
		return fmt.Errorf("decode %s: %w", path, err)
	}
	return nil
}

// lives returns the variables by which daemons of the fabric have the lab's lives of things.
func (l *Lab) lives() (env []string) {
	if l.AdmissionLife > 0 {
		env = append(env, "SIF_ADMISSION_LIFE="+l.AdmissionLife.String())
	}
	if l.OutageBound > 0 {
		env = append(env, "SIF_OUTAGE_BOUND="+l.OutageBound.String())
	}
	return env
}
