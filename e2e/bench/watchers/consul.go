// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	consulapi "github.com/hashicorp/consul/api"
	"github.com/prometheus/procfs"
)

// server is a single Consul server with its data on disk, as in production.
type server struct {
	address string
	cmd     *exec.Cmd
	dir     string
}

// startConsul starts the server, with its data in a new directory in parent.
func startConsul(ctx context.Context, binary, parent string, clients int) (*server, error) {
	dir, err := os.MkdirTemp(parent, "sif-watchers")
	if err != nil {
		return nil, err
	}
	ports, err := freePorts(4)
	if err != nil {
		return nil, err
	}
	config := fmt.Sprintf(`
server = true
bootstrap_expect = 1
bind_addr = "127.0.0.1"
client_addr = "127.0.0.1"
data_dir = %q
log_level = "warn"
limits { http_max_conns_per_client = %d }
ports {
  http = %d
  server = %d
  serf_lan = %d
  serf_wan = %d
  dns = -1
  grpc = -1
  grpc_tls = -1
}
`, filepath.Join(dir, "data"), 8*clients+100, ports[0], ports[1], ports[2], ports[3])
	file := filepath.Join(dir, "consul.hcl")
	if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
		return nil, err
	}
	s := &server{address: fmt.Sprintf("127.0.0.1:%d", ports[0]), dir: dir, cmd: exec.Command(binary, "agent", "-config-file="+file)}
	s.cmd.Stderr = os.Stderr
	s.cmd.Env = []string{"HOME=" + dir, "PATH=" + os.Getenv("PATH")}
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := s.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", binary, err)
	}
	client, err := s.client(nil)
	if err != nil {
		return nil, err
	}
	for end := time.Now().Add(30 * time.Second); ; time.Sleep(100 * time.Millisecond) {
		if leader, err := client.Status().Leader(); err == nil && leader != "" {
			if _, err := client.KV().Put(&consulapi.KVPair{Key: "ready"}, nil); err == nil {
				return s, nil
			}
		}
		if time.Now().After(end) || ctx.Err() != nil {
			s.stop()
			return nil, fmt.Errorf("consul at %s has no leader", s.address)
		}
	}
}

// freePorts returns ports that were free a moment ago.
func freePorts(n int) ([]int, error) {
	var ports []int
	for range n {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return nil, err
		}
		defer l.Close() // close them only after all are found, so that no port is found twice
		ports = append(ports, l.Addr().(*net.TCPAddr).Port)
	}
	return ports, nil
}

func (s *server) stop() {
	_ = s.cmd.Process.Signal(syscall.SIGTERM)
	_ = s.cmd.Wait() // it is ended by a signal
	os.RemoveAll(s.dir)
}

// client returns a client with connections of its own, like a node's. It counts what it reads.
func (s *server) client(counts *counts) (*consulapi.Client, error) {
	conf := &consulapi.Config{Address: s.address, Transport: &http.Transport{
		MaxIdleConnsPerHost: 2, IdleConnTimeout: time.Minute, DisableCompression: true,
	}}
	if counts == nil {
		return consulapi.NewClient(conf)
	}
	conf.HttpClient = &http.Client{Transport: counting{conf.Transport, counts}}
	return consulapi.NewClient(conf)
}

// counts count what a client read.
type counts struct {
	all, objects atomic.Int64 // all requests, and those that read objects
	bytes        atomic.Int64 // in the bodies of answers
}

type counting struct {
	http.RoundTripper
	counts *counts
}

func (c counting) RoundTrip(r *http.Request) (*http.Response, error) {
	c.counts.all.Add(1)
	if strings.HasSuffix(r.URL.Path, "/v1/txn") && !compares(r) {
		c.counts.objects.Add(1)
	}
	resp, err := c.RoundTripper.RoundTrip(r)
	if err == nil {
		resp.Body = &countingBody{resp.Body, &c.counts.bytes}
	}
	return resp, err
}

// compares reports whether a transaction only checks that objects are unchanged.
func compares(r *http.Request) bool {
	body, err := r.GetBody()
	if err != nil {
		return false
	}
	ops, err := io.ReadAll(body)
	return err == nil && bytes.Contains(ops, []byte(consulapi.KVCheckIndex))
}

type countingBody struct {
	io.ReadCloser
	bytes *atomic.Int64
}

func (b *countingBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	b.bytes.Add(int64(n))
	return n, err
}

// usage is what the server has used so far.
type usage struct {
	at             time.Time
	cpu            time.Duration
	resident, peak float64 // MiB
}

func (s *server) usage() (usage, error) {
	u := usage{at: time.Now()}
	proc, err := procfs.NewProc(s.cmd.Process.Pid)
	if err != nil {
		return u, err
	}
	stat, err := proc.Stat()
	if err != nil {
		return u, err
	}
	status, err := proc.NewStatus()
	if err != nil {
		return u, err
	}
	const mib = 1 << 20
	u.cpu = time.Duration(stat.CPUTime() * float64(time.Second))
	u.resident, u.peak = float64(status.VmRSS)/mib, float64(status.VmHWM)/mib
	return u, nil
}

func cost(from, to usage, requests int64) Cost {
	seconds := to.at.Sub(from.at).Seconds()
	return Cost{
		CPU: (to.cpu - from.cpu).Seconds() / seconds, Requests: float64(requests) / seconds,
		Resident: to.resident, Peak: to.peak,
	}
}
