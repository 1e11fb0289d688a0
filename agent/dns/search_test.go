// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package dns

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containernetworking/plugins/pkg/ns"
	"github.com/hashicorp/go-hclog"
	miekg "github.com/miekg/dns"
	"github.com/shoenig/test/must"

	"github.com/sif-project/sif/internal/outside/query"
	"github.com/sif-project/sif/internal/testhost"
)

// other is a second resolver, which answers everything with an address that is none of the fabric,
// and notes what it was asked for.
type other struct {
	mu    sync.Mutex
	asked []string
}

func (o *other) note(name string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.asked = append(o.asked, strings.ToLower(name))
}

func (o *other) names() []string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return slices.Clone(o.asked)
}

func (o *other) ServeDNS(w miekg.ResponseWriter, req *miekg.Msg) {
	o.note(req.Question[0].Name)
	time.Sleep(20 * time.Millisecond)
	resp := reply(req, miekg.RcodeSuccess)
	if req.Question[0].Qtype == miekg.TypeA {
		resp.Answer = []miekg.RR{&miekg.A{Hdr: header(req.Question[0].Name, miekg.TypeA), A: net.IPv4(192, 0, 2, 66)}}
	}
	_ = w.WriteMsg(resp)
}

// noted is a world outside that notes what it was asked for.
type noted struct {
	world
	other
}

func (n *noted) Resolve(ctx context.Context, asker netip.Addr, qname string, qtype uint16) query.Reply {
	n.note(qname)
	return n.world.Resolve(ctx, asker, qname, qtype)
}

// TestSearchDomains resolves names as the C libraries do, in a workload whose resolv.conf has
// search domains, ndots, and another server behind ours. No name of the fabric leaves the node,
// neither as it is nor with a search domain behind it, although a contract names everything below
// that domain; and what no contract names keeps a search from nothing.
func TestSearchDomains(t *testing.T) {
	testhost.RequireRoot(t)
	node, inside := namespace(t, "search"), namespace(t, "searcher")
	nodeName, insideName := fmt.Sprintf("sif-dns-%d-search", os.Getpid()), fmt.Sprintf("sif-dns-%d-searcher", os.Getpid())
	const asker, ours, theirs = "100.64.1.2", "169.254.1.1", "169.254.1.2"
	for _, a := range []string{ours, theirs} {
		ip(t, "-n", nodeName, "addr", "add", a+"/32", "dev", "lo")
	}
	ip(t, "-n", nodeName, "link", "add", "w", "type", "veth", "peer", "name", "eth0", "netns", insideName)
	ip(t, "-n", nodeName, "link", "set", "w", "up")
	ip(t, "-n", nodeName, "route", "add", asker, "dev", "w")
	ip(t, "-n", insideName, "addr", "add", asker+"/32", "dev", "eth0")
	ip(t, "-n", insideName, "link", "set", "eth0", "up")
	ip(t, "-n", insideName, "route", "add", "169.254.1.0/24", "dev", "eth0", "src", asker)

	outside, second := &noted{}, &other{}
	ctx, stop := context.WithCancel(t.Context())
	var running sync.WaitGroup
	t.Cleanup(func() { stop(); running.Wait() })
	must.NoError(t, node.Do(func(ns.NetNS) error {
		server, err := Listen(Config{
			Listen: netip.MustParseAddrPort(ours + ":53"), Zone: "aws1", View: testGraph, Ranges: fabricRanges,
			Outside: outside, Now: time.Now, Log: hclog.NewNullLogger(),
		})
		if err != nil {
			return err
		}
		running.Go(func() { _ = server.Serve(ctx) })
		conn, err := net.ListenPacket("udp4", theirs+":53")
		if err != nil {
			return err
		}
		witness := &miekg.Server{PacketConn: conn, Handler: second}
		running.Go(func() { _ = witness.ActivateAndServe() })
		context.AfterFunc(ctx, func() { conn.Close() })
		return nil
	}))
	conf := filepath.Join(t.TempDir(), "resolv.conf")
	must.NoError(t, os.WriteFile(conf, []byte("nameserver "+ours+"\nnameserver "+theirs+"\nsearch corp.example example.org\noptions ndots:5 timeout:3 attempts:1\n"), 0o644))

	// glibc, by the system's own resolver.
	glibc := func(name string) ([]string, error) {
		cmd := exec.Command("nsenter", "--net=/var/run/netns/"+insideName, "unshare", "--mount", "sh", "-c",
			`mount --bind "$0" /etc/resolv.conf && exec getent ahostsv4 "$1"`, conf, name)
		out, err := cmd.Output()
		var list []string
		for line := range strings.Lines(string(out)) {
			list = append(list, strings.Fields(line)[0])
		}
		slices.Sort(list)
		return slices.Compact(list), err
	}
	// musl asks all servers at once. The first answer that says something counts, REFUSED does not:
	// that of the server beyond the node, which is farther away, only if ours says nothing.
	musl := func(name string) (list []string, err error) {
		err = inside.Do(func(ns.NetNS) error {
		candidates:
			for _, candidate := range []string{name + ".corp.example", name + ".example.org", name} {
				for _, server := range []string{ours, theirs} {
					m, _, err := new(miekg.Client).Exchange(question(candidate+".", miekg.TypeA), server+":53")
					if err != nil || m.Rcode != miekg.RcodeSuccess && m.Rcode != miekg.RcodeNameError {
						continue
					}
					if list = addresses(m); len(list) > 0 {
						return nil
					}
					continue candidates
				}
				return errors.New("no answer")
			}
			return errors.New("no such name")
		})
		return list, err
	}
	for _, tc := range []struct {
		what, name string
		want       []string // empty: no such name
	}{
		{"a name of the fabric", "svc.app.sif", []string{"100.64.1.3", "100.64.2.3"}},
		{"a zone", "gcp1.svc.app.sif", []string{"100.64.3.2"}},
		{"one that it may not reach", "secret.app.sif", nil},
		{"none healthy", "sick.app.sif", nil},
		{"a granted name outside", "www.example.com", []string{"192.0.2.1"}},
		{"another name outside", "other.example.net", nil},
	} {
		for library, lookup := range map[string]func(string) ([]string, error){"glibc": glibc, "musl": musl} {
			t.Run(tc.what+", "+library, func(t *testing.T) {
				before := len(second.names())
				got, err := lookup(tc.name)
				must.True(t, slices.Equal(tc.want, got), must.Sprint(got))
				must.Eq(t, len(tc.want) == 0, err != nil)
				must.Eq(t, before, len(second.names()), must.Sprint(second.names()))
			})
		}
	}
	for _, name := range outside.names() {
		must.StrNotContains(t, name, ".sif", must.Sprint("it went to the resolver of outside names"))
	}
}
