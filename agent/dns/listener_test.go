// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package dns

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/containernetworking/plugins/pkg/ns"
	"github.com/hashicorp/go-hclog"
	miekg "github.com/miekg/dns"
	"github.com/shoenig/test/must"

	"github.com/sif-project/sif/internal/testhost"
)

// namespace creates a network namespace that is removed after the test.
func namespace(t *testing.T, name string) ns.NetNS {
	t.Helper()
	name = fmt.Sprintf("sif-dns-%d-%s", os.Getpid(), name)
	ip(t, "netns", "add", name)
	t.Cleanup(func() { ip(t, "netns", "del", name) })
	ip(t, "-n", name, "link", "set", "lo", "up")
	n, err := ns.GetNS("/var/run/netns/" + name)
	must.NoError(t, err)
	t.Cleanup(func() { n.Close() })
	return n
}

func ip(t *testing.T, args ...string) {
	t.Helper()
	if out, err := exec.Command("ip", args...).CombinedOutput(); err != nil {
		t.Fatalf("ip %s: %v: %s", strings.Join(args, " "), err, out)
	}
}

// A node with two workloads that are connected as the agent does it: one listener on the link-local
// address, which knows each asker by its address.
func TestListener(t *testing.T) {
	testhost.RequireRoot(t)
	node := namespace(t, "node")
	nodeName := fmt.Sprintf("sif-dns-%d-node", os.Getpid())
	ip(t, "-n", nodeName, "addr", "add", "169.254.1.1/32", "dev", "lo")
	workloads := map[string]ns.NetNS{}
	for i, addr := range []string{"100.64.1.2", "100.64.1.3", "100.64.1.4"} {
		name := fmt.Sprintf("w%d", i)
		workloads[addr] = namespace(t, name)
		inside := fmt.Sprintf("sif-dns-%d-%s", os.Getpid(), name)
		ip(t, "-n", nodeName, "link", "add", name, "type", "veth", "peer", "name", "eth0", "netns", inside)
		ip(t, "-n", nodeName, "link", "set", name, "up")
		ip(t, "-n", nodeName, "route", "add", addr, "dev", name)
		ip(t, "-n", inside, "addr", "add", addr+"/32", "dev", "eth0")
		ip(t, "-n", inside, "link", "set", "eth0", "up")
		ip(t, "-n", inside, "route", "add", "169.254.1.1", "dev", "eth0", "src", addr)
	}
	view := graph{
		netip.MustParseAddr("100.64.1.2"): manyEndpoints(300)[proxy],
		netip.MustParseAddr("100.64.1.3"): {},
	}
	var server *Server
	must.NoError(t, node.Do(func(ns.NetNS) (err error) {
		server, err = Listen(Config{
			Listen: netip.MustParseAddrPort("169.254.1.1:53"), Zone: "aws1", View: view, Ranges: fabricRanges,
			Outside: &world{}, Now: time.Now, Log: hclog.NewNullLogger(),
		})
		return err
	}))
	ctx, stop := context.WithCancel(t.Context())
	served := make(chan error, 1)
	go func() { served <- server.Serve(ctx) }()
	t.Cleanup(stop)

	ask := func(t *testing.T, from, network string, m *miekg.Msg) (resp *miekg.Msg, err error) {
		t.Helper()
		client := miekg.Client{Net: network, Timeout: 5 * time.Second}
		must.NoError(t, workloads[from].Do(func(ns.NetNS) error {
			resp, _, err = client.Exchange(m, "169.254.1.1:53")
			return nil
		}))
		return resp, err
	}
	for _, tc := range []struct {
		what, from, network, name string
		rcode, records            int
		truncated                 bool
	}{
		{"its contracts lead there, UDP", "100.64.1.2", "udp", "svc.app.sif.", miekg.RcodeSuccess, 30, true},
		{"its contracts lead there, TCP", "100.64.1.2", "tcp", "svc.app.sif.", miekg.RcodeSuccess, 300, false},
		{"no contract", "100.64.1.3", "udp", "svc.app.sif.", miekg.RcodeNameError, 0, false},
		{"no endpoint", "100.64.1.4", "udp", "svc.app.sif.", miekg.RcodeRefused, 0, false},
		{"the world, UDP", "100.64.1.3", "udp", "www.example.com.", miekg.RcodeSuccess, 1, false},
		{"the world, TCP", "100.64.1.3", "tcp", "www.example.com.", miekg.RcodeSuccess, 1, false},
	} {
		t.Run(tc.what, func(t *testing.T) {
			resp, err := ask(t, tc.from, tc.network, question(tc.name, miekg.TypeA))
			must.NoError(t, err)
			must.Eq(t, tc.rcode, resp.Rcode)
			must.Len(t, tc.records, resp.Answer)
			must.Eq(t, tc.truncated, resp.Truncated)
		})
	}
	t.Run("a stranger's TCP connection is closed", func(t *testing.T) {
		_, err := ask(t, "100.64.1.4", "tcp", question("svc.app.sif.", miekg.TypeA))
		must.Error(t, err)
	})
	t.Run("one workload cannot take all connections", func(t *testing.T) {
		must.NoError(t, workloads["100.64.1.2"].Do(func(ns.NetNS) error {
			for range 3 * maxConnections {
				c, err := net.Dial("tcp", "169.254.1.1:53")
				if err != nil {
					return err
				}
				t.Cleanup(func() { c.Close() })
			}
			return nil
		}))
		_, err := ask(t, "100.64.1.2", "tcp", question("svc.app.sif.", miekg.TypeA))
		must.Error(t, err)
		resp, err := ask(t, "100.64.1.3", "tcp", question("www.example.com.", miekg.TypeA))
		must.NoError(t, err)
		must.Len(t, 1, resp.Answer)
	})
	stop()
	select {
	case err := <-served:
		must.NoError(t, err)
	case <-time.After(5 * time.Second):
		t.Fatal("the listener does not end")
	}
}
