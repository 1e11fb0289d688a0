// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package firewall_test

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/containernetworking/plugins/pkg/ns"
	"github.com/shoenig/test/must"

	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/internal/wellknown"
)

// What leaves by the node finds the path's MTU, whether a router beyond a jumbo underlay tells it
// or the node itself, over TCP and UDP, IPv4 and IPv6.
func TestPathMTU(t *testing.T) {
	for name, c := range map[string]struct{ workload, underlay, far string }{
		"a jumbo underlay": {"8876", "9000", "1500"},
		"a small underlay": {"1500", "1400", "1500"},
		"a small path":     {"1376", "1500", "1300"},
	} {
		t.Run(name, func(t *testing.T) {
			s := newSite(t)
			s.ipv6()
			far := namespace(t)
			s.run(s.outside, "ip", "link", "add", "far0", "type", "veth", "peer", "name", "eth0", "netns", far.Path())
			s.run(s.outside, "ip", "addr", "add", "203.0.113.1/24", "dev", "far0")
			s.run(s.outside, "ip", "addr", "add", "2001:db8:2::1/64", "dev", "far0", "nodad")
			s.run(s.outside, "sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1")
			s.run(far, "ip", "link", "set", "lo", "up")
			s.run(far, "ip", "addr", "add", "203.0.113.9/24", "dev", "eth0")
			s.run(far, "ip", "addr", "add", "2001:db8:2::9/64", "dev", "eth0", "nodad")
			for _, l := range []struct {
				ns.NetNS
				device, mtu string
			}{
				{s.workload, "eth0", c.workload}, {s.node, "sif0123456789a", c.workload}, {s.node, "under0", c.underlay},
				{s.outside, "eth0", c.underlay}, {s.outside, "far0", c.far}, {far, "eth0", c.far},
			} {
				s.run(l, "ip", "link", "set", l.device, "mtu", l.mtu, "up")
			}
			s.run(far, "ip", "route", "add", "default", "via", "203.0.113.1")
			s.run(far, "ip", "route", "add", "default", "via", "2001:db8:2::1", "dev", "eth0")
			s.run(s.node, "ip", "route", "add", "203.0.113.0/24", "via", outsideAddress)
			s.run(s.node, "ip", "route", "add", "2001:db8:2::/64", "via", outside6, "dev", "under0")
			s.settle(s.outside, far)
			must.NoError(t, far.Do(func(ns.NetNS) error {
				l, err := net.Listen("tcp", ":80")
				must.NoError(t, err)
				t.Cleanup(func() { l.Close() })
				go func() {
					for {
						c, err := l.Accept()
						if err != nil {
							return
						}
						go func() { io.Copy(c, c); c.Close() }()
					}
				}()
				u, err := net.ListenPacket("udp", ":80")
				must.NoError(t, err)
				t.Cleanup(func() { u.Close() })
				go func() {
					b := make([]byte, 65535)
					for {
						n, from, err := u.ReadFrom(b)
						if err != nil {
							return
						}
						u.WriteTo(b[:n], from)
					}
				}()
				return nil
			}))
			s.apply()
			s.mark(wellknown.ExitMarkNode)
			s.setEgress(
				out(workloadAddress, "203.0.113.0/24", fabric.TCP, 80, 80), out(workloadAddress, "203.0.113.0/24", fabric.UDP, 80, 80),
				out(workload6, "2001:db8:2::/64", fabric.TCP, 80, 80), out(workload6, "2001:db8:2::/64", fabric.UDP, 80, 80))
			for _, to := range []string{"203.0.113.9:80", "[2001:db8:2::9]:80"} {
				s.bulk(to)
				s.datagrams(to)
			}
		})
	}
}

// bulk sends and gets back more than windows and buffers hold.
func (s *site) bulk(to string) {
	s.t.Helper()
	const size = 2 << 20
	var conn net.Conn
	must.NoError(s.t, s.workload.Do(func(ns.NetNS) (err error) {
		conn, err = net.DialTimeout("tcp", to, time.Minute)
		return err
	}))
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(time.Minute))
	sent := bytes.Repeat([]byte("0123456789abcdef"), size/16)
	go conn.Write(sent)
	got := make([]byte, size)
	_, err := io.ReadFull(conn, got)
	must.NoError(s.t, err, must.Sprint(to))
	must.True(s.t, bytes.Equal(sent, got))
}

// datagrams sends datagrams of every size that matters until each came back: the first ones teach
// the sender the path's MTU.
func (s *site) datagrams(to string) {
	s.t.Helper()
	conn, err := s.dial(s.workload, "udp", to)
	must.NoError(s.t, err)
	defer conn.Close()
	for _, size := range []int{1, 1252, 1300, 1400, 1472, 3000, 9000, 65000} {
		sent := []byte(strings.Repeat("x", size))
		answered := false
		for attempt := range 100 {
			conn.Write(append(sent[:size-1], byte(attempt))) // it may be too big, and say so
			conn.SetReadDeadline(time.Now().Add(200 * time.Millisecond))
			b := make([]byte, 65535)
			if n, err := conn.Read(b); err == nil && n == size {
				answered = true
				break
			}
		}
		must.True(s.t, answered, must.Sprint(fmt.Sprintf("%d bytes to %s", size, to)))
	}
}
