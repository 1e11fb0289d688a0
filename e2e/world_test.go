// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

//go:build e2e

package e2e

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	consul "github.com/hashicorp/consul/api"
	nomad "github.com/hashicorp/nomad/api"
	"github.com/shoenig/test/must"

	"github.com/sif-project/sif/api"
	"github.com/sif-project/sif/e2e/lab"
	"github.com/sif-project/sif/fabric"
)

// fabricUnderTest is a running fabric with both applications.
type fabricUnderTest struct {
	*lab.Lab
	root   string // of the repository
	nomad  *nomad.Client
	consul *consul.Client
}

func newWorld(ctx context.Context, l *lab.Lab, root string) (*fabricUnderTest, error) {
	f := &fabricUnderTest{Lab: l, root: root}
	var err error
	if f.nomad, err = l.Nomad(l.Secrets.NomadManagement); err != nil {
		return nil, fmt.Errorf("reach Nomad: %w", err)
	}
	if f.consul, err = l.Consul(l.Secrets.ConsulManagement); err != nil {
		return nil, fmt.Errorf("reach Consul: %w", err)
	}
	return f, ctx.Err()
}

// result is the output and the exit code of a command.
type result struct {
	stdout, stderr string
	code           int
}

// sif runs the sif command as the operator, outside the fabric.
func (f *fabricUnderTest) sif(t *testing.T, args ...string) result {
	t.Helper()
	// Cleanups restore graphs after the test's context has ended, so do not use that.
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	cmd, err := f.Command(ctx, "client", filepath.Join(f.Bin, "sif"), args...)
	must.NoError(t, err)
	cmd.Env = append(cmd.Env, f.Environment()...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err = cmd.Run()
	r := result{stdout: stdout.String(), stderr: stderr.String()}
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
		r.code = exit.ExitCode()
	} else {
		must.NoError(t, err)
	}
	return r
}

// status returns the output of `sif status -json`, which exits with another code than 0 while
// something is degraded.
func (f *fabricUnderTest) status(t *testing.T) api.Status {
	t.Helper()
	r := f.sif(t, "status", "-json")
	var s api.Status
	must.NoError(t, json.Unmarshal([]byte(r.stdout), &s), must.Sprintf("sif status -json: %s\n%s", r.stdout, r.stderr))
	return s
}

// allWell waits until every daemon enforces the revision in force and reports no problem.
func (f *fabricUnderTest) allWell(t *testing.T, within time.Duration) {
	t.Helper()
	began := time.Now()
	eventually(t, within, func() error {
		s := f.status(t)
		wrong := s.Controller.Degraded
		for _, n := range s.Nodes {
			for _, d := range n.Degraded {
				wrong = append(wrong, fmt.Sprintf("%s: %.300s", n.ID(), d))
			}
			if n.Sequence != s.Pointer.Sequence {
				wrong = append(wrong, fmt.Sprintf("%s enforces sequence %d of %d", n.ID(), n.Sequence, s.Pointer.Sequence))
			}
			if n.Reported.Before(began) {
				wrong = append(wrong, fmt.Sprintf("%s last reported %s", n.ID(), n.Reported))
			}
		}
		daemons := 0
		for _, n := range f.Topology.Nodes(lab.Processor, lab.Workload) {
			daemons += len(n.Daemons())
			for _, d := range n.Daemons() {
				if !f.Alive(n.Name, d) { // nothing starts it again
					t.Fatalf("%s/%s has ended:\n%s", n.Name, d, f.Tail(n.Name, d))
				}
			}
		}
		if len(s.Nodes) != daemons {
			wrong = append(wrong, fmt.Sprintf("%d daemons of %d are known", len(s.Nodes), daemons))
		}
		if len(wrong) > 0 {
			return errors.New(strings.Join(wrong, "\n"))
		}
		return nil
	})
}

// workload is a running endpoint.
type workload struct {
	alloc, zone, node string
	service           fabric.Ref
	v4, v6            netip.Addr
	netns             string // path of its network namespace
}

func (w workload) String() string {
	return fmt.Sprintf("%s at %s on %s (%s)", w.service, w.v4, w.node, w.alloc[:8])
}

// workloads returns the endpoints of a service in one zone, or in all zones if zone is "".
func (f *fabricUnderTest) workloads(t *testing.T, service, zone string) []workload {
	t.Helper()
	ref, err := fabric.ParseRef(service)
	must.NoError(t, err)
	var list []workload
	for _, n := range f.status(t).Nodes {
		for _, ep := range n.Endpoints {
			if ep.Service != ref || zone != "" && n.Zone != zone {
				continue
			}
			if path := namespaceOf(ep.Endpoint); path != "" {
				list = append(list, workload{alloc: ep.Endpoint, zone: n.Zone, node: n.Node, service: ref, v4: ep.IPv4, v6: ep.IPv6, netns: path})
			}
		}
	}
	return list
}

// workload waits for an endpoint of a service in a zone and returns it.
func (f *fabricUnderTest) workload(t *testing.T, service, zone string) workload {
	t.Helper()
	var list []workload
	eventually(t, 20*time.Second, func() error {
		if list = f.workloads(t, service, zone); len(list) == 0 {
			return fmt.Errorf("no endpoint of %s runs in %s", service, zone)
		}
		return nil
	})
	return list[0]
}

// namespaceOf finds the network namespace of an allocation by one of its processes, whichever
// driver started it.
func namespaceOf(alloc string) string {
	comms, err := filepath.Glob("/proc/[0-9]*/comm")
	if err != nil {
		return ""
	}
	variable := []byte("NOMAD_ALLOC_ID=" + alloc)
	for _, path := range comms {
		comm, err := os.ReadFile(path)
		if err != nil || strings.TrimSpace(string(comm)) != "sif-demo" {
			continue
		}
		dir := filepath.Dir(path)
		environ, err := os.ReadFile(dir + "/environ")
		if err == nil && slices.ContainsFunc(bytes.Split(environ, []byte{0}), func(v []byte) bool { return bytes.Equal(v, variable) }) {
			return dir + "/ns/net"
		}
	}
	return ""
}

// file reads a file of the repository.
func (f *fabricUnderTest) file(t *testing.T, path string) string {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(f.root, path))
	must.NoError(t, err)
	return string(data)
}

// write writes text into a file in the test's temporary directory and returns its path.
func write(t *testing.T, name, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	must.NoError(t, os.WriteFile(path, []byte(text), 0o644))
	return path
}

// apply puts a graph in force with `sif graph apply` and returns its sequence.
func (f *fabricUnderTest) apply(t *testing.T, text string) uint64 {
	t.Helper()
	r := f.sif(t, "graph", "apply", "-json", "-message="+t.Name(), write(t, "graph.sif.hcl", text))
	must.Zero(t, r.code, must.Sprint(r.stderr))
	var reply struct{ Sequence uint64 }
	must.NoError(t, json.Unmarshal([]byte(r.stdout), &reply))
	return reply.Sequence
}

// sequence returns the sequence of the graph in force.
func (f *fabricUnderTest) sequence(t *testing.T) uint64 {
	t.Helper()
	return f.status(t).Pointer.Sequence
}

// allocs returns the allocations of a job and of its children, in all namespaces, the newest first.
func (f *fabricUnderTest) allocs(t *testing.T, id string) []*nomad.AllocationListStub {
	t.Helper()
	list, _, err := f.nomad.Allocations().List(&nomad.QueryOptions{Namespace: "*", Params: map[string]string{"resources": "false"}})
	must.NoError(t, err)
	list = slices.DeleteFunc(list, func(a *nomad.AllocationListStub) bool { return a.JobID != id && !childOf(a.JobID, id) })
	slices.SortFunc(list, func(a, b *nomad.AllocationListStub) int { return int(b.CreateIndex) - int(a.CreateIndex) })
	return list
}

// childOf reports whether a job was dispatched from another one, or is a run of it by its calendar.
func childOf(id, parent string) bool {
	return strings.HasPrefix(id, parent+"/periodic-") || strings.HasPrefix(id, parent+"/dispatch-")
}

// said describes the state of an allocation.
func said(a *nomad.AllocationListStub) string {
	text := fmt.Sprintf("%s of %s on %s: %s, wanted to %s %s", a.ID[:8], a.JobID, a.NodeName, a.ClientStatus, a.DesiredStatus, a.ClientDescription)
	for name, state := range a.TaskStates {
		for _, e := range state.Events[max(0, len(state.Events)-3):] {
			text += fmt.Sprintf("\n  %s: %s %s", name, e.Type, e.DisplayMessage)
		}
	}
	return text
}

// purgeAtEnd removes a job and its children from Nomad at the end of the test, with purge.
func (f *fabricUnderTest) purgeAtEnd(t *testing.T, namespace, id string) {
	t.Helper()
	t.Cleanup(func() { f.purge(t, namespace, id) })
}

// purge stops a job and its children, waits until their allocations have ended, and removes them.
// A job that is purged at once deletes allocations that run: a client of Nomad that misses it,
// because it happens between two of its questions, lets them run on until another allocation of the
// node changes (Node.GetClientAllocs, Nomad 1.10.5).
func (f *fabricUnderTest) purge(t *testing.T, namespace, id string) {
	t.Helper()
	write := &nomad.WriteOptions{Namespace: namespace}
	deregister := func(purge bool) {
		jobs, _, err := f.nomad.Jobs().List(&nomad.QueryOptions{Namespace: namespace, Prefix: id})
		must.NoError(t, err)
		for _, j := range jobs {
			if j.ID == id || childOf(j.ID, id) {
				_, _, err := f.nomad.Jobs().Deregister(j.ID, purge, write)
				must.NoError(t, err)
			}
		}
	}
	deregister(false)
	eventually(t, time.Minute, func() error {
		var run []string
		for _, a := range f.allocs(t, id) {
			if a.Namespace == namespace && !slices.Contains(ended, a.ClientStatus) {
				run = append(run, said(a)+f.logged(a.NodeName, a.ID))
			}
		}
		if len(run) > 0 {
			return fmt.Errorf("job %s was stopped, but these allocations have not ended:\n%s", id, strings.Join(run, "\n"))
		}
		return nil
	})
	deregister(true)
}

// ended are the states of allocations of which nothing runs any more.
var ended = []string{nomad.AllocClientStatusComplete, nomad.AllocClientStatusFailed, nomad.AllocClientStatusLost}

// view returns what Nomad knows of an allocation, and what the daemons of its node logged about it.
func (f *fabricUnderTest) view(node, alloc string) string {
	text := "Nomad: "
	a, _, err := f.nomad.Allocations().Info(alloc, nil)
	if err != nil {
		text += err.Error()
	} else {
		text += said(a.Stub())
	}
	return text + f.logged(node, alloc)
}

// logged returns what the daemons of a node, its Nomad client among them, logged about an endpoint.
func (f *fabricUnderTest) logged(node, endpoint string) string {
	var text strings.Builder
	for _, daemon := range []string{"nomad", "agent"} {
		file := f.LogFile(node, daemon)
		log, err := os.ReadFile(file)
		if err != nil {
			fmt.Fprintf(&text, "\n  %s", err)
		}
		var lines []string
		for line := range strings.Lines(string(log)) {
			if strings.Contains(line, endpoint) {
				lines = append(lines, "\n    "+strings.TrimSpace(line))
			}
		}
		fmt.Fprintf(&text, "\n  %s logged of it:%s", filepath.Base(file), strings.Join(lines[max(0, len(lines)-15):], ""))
	}
	return text.String()
}

// signalDaemons sends a signal to every agent and engine.
func (f *fabricUnderTest) signalDaemons(t *testing.T, s syscall.Signal) {
	t.Helper()
	for _, n := range f.Topology.Nodes(lab.Processor, lab.Workload) {
		for _, daemon := range n.Daemons() {
			must.NoError(t, f.Signal(n.Name, daemon, s))
		}
	}
}

// freeze stops agents and engines with SIGSTOP until the test ends.
func (f *fabricUnderTest) freeze(t *testing.T) {
	t.Helper()
	t.Cleanup(func() { f.signalDaemons(t, syscall.SIGCONT) })
	f.signalDaemons(t, syscall.SIGSTOP)
}

func daemonOf(n *lab.Node) string {
	if n.Kind == lab.Processor {
		return "engine"
	}
	return "agent"
}

// noticeable is how long a test waits before its log says so, so that `go test -v` tells for what.
const noticeable = 2 * time.Second

// eventually calls probe until it succeeds.
func eventually(t *testing.T, within time.Duration, probe func() error) {
	t.Helper()
	began := time.Now()
	var last error
	for {
		err := probe()
		if took := time.Since(began); err == nil && took > noticeable && last != nil {
			t.Logf("waited %.1f s, at last for: %.300s", took.Seconds(), last)
		}
		if err == nil {
			return
		}
		if time.Since(began) > within {
			must.NoError(t, err, must.Sprintf("not after %s", within))
		}
		last = err
		time.Sleep(100 * time.Millisecond)
	}
}

// call makes one call to the API of the controller on a node, as the operator.
func (f *fabricUnderTest) call(ctx context.Context, n *lab.Node, method, path string, body []byte) ([]byte, http.Header, int, error) {
	pem, err := os.ReadFile(f.FabricCA())
	if err != nil {
		return nil, nil, 0, err
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(pem)
	client := &http.Client{Timeout: time.Minute, Transport: &http.Transport{
		DialContext: f.Dial("client"), TLSClientConfig: &tls.Config{RootCAs: pool}, DisableKeepAlives: true,
	}}
	var address string
	for i, o := range f.Topology.Nodes(lab.Orchestrator) {
		if o.Name == n.Name {
			address = f.Controllers()[i]
		}
	}
	req, err := http.NewRequestWithContext(ctx, method, "https://"+address+path, bytes.NewReader(body))
	if err != nil {
		return nil, nil, 0, err
	}
	req.Header.Set(api.TokenHeader, f.Secrets.ConsulOperator)
	resp, err := client.Do(req)
	if err != nil {
		return nil, nil, 0, err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	return text, resp.Header, resp.StatusCode, err
}
