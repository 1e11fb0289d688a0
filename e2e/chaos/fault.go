// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package chaos

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sif-project/sif/e2e/chaos/schedule"
	"github.com/sif-project/sif/e2e/lab"
)

// faults does to a lab what a schedule says.
type faults struct {
	lab   *lab.Lab
	disks map[string]*disk // by node

	starting sync.Mutex // a daemon is started once

	mu      sync.Mutex
	between map[string][]string // rules of nft(8) that are in force, by fault
	away    map[string]bool     // node/daemon that a fault has ended
	events  []event
}

// event is a fault as it happened.
type event struct {
	schedule.Fault
	on         string // Leader: which server it was
	began, end time.Time
}

// parts returns what faults can happen to in a lab.
func parts(l *lab.Lab) (schedule.Fabric, error) {
	f := schedule.Fabric{}
	processes, err := l.Processes()
	if err != nil {
		return f, err
	}
	servers := 0
	for _, p := range processes {
		n := l.Topology.Node(p.Node)
		if n == nil {
			continue // a machine outside
		}
		f.Daemons = append(f.Daemons, schedule.Daemon{Node: p.Node, Name: p.Name})
		if n.Kind == lab.Orchestrator && p.Name == "consul" {
			servers++
		}
	}
	f.Leader = servers > 2
	nodes := l.Topology.Nodes()
	for i, a := range nodes {
		for _, b := range nodes[i+1:] {
			if speak(a, b) {
				f.Pairs = append(f.Pairs, [2]string{a.Name, b.Name})
			}
		}
		if a.Kind != lab.Orchestrator {
			f.Disks = append(f.Disks, a.Name)
		}
	}
	return f, nil
}

// speak reports whether two nodes speak to one another: in a zone, between processors, and
// everybody with the servers.
func speak(a, b *lab.Node) bool {
	return a.Zone == b.Zone || a.Is(lab.Processor) && b.Is(lab.Processor) || a.Kind == lab.Orchestrator || b.Kind == lab.Orchestrator
}

// play lets the faults of a schedule happen and end, at their times since began. It returns when
// all have ended, also when ctx ends before.
func (f *faults) play(ctx context.Context, list []schedule.Fault, began time.Time, say func(string, ...any)) error {
	var running sync.WaitGroup
	var mu sync.Mutex
	var errs []error
	for _, one := range list {
		if !pause(ctx, time.Until(began.Add(one.At))) {
			break
		}
		running.Go(func() {
			e := event{Fault: one, began: time.Now()}
			undo, err := f.begin(ctx, &e)
			if err == nil {
				on := ""
				if e.on != "" {
					on = " (" + e.on + ")"
				}
				say("%s%s", one, on)
				pause(ctx, one.For)
				err = undo()
			}
			e.end = time.Now()
			f.mu.Lock()
			f.events = append(f.events, e)
			f.mu.Unlock()
			if err != nil {
				mu.Lock()
				errs = append(errs, fmt.Errorf("fault %q: %w", one.String(), err))
				mu.Unlock()
			}
		})
	}
	running.Wait()
	return errors.Join(errs...)
}

// begin begins a fault and returns what ends it.
func (f *faults) begin(ctx context.Context, e *event) (undo func() error, err error) {
	// A daemon may have ended by itself, and wait for being started again.
	signal := func(node, daemon string, s syscall.Signal) error {
		if !f.lab.Alive(node, daemon) {
			return nil
		}
		return f.lab.Signal(node, daemon, s)
	}
	start := func() error { return f.start(ctx, e.Node, e.Daemon) }
	switch e.Kind {
	case schedule.Kill:
		f.ends(e.Node, e.Daemon, true)
		return start, signal(e.Node, e.Daemon, syscall.SIGKILL)
	case schedule.Stop:
		return func() error { return signal(e.Node, e.Daemon, syscall.SIGCONT) }, signal(e.Node, e.Daemon, syscall.SIGSTOP)
	case schedule.Restart:
		f.ends(e.Node, e.Daemon, true)
		return start, f.lab.Stop(context.WithoutCancel(ctx), e.Node, e.Daemon)
	case schedule.Cut, schedule.OneWay, schedule.Loss:
		what := "drop"
		if e.Kind == schedule.Loss {
			what = fmt.Sprintf("numgen random mod 100 < %d drop", e.Percent)
		}
		key := e.String()
		rules := []string{f.rule(e.Node, e.Peer, what)}
		if e.Kind != schedule.OneWay {
			rules = append(rules, f.rule(e.Peer, e.Node, what))
		}
		return func() error { return f.filter(key, nil) }, f.filter(key, rules)
	case schedule.Fill:
		return f.disks[e.Node].empty, f.disks[e.Node].fill()
	case schedule.Slow:
		return f.disks[e.Node].slow()
	case schedule.Leader:
		if e.on, err = f.consulLeader(ctx); err != nil {
			return nil, err
		}
		return func() error { return signal(e.on, "consul", syscall.SIGCONT) }, signal(e.on, "consul", syscall.SIGSTOP)
	}
	return nil, fmt.Errorf("unknown kind of fault %q", e.Kind)
}

// ends notes that a fault ends a daemon, or that it is over.
func (f *faults) ends(node, daemon string, away bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.away[node+"/"+daemon] = away
}

// start starts a daemon again that a fault has ended.
func (f *faults) start(ctx context.Context, node, daemon string) error {
	f.starting.Lock()
	err := f.lab.Start(node, daemon)
	f.starting.Unlock()
	if f.ends(node, daemon, false); err != nil {
		return err
	}
	if daemon == "vault" {
		return f.lab.Unseal(context.WithoutCancel(ctx))
	}
	return nil
}

// tend starts daemons again that have ended by themselves, as systemd would, until ctx ends: an
// engine ends, for instance, if its switch does not answer while it starts.
func (f *faults) tend(ctx context.Context, ended func(node, daemon string)) {
	for pause(ctx, time.Second) {
		processes, err := f.lab.Processes()
		if err != nil {
			continue
		}
		for _, p := range processes {
			f.mu.Lock()
			away := f.away[p.Node+"/"+p.Name]
			f.mu.Unlock()
			if away || f.lab.Topology.Node(p.Node) == nil || f.lab.Alive(p.Node, p.Name) {
				continue
			}
			ended(p.Node, p.Name)
			_ = f.start(ctx, p.Node, p.Name) // the next time
		}
	}
}

func (f *faults) rule(from, to, what string) string {
	t := f.lab.Topology
	return fmt.Sprintf("ip saddr %s ip daddr %s %s", t.Node(from).Address, t.Node(to).Address, what)
}

// filter puts the rules of a fault in force, or takes them away. Packets between zones are routed
// in the internet's namespace, those within a zone pass its bridge there.
func (f *faults) filter(key string, rules []string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.between[key] = rules; rules == nil {
		delete(f.between, key)
	}
	var all []string
	for _, list := range f.between {
		all = append(all, list...)
	}
	slices.Sort(all)
	var script strings.Builder
	for _, family := range []string{"inet", "bridge"} {
		fmt.Fprintf(&script, "table %[1]s chaos {\n}\ndelete table %[1]s chaos\n", family)
		if len(all) > 0 {
			fmt.Fprintf(&script, "table %s chaos {\n  chain forward {\n    type filter hook forward priority -10\n    %s\n  }\n}\n", family, strings.Join(all, "\n    "))
		}
	}
	return f.lab.NFT(context.Background(), "internet", script.String())
}

// consulLeader returns the node whose server of Consul leads.
func (f *faults) consulLeader(ctx context.Context) (string, error) {
	var leader string
	err := await(ctx, 20*time.Second, func(context.Context) error {
		client, err := f.lab.ConsulAgent("controller2", f.lab.Secrets.ConsulManagement)
		if err != nil {
			return err
		}
		at, err := client.Status().Leader()
		if err != nil {
			return err
		}
		for _, n := range f.lab.Topology.Nodes(lab.Orchestrator) {
			if strings.HasPrefix(at, n.Address+":") {
				leader = n.Name
			}
		}
		if leader == "" {
			return fmt.Errorf("no server of Consul leads: %q", at)
		}
		return nil
	})
	return leader, err
}

// disk is a file system of its own for the state of a node's daemons.
type disk struct{ image, dir string }

// newDisk puts the state of a node's daemons on a disk of its own, which goes with the lab.
func newDisk(ctx context.Context, l *lab.Lab, node string) (*disk, error) {
	d := &disk{image: l.SIFDataDir(node) + ".img", dir: l.SIFDataDir(node)}
	n := l.Topology.Node(node)
	daemons := append(n.Daemons(), "link")
	for _, daemon := range daemons {
		if err := l.Stop(ctx, node, daemon); err != nil {
			return nil, err
		}
	}
	for _, c := range [][]string{
		{"truncate", "-s", "64M", d.image},
		{"mkfs.ext4", "-q", "-O", "^has_journal", "-E", "root_owner=0:0", "-d", d.dir, d.image},
		{"mount", "-o", "loop", d.image, d.dir},
	} {
		if out, err := exec.CommandContext(ctx, c[0], c[1:]...).CombinedOutput(); err != nil {
			return nil, fmt.Errorf("%s: %w: %s", strings.Join(c, " "), err, out)
		}
	}
	for _, daemon := range slices.Backward(daemons) {
		if err := l.Start(node, daemon); err != nil {
			return nil, err
		}
	}
	return d, nil
}

func (d *disk) filling() string { return filepath.Join(d.dir, "filling") }

// fill leaves no room on the disk.
func (d *disk) fill() error {
	f, err := os.Create(d.filling())
	if err != nil {
		return fmt.Errorf("fill the disk: %w", err)
	}
	defer f.Close()
	for size := 1 << 20; size > 0; size /= 2 {
		for err = nil; err == nil; {
			_, err = f.Write(make([]byte, size))
		}
	}
	if !errors.Is(err, syscall.ENOSPC) {
		return fmt.Errorf("fill the disk: %w", err)
	}
	return nil
}

func (d *disk) empty() error { return os.Remove(d.filling()) }

// What writes to a disk that is slow waits for most of these times.
const (
	frozen = 400 * time.Millisecond
	thawed = 100 * time.Millisecond
)

// slow has the disk stand still most of the time, until the function that it returns is called.
func (d *disk) slow() (undo func() error, err error) {
	dir, err := os.Open(d.dir)
	if err != nil {
		return nil, err
	}
	ioctl := func(what uint) error { return unix.IoctlSetInt(int(dir.Fd()), what, 0) }
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() {
		var err error
		for err == nil && ctx.Err() == nil {
			if err = ioctl(lab.Freeze); err == nil {
				pause(ctx, frozen)
				err = ioctl(lab.Thaw)
			}
			pause(ctx, thawed)
		}
		ended <- errors.Join(err, dir.Close())
	}()
	return func() error {
		cancel()
		return <-ended
	}, nil
}
