// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package port_test

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/prometheus/procfs"
	"github.com/shoenig/test/must"
	"github.com/vishvananda/netlink"

	"github.com/sif-project/sif/engine/ovs"
	"github.com/sif-project/sif/engine/ovs/ovstest"
	"github.com/sif-project/sif/engine/port"
	"github.com/sif-project/sif/internal/node/link"
	"github.com/sif-project/sif/internal/testhost"
)

// zones is a way through two zones: a workload node, two processors and another workload node, each
// with a link to the next. There are no endpoints and no eBPF programs: the addresses of the ends
// are those of the nodes.
type zones struct {
	t         testing.TB
	nodes     []*zonesNode
	switchMTU int
}

// zonesNode has its links to the node before and after it.
type zonesNode struct {
	name     string // of the network namespace
	underlay netip.Addr
	private  link.PrivateKey
	pipeline *ovs.Pipeline // of a processor with a switch
	sw       *ovs.Switch
	state    ovs.State
	link     *exec.Cmd // `sif link` in user space
}

// linkVariable makes the test binary run `sif link` with its sockets and state in a directory.
const linkVariable = "SIF_PORT_TEST_LINK"

// plainVariable leaves the Go runtime as it is.
const plainVariable = "SIF_PORT_TEST_LINK_PLAIN"

func TestMain(m *testing.M) {
	dir := os.Getenv(linkVariable)
	if dir == "" {
		os.Exit(m.Run())
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	if os.Getenv(plainVariable) == "" {
		if err := link.KeepMonitorAwake(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		go link.AdaptCores(ctx, 0, hclog.NewNullLogger())
	}
	if err := link.NewServer(link.ServerConfig{RunDir: dir, DataDir: dir, Logger: hclog.NewNullLogger()}).Run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// startLink starts the node's `sif link`, which ends with the test.
func (n *zonesNode) startLink(t testing.TB, environ []string) *link.Client {
	t.Helper()
	dir := t.TempDir()
	self, err := os.Executable()
	must.NoError(t, err)
	n.link = exec.Command("nsenter", "--net=/run/netns/"+n.name, self)
	n.link.Env = append(append(os.Environ(), linkVariable+"="+dir), environ...)
	n.link.Stderr = os.Stderr
	must.NoError(t, n.link.Start())
	process := n.link
	t.Cleanup(func() {
		_ = process.Process.Signal(syscall.SIGTERM)
		_ = process.Wait()
	})
	client := link.NewClient(dir)
	ovstest.Patiently(t, func() error { _, err := client.Status(t.Context()); return err })
	return client
}

const zonesMTU = 1420 // of the links

// The ends' addresses.
func zonesAddr(node int) netip.Addr { return netip.AddrFrom4([4]byte{100, 64, byte(node), 1}) }

type zonesOptions struct {
	switched  bool // the processors have a switch; otherwise they route
	encrypted bool // the links are the kernel's WireGuard; otherwise its IP in IP
	switchMTU int
	userspace bool     // links and switches are those in user space; encrypted must be true
	environ   []string // of each `sif link` in user space
}

func newZones(t testing.TB, o zonesOptions) *zones {
	t.Helper()
	testhost.RequireRoot(t)
	if o.userspace {
		t.Setenv("SIF_TEST_DATAPATH", "netdev")
	} else {
		if err := link.KernelSupport(); err != nil {
			testhost.UnmetHere(t, err.Error())
		}
		if !ovs.KernelDatapath() {
			testhost.UnmetHere(t, "needs the kernel's Open vSwitch")
		}
		t.Setenv("SIF_TEST_DATAPATH", "system")
	}
	z := &zones{t: t, switchMTU: o.switchMTU}
	middle := ovstest.Namespace(t, "underlay")
	ovstest.Run(t, "ip", "-n", middle, "link", "add", "br0", "up", "type", "bridge")
	for i := range 4 {
		n := &zonesNode{underlay: netip.AddrFrom4([4]byte{192, 0, 2, byte(i + 1)})}
		if o.switched && (i == 1 || i == 2) {
			instance := ovstest.Start(t)
			n.name, n.sw = instance.Namespace, ovs.NewSwitch(instance.Config)
			must.NoError(t, n.sw.Create(t.Context()))
			n.pipeline = ovs.NewPipeline(1, n.sw.Revalidated)
			conn, err := n.sw.Dial(t.Context())
			must.NoError(t, err)
			t.Cleanup(func() { _ = conn.Close() })
			n.pipeline.UseConn(conn)
		} else {
			n.name = ovstest.Namespace(t, "node")
		}
		var err error
		n.private, err = link.GenerateKey()
		must.NoError(t, err)
		ovstest.Run(t, "ip", "-n", middle, "link", "add", fmt.Sprintf("p%d", i), "up", "master", "br0", "type", "veth", "peer", "name", "eth0", "netns", n.name)
		ovstest.Run(t, "ip", "-n", n.name, "addr", "add", n.underlay.String()+"/24", "dev", "eth0")
		ovstest.Run(t, "ip", "-n", n.name, "link", "set", "eth0", "up")
		ovstest.In(t, n.name, func() {
			must.NoError(t, os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0o644))
		})
		z.nodes = append(z.nodes, n)
	}
	for i := range z.nodes {
		z.connect(i, o)
	}
	for _, end := range []int{0, 3} {
		ovstest.Run(t, "ip", "-n", z.nodes[end].name, "addr", "add", zonesAddr(end).String()+"/32", "dev", "lo")
		if o.switched {
			// Workloads have the switch's MTU, which the links' own routes do not have.
			other := zonesAddr(3 - end)
			ovstest.Run(t, "ip", "-n", z.nodes[end].name, "route", "replace", other.String()+"/32", "dev", "sif-l0",
				"src", zonesAddr(end).String(), "mtu", fmt.Sprint(o.switchMTU))
		}
	}
	return z
}

// connect makes the devices of a node: sif-l0 to the node before it, sif-l1 to the one after it; an
// end has only sif-l0.
func (z *zones) connect(i int, o zonesOptions) {
	t, n := z.t, z.nodes[i]
	var k interface {
		Apply(context.Context, []link.Device) error
	}
	if o.userspace {
		k = n.startLink(t, o.environ)
	} else {
		ovstest.In(t, n.name, func() {
			kernel, err := link.NewKernel(link.KernelConfig{Owner: n.name, Logger: hclog.NewNullLogger()})
			must.NoError(t, err)
			t.Cleanup(func() { must.NoError(t, kernel.Remove()) })
			k = kernel
		})
	}
	var devices []link.Device
	var configs []port.Config
	for _, peer := range []int{i - 1, i + 1} {
		if peer < 0 || peer > 3 {
			continue
		}
		beyond := zonesAddr(0)
		if peer > i {
			beyond = zonesAddr(3)
		}
		d := link.Device{
			Name: fmt.Sprintf("sif-l%d", len(devices)), Interface: link.Interface{MTU: zonesMTU, Routes: !o.switched},
			ListenPort: uint16(51820 + len(devices)), PrivateKey: n.private,
		}
		listens := uint16(51820) // an end's only device, or the first one
		if peer < i && peer > 0 {
			listens++ // its device to the node after it
		}
		d.Peers = []link.Peer{{
			PublicKey: z.nodes[peer].private.Public(), Endpoint: netip.AddrPortFrom(z.nodes[peer].underlay, listens),
			AllowedIPs: []netip.Prefix{netip.PrefixFrom(beyond, 32)},
		}}
		if n.sw != nil {
			c := port.Config{
				Namespace: n.name + d.Name[3:], Home: n.name, Outer: "sif-o" + d.Name[5:], Device: d.Name, MTU: o.switchMTU,
				Prefixes: d.Peers[0].AllowedIPs, Addrs: []netip.Addr{netip.AddrFrom4([4]byte{100, 64, 100, byte(i)}), netip.MustParseAddr(fmt.Sprintf("fd5f::%d", i+1))},
			}
			t.Cleanup(func() { must.NoError(t, port.Remove(c)) })
			_, _, err := port.Ensure(c)
			must.ErrorIs(t, err, port.ErrNoDevice)
			d.Namespace = filepath.Join("/run/netns", c.Namespace)
			configs = append(configs, c)
		}
		if !o.encrypted {
			ovstest.In(t, n.name, func() {
				must.NoError(t, netlink.LinkAdd(&netlink.Iptun{
					LinkAttrs: netlink.LinkAttrs{Name: d.Name, MTU: zonesMTU}, Local: n.underlay.AsSlice(), Remote: z.nodes[peer].underlay.AsSlice(),
				}))
			})
			if n.sw == nil {
				ovstest.Run(t, "ip", "-n", n.name, "link", "set", d.Name, "up")
				ovstest.Run(t, "ip", "-n", n.name, "route", "add", beyond.String(), "dev", d.Name)
			}
		}
		devices = append(devices, d)
	}
	if o.encrypted {
		must.NoError(t, k.Apply(t.Context(), devices))
	}
	for j, c := range configs {
		ensure(t, c) // takes the device of IP in IP, and routes
		if !o.encrypted {
			ovstest.Run(t, "ip", "-n", c.Namespace, "link", "set", c.Device, "up")
			ensure(t, c)
		}
		no, err := n.sw.AddPort(t.Context(), c.Outer)
		must.NoError(t, err)
		own, far := port.MACs(c.Outer)
		n.state.Ports = append(n.state.Ports, ovs.Port{No: no, MAC: own, Peer: far, Routers: true})
		n.state.Endpoints = append(n.state.Endpoints, ovs.Endpoint{
			ID: uint64(j + 1), Class: uint32(j + 1), SourcePorts: []uint32{no}, OutPort: no, Prefixes: c.Prefixes,
		})
	}
	if n.sw != nil {
		n.state.Entries = []ovs.Entry{{ID: 1, Src: 1, Dst: 2, Protocol: 6, Ports: []ovs.PortRange{{First: 80, Last: 80}}}}
		must.NoError(t, n.pipeline.Set(t.Context(), n.state))
	}
}

// open returns both ends of a TCP connection.
func (z *zones) open() (near, far net.Conn) {
	t := z.t
	t.Helper()
	var listener net.Listener
	ovstest.In(t, z.nodes[3].name, func() {
		var err error
		listener, err = net.Listen("tcp4", netip.AddrPortFrom(zonesAddr(3), 80).String())
		must.NoError(t, err)
	})
	defer listener.Close()
	accepted := make(chan net.Conn, 1)
	go func() {
		if c, err := listener.Accept(); err == nil {
			accepted <- c
		}
	}()
	ovstest.In(t, z.nodes[0].name, func() {
		var err error
		d := net.Dialer{Timeout: 10 * time.Second, LocalAddr: &net.TCPAddr{IP: zonesAddr(0).AsSlice()}}
		near, err = d.DialContext(context.Background(), "tcp4", netip.AddrPortFrom(zonesAddr(3), 80).String())
		must.NoError(t, err)
	})
	far = <-accepted
	t.Cleanup(func() { _, _ = near.Close(), far.Close() })
	return near, far
}

// tcpCounter returns a column of the line Tcp of /proc/net/snmp of the first node.
func (z *zones) tcpCounter(name string) string {
	out := ovstest.Run(z.t, "nsenter", "--net=/run/netns/"+z.nodes[0].name, "cat", "/proc/net/snmp")
	var lines [][]string
	for line := range strings.Lines(out) {
		if f := strings.Fields(line); f[0] == "Tcp:" {
			lines = append(lines, f)
		}
	}
	return lines[1][slices.Index(lines[0], name)]
}

// The kernel's datapath passes TCP of the links' full size: it keeps the segments of the sender.
func TestKernelSwitchKeepsSegments(t *testing.T) {
	z := newZones(t, zonesOptions{switched: true, encrypted: true, switchMTU: zonesMTU})
	near, far := z.open()
	const size = 4 << 20
	go func() { _, _ = near.Write(make([]byte, size)) }()
	must.NoError(t, far.SetReadDeadline(time.Now().Add(2*time.Minute)))
	_, err := io.ReadFull(far, make([]byte, size))
	must.NoError(t, err)
	t.Logf("%s segments sent for %d bytes, %s sent again", z.tcpCounter("OutSegs"), size, z.tcpCounter("RetransSegs"))
	must.StrContains(t, ovstest.Run(t, "ip", "-n", z.nodes[0].name, "route", "get", zonesAddr(3).String()), "mtu 1420")
}

// traffic is a TCP connection between the ends. The far end swallows blocks and answers requests.
type traffic struct {
	t    testing.TB
	near net.Conn
}

const (
	requestSize = 1 << 10
	blockSize   = 1 << 20

	requestsAtOnce = 15
)

func (z *zones) traffic() traffic {
	near, far := z.open()
	go func() {
		request := make([]byte, requestSize)
		for {
			if _, err := io.ReadFull(far, request[:1]); err != nil {
				return
			}
			if request[0] == 0 { // a block
				if _, err := io.CopyN(io.Discard, far, blockSize-1); err != nil {
					return
				}
				request[0] = 0
				_, _ = far.Write(request[:1])
				continue
			}
			if _, err := io.ReadFull(far, request[1:]); err != nil {
				return
			}
			_, _ = far.Write(request)
		}
	}()
	return traffic{z.t, near}
}

// send sends the bytes, waits for an answer of a length, and returns how long it took.
func (c traffic) send(what []byte, answer int) time.Duration {
	began := time.Now()
	must.NoError(c.t, c.near.SetDeadline(began.Add(time.Minute)))
	_, err := c.near.Write(what)
	must.NoError(c.t, err)
	_, err = io.ReadFull(c.near, make([]byte, answer))
	must.NoError(c.t, err)
	return time.Since(began)
}

// block sends a block; request sends some requests one after another, and returns the median.
func (c traffic) block() time.Duration { return c.send(make([]byte, blockSize), 1) }

func (c traffic) request() time.Duration {
	what := append([]byte{1}, make([]byte, requestSize-1)...)
	var times []float64
	for range requestsAtOnce {
		times = append(times, float64(c.send(what, requestSize)))
	}
	return time.Duration(median(times))
}

func median(list []float64) float64 {
	slices.Sort(list)
	return list[len(list)/2]
}

// BenchmarkTwoZones sends blocks and requests through four nodes with switches and through four
// that route over the same kind of link, in turn, so that other work on the machine meets both. A
// round is one block and some requests through each; it reports the medians of the rounds and of
// their ratios.
func BenchmarkTwoZones(b *testing.B) {
	for _, encrypted := range []bool{true, false} {
		b.Run(map[bool]string{true: "wireguard", false: "ipip"}[encrypted], func(b *testing.B) {
			routed := newZones(b, zonesOptions{encrypted: encrypted}).traffic()
			switched := newZones(b, zonesOptions{encrypted: encrypted, switched: true, switchMTU: 1378}).traffic()
			for _, c := range []traffic{routed, switched} {
				c.block()
				c.request()
			}
			var plain, ours, throughput, latency []float64
			b.ResetTimer()
			for range b.N {
				r, s := routed.block(), switched.block()
				plain, ours = append(plain, blockSize/r.Seconds()/1e6), append(ours, blockSize/s.Seconds()/1e6)
				throughput = append(throughput, r.Seconds()/s.Seconds())
				r, s = routed.request(), switched.request()
				latency = append(latency, s.Seconds()/r.Seconds())
			}
			b.ReportMetric(median(plain), "routed-MB/s")
			b.ReportMetric(median(ours), "switched-MB/s")
			b.ReportMetric(median(throughput), "throughput-ratio")
			b.ReportMetric(median(latency), "latency-ratio")
		})
	}
}

// BenchmarkTwoZonesInUserSpace does the same with links and switches in user space, each node's
// links in a process of its own: with `sif link` as it is, in the Go runtime's own settings, and
// with routes instead of switches. It reports what the four processes of the links take, which
// depends less on other work on the machine than rates do: processor time and context switches.
func BenchmarkTwoZonesInUserSpace(b *testing.B) {
	type way struct {
		name  string
		zones *zones
		traffic
		throughput, latency, byteTime, blockSwitches, requestTime, requestSwitches []float64
	}
	ways := []*way{
		{name: "sif", zones: newZones(b, zonesOptions{encrypted: true, userspace: true, switched: true, switchMTU: 1376})},
		{name: "plain-runtime", zones: newZones(b, zonesOptions{encrypted: true, userspace: true, switched: true, switchMTU: 1376, environ: []string{plainVariable + "=1"}})},
		{name: "routed", zones: newZones(b, zonesOptions{encrypted: true, userspace: true})},
	}
	for _, w := range ways {
		w.traffic = w.zones.traffic()
		w.block()
		w.request()
	}
	const blocks, requests = 16, 10
	b.ResetTimer()
	for i := range b.N {
		for j := range ways {
			w := ways[(i+j)%len(ways)] // each is the first one in some round
			before, began := w.zones.spent(), time.Now()
			for range blocks {
				w.block()
			}
			took, between := time.Since(began), w.zones.spent()
			for range requests {
				w.latency = append(w.latency, w.request().Seconds()*1e6)
			}
			after := w.zones.spent()
			w.throughput = append(w.throughput, blocks*blockSize*8/took.Seconds()/1e6)
			w.byteTime = append(w.byteTime, float64((between.time-before.time).Nanoseconds())/(blocks*blockSize))
			w.blockSwitches = append(w.blockSwitches, float64(between.switches-before.switches)/blocks)
			w.requestTime = append(w.requestTime, (after.time-between.time).Seconds()*1e6/(requests*requestsAtOnce))
			w.requestSwitches = append(w.requestSwitches, float64(after.switches-between.switches)/(requests*requestsAtOnce))
		}
	}
	for _, w := range ways {
		b.ReportMetric(median(w.throughput), w.name+"-Mb/s")
		b.ReportMetric(median(w.latency), w.name+"-us/request")
		b.ReportMetric(median(w.byteTime), w.name+"-links-ns/byte")
		b.ReportMetric(median(w.blockSwitches), w.name+"-links-switches/MiB")
		b.ReportMetric(median(w.requestTime), w.name+"-links-us/request")
		b.ReportMetric(median(w.requestSwitches), w.name+"-links-switches/request")
	}
}

// spending is what the link processes of all nodes have used so far.
type spending struct {
	time     time.Duration
	switches uint64 // context switches
}

func (z *zones) spent() (sum spending) {
	for _, n := range z.nodes {
		threads, err := procfs.AllThreads(n.link.Process.Pid)
		must.NoError(z.t, err)
		for _, thread := range threads {
			running, err := thread.Schedstat()
			must.NoError(z.t, err)
			status, err := thread.NewStatus()
			must.NoError(z.t, err)
			sum.time += time.Duration(running.RunningNanoseconds)
			sum.switches += status.VoluntaryCtxtSwitches + status.NonVoluntaryCtxtSwitches
		}
	}
	return sum
}
