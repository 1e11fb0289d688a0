// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

//go:build e2e

package e2e

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"github.com/sif-project/sif/bpf"
	"github.com/sif-project/sif/e2e/internet"
	"github.com/sif-project/sif/e2e/lab"
)

// atOnce is the longest time in which the fabric must say no where it is certain.
const atOnce = time.Second

// external replaces an external of getaway's graph by one with other contents.
func external(t *testing.T, graph, name, contents string) string {
	t.Helper()
	return block(t, graph, "external", name, contents)
}

// contract replaces a contract of getaway's graph.
func contract(t *testing.T, graph, name, contents string) string {
	t.Helper()
	return block(t, graph, "contract", name, contents)
}

func block(t *testing.T, graph, kind, name, contents string) string {
	t.Helper()
	old := regexp.MustCompile(`(?ms)^  ` + kind + ` "` + regexp.QuoteMeta(name) + `" \{$.*?^  \}$\n`)
	must.RegexMatch(t, old, graph)
	return old.ReplaceAllLiteralString(graph, fmt.Sprintf("  %s %q {\n%s\n  }\n", kind, name, contents))
}

// sourceContract is the contract of a gateway with its provider, with rules for what tests send.
func sourceContract(t *testing.T, graph, short, more string) string {
	t.Helper()
	return contract(t, graph, short+"-source", fmt.Sprintf(`
    originators = ["%[1]s-gw"]
    responders  = ["%[1]s-provider"]
    rule {
      protocol = "tcp"
      ports    = [80, 443, "5000-5009"]
    }
    rule {
      protocol = "udp"
      ports    = [443, "5000-5009"]
    }
    rule {
      protocol = "icmp"
      types    = ["echo-request"]
    }
    rule {
      protocol = "icmpv6"
      types    = ["echo-request"]
    }
%[2]s`, short, more))
}

// withGraph puts a graph in force until the test ends, when it puts getaway's own back.
func (f *fabricUnderTest) withGraph(t *testing.T, graph string) {
	t.Helper()
	t.Cleanup(func() {
		f.apply(t, f.getaway(t))
		f.allWell(t, 30*time.Second)
	})
	f.apply(t, graph)
	f.allWell(t, 30*time.Second)
}

// outside returns a machine outside the fabric.
func (f *fabricUnderTest) outside(t *testing.T, name string) *lab.Outside {
	t.Helper()
	o := f.Topology.Outside(name)
	must.NotNil(t, o, must.Sprintf("the lab has no machine %s outside", name))
	return o
}

// exitOf returns the address at which the outside sees a workload: that of the processor of its
// zone, or that of its node.
func (f *fabricUnderTest) exitOf(t *testing.T, w workload, byNode bool, version int) netip.Addr {
	t.Helper()
	for _, n := range f.Topology.Nodes(lab.Processor, lab.Workload) {
		own := n.Name == w.node && (byNode || n.Kind != lab.Workload) // a zone without a switch: the node
		if own || !byNode && n.HasSwitch() && n.Zone == w.zone {
			if version == 6 {
				return netip.MustParseAddr(n.Address6)
			}
			return netip.MustParseAddr(n.Address)
		}
	}
	t.Fatalf("%s has no exit", w)
	return netip.Addr{}
}

// seen opens a TCP connection to a machine outside and returns the address at which it was seen.
func seen(w workload, to netip.AddrPort, timeout time.Duration) (netip.Addr, error) {
	conn, err := dial(w.netns, to, timeout)
	if err != nil {
		return netip.Addr{}, err
	}
	defer conn.Close()
	return readSeen(conn, timeout)
}

func readSeen(conn net.Conn, timeout time.Duration) (netip.Addr, error) {
	if err := conn.SetReadDeadline(time.Now().Add(timeout)); err != nil {
		return netip.Addr{}, err
	}
	line, err := bufio.NewReaderSize(conn, 64).ReadString('\n')
	if err != nil {
		return netip.Addr{}, err
	}
	a, err := netip.ParseAddrPort(strings.TrimSpace(line))
	return a.Addr(), err
}

// seenUDP asks a machine outside by UDP at which address it saw the workload.
func seenUDP(w workload, to netip.AddrPort, timeout time.Duration) (netip.Addr, error) {
	conn, err := within(w.netns, func() (net.Conn, error) { return net.Dial("udp", to.String()) })
	if err != nil {
		return netip.Addr{}, err
	}
	defer conn.Close()
	buf := make([]byte, 128)
	for deadline := time.Now().Add(timeout); ; {
		if _, err := conn.Write([]byte(internet.Who)); err != nil {
			return netip.Addr{}, err
		}
		if err := conn.SetReadDeadline(time.Now().Add(min(timeout, 500*time.Millisecond))); err != nil {
			return netip.Addr{}, err
		}
		n, err := conn.Read(buf)
		if err == nil {
			a, err := netip.ParseAddrPort(string(buf[:n]))
			return a.Addr(), err
		}
		if !isTimeout(err) || time.Now().After(deadline) {
			return netip.Addr{}, err
		}
	}
}

// pings sends an echo request from a workload and reports whether it was answered.
func pings(w workload, to netip.Addr) error {
	out, err := exec.Command("nsenter", "--net="+w.netns, "--", "busybox", "ping", "-c", "1", "-W", "2", to.String()).CombinedOutput()
	if err != nil {
		return fmt.Errorf("ping %s from %s: %w: %s", to, w, err, out)
	}
	return nil
}

// certain waits until a workload's node is certain of what it refuses to the workload. It drops
// that in silence for some seconds after agents or engines were started, in which `sif status`
// already says that all is well: it waits for the engines' word on each endpoint, and for the next
// comparison of its maps.
func (f *fabricUnderTest) certain(t *testing.T, w workload) {
	t.Helper()
	eventually(t, 30*time.Second, func() error {
		endpoints, err := f.kernel(t, w.node).Endpoints()
		if err != nil {
			return err
		}
		if !slices.ContainsFunc(endpoints, func(e bpf.Endpoint) bool { return e.IPv4 == w.v4 && e.Reject }) {
			return fmt.Errorf("%s is not told of refusals", w)
		}
		return nil
	})
}

// refusedAtOnce opens a TCP connection, which must be refused before atOnce.
func refusedAtOnce(t *testing.T, w workload, to netip.AddrPort) {
	t.Helper()
	world.certain(t, w)
	conn, err := dial(w.netns, to, atOnce)
	if err == nil {
		conn.Close()
	}
	must.True(t, errors.Is(err, syscall.ECONNREFUSED), must.Sprintf("from %s to %s: %v, want a refusal", w, to, err))
}

// unreachable requires that neither a TCP connection nor a datagram from a workload gets an answer.
func unreachable(t *testing.T, w workload, to netip.AddrPort) {
	t.Helper()
	var trying sync.WaitGroup
	trying.Go(func() {
		if a, err := seen(w, to, 700*time.Millisecond); err == nil || !unreached(err) {
			t.Errorf("%s reaches %s by TCP, seen as %s: %v", w, to, a, err)
		}
	})
	trying.Go(func() {
		if a, err := seenUDP(w, to, 700*time.Millisecond); err == nil || !unreached(err) {
			t.Errorf("%s reaches %s by UDP, seen as %s: %v", w, to, a, err)
		}
	})
	trying.Wait()
}

// outsideStream is an established TCP connection of a workload to a machine outside, which echoes.
type outsideStream struct {
	conn     net.Conn
	returned atomic.Uint64
	failure  atomic.Pointer[error]
	stop     func()
}

func openOutsideStream(t *testing.T, w workload, to netip.AddrPort) *outsideStream {
	t.Helper()
	s := &outsideStream{}
	eventually(t, 10*time.Second, func() (err error) {
		s.conn, err = dial(w.netns, to, time.Second)
		return err
	})
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	fail := func(err error) {
		if ctx.Err() == nil {
			s.failure.CompareAndSwap(nil, &err)
		}
	}
	running.Go(func() {
		buf := make([]byte, 4096)
		for {
			n, err := s.conn.Read(buf)
			s.returned.Add(uint64(n))
			if err != nil {
				fail(err)
				return
			}
		}
	})
	running.Go(func() {
		piece := bytes.Repeat([]byte("x"), pieceSize)
		for ctx.Err() == nil {
			if _, err := s.conn.Write(piece); err != nil {
				fail(err)
				return
			}
			select {
			case <-ctx.Done():
			case <-time.After(tick):
			}
		}
	})
	s.stop = sync.OnceFunc(func() {
		cancel()
		_ = s.conn.(*net.TCPConn).SetLinger(0)
		s.conn.Close()
		running.Wait()
	})
	t.Cleanup(s.stop)
	s.mustFlow(t, 10*time.Second)
	return s
}

func (s *outsideStream) mustFlow(t *testing.T, within time.Duration) {
	t.Helper()
	before := s.returned.Load()
	eventually(t, within, func() error {
		if err := s.failure.Load(); err != nil {
			t.Fatalf("the connection failed: %v", *err)
		}
		if s.returned.Load() < before+5*pieceSize {
			return errors.New("no payload comes back from outside")
		}
		return nil
	})
}

// mustBeReset waits until the connection is reset.
func (s *outsideStream) mustBeReset(t *testing.T, within time.Duration) {
	t.Helper()
	eventually(t, within, func() error {
		err := s.failure.Load()
		if err == nil {
			return fmt.Errorf("no error; %d bytes came back", s.returned.Load())
		}
		if !errors.Is(*err, syscall.ECONNRESET) && !errors.Is(*err, syscall.EPIPE) {
			t.Fatalf("the connection failed, but was not reset: %v", *err)
		}
		return nil
	})
}

// questions counts the questions about a name that reached the resolver outside.
func (f *fabricUnderTest) questions(t *testing.T, name string) int {
	t.Helper()
	o := f.Topology.Resolver()
	must.NotNil(t, o)
	text, err := os.ReadFile(f.LogFile(o.Name, "resolver"))
	must.NoError(t, err)
	return strings.Count(strings.ToLower(string(text)), "question "+name+". ")
}
