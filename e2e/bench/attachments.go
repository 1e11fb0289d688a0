// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package main

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

	nomad "github.com/hashicorp/nomad/api"

	"github.com/sif-project/sif/internal/logkey"
	"github.com/sif-project/sif/internal/node/cnicall"
)

// restTime is how long it is measured what the daemons use at rest.
const restTime = 5 * time.Second

// attachments measures how long ADD took inside the agent.
type attachments struct {
	took    []time.Duration
	parts   map[string][]time.Duration // as the agent logs them
	pending int                        // not in force everywhere when ADD returned
	whole   time.Duration              // from the first call to the last answer
	costs   []cost                     // processor time of each ADD, by daemon, beyond what they use at rest
}

// attached attaches count allocations, one after the other or all at once, and detaches them again.
// Nomad has placed them on the node, but its client there is stopped: attached calls the agent over
// the socket of the CNI plugin itself, so the time does not include the start of processes by
// Nomad.
func (f *fabric) attached(ctx context.Context, count int, atOnce bool) (a attachments, err error) {
	node := clientNode
	if err := f.awaitNomad(ctx, node); err != nil {
		return a, err
	}
	if err := f.Signal(node, "nomad", syscall.SIGSTOP); err != nil {
		return a, err
	}
	defer func() { err = errors.Join(err, f.Signal(node, "nomad", syscall.SIGCONT)) }()
	defer func() { err = errors.Join(err, f.purge("many")) }()
	allocs, err := f.place(ctx, "many", node, count)
	if err != nil {
		return a, err
	}
	socket := filepath.Join(f.SIFRunDir(node), "cni.sock")
	var spaces []*os.File
	defer func() {
		for i, s := range spaces {
			s.Close()
			err = errors.Join(err, delNS(allocs[i]))
		}
	}()
	for _, alloc := range allocs {
		s, err := addNS(alloc)
		if err != nil {
			return a, err
		}
		spaces = append(spaces, s)
	}
	request := func(i int) cnicall.Request {
		return cnicall.Request{Command: "ADD", ContainerID: allocs[i], IfName: "eth0", Allocation: allocs[i], Namespace: spaces[i]}
	}
	parallel := 1
	if atOnce {
		parallel = count
	}
	idle := f.usage()
	time.Sleep(restTime)
	before, began := f.usage(), time.Now()
	rest := before.since(idle)
	var mu sync.Mutex
	var failed []error
	var group sync.WaitGroup
	next := make(chan int)
	for range parallel {
		group.Go(func() {
			for i := range next {
				if _, err := cnicall.Call(ctx, socket, request(i)); err != nil {
					mu.Lock()
					failed = append(failed, fmt.Errorf("attach %s: %w", allocs[i], err))
					mu.Unlock()
				}
			}
		})
	}
	for i := range count {
		next <- i
	}
	close(next)
	group.Wait()
	a.whole = time.Since(began)
	a.costs = f.usage().costs(before, rest, count)
	for i := range count {
		r := request(i)
		r.Command, r.Namespace = "DEL", nil
		if _, err := cnicall.Call(ctx, socket, r); err != nil {
			failed = append(failed, fmt.Errorf("detach %s: %w", allocs[i], err))
		}
	}
	if len(failed) > 0 {
		return a, fmt.Errorf("%d calls failed, the first: %w", len(failed), failed[0])
	}
	return a, a.read(f, node, allocs)
}

// read reads the durations of ADD from the agent's log.
func (a *attachments) read(f *fabric, node string, allocs []string) error {
	lines, err := f.logged(node, "agent", ": workload attached: ")
	if err != nil {
		return err
	}
	a.parts = map[string][]time.Duration{}
	for _, l := range lines {
		if !slices.Contains(allocs, l.fields[logkey.Endpoint]) {
			continue
		}
		d, err := time.ParseDuration(l.fields[logkey.Duration])
		if err != nil {
			return fmt.Errorf("read the duration that the agent logged: %w", err)
		}
		a.took = append(a.took, d)
	}
	if lines, err = f.logged(node, "agent", " "+logkey.Parts+"="); err != nil {
		return err
	}
	for _, l := range lines {
		if !slices.Contains(allocs, l.fields[logkey.Endpoint]) {
			continue
		}
		for part := range strings.SplitSeq(l.fields[logkey.Parts], ",") {
			name, value, _ := strings.Cut(part, "=")
			d, err := time.ParseDuration(value)
			if err != nil {
				return fmt.Errorf("read the parts of attaching that the agent logged: %w", err)
			}
			a.parts[name] = append(a.parts[name], d)
		}
	}
	if len(a.parts) == 0 {
		return errors.New("the agent logged no parts of ADD")
	}
	if len(a.took) != len(allocs) {
		return fmt.Errorf("the agent logged %d of %d attachments", len(a.took), len(allocs))
	}
	lines, err = f.logged(node, "agent", " "+logkey.Pending+"=")
	for _, l := range lines {
		if slices.Contains(allocs, l.fields[logkey.Endpoint]) {
			a.pending++
		}
	}
	return err
}

// partsText lists the parts of ADD, the longest first.
func (a *attachments) partsText() string {
	names := make([]string, 0, len(a.parts))
	for name := range a.parts {
		names = append(names, name)
	}
	slices.SortFunc(names, func(x, y string) int { return int(quantile(a.parts[y], 0.5) - quantile(a.parts[x], 0.5)) })
	for i, name := range names {
		names[i] = fmt.Sprintf("%s %s", name, milliseconds(quantile(a.parts[name], 0.5)))
	}
	return strings.Join(names, ", ")
}

// place registers a job and returns the allocations that Nomad placed.
func (f *fabric) place(ctx context.Context, name, node string, count int) ([]string, error) {
	file := name + ".nomad.hcl"
	if err := f.write(file, job(name, node, name, count)); err != nil {
		return nil, err
	}
	if out, err := f.SIF(ctx, "job", "run", "-detach", filepath.Join(f.dir, file)); err != nil {
		return nil, fmt.Errorf("run job %s: %w: %s", name, err, out)
	}
	var ids []string
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		list, _, err := f.nomad.Jobs().Allocations(name, false, (&nomad.QueryOptions{}).WithContext(ctx))
		if err != nil {
			return nil, err
		}
		ids = ids[:0]
		for _, a := range list {
			if a.DesiredStatus == nomad.AllocDesiredStatusRun {
				ids = append(ids, a.ID)
			}
		}
		if len(ids) == count {
			f.placed = append(f.placed, ids...)
			return ids, nil
		}
	}
	return nil, fmt.Errorf("job %s: Nomad placed only %d of %d allocations", name, len(ids), count)
}

// removeNamespaces removes the namespaces of allocations of which the lab no longer knows, because
// Nomad's client had collected them when it was killed.
func (f *fabric) removeNamespaces() error {
	if f == nil {
		return nil
	}
	var errs []error
	for _, alloc := range f.placed {
		if exists(netnsDir + alloc) {
			errs = append(errs, delNS(alloc))
		}
	}
	return errors.Join(errs...)
}

func (f *fabric) purge(job string) error {
	_, _, err := f.nomad.Jobs().Deregister(job, false, nil)
	if err != nil {
		return fmt.Errorf("stop job %s: %w", job, err)
	}
	return nil
}

// awaitNomad waits until Nomad's server lists a node as ready and the allocations of the previous
// measurement are stopped.
func (f *fabric) awaitNomad(ctx context.Context, node string) error {
	for deadline := time.Now().Add(30 * time.Second); time.Now().Before(deadline); time.Sleep(200 * time.Millisecond) {
		nodes, _, err := f.nomad.Nodes().List((&nomad.QueryOptions{}).WithContext(ctx))
		if err != nil {
			return err
		}
		if i := slices.IndexFunc(nodes, func(n *nomad.NodeListStub) bool { return n.Name == node && n.Status == "ready" }); i < 0 {
			continue
		}
		allocs, _, err := f.nomad.Jobs().Allocations("many", false, (&nomad.QueryOptions{}).WithContext(ctx))
		if err != nil {
			return err
		}
		if !slices.ContainsFunc(allocs, func(a *nomad.AllocationListStub) bool { return a.DesiredStatus == nomad.AllocDesiredStatusRun }) {
			return nil
		}
	}
	return fmt.Errorf("node %s is not ready", node)
}

func addNS(name string) (*os.File, error) {
	if out, err := exec.Command("ip", "netns", "add", name).CombinedOutput(); err != nil {
		return nil, fmt.Errorf("add namespace %s: %w: %s", name, err, out)
	}
	return os.Open(netnsDir + name)
}

func delNS(name string) error {
	if out, err := exec.Command("ip", "netns", "del", name).CombinedOutput(); err != nil {
		return fmt.Errorf("delete namespace %s: %w: %s", name, err, out)
	}
	return nil
}
