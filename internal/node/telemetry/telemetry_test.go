// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package telemetry

import (
	"context"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/shoenig/test/must"

	"github.com/sif-project/sif/api"
	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/internal/metric"
)

var (
	web   = fabric.Ref{Domain: "shop", Name: "web"}
	db    = fabric.Ref{Domain: "shop", Name: "db"}
	query = fabric.Ref{Domain: "shop", Name: "query"}
	noon  = time.Date(2026, 11, 29, 12, 0, 0, 0, time.UTC)
)

func agentStatus() api.NodeStatus {
	return api.NodeStatus{
		Zone: "aws1", Node: "w1", Kind: fabric.KindWorkload, Version: "0.2.0", Sequence: 7, Revocations: 3,
		CertificateExpires: noon, Degraded: []string{"one", "two"},
		Enforced: &api.Enforced{Age: 1500 * time.Millisecond},
		Endpoints: []api.EndpointStatus{
			{Service: web, InForce: true}, {Service: web, InForce: true}, {Service: web}, {Service: web, InForce: true, Withheld: "is starting"},
			{Service: web, InForce: true, Revoked: "it is revoked"},
		},
		Waiting:  []api.WaitingAttachment{{}},
		Drops:    map[string]uint64{"ebpf from-workload: no-contract": 5, "nftables: published": 2, "unknown destination": 1},
		Told:     map[string]uint64{"reset": 4},
		Refused:  map[string]uint64{"connections": 6},
		Repaired: map[string]uint64{"route": 8},
		Links: []api.LinkStatus{
			{Peer: "aws1/w2", Rx: 10, Tx: 20, LastHandshake: noon}, {Peer: "aws1/w2", Rx: 1, Tx: 2}, {Peer: "aws1/p1", Link: "left"},
		},
		Flows: []api.FlowStatus{
			{From: web, To: db, Contract: query, Port: 5432, Count: 2}, {From: web, To: db, Contract: query, Port: 5433, Count: 3}, {To: web, Count: 1},
		},
		Audited: []api.FlowStatus{{From: web, To: db, Contract: query, Count: 9}},
	}
}

func engineStatus() api.NodeStatus {
	s := agentStatus()
	s.Kind, s.Node = fabric.KindProcessor, "p1"
	s.State = &api.ProcessorState{Ready: true, Silent: []string{"gcp1/p1"}}
	return s
}

func registryOf(s api.NodeStatus, known bool) *prometheus.Registry {
	r := prometheus.NewRegistry()
	r.MustRegister(Status{Last: func() (api.NodeStatus, bool) { return s, known }})
	return r
}

func TestStatus(t *testing.T) {
	const want = `
# HELP sif_agent_connections Connections that endpoints of the node have opened, or externals to them, by contract; the contract is empty where none is needed.
# TYPE sif_agent_connections gauge
sif_agent_connections{contract="",from="",to="shop/web"} 1
sif_agent_connections{contract="shop/query",from="shop/web",to="shop/db"} 5
# HELP sif_agent_endpoints Endpoints of the node, by service and by state: in_force, pending (not in force everywhere), withheld (DNS does not answer with it), revoked.
# TYPE sif_agent_endpoints gauge
sif_agent_endpoints{service="shop/web",state="in_force"} 2
sif_agent_endpoints{service="shop/web",state="pending"} 1
sif_agent_endpoints{service="shop/web",state="revoked"} 1
sif_agent_endpoints{service="shop/web",state="withheld"} 1
# HELP sif_daemon_certificate_expiry_seconds Unix time at which the daemon's certificate expires.
# TYPE sif_daemon_certificate_expiry_seconds gauge
sif_daemon_certificate_expiry_seconds 1.7959536e+09
# HELP sif_dropped_packets_total Packets that were dropped, by where (ebpf from-workload, ebpf to-workload, switch, nftables, dns, guest) and why; the reasons are those of sif status.
# TYPE sif_dropped_packets_total counter
sif_dropped_packets_total{reason="no-contract",where="ebpf from-workload"} 5
sif_dropped_packets_total{reason="published",where="nftables"} 2
sif_dropped_packets_total{reason="unknown destination",where="switch"} 1
# HELP sif_link_received_bytes_total Bytes received from a node by a link; the label link is empty for links that are not declared.
# TYPE sif_link_received_bytes_total counter
sif_link_received_bytes_total{link="",peer="aws1/w2"} 11
sif_link_received_bytes_total{link="left",peer="aws1/p1"} 0
`
	must.NoError(t, testutil.GatherAndCompare(registryOf(agentStatus(), true), strings.NewReader(want),
		"sif_agent_connections", "sif_agent_endpoints", "sif_daemon_certificate_expiry_seconds", "sif_dropped_packets_total", "sif_link_received_bytes_total"))
}

// What is defined for a daemon is what a daemon has whose status has everything.
func TestStatusHasWhatIsDefined(t *testing.T) {
	elsewhere := []string{metric.AgentCNI.Name, metric.ServerRequests.Name} // counted where it happens
	for daemon, status := range map[string]api.NodeStatus{"agent": agentStatus(), "engine": engineStatus()} {
		var want, got []string
		for _, m := range metric.All() {
			if slices.Contains(m.Of, daemon) && !slices.Contains(elsewhere, m.Name) {
				want = append(want, m.Name)
			}
		}
		families, err := registryOf(status, true).Gather()
		must.NoError(t, err)
		for _, f := range families {
			got = append(got, f.GetName())
		}
		slices.Sort(got)
		must.Eq(t, want, got, must.Sprint(daemon))
	}
}

func TestNoStatusYet(t *testing.T) {
	families, err := registryOf(api.NodeStatus{}, false).Gather()
	must.NoError(t, err)
	must.SliceEmpty(t, families)
}

// serve serves the metrics of an agent, and returns what was reported.
func serve(t *testing.T, address string) (reports chan error) {
	ctx, stop := context.WithCancel(t.Context())
	reports = make(chan error, 10)
	ended := make(chan error, 1)
	go func() {
		ended <- Serve(ctx, address, registryOf(agentStatus(), true), func(err error) { reports <- err })
	}()
	t.Cleanup(func() {
		stop()
		must.NoError(t, <-ended)
	})
	return reports
}

func read(t *testing.T, network, address string) string {
	t.Helper()
	c := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, network, address)
	}}}
	resp, err := c.Get("http://metrics/metrics")
	must.NoError(t, err)
	defer resp.Body.Close()
	must.Eq(t, http.StatusOK, resp.StatusCode)
	b, err := io.ReadAll(resp.Body)
	must.NoError(t, err)
	return string(b)
}

func TestServeUnix(t *testing.T) {
	path := filepath.Join(t.TempDir(), "metrics.sock")
	// A socket of a daemon that was killed is replaced.
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	must.NoError(t, err)
	l.SetUnlinkOnClose(false)
	must.NoError(t, l.Close())
	must.NoError(t, <-serve(t, UnixPrefix+path))
	must.StrContains(t, read(t, "unix", path), `sif_daemon_info{daemon="agent",node="w1",version="0.2.0",zone="aws1"} 1`)
	info, err := os.Stat(path)
	must.NoError(t, err)
	must.Eq(t, 0o660, info.Mode().Perm())
}

// What is not a socket stays.
func TestServeReplacesSocketsOnly(t *testing.T) {
	path := filepath.Join(t.TempDir(), "metrics.sock")
	must.NoError(t, os.WriteFile(path, []byte("somebody's"), 0o600))
	must.ErrorContains(t, <-serve(t, UnixPrefix+path), path+" exists and is not a socket")
	text, err := os.ReadFile(path)
	must.NoError(t, err)
	must.Eq(t, "somebody's", string(text))
}

// An address that another process has is reported with the remedy, and taken when it is free.
func TestServeWaitsForItsAddress(t *testing.T) {
	other, err := net.Listen("tcp", "127.0.0.1:0")
	must.NoError(t, err)
	address := other.Addr().String()
	reports := serve(t, address)
	must.ErrorContains(t, <-reports, "set telemetry.listen to another address")
	must.NoError(t, other.Close())
	must.NoError(t, <-reports)
	must.StrContains(t, read(t, "tcp", address), "sif_daemon_degraded 2")
}
