// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

// Package lab brings up a whole fabric on one machine: nodes as network namespaces, an internet
// between their zones that filters, real Consul, Vault, Nomad, Docker and Open vSwitch, and the SIF
// daemons. `make dev` and the end-to-end tests use it.
//
// It knows how the parts are started, configured and removed, and what they need to find one
// another. It knows nothing of what the fabric does with them: no graphs, policy or packets.
//
// Everything that a lab makes carries its name: namespaces and control groups sif-<lab>-<node>, the
// machine's link sif-<lab>-u into the users' network, processes with SIF_LAB=<lab> in their
// environment, and files only in /run/sif-lab/<lab> and /var/lib/sif-lab/<lab>. So Down needs only
// the name, and Up begins by removing what an earlier lab of the same name left.
package lab

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"sync"
	"syscall"
	"time"

	"github.com/sif-project/sif/internal/join"
)

const (
	varRoot = "/var/lib/sif-lab"
	runRoot = "/run/sif-lab"
)

// Options configure Up.
type Options struct {
	Name        string    // of the lab: 1 to 8 lower-case letters and digits
	Topology    *Topology // if nil, DefaultTopology
	Bin         string    // directory of sif, sif-cni and sif-demo, and of servers/{consul,vault,nomad} if they are not on PATH
	ServersOnly bool      // leave out the SIF daemons
	HostAccess  bool      // give the machine itself an address in the users' network; only one lab at a time can have it
	Out         io.Writer // receives progress messages; may be nil

	CertTTL   time.Duration // the life of the fabric's certificates; zero: its default
	KeyPeriod time.Duration // after which nodes replace the WireGuard keys of their links; zero: the default
	// AdmissionLife is the life of admissions, and OutageBound for how long what was in force is
	// honoured beyond its end; zero: their defaults.
	AdmissionLife, OutageBound time.Duration
}

// Lab is a running lab. Its exported fields are stored in a file, from which another program can
// open it.
type Lab struct {
	Name        string
	Topology    *Topology
	Bin         string
	ServersOnly bool
	HostAccess  bool
	CertTTL     time.Duration
	KeyPeriod   time.Duration

	AdmissionLife, OutageBound time.Duration
	Secrets                    Secrets

	servers  map[string]string // paths of consul, vault and nomad
	ca       *authority        // of the servers; only in the program that called Up
	progress *progress
	asked    sync.Map // PIDs of processes that this program was told to end
}

// Secrets are the tokens of a lab. They are useless outside it.
type Secrets struct {
	ConsulManagement string
	NomadManagement  string
	VaultRoot        string
	VaultUnseal      string
	GossipKey        string
	NomadConsul      string            // token of Nomad's servers and clients for Consul
	ConsulAgents     map[string]string // the Consul agents' own tokens, by node name

	ConsulOperator string // what people have
	NomadOperator  string
	Machines       map[string]join.Grant // by node name
}

var labName = regexp.MustCompile(`^[a-z0-9]{1,8}$`)

// Up brings a lab up, after removing what an earlier one of that name left. If it fails, or ctx
// ends, it removes everything again and returns the first error.
func Up(ctx context.Context, o Options) (*Lab, error) {
	if !labName.MatchString(o.Name) {
		return nil, fmt.Errorf("lab name %q: must be 1 to 8 lower-case letters and digits", o.Name)
	}
	if os.Geteuid() != 0 {
		return nil, errors.New("the lab needs root: it creates network namespaces and starts Docker and Open vSwitch in them")
	}
	if o.Topology == nil {
		t, err := DefaultTopology()
		if err != nil {
			return nil, err
		}
		o.Topology = t
	}
	l := &Lab{
		Name: o.Name, Topology: o.Topology, Bin: o.Bin, ServersOnly: o.ServersOnly, HostAccess: o.HostAccess,
		CertTTL: o.CertTTL, KeyPeriod: o.KeyPeriod, AdmissionLife: o.AdmissionLife, OutageBound: o.OutageBound,
		progress: newProgress(o.Out),
	}
	if err := l.checkPrograms(ctx); err != nil {
		return nil, err
	}
	unlock, err := lock(ctx, o.Name)
	if err != nil {
		return nil, err
	}
	defer unlock()
	if err := (remnants{o.Name}).remove(ctx); err != nil {
		return nil, fmt.Errorf("remove what an earlier lab left: %w", err)
	}
	if err := l.bringUp(ctx); err != nil {
		l.progress.line("removing everything again")
		down, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
		defer cancel()
		return nil, errors.Join(err, (remnants{o.Name}).remove(down))
	}
	return l, nil
}

func (l *Lab) bringUp(ctx context.Context) error {
	for _, dir := range []string{LogDir(l.Name), l.varDir("proc"), l.runDir()} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return fmt.Errorf("make directory: %w", err)
		}
	}
	if err := writeJSON(filepath.Join(l.runDir(), ownerFile), os.Getpid()); err != nil {
		return fmt.Errorf("store the PID of this process: %w", err)
	}
	if err := l.buildNetwork(ctx); err != nil {
		return fmt.Errorf("build the network: %w", err)
	}
	l.progress.line("network: %d nodes in %d zones, and the internet between them", len(l.Topology.Nodes()), len(l.Topology.Zones))
	if err := l.startServers(ctx); err != nil {
		return err
	}
	if err := l.save(); err != nil {
		return err
	}
	if l.ServersOnly {
		return l.startNomadClients(ctx)
	}
	return l.startFabric(ctx)
}

// Open returns a lab that another program brought up.
func Open(name string) (*Lab, error) {
	l := &Lab{Name: name, progress: newProgress(nil)}
	if err := readJSON(l.file(), l); err != nil {
		if errors.Is(err, os.ErrNotExist) {
			return nil, fmt.Errorf("lab %s is not up", name)
		}
		return nil, fmt.Errorf("open lab %s: %w", name, err)
	}
	return l, nil
}

// Down removes the lab: processes, containers, mounts, namespaces, links, control groups, files. It
// succeeds if there is no such lab. If another program is bringing the lab up, Down ends that
// first.
func Down(ctx context.Context, name string) error {
	if !labName.MatchString(name) {
		return fmt.Errorf("lab name %q: must be 1 to 8 lower-case letters and digits", name)
	}
	if os.Geteuid() != 0 {
		return errors.New("removing a lab needs root")
	}
	unlock, err := tryLock(name)
	if err != nil {
		var owner int
		if readJSON(filepath.Join(runRoot, name, ownerFile), &owner) == nil && owner > 1 {
			// The lock is taken, so the owner lives, and its PID cannot belong to another process.
			_ = syscall.Kill(owner, syscall.SIGTERM)
		}
		if unlock, err = lock(ctx, name); err != nil {
			return err
		}
	}
	defer unlock()
	if err := (remnants{name}).remove(ctx); err != nil {
		return fmt.Errorf("remove lab %s: %w", name, err)
	}
	return nil
}

// Down removes the lab.
func (l *Lab) Down(ctx context.Context) error { return Down(ctx, l.Name) }

// ownerFile contains the PID of the program that brings the lab up.
const ownerFile = "owner.json"

// lock waits until no other program brings this lab up or removes it. The lock is an abstract unix
// socket, which leaves no file and is released when its process ends.
func lock(ctx context.Context, name string) (unlock func(), err error) {
	ctx, cancel := context.WithTimeout(ctx, 90*time.Second)
	defer cancel()
	for {
		if unlock, err = tryLock(name); err == nil {
			return unlock, nil
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("another program is bringing up or removing lab %s: %w", name, ctx.Err())
		case <-time.After(100 * time.Millisecond):
		}
	}
}

func tryLock(name string) (unlock func(), err error) {
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: "@sif-lab/" + name, Net: "unix"})
	if err != nil {
		return nil, err
	}
	return sync.OnceFunc(func() { l.Close() }), nil
}

// LogDir is the directory of the logs of a lab's processes. It goes with the lab.
func LogDir(lab string) string { return filepath.Join(varRoot, lab, "log") }

func (l *Lab) varDir(parts ...string) string {
	return filepath.Join(append([]string{varRoot, l.Name}, parts...)...)
}

func (l *Lab) runDir(parts ...string) string {
	return filepath.Join(append([]string{runRoot, l.Name}, parts...)...)
}

func (l *Lab) file() string { return l.varDir("lab.json") }

func (l *Lab) save() error {
	if err := writeJSON(l.file(), l); err != nil {
		return fmt.Errorf("save the lab's description: %w", err)
	}
	return nil
}
