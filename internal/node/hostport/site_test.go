// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package hostport_test

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/containernetworking/plugins/pkg/ns"
	"github.com/containernetworking/plugins/pkg/testutils"
	"github.com/shoenig/test/must"

	"github.com/sif-project/sif/internal/node/firewall"
	"github.com/sif-project/sif/internal/node/hostport"
	"github.com/sif-project/sif/internal/node/kernel"
	"github.com/sif-project/sif/internal/testhost"
)

// TestMain lets the test's program be a process of a cgroup, which opens connections as it is told.
func TestMain(m *testing.M) {
	if os.Getenv("HOSTPORT_SENDER") == "" {
		os.Exit(m.Run())
	}
	for tasks := bufio.NewScanner(os.Stdin); tasks.Scan(); {
		part := strings.Fields(tasks.Text())
		wait, err := time.ParseDuration(part[2])
		if err != nil {
			panic(err)
		}
		if len(part) < 4 {
			part = append(part, "0")
		}
		fmt.Println(outcome(askFrom(part[3], part[0], part[1], wait)))
	}
}

// patience is how long an answer may take, and brief how long one that must not come is waited for.
const (
	patience = 10 * time.Second
	brief    = 400 * time.Millisecond
)

// ask opens a connection and returns what it is answered.
func ask(network, address string, wait time.Duration) (string, error) {
	c, err := net.DialTimeout(network, address, wait)
	if err != nil {
		return "", err
	}
	defer c.Close()
	return exchange(c, wait)
}

// askFrom does it from a port of UDP; from any if it is 0.
func askFrom(port, network, address string, wait time.Duration) (string, error) {
	n, err := strconv.Atoi(port)
	if err != nil || n == 0 {
		return ask(network, address, wait)
	}
	d := net.Dialer{Timeout: wait, LocalAddr: &net.UDPAddr{Port: n}}
	c, err := d.Dial(network, address)
	if err != nil {
		return "", err
	}
	defer c.Close()
	return exchange(c, wait)
}

// exchange sends until it is answered: the first datagram may meet an interface that has just come
// up.
func exchange(c net.Conn, wait time.Duration) (string, error) {
	end := time.Now().Add(wait)
	_ = c.SetWriteDeadline(end)
	for {
		if _, err := c.Write([]byte("x")); err != nil {
			return "", err
		}
		until := end
		if again := time.Now().Add(brief); c.LocalAddr().Network() == "udp" && again.Before(end) {
			until = again
		}
		_ = c.SetReadDeadline(until)
		b := make([]byte, 200)
		n, err := c.Read(b)
		if until.Before(end) && errors.Is(err, os.ErrDeadlineExceeded) {
			continue
		}
		return string(b[:n]), err
	}
}

// Addresses of the site.
const (
	node4, node6         = "192.0.2.1", "2001:db8::1"
	outside4, outside6   = "192.0.2.9", "2001:db8::9"
	first4, first6       = "100.64.1.2", "fd5f:0:1::2"
	second4, second6     = "100.64.1.3", "fd5f:0:1::3"
	workload4, workload6 = "100.64.1.9", "fd5f:0:1::9"
)

var ranges = []netip.Prefix{netip.MustParsePrefix("100.64.0.0/10"), netip.MustParsePrefix("fd5f::/32")}

// site is a node with two endpoints for processes of the node, a workload, and a host on the
// underlay, each in a namespace of its own. There is no policy: what the endpoints' interfaces let
// pass is not this package's.
type site struct {
	t                                      testing.TB
	node, outside, first, second, workload ns.NetNS
	host                                   *hostport.Host
	fw                                     *firewall.Firewall
	stop                                   func() // ends what echo began
	senders                                map[hostport.Group]*sender
}

const workloadMTU = 1376

func newSite(t testing.TB) *site {
	testhost.RequireRoot(t)
	for _, program := range []string{"ip", "nft", "conntrack", "ping", "sysctl"} {
		testhost.RequireProgram(t, program)
	}
	s := &site{t: t, host: new(hostport.Host), senders: map[hostport.Group]*sender{}}
	for _, n := range []*ns.NetNS{&s.node, &s.outside, &s.first, &s.second, &s.workload} {
		*n = namespace(t)
		// The kernel tells few senders of a closed port in a second.
		s.run(*n, "ip link set lo up; sysctl -qw net.ipv4.icmp_ratelimit=0 net.ipv6.icmp.ratelimit=0")
	}
	s.run(s.node, "sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1 net.ipv4.conf.all.rp_filter=1 net.ipv4.conf.default.rp_filter=1")
	s.run(s.node, "ip link add under0 address 02:00:00:00:00:03 type veth peer name eth0 address 02:00:00:00:00:04 netns "+s.outside.Path())
	s.run(s.node, fmt.Sprintf("ip addr add %s/24 dev under0; ip addr add %s/64 dev under0 nodad; ip link set under0 up; ip addr add 169.254.1.1/32 dev lo scope link; ip neigh add %s lladdr 02:00:00:00:00:04 dev under0", node4, node6, outside6))
	s.run(s.outside, fmt.Sprintf("ip addr add %[1]s/24 dev eth0; ip addr add %[2]s/64 dev eth0 nodad; ip link set eth0 up; ip route add default via %[3]s; ip -6 route add default via %[4]s; ip neigh add %[4]s lladdr 02:00:00:00:00:03 dev eth0", outside4, outside6, node4, node6))
	for _, w := range []struct {
		device, v4, v6 string
		peer           ns.NetNS
	}{
		{"sif0123456789a", first4, first6, s.first}, {"sif0123456789b", second4, second6, s.second}, {"sif0123456789c", workload4, workload6, s.workload},
	} {
		for _, command := range []struct {
			in   ns.NetNS
			text string
		}{
			{s.node, "ip link add DEV mtu MTU address 02:00:00:00:00:01 type veth peer name eth0 mtu MTU address 02:00:00:00:00:02 netns PEER"},
			{s.node, "ip link set DEV up; ip addr add fe80::1/64 dev DEV nodad; ip route add V4 dev DEV; ip -6 route add V6 dev DEV"},
			{s.node, "ip neigh add V4 lladdr 02:00:00:00:00:02 dev DEV; ip neigh add V6 lladdr 02:00:00:00:00:02 dev DEV"},
			{w.peer, "ip link set eth0 up; ip addr add V4/32 dev eth0; ip addr add V6/128 dev eth0 nodad"},
			{w.peer, "ip neigh add 169.254.1.1 lladdr 02:00:00:00:00:01 dev eth0; ip neigh add fe80::1 lladdr 02:00:00:00:00:01 dev eth0"},
			{w.peer, "ip route add 169.254.1.1 dev eth0 src V4; ip route add default via 169.254.1.1 src V4; ip -6 route add default via fe80::1 dev eth0 src V6"},
		} {
			s.run(command.in, strings.NewReplacer("DEV", w.device, "MTU", fmt.Sprint(workloadMTU), "PEER", w.peer.Path(), "V4", w.v4, "V6", w.v6).Replace(command.text))
		}
	}
	s.fw = firewall.New(firewall.Config{
		Underlay: "under0", Ranges: ranges, Published: 1000, Links: func() []uint16 { return nil }, DNSPackets: firewall.DNSPacketsPerSecond,
		Management: []firewall.Port{{Protocol: 6, Number: 9000}},
	})
	s.do(func() error { _, err := s.fw.Apply(); return err })
	return s
}

func namespace(t testing.TB) ns.NetNS {
	n, err := testutils.NewNS()
	must.NoError(t, err)
	t.Cleanup(func() {
		must.NoError(t, n.Close())
		must.NoError(t, testutils.UnmountNS(n))
	})
	return n
}

func (s *site) run(n ns.NetNS, command string) string {
	s.t.Helper()
	out, err := exec.Command("nsenter", "--net="+n.Path(), "sh", "-ec", command).CombinedOutput()
	if err != nil {
		s.t.Fatalf("%s: %v\n%s", command, err, out)
	}
	return string(out)
}

// do calls in the node's namespace.
func (s *site) do(f func() error) {
	s.t.Helper()
	must.NoError(s.t, s.node.Do(func(ns.NetNS) error { return f() }))
}

func (s *site) ensure(list ...hostport.Placed) (changes []kernel.Change) {
	s.t.Helper()
	s.do(func() (err error) {
		changes, err = s.host.Ensure(list)
		return err
	})
	return changes
}

func ports(t testing.TB, texts ...string) (list []hostport.Port) {
	for _, text := range texts {
		p, err := hostport.ParsePort(text)
		must.NoError(t, err)
		list = append(list, p)
	}
	return list
}

func (s *site) one(group hostport.Group, texts ...string) hostport.Placed {
	return hostport.Placed{Namespace: s.first, Attachment: hostport.Attachment{
		Slot: 3, Interface: "eth0", IPv4: netip.MustParseAddr(first4), IPv6: netip.MustParseAddr(first6), MTU: workloadMTU,
		Ports: ports(s.t, texts...), Group: group, Reached: ranges,
	}}
}

func (s *site) two(group hostport.Group, texts ...string) hostport.Placed {
	p := s.one(group, texts...)
	p.Namespace, p.Slot, p.IPv4, p.IPv6 = s.second, 200, netip.MustParseAddr(second4), netip.MustParseAddr(second6)
	return p
}

// serve answers each connection or datagram with the address of its peer, until the returned
// function is called.
func (s *site) serve(n ns.NetNS, network, address string) (stop func()) {
	s.t.Helper()
	var closer interface{ Close() error }
	must.NoError(s.t, n.Do(func(ns.NetNS) error {
		if strings.HasPrefix(network, "udp") {
			c, err := net.ListenPacket(network, address)
			must.NoError(s.t, err)
			closer = c
			go func() {
				b := make([]byte, 1<<16)
				for {
					_, from, err := c.ReadFrom(b)
					if err != nil {
						return
					}
					c.WriteTo([]byte(host(from)), from)
				}
			}()
			return nil
		}
		l, err := net.Listen(network, address)
		must.NoError(s.t, err)
		closer = l
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				go func() {
					defer c.Close()
					for b := make([]byte, 1); ; {
						if _, err := c.Read(b); err != nil {
							return
						}
						c.Write([]byte(host(c.RemoteAddr())))
					}
				}()
			}
		}()
		return nil
	}))
	s.t.Cleanup(func() { closer.Close() })
	return func() { closer.Close() }
}

// echo sends back what TCP and UDP bring to an address of the node, until stop.
func (s *site) echo(address string) {
	s.t.Helper()
	s.do(func() error {
		l, err := net.Listen("tcp", address)
		must.NoError(s.t, err)
		u, err := net.ListenPacket("udp", address)
		must.NoError(s.t, err)
		s.stop = func() { l.Close(); u.Close() }
		s.t.Cleanup(s.stop)
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				go func() { io.Copy(c, c); c.Close() }()
			}
		}()
		go func() {
			b := make([]byte, 1<<16)
			for {
				n, from, err := u.ReadFrom(b)
				if err != nil {
					return
				}
				u.WriteTo(b[:n], from)
			}
		}()
		return nil
	})
}

// roundTrip sends bytes and reads them back. A datagram is sent again when it is lost.
func roundTrip(c net.Conn, size int) error {
	want := bytes.Repeat([]byte("payload!"), size/8)
	got := make([]byte, len(want))
	deadline := time.Now().Add(patience)
	if c.LocalAddr().Network() == "udp" {
		for {
			_, _ = c.Write(want)
			_ = c.SetReadDeadline(time.Now().Add(brief))
			n, err := c.Read(got)
			if err == nil && bytes.Equal(want, got[:n]) {
				return nil
			}
			if time.Now().After(deadline) {
				return fmt.Errorf("%d bytes came back: %v", n, err)
			}
		}
	}
	_ = c.SetDeadline(deadline)
	go func() { _, _ = c.Write(want) }()
	_, err := io.ReadFull(c, got)
	if err == nil && !bytes.Equal(want, got) {
		err = errors.New("the payload was damaged")
	}
	return err
}

func host(a net.Addr) string {
	p, _ := netip.ParseAddrPort(a.String())
	return p.Addr().Unmap().String()
}

// asks returns what an address answers to a namespace: an address, "refused", or "silent".
func (s *site) asks(n ns.NetNS, network, address string) (answer string) {
	s.t.Helper()
	_ = n.Do(func(ns.NetNS) (err error) {
		answer, err = ask(network, address, patience)
		answer = outcome(answer, err)
		return nil
	})
	return answer
}

// silent reports whether an address does not answer to a namespace.
func (s *site) silent(n ns.NetNS, network, address string) bool {
	s.t.Helper()
	var err error
	_ = n.Do(func(ns.NetNS) error {
		_, err = ask(network, address, brief)
		return nil
	})
	return outcome("", err) == "silent"
}

func outcome(answer string, err error) string {
	switch {
	case err == nil:
		return answer
	case errors.Is(err, syscall.ECONNREFUSED):
		return "refused"
	case errors.Is(err, syscall.EPERM): // so the kernel tells who sends a datagram that is dropped
		return "silent"
	case errors.Is(err, os.ErrDeadlineExceeded) || strings.HasSuffix(err.Error(), "i/o timeout"):
		return "silent"
	}
	return err.Error()
}

// dial opens a connection from a namespace.
func (s *site) dial(n ns.NetNS, network, address string) net.Conn {
	s.t.Helper()
	var c net.Conn
	must.NoError(s.t, n.Do(func(ns.NetNS) (err error) {
		c, err = net.DialTimeout(network, address, patience)
		return err
	}))
	s.t.Cleanup(func() { c.Close() })
	return c
}

func answers(c net.Conn) string { return outcome(exchange(c, patience)) }

// cgroup makes a cgroup that ends with the test.
func (s *site) cgroup(name string) hostport.Group {
	s.t.Helper()
	top, below, _ := strings.Cut(name, "/")
	group, err := hostport.ParseGroup(fmt.Sprintf("%s-%d/%s", top, os.Getpid(), below))
	if errors.Is(err, hostport.ErrNoHierarchy) {
		testhost.Unmet(s.t, "needs cgroup v2")
	}
	must.NoError(s.t, err)
	for i, c := range string(group) + "/" {
		if c == '/' && i > 0 {
			part := group[:i]
			must.NoError(s.t, os.Mkdir(s.directory(part), 0o755))
			s.t.Cleanup(func() { s.endCgroup(part) })
		}
	}
	return group
}

func (s *site) directory(group hostport.Group) string {
	out, err := exec.Command("findmnt", "-nt", "cgroup2", "-o", "TARGET").Output()
	must.NoError(s.t, err)
	root, _, _ := strings.Cut(string(out), "\n")
	return filepath.Join(root, string(group))
}

func (s *site) endCgroup(group hostport.Group) {
	if p := s.senders[group]; p != nil {
		s.endSender(group, p)
	}
	if err := os.Remove(s.directory(group)); err != nil && !errors.Is(err, os.ErrNotExist) {
		s.t.Errorf("remove cgroup %s: %v", group, err)
	}
}

// sends returns what a process of a cgroup and the node's namespace is answered. Without a group,
// it is in none of its own.
func (s *site) sends(group hostport.Group, network, address string) string {
	s.t.Helper()
	return s.task(group, fmt.Sprint(network, " ", address, " ", patience))
}

// unanswered reports whether such a process is not answered.
func (s *site) unanswered(group hostport.Group, network, address string) bool {
	s.t.Helper()
	return s.task(group, fmt.Sprint(network, " ", address, " ", brief)) == "silent"
}

func (s *site) task(group hostport.Group, task string) string {
	s.t.Helper()
	p := s.senders[group]
	if p == nil {
		p = s.newSender(group)
		s.senders[group] = p
	}
	_, err := fmt.Fprintln(p.tasks, task)
	must.NoError(s.t, err)
	must.True(s.t, p.outcomes.Scan(), must.Sprint("the process of cgroup ", group, " ended"))
	return p.outcomes.Text()
}

// sender is a process of the node's namespace, and of a cgroup.
type sender struct {
	cmd      *exec.Cmd
	tasks    io.WriteCloser
	outcomes *bufio.Scanner
}

func (s *site) newSender(group hostport.Group) *sender {
	s.t.Helper()
	self, err := os.Executable()
	must.NoError(s.t, err)
	p := &sender{cmd: exec.Command("nsenter", "--net="+s.node.Path(), self)}
	p.cmd.Env = append(os.Environ(), "HOSTPORT_SENDER=1")
	if group != "" {
		dir, err := os.Open(s.directory(group))
		must.NoError(s.t, err)
		defer dir.Close()
		p.cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(dir.Fd())}
	}
	p.tasks, err = p.cmd.StdinPipe()
	must.NoError(s.t, err)
	out, err := p.cmd.StdoutPipe()
	must.NoError(s.t, err)
	p.outcomes = bufio.NewScanner(out)
	must.NoError(s.t, p.cmd.Start())
	s.t.Cleanup(func() { s.endSender(group, p) })
	return p
}

func (s *site) endSender(group hostport.Group, p *sender) {
	if s.senders[group] != p {
		return
	}
	delete(s.senders, group)
	p.tasks.Close()
	if err := p.cmd.Wait(); err != nil {
		s.t.Errorf("the process of cgroup %s: %v", group, err)
	}
}
