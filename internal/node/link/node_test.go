// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package link

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/shoenig/test/must"

	"github.com/sif-project/sif/internal/testhost"
)

// TestMain runs `sif link` if a test started the test binary for that, in a network namespace.
func TestMain(m *testing.M) {
	runDir := os.Getenv("SIF_LINK_TEST_RUN_DIR")
	if runDir == "" {
		os.Exit(m.Run())
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	err := NewServer(ServerConfig{
		RunDir: runDir, DataDir: os.Getenv("SIF_LINK_TEST_DATA_DIR"),
		Logger: hclog.New(&hclog.LoggerOptions{Output: os.Stderr, Level: hclog.Debug}),
	}).Run(ctx)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// testNode is a node: a namespace with an underlay address and a `sif link`, and a second namespace
// with its device's interface.
type testNode struct {
	outer, inner string // names of namespaces
	underlay     netip.Addr
	v4, v6       netip.Addr // endpoint addresses, in inner
	private      PrivateKey
	dir          string
	process      *exec.Cmd
	log          *bytes.Buffer
	client       *Client
}

const testPort = 51820

func (n *testNode) innerPath() string { return "/var/run/netns/" + n.inner }
func (n *testNode) runDir() string    { return filepath.Join(n.dir, "run") }
func (n *testNode) dataDir() string   { return filepath.Join(n.dir, "data") }

func (n *testNode) pools() []netip.Prefix {
	v4, _ := n.v4.Prefix(24)
	v6, _ := n.v6.Prefix(64)
	return []netip.Prefix{v4, v6}
}

func (n *testNode) peer() Peer {
	return Peer{PublicKey: n.private.Public(), Endpoint: netip.AddrPortFrom(n.underlay, testPort), AllowedIPs: n.pools()}
}

func (n *testNode) device(peers ...Peer) Device {
	return Device{
		Name: "sif-zone", Interface: Interface{Namespace: n.innerPath(), MTU: 1420, Routes: true},
		ListenPort: testPort, PrivateKey: n.private, Peers: peers,
	}
}

// start starts the node's `sif link` and waits until it answers.
func (n *testNode) start(t testing.TB) {
	t.Helper()
	self, err := os.Executable()
	must.NoError(t, err)
	n.log = new(bytes.Buffer)
	n.process = exec.Command("nsenter", "--net=/var/run/netns/"+n.outer, self)
	n.process.Env = append(os.Environ(), "SIF_LINK_TEST_RUN_DIR="+n.runDir(), "SIF_LINK_TEST_DATA_DIR="+n.dataDir())
	n.process.Stdout, n.process.Stderr = n.log, n.log
	must.NoError(t, n.process.Start())
	n.client = NewClient(n.runDir())
	eventually(t, func() error { _, err := n.client.Status(t.Context()); return err })
}

func (n *testNode) stop(sig os.Signal) {
	if n.process != nil {
		n.process.Process.Signal(sig)
		n.process.Wait()
		n.process = nil
	}
}

// newNodes returns count nodes on one underlay, each with a running `sif link`.
func newNodes(t testing.TB, count int) []*testNode {
	t.Helper()
	nodes := bareNodes(t, count)
	for i, n := range nodes {
		n.start(t)
		t.Cleanup(func() {
			n.stop(syscall.SIGTERM)
			if t.Failed() {
				t.Logf("sif link of node %d:\n%s", i+1, n.log)
			}
		})
	}
	return nodes
}

// bareNodes returns count nodes on one underlay, on which nothing runs.
func bareNodes(t testing.TB, count int) []*testNode {
	t.Helper()
	testhost.RequireRoot(t)
	testhost.RequireProgram(t, "nsenter")
	prefix := fmt.Sprintf("siflt%d", os.Getpid())
	bridge := prefix + "u"
	namespace := func(name string) {
		run(t, "ip", "netns", "add", name)
		t.Cleanup(func() { exec.Command("ip", "netns", "del", name).Run() })
		run(t, "ip", "-n", name, "link", "set", "lo", "up")
		// On some machines new namespaces have reverse-path filtering enabled.
		run(t, "nsenter", "--net=/var/run/netns/"+name, "sysctl", "-qw", "net.ipv4.conf.all.rp_filter=0")
	}
	namespace(bridge)
	run(t, "ip", "-n", bridge, "link", "add", "br0", "up", "type", "bridge")
	var nodes []*testNode
	for i := 1; i <= count; i++ {
		n := &testNode{
			outer: fmt.Sprintf("%so%d", prefix, i), inner: fmt.Sprintf("%si%d", prefix, i),
			underlay: netip.AddrFrom4([4]byte{192, 0, 2, byte(i)}),
			v4:       netip.AddrFrom4([4]byte{100, 64, byte(i), 7}),
			v6:       netip.MustParseAddr(fmt.Sprintf("fd5f:0:0:%d::7", i)),
			private:  newKey(t), dir: t.TempDir(),
		}
		namespace(n.outer)
		namespace(n.inner)
		run(t, "ip", "-n", bridge, "link", "add", fmt.Sprintf("p%d", i), "up", "master", "br0",
			"type", "veth", "peer", "name", "eth0", "netns", n.outer)
		run(t, "ip", "-n", n.outer, "addr", "add", n.underlay.String()+"/24", "dev", "eth0")
		run(t, "ip", "-n", n.outer, "link", "set", "eth0", "up")
		run(t, "ip", "-n", n.inner, "addr", "add", n.v4.String()+"/32", "dev", "lo")
		run(t, "ip", "-n", n.inner, "addr", "add", n.v6.String()+"/128", "dev", "lo")
		nodes = append(nodes, n)
	}
	return nodes
}

func execute(name string, args ...string) (string, error) {
	out, err := exec.Command(name, args...).CombinedOutput()
	return string(out), err
}

func run(t testing.TB, name string, args ...string) string {
	t.Helper()
	out, err := execute(name, args...)
	if err != nil {
		t.Fatalf("%s %s: %v: %s", name, strings.Join(args, " "), err, out)
	}
	return out
}

func eventually(t testing.TB, f func() error) {
	t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for {
		err := f()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// listen starts an echo server in a namespace.
func listen(t testing.TB, namespace string, addr netip.AddrPort) {
	t.Helper()
	var listener net.Listener
	must.NoError(t, inNamespace(namespace, func() (err error) {
		listener, err = net.ListenTCP("tcp", net.TCPAddrFromAddrPort(addr))
		return err
	}))
	t.Cleanup(func() { listener.Close() })
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			go func() { defer conn.Close(); io.Copy(conn, conn) }()
		}
	}()
}

func dial(namespace string, addr netip.AddrPort) (conn net.Conn, err error) {
	err = inNamespace(namespace, func() error {
		conn, err = (&net.Dialer{Timeout: 5 * time.Second}).Dial("tcp", addr.String())
		return err
	})
	return conn, err
}

// echo sends size bytes and expects them back.
func echo(conn net.Conn, size int) error {
	conn.SetDeadline(time.Now().Add(10 * time.Second))
	sent := bytes.Repeat([]byte("sif!"), size/4)
	errs := make(chan error, 1)
	go func() { _, err := conn.Write(sent); errs <- err }()
	got := make([]byte, len(sent))
	if _, err := io.ReadFull(conn, got); err != nil {
		return fmt.Errorf("read echo: %w", err)
	}
	if !bytes.Equal(sent, got) {
		return fmt.Errorf("the echo is different")
	}
	return <-errs
}

func converse(from, to *testNode) error {
	for _, addr := range []netip.Addr{to.v4, to.v6} {
		conn, err := dial(from.innerPath(), netip.AddrPortFrom(addr, 7))
		if err != nil {
			return err
		}
		defer conn.Close()
		if err := echo(conn, 1<<20); err != nil {
			return fmt.Errorf("%s to %s: %w", conn.LocalAddr(), conn.RemoteAddr(), err)
		}
	}
	return nil
}

func status(t testing.TB, n *testNode) DeviceStatus {
	t.Helper()
	devices, err := n.client.Status(t.Context())
	must.NoError(t, err)
	must.Len(t, 1, devices)
	return devices[0]
}
