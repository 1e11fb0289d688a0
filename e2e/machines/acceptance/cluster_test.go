// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

//go:build machines

package acceptance

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"github.com/sif-project/sif/e2e/machines"
)

// cluster is Consul, Vault and Nomad outside the machines, and their clients on the machines.
type cluster struct {
	world    *machines.World
	operator []string // the environment of an administrator of the three
	sif      string   // the command of the package, for the operator's computer
	began    time.Time
}

const (
	// repository is the path of the clone from here.
	repository = "../../.."
	// traffic is where sif-traffic is on the machines.
	traffic = "/usr/local/bin/sif-traffic"
	// packageFile is where the machines have the package under test.
	packageFile = "/root/sif.deb"
)

// context returns the context of a test, which ends some time before the test is killed.
func testContext(t *testing.T) context.Context {
	if deadline, ok := t.Deadline(); ok {
		ctx, cancel := context.WithDeadline(t.Context(), deadline.Add(-time.Minute))
		t.Cleanup(cancel)
		return ctx
	}
	return t.Context()
}

// packageUnderTest is the newest Debian package in dist, or $SIF_PACKAGE.
func packageUnderTest(t *testing.T) string {
	t.Helper()
	if path := os.Getenv("SIF_PACKAGE"); path != "" {
		return path
	}
	found, err := filepath.Glob(filepath.Join(repository, "dist/sif_*_amd64.deb"))
	must.NoError(t, err)
	must.SliceNotEmpty(t, found, must.Sprint("there is no package in dist: run make packages"))
	return slices.MaxFunc(found, func(a, b string) int { return modified(t, a).Compare(modified(t, b)) })
}

func modified(t *testing.T, path string) time.Time {
	info, err := os.Stat(path)
	must.NoError(t, err)
	return info.ModTime()
}

// newCluster boots the machines and starts the servers. With SIF_MACHINES_WORLD the world of that
// name is used and stays: the test goes on where an earlier run ended.
func newCluster(t *testing.T, name string, specs ...machines.Spec) *cluster {
	t.Helper()
	ctx := testContext(t)
	c := &cluster{began: time.Now()}
	keep := os.Getenv("SIF_MACHINES_WORLD")
	if keep != "" {
		name = keep
	}
	var err error
	if c.world, err = machines.Open(name, progress{t, c}); keep == "" || errors.Is(err, machines.ErrNone) {
		owner := os.Getpid()
		if keep != "" {
			owner = 0
		}
		c.world, err = machines.Up(ctx, machines.Options{Name: name, Domain: "ec2.internal", Out: progress{t, c}, Owner: owner})
		must.NoError(t, err)
		if keep == "" {
			t.Cleanup(func() { must.NoError(t, machines.Down(context.Background(), name)) })
		}
		t.Cleanup(func() { c.keepLogs(t) })
		c.start(t, ctx, specs)
	} else {
		must.NoError(t, err)
		t.Cleanup(func() { c.keepLogs(t) })
	}
	c.becomeOperator(t)
	c.sif = c.world.Path("operator/usr/bin/sif")
	out, err := exec.CommandContext(ctx, "dpkg-deb", "-x", packageUnderTest(t), c.world.Path("operator")).CombinedOutput()
	must.NoError(t, err, must.Sprint(string(out)))
	return c
}

// becomeOperator reads the environment of an administrator of the servers.
func (c *cluster) becomeOperator(t *testing.T) {
	t.Helper()
	env, err := os.ReadFile(c.world.Path("servers/operator.env"))
	must.NoError(t, err)
	c.operator = nil
	for _, line := range strings.Split(strings.TrimSpace(string(env)), "\n") {
		c.operator = append(c.operator, strings.Fields(strings.TrimPrefix(line, "export "))...)
	}
}

// start starts the servers, boots the machines, and makes them clients of the servers.
func (c *cluster) start(t *testing.T, ctx context.Context, specs []machines.Spec) {
	servers, err := filepath.Abs(filepath.Join(repository, "bin/servers"))
	must.NoError(t, err)
	script, err := filepath.Abs("servers.sh")
	must.NoError(t, err)
	out, err := c.world.Command(ctx, script, "up", c.world.Path("servers"), servers).CombinedOutput()
	must.NoError(t, err, must.Sprint(string(out)))
	c.becomeOperator(t)
	c.logf(t, "the servers run")

	files := []machines.File{
		{From: filepath.Join(servers, "consul"), To: "/usr/bin/consul", Mode: 0o755},
		{From: filepath.Join(servers, "nomad"), To: "/usr/bin/nomad", Mode: 0o755},
		{From: filepath.Join(repository, "bin/sif-traffic"), To: traffic, Mode: 0o755},
		{From: packageUnderTest(t), To: packageFile},
	}
	client := c.world.Path("servers/client")
	must.NoError(t, filepath.WalkDir(client, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			files = append(files, machines.File{From: path, To: strings.TrimPrefix(path, client)})
		}
		return err
	}))
	for _, s := range specs {
		s.Files = append(s.Files, files...)
		_, err := c.world.Boot(ctx, s)
		must.NoError(t, err)
	}
	c.each(t, func(m *machines.Machine) error {
		if err := m.AwaitBoot(ctx); err != nil {
			return err
		}
		_, err := m.Output(ctx, "sh", "/root/install-clients.sh")
		return err
	})
	c.await(t, 3*time.Minute, "clients of Nomad", func() error {
		out, err := c.run(ctx, filepath.Join(servers, "nomad"), "node", "status", "-json")
		if err != nil {
			return err
		}
		var nodes []struct{ Name, Status string }
		if err := json.Unmarshal([]byte(out), &nodes); err != nil {
			return err
		}
		ready := 0
		for _, n := range nodes {
			if n.Status == "ready" {
				ready++
			}
		}
		if ready != len(c.world.Machines) {
			return fmt.Errorf("%d of %d Nomad clients are ready", ready, len(c.world.Machines))
		}
		return nil
	})
	c.logf(t, "the machines are clients of Consul and Nomad")
}

// progress prints lines of package machines with the time.
type progress struct {
	t *testing.T
	c *cluster
}

func (p progress) Write(b []byte) (int, error) {
	p.c.logf(p.t, "%s", strings.TrimRight(string(b), "\n"))
	return len(b), nil
}

// logf prints a line at once, with the seconds since the cluster was begun.
func (c *cluster) logf(t *testing.T, format string, args ...any) {
	fmt.Printf("%5.0f s  %s: %s\n", time.Since(c.began).Seconds(), t.Name(), fmt.Sprintf(format, args...))
}

// each calls fn for all machines at once.
func (c *cluster) each(t *testing.T, fn func(*machines.Machine) error) {
	t.Helper()
	errs := make([]error, len(c.world.Machines))
	var wg sync.WaitGroup
	for i, m := range c.world.Machines {
		wg.Go(func() { errs[i] = fn(m) })
	}
	wg.Wait()
	must.NoError(t, errors.Join(errs...))
}

func (c *cluster) machine(t *testing.T, name string) *machines.Machine {
	t.Helper()
	m, err := c.world.Machine(name)
	must.NoError(t, err)
	return m
}

// await calls probe until it succeeds, and fails the test with its last error.
func (c *cluster) await(t *testing.T, within time.Duration, what string, probe func() error) {
	t.Helper()
	began := time.Now()
	for {
		err := probe()
		if err == nil {
			c.logf(t, "%s: after %.1f s", what, time.Since(began).Seconds())
			return
		}
		if time.Since(began) > within {
			t.Fatalf("%s: not within %s: %v", what, within, err)
		}
		time.Sleep(500 * time.Millisecond)
	}
}

// run runs a program as the operator does, on a computer that reaches the servers and the machines.
func (c *cluster) run(ctx context.Context, args ...string) (string, error) {
	cmd := c.world.Command(ctx, args...)
	cmd.Env = append(cmd.Env, c.operator...)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		err = fmt.Errorf("%s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(stderr.String()+"\n"+string(out)))
	}
	return strings.TrimSpace(string(out)), err
}

// do runs sif as the operator does, shows what it prints and returns it.
func (c *cluster) do(t *testing.T, args ...string) string {
	t.Helper()
	c.logf(t, "$ sif %s", strings.Join(args, " "))
	out, err := c.run(testContext(t), append([]string{c.sif}, args...)...)
	must.NoError(t, err)
	show(out)
	return out
}

// purge stops jobs, waits until their allocations have ended, and removes them. A client of Nomad
// can miss that a job is purged at once, and lets its allocations run on (Nomad 1.10.5).
func (c *cluster) purge(t *testing.T, jobs ...string) {
	t.Helper()
	nomad := func(args ...string) string {
		t.Helper()
		out, err := c.run(testContext(t), append([]string{repository + "/bin/servers/nomad"}, args...)...)
		must.NoError(t, err)
		return out
	}
	for _, job := range jobs {
		nomad("job", "stop", "-detach", job)
	}
	c.await(t, 2*time.Minute, "the allocations of "+strings.Join(jobs, ", ")+" have ended", func() error {
		for _, job := range jobs {
			var allocs []struct{ ID, ClientStatus string }
			must.NoError(t, json.Unmarshal([]byte(nomad("job", "allocs", "-all", "-json", job)), &allocs))
			for _, a := range allocs {
				if a.ClientStatus == "running" || a.ClientStatus == "pending" {
					return fmt.Errorf("allocation %s of %s is %s", a.ID, job, a.ClientStatus)
				}
			}
		}
		return nil
	})
	for _, job := range jobs {
		nomad("job", "stop", "-purge", "-detach", job)
	}
}

// on runs a command on a machine, shows what it prints and returns it.
func (c *cluster) on(t *testing.T, m *machines.Machine, args ...string) string {
	t.Helper()
	c.logf(t, "%s# %s", m.Hostname, shorten.ReplaceAllString(strings.Join(args, " "), "$1..."))
	out, err := m.Output(testContext(t), args...)
	must.NoError(t, err)
	show(out)
	return out
}

// shorten matches what is long, secret and means nothing to a reader: tokens.
var shorten = regexp.MustCompile(`(sif-join-.{8}|TOKEN=.{8})\S*`)

func show(out string) {
	for _, line := range strings.Split(out, "\n") {
		fmt.Println("          |", shorten.ReplaceAllString(line, "$1..."))
	}
}

// quietly runs a command on a machine and returns its output.
func (c *cluster) quietly(t *testing.T, m *machines.Machine, script string) string {
	t.Helper()
	out, err := m.Shell(testContext(t), script)
	must.NoError(t, err)
	return out
}

// exitCode runs sif as the operator does, shows its output and returns its exit code.
func (c *cluster) exitCode(t *testing.T, args ...string) int {
	t.Helper()
	c.logf(t, "$ sif %s", strings.Join(args, " "))
	out, err := c.run(testContext(t), append([]string{c.sif}, args...)...)
	var exit *exec.ExitError
	switch {
	case err == nil:
		show(out)
		return 0
	case errors.As(err, &exit):
		show(err.Error())
		return exit.ExitCode()
	}
	must.NoError(t, err)
	return -1
}

// keepLogs copies what tells why a test failed to SIF_E2E_LOGS.
func (c *cluster) keepLogs(t *testing.T) {
	dir := os.Getenv("SIF_E2E_LOGS")
	if !t.Failed() || dir == "" {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Logf("keep the logs: %v", err)
		return
	}
	for _, m := range c.world.Machines {
		journal, err := m.Output(ctx, "journalctl", "--no-pager", "-b", "-o", "short-precise")
		if err != nil {
			journal += "\n" + err.Error()
		}
		console, _ := os.ReadFile(m.Console())
		for name, text := range map[string]string{".journal": journal, ".console": string(console)} {
			if err := os.WriteFile(filepath.Join(dir, m.Name+name), []byte(text), 0o600); err != nil {
				t.Logf("keep the logs: %v", err)
			}
		}
	}
	t.Logf("the machines' journals are in %s", dir)
}
