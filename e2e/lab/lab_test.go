// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

//go:build e2e

package lab

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/hashicorp/consul/api"
	nomad "github.com/hashicorp/nomad/api"
	"github.com/miekg/dns"
	"github.com/shoenig/test/must"
	"golang.org/x/sys/unix"

	"github.com/sif-project/sif/e2e/internet"
	"github.com/sif-project/sif/internal/testhost"
)

// testLab is the name of the tests' lab. It differs from the default, so that a lab under
// development stays up.
const testLab = "labtest"

// TestLab brings the servers up once, checks each of them, and then checks that nothing is left of
// them.
func TestLab(t *testing.T) {
	testhost.RequireRoot(t)
	must.NoError(t, Down(t.Context(), testLab))
	before := machine(t)
	bin, err := filepath.Abs("../../bin")
	must.NoError(t, err)
	began := time.Now()
	l, err := Up(t.Context(), Options{Name: testLab, Bin: bin, ServersOnly: true, Out: t.Output()})
	must.NoError(t, err)
	t.Cleanup(func() { must.NoError(t, Down(context.Background(), testLab)) })
	t.Logf("servers were up in %.1f s", time.Since(began).Seconds())

	t.Run("consul", func(t *testing.T) { testConsul(t, l) })
	t.Run("vault", func(t *testing.T) { testVault(t, l) })
	t.Run("nomad", func(t *testing.T) { testNomad(t, l) })
	t.Run("internet", func(t *testing.T) { testInternet(t, l) })
	t.Run("outside", func(t *testing.T) { testOutside(t, l) })
	t.Run("processes", func(t *testing.T) { testProcesses(t, l) })
	t.Run("open", func(t *testing.T) {
		again, err := Open(testLab)
		must.NoError(t, err)
		must.Eq(t, l.Secrets, again.Secrets)
		must.Eq(t, "aws1", again.Topology.Node("aws1-p1").Zone)
		ok, err := again.WriteStatus(&bytes.Buffer{})
		must.NoError(t, err)
		must.True(t, ok)
	})

	must.NoError(t, l.Down(t.Context()))
	must.Eq(t, "", cmp.Diff(before, machine(t)))
	must.NoError(t, l.Down(t.Context()), must.Sprint("a second Down finds nothing to do"))
}

func testConsul(t *testing.T, l *Lab) {
	client, err := l.Consul(l.Secrets.ConsulManagement)
	must.NoError(t, err)
	members, err := client.Agent().Members(false)
	must.NoError(t, err)
	must.Len(t, 7, members)
	for _, m := range members {
		must.Eq(t, 1, m.Status, must.Sprintf("%s is not alive", m.Name)) // serf.StatusAlive
	}

	anonymous, err := l.Consul("")
	must.NoError(t, err)
	_, err = anonymous.KV().Put(&api.KVPair{Key: "sif/v1/current"}, nil)
	must.ErrorContains(t, err, "403")
	pairs, _, err := anonymous.KV().Get("sif/v1/current", nil)
	must.ErrorContains(t, err, "403")
	must.Nil(t, pairs)

	controller, err := l.Consul(daemonToken(t, l, l.Topology.Orchestrator().Name))
	must.NoError(t, err)
	_, err = controller.KV().Put(&api.KVPair{Key: "sif/v1/test", Value: []byte("x")}, nil)
	must.NoError(t, err)
	_, err = controller.KV().Put(&api.KVPair{Key: "other"}, nil)
	must.ErrorContains(t, err, "403")

	node, err := l.ConsulAgent("aws1-w1", daemonToken(t, l, "aws1-w1"))
	must.NoError(t, err)
	pair, _, err := node.KV().Get("sif/v1/test", nil)
	must.NoError(t, err)
	must.Eq(t, "x", string(pair.Value))
	_, err = node.KV().Put(&api.KVPair{Key: "sif/v1/test"}, nil)
	must.ErrorContains(t, err, "403")
	must.NoError(t, node.Agent().ServiceRegister(&api.AgentServiceRegistration{Name: "sif-test--test"}))
	must.NoError(t, node.Agent().ServiceDeregister("sif-test--test"))
	must.ErrorContains(t, node.Agent().ServiceRegister(&api.AgentServiceRegistration{Name: "consul-like"}), "403")
}

// daemonToken logs in to Consul as a node's daemons do.
func daemonToken(t *testing.T, l *Lab, node string) string {
	t.Helper()
	grant := l.Secrets.Machines[node]
	vault, err := l.Vault("")
	must.NoError(t, err)
	login, err := vault.Logical().Write("auth/"+grant.Settings.Vault.AppRoleMount+"/login", map[string]any{"role_id": grant.RoleID, "secret_id": grant.SecretID})
	must.NoError(t, err)
	vault.SetToken(login.Auth.ClientToken)
	jwt, err := vault.Logical().Read("identity/oidc/token/" + grant.Settings.Consul.TokenRole)
	must.NoError(t, err)
	consul, err := l.Consul("")
	must.NoError(t, err)
	token, _, err := consul.ACL().Login(&api.ACLLoginParams{AuthMethod: grant.Settings.Consul.AuthMethod, BearerToken: jwt.Data["token"].(string)}, nil)
	must.NoError(t, err)
	return token.SecretID
}

func testVault(t *testing.T, l *Lab) {
	client, err := l.Vault("")
	must.NoError(t, err)
	status, err := client.Sys().SealStatus()
	must.NoError(t, err)
	must.False(t, status.Sealed)
	_, err = client.Logical().Read("sif-transit/keys/sif")
	must.Error(t, err)

	node := l.Secrets.Machines["aws1-p1"]
	login, err := client.Logical().Write("auth/sif-approle/login", map[string]any{"role_id": node.RoleID, "secret_id": node.SecretID})
	must.NoError(t, err)
	client.SetToken(login.Auth.ClientToken)
	key, err := client.Logical().Read("sif-transit/keys/sif")
	must.NoError(t, err)
	must.Eq(t, "ed25519", key.Data["type"])
	_, err = client.Logical().Write("sif-transit/sign/sif", map[string]any{"input": "eA=="})
	must.ErrorContains(t, err, "permission denied")
	_, err = client.Logical().Write("sif-pki/sign/node-aws1--aws1-w1", map[string]any{"csr": "x"})
	must.ErrorContains(t, err, "permission denied")

	// A node gets a certificate for its own name and kind, and for no other name.
	sign := func(role, id string, addresses ...net.IP) (*x509.Certificate, error) {
		secret, err := client.Logical().Write("sif-pki/sign/"+role, map[string]any{"csr": signingRequest(t, id, addresses...)})
		if err != nil {
			return nil, err
		}
		block, _ := pem.Decode([]byte(secret.Data["certificate"].(string)))
		return x509.ParseCertificate(block.Bytes)
	}
	cert, err := sign("node-aws1--aws1-p1", "spiffe://sif.test/node/aws1/aws1-p1")
	must.NoError(t, err)
	must.Eq(t, []string{"processor"}, cert.Subject.OrganizationalUnit)
	must.Len(t, 1, cert.URIs)
	must.Eq(t, "spiffe://sif.test/node/aws1/aws1-p1", cert.URIs[0].String())
	roots := x509.NewCertPool()
	ca, err := os.ReadFile(l.FabricCA())
	must.NoError(t, err)
	must.True(t, roots.AppendCertsFromPEM(ca))
	_, err = cert.Verify(x509.VerifyOptions{Roots: roots, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}})
	must.NoError(t, err)
	_, err = sign("node-aws1--aws1-p1", "spiffe://sif.test/node/aws1/aws1-p1", net.IPv4(10, 101, 0, 10))
	must.ErrorContains(t, err, "IP Subject Alternative Names are not allowed")
	_, err = sign("node-aws1--aws1-p1", "spiffe://sif.test/node/aws1/aws1-w1")
	must.ErrorContains(t, err, "not valid for this role")
	_, err = sign("workload", "spiffe://sif.test/getaway-app/http-proxy")
	must.ErrorContains(t, err, "permission denied")

	controller := l.Secrets.Machines[l.Topology.Orchestrator().Name]
	login, err = client.Logical().Write("auth/sif-approle/login", map[string]any{"role_id": controller.RoleID, "secret_id": controller.SecretID})
	must.NoError(t, err)
	client.SetToken(login.Auth.ClientToken)
	_, err = client.Logical().Write("sif-transit/sign/sif", map[string]any{"input": "eA=="})
	must.NoError(t, err)
	_, err = sign("controller", "spiffe://sif.test/controller")
	must.NoError(t, err)
	_, err = sign("controller", "spiffe://sif.test/node/aws1/aws1-w1")
	must.ErrorContains(t, err, "not valid for this role")
	_, err = sign("node-aws1--aws1-p1", "spiffe://sif.test/node/aws1/aws1-p1")
	must.ErrorContains(t, err, "permission denied")
}

// signingRequest makes a request for a certificate with a SPIFFE ID and addresses.
func signingRequest(t *testing.T, id string, addresses ...net.IP) string {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must.NoError(t, err)
	uri, err := url.Parse(id)
	must.NoError(t, err)
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{
		URIs: []*url.URL{uri}, IPAddresses: addresses,
	}, key)
	must.NoError(t, err)
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}))
}

func testNomad(t *testing.T, l *Lab) {
	client, err := l.Nomad(l.Secrets.NomadOperator)
	must.NoError(t, err)
	for _, n := range l.Topology.Nodes(Workload) {
		must.NoError(t, nomadReady(t.Context(), client, n))
	}
	anonymous, err := l.Nomad("")
	must.NoError(t, err)
	_, _, err = anonymous.Nodes().List(nil)
	must.ErrorContains(t, err, "403")

	// A task starts with each driver, from the image or the chroot that the lab made.
	for datacenter, driver := range map[string]string{"aws1": "docker", "gcp1": "exec"} {
		config := map[string]any{"command": "/bin/busybox", "args": []string{"sleep", "600"}}
		if driver == "docker" {
			config["image"] = DemoImage
		}
		disk := 110 // MB; must exceed the 100 MB of the logs
		job := nomad.NewServiceJob("t-"+driver, "t-"+driver, "global", 50)
		job.Datacenters = []string{datacenter}
		group := nomad.NewTaskGroup("g", 1)
		group.EphemeralDisk = &nomad.EphemeralDisk{SizeMB: &disk}
		job.AddTaskGroup(group.AddTask(&nomad.Task{Name: "sleep", Driver: driver, Config: config}))
		_, _, err := client.Jobs().Register(job, nil)
		must.NoError(t, err)
		eventually(t, 30*time.Second, func() error {
			allocs, _, err := client.Jobs().Allocations("t-"+driver, true, nil)
			if err != nil {
				return err
			}
			for _, a := range allocs {
				if a.ClientStatus == nomad.AllocClientStatusRunning {
					return nil
				}
			}
			return fmt.Errorf("no allocation of %s runs: %v", driver, allocs)
		})
	}
}

// testInternet shows that only gossip of a workload node reaches another cloud, and what else the
// internet passes.
func testInternet(t *testing.T, l *Lab) {
	const (
		closed = "closed" // the packet or connection does not arrive
		open   = "open"
	)
	for _, tc := range []struct {
		from, to string
		network  string
		port     int
		want     string
	}{
		{"aws1-w1", "gcp1-w1", "tcp", 8301, open},
		{"aws1-w1", "gcp1-w1", "tcp", 8080, closed},
		{"aws1-w1", "gcp1-w1", "tcp", 4646, closed},
		{"aws1-w1", "gcp1-w1", "tcp", 22, closed},
		{"aws1-w1", "gcp1-w1", "udp", 9999, closed},
		{"aws1-w1", "gcp1-w1", "udp", 51820, closed},
		{"aws1-w1", "gcp1-p1", "udp", 51820, closed},
		{"aws1-p1", "gcp1-w1", "udp", 51820, closed},
		{"aws1-p1", "gcp1-p1", "udp", 51820, open},
		{"gcp1-p1", "aws1-p1", "udp", 51899, open},
		{"aws1-p1", "gcp1-p1", "udp", 51900, closed},
		{"aws1-p1", "gcp1-p1", "tcp", 7701, closed},
		{"aws1-w1", "aws1-w2", "tcp", 9999, open},
		{"aws1-w1", "aws1-p1", "udp", 51820, open},
		{"aws1-w1", "orchestrator", "tcp", 8200, open},
		{"aws1-w1", "orchestrator", "tcp", 22, closed},
		{"client", "aws1-w1", "tcp", 18080, open},
		{"client", "aws1-w1", "tcp", 8080, closed},
		{"client", "aws1-p1", "tcp", 18080, closed},
		{"aws1-w1", "client", "tcp", 8080, closed},
		{"provider", "aws1-w1", "tcp", 18080, open},
		{"provider", "aws1-w1", "tcp", 8080, closed},
		{"provider", "aws1-p1", "tcp", 7701, closed},
		{"provider", "orchestrator", "tcp", 8200, closed},
	} {
		t.Run(fmt.Sprintf("%s to %s %s %d", tc.from, tc.to, tc.network, tc.port), func(t *testing.T) {
			got := closed
			if arrives(t, l, tc.from, tc.to, tc.network, tc.port) {
				got = open
			}
			must.Eq(t, tc.want, got)
		})
	}
	ping, err := l.Command(t.Context(), "aws1-w1", busybox, "ping", "-c", "1", "-W", "1", l.Topology.Node("gcp1-w1").Address)
	must.NoError(t, err)
	must.Error(t, ping.Run())
}

// testOutside shows that the machines outside answer, at all their addresses and ports, say whom
// they saw, and that a packet which is too big for the way to one of them comes back as an error.
func testOutside(t *testing.T, l *Lab) {
	node := l.Topology.Node("aws1-p1")
	// A machine's ports lead to one server. The kernel gives a flow another source port if an
	// earlier one to another port of the same address had that, so each flow has one of its own.
	used := map[string]bool{}
	dial := func(network, address string, port uint16) net.Conn {
		for {
			conn, err := l.Dial(node.Name)(t.Context(), network, netip.AddrPortFrom(netip.MustParseAddr(address), port).String())
			must.NoError(t, err)
			flow := fmt.Sprint(network, conn.LocalAddr(), address)
			if !used[flow] {
				used[flow] = true
				return conn
			}
			conn.Close()
		}
	}
	for _, o := range l.Topology.Internet.Outside {
		for _, a := range o.Addresses {
			for _, port := range []uint16{1, 443, 5432, 65535} {
				conn := dial("tcp", a, port)
				line, err := bufio.NewReader(conn).ReadString('\n')
				must.NoError(t, err)
				must.Eq(t, conn.LocalAddr().String(), strings.TrimSpace(line))
				conn.Close()

				conn = dial("udp", a, port)
				_, err = conn.Write([]byte(internet.Who))
				must.NoError(t, err)
				must.NoError(t, conn.SetReadDeadline(time.Now().Add(2*time.Second)))
				answer := make([]byte, 100)
				n, err := conn.Read(answer)
				must.NoError(t, err, must.Sprintf("%s port %d", a, port))
				must.Eq(t, conn.LocalAddr().String(), string(answer[:n]))
				conn.Close()
			}
		}
	}
	source := netip.MustParseAddr(node.Address)
	conn, err := l.Dial(node.Name)(t.Context(), "tcp", netip.AddrPortFrom(l.Topology.Outside("cdn").Address(4), 80).String())
	must.NoError(t, err)
	must.Eq(t, source, conn.LocalAddr().(*net.TCPAddr).AddrPort().Addr())
	conn.Close()

	// Names.
	resolver := netip.AddrPortFrom(l.Topology.Resolver().Address(4), 53).String()
	ask := func(name string, kind uint16) *dns.Msg {
		t.Helper()
		conn, err := l.Dial("gcp1-p1")(t.Context(), "udp", resolver)
		must.NoError(t, err)
		defer conn.Close()
		m, _, err := (&dns.Client{Timeout: 2 * time.Second}).ExchangeWithConn(new(dns.Msg).SetQuestion(dns.Fqdn(name), kind), &dns.Conn{Conn: conn})
		must.NoError(t, err)
		return m
	}
	must.Len(t, 1, ask("news.example.com", dns.TypeA).Answer)
	must.Len(t, 3, ask("places.example.com", dns.TypeAAAA).Answer)
	must.Len(t, 2, ask("alias.example.com", dns.TypeA).Answer)
	must.Eq(t, dns.RcodeNameError, ask("other.example.com", dns.TypeA).Rcode)
	must.NoError(t, l.SetRecords(internet.Records{"other.example.com": {Addresses: []netip.Addr{source}}}))
	must.Len(t, 1, ask("other.example.com", dns.TypeA).Answer)
	must.NoError(t, l.SetRecords(nil))
	must.Eq(t, dns.RcodeNameError, ask("other.example.com", dns.TypeA).Rcode)

	// The way to one of them carries 1300 bytes.
	for _, tc := range []struct {
		version, size int
		network       string
	}{{4, 1272, "udp4"}, {6, 1252, "udp6"}} {
		conn, err := l.Dial(node.Name)(t.Context(), tc.network, netip.AddrPortFrom(l.Topology.Outside("narrow").Address(tc.version), 7).String())
		must.NoError(t, err)
		defer conn.Close()
		raw, err := conn.(*net.UDPConn).SyscallConn()
		must.NoError(t, err)
		must.NoError(t, raw.Control(func(fd uintptr) {
			level, option := unix.IPPROTO_IP, unix.IP_MTU_DISCOVER
			if tc.version == 6 {
				level, option = unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER
			}
			must.NoError(t, unix.SetsockoptInt(int(fd), level, option, unix.IP_PMTUDISC_DO))
		}))
		_, err = conn.Write(make([]byte, tc.size))
		must.NoError(t, err)
		must.NoError(t, conn.SetReadDeadline(time.Now().Add(2*time.Second)))
		n, err := conn.Read(make([]byte, 1500))
		must.NoError(t, err)
		must.Eq(t, tc.size, n)
		eventually(t, 3*time.Second, func() error {
			if _, err := conn.Write(make([]byte, tc.size+1)); !errors.Is(err, unix.EMSGSIZE) {
				return fmt.Errorf("a packet of 1301 bytes is sent: %w", err)
			}
			return nil
		})
	}

	consul, err := l.Consul(l.Secrets.ConsulManagement)
	must.NoError(t, err)
	instances, _, err := consul.Health().Service("postgres", "", true, nil)
	must.NoError(t, err)
	must.Len(t, 1, instances)
	must.Eq(t, "10.20.0.10", instances[0].Service.Address)
}

// arrives sends from one node and reports whether something arrives at the other's port.
func arrives(t *testing.T, l *Lab, from, to, network string, port int) bool {
	t.Helper()
	address := l.Topology.Internet.Users.Client
	if n := l.Topology.Node(to); n != nil {
		address = n.Address
	}
	target := fmt.Sprintf("%s:%d", address, port)
	ctx, cancel := context.WithTimeout(t.Context(), 400*time.Millisecond)
	defer cancel()
	if network == "tcp" {
		var listener net.Listener
		err := l.In(to, func() (err error) {
			listener, err = net.Listen("tcp4", target)
			return err
		})
		// If one of the lab's servers already listens there, it serves as well.
		if err == nil {
			defer listener.Close()
		}
		conn, err := l.Dial(from)(ctx, "tcp", target)
		if err == nil {
			conn.Close()
		}
		return err == nil
	}
	var socket net.PacketConn
	must.NoError(t, l.In(to, func() (err error) {
		socket, err = net.ListenPacket("udp4", target)
		return err
	}))
	defer socket.Close()
	conn, err := l.Dial(from)(ctx, "udp", target)
	must.NoError(t, err)
	defer conn.Close()
	_, err = conn.Write([]byte("probe"))
	must.NoError(t, err)
	must.NoError(t, socket.SetReadDeadline(time.Now().Add(400*time.Millisecond)))
	_, _, err = socket.ReadFrom(make([]byte, 16))
	return err == nil
}

func testProcesses(t *testing.T, l *Lab) {
	must.True(t, l.Alive("gcp1-p1", "ovs-vswitchd"))
	must.NoError(t, l.Stop(t.Context(), "gcp1-p1", "ovs-vswitchd"))
	must.False(t, l.Alive("gcp1-p1", "ovs-vswitchd"))
	must.NoError(t, l.Start("gcp1-p1", "ovs-vswitchd"))
	must.True(t, l.Alive("gcp1-p1", "ovs-vswitchd"))
	_, err := l.Process("gcp1-p1", "nothing")
	must.ErrorContains(t, err, "no process gcp1-p1/nothing")

	// One that was killed is started again at once, not taken for running.
	const node, name = "gcp1-w1", "idle"
	t.Cleanup(func() { must.NoError(t, os.Remove(l.processFile(&Process{Node: node, Name: name}))) })
	must.NoError(t, l.start(&Process{Node: node, Name: name, Args: []string{"sleep", "infinity"}}))
	for range 20 {
		killed, err := l.Process(node, name)
		must.NoError(t, err)
		must.NoError(t, l.Signal(node, name, syscall.SIGKILL))
		must.NoError(t, l.Start(node, name))
		now, err := l.Process(node, name)
		must.NoError(t, err)
		must.NotEq(t, killed.PID, now.PID)
	}

	// One that ends by itself is named with the end of its log, and no other.
	must.NoError(t, l.Stop(t.Context(), node, name))
	said := &lines{}
	l.progress = newProgress(said)
	leave := filepath.Join(t.TempDir(), "leave") // one that ends before it has started is another case
	must.NoError(t, l.start(&Process{Node: node, Name: name, Args: []string{"sh", "-c", `until [ -e "$0" ]; do sleep 0.05; done; echo the reason; exit 3`, leave}}))
	must.NoError(t, os.WriteFile(leave, nil, 0o644))
	eventually(t, 5*time.Second, func() error {
		if text := said.String(); !strings.Contains(text, node+"/"+name+" has ended by itself: exit status 3") || !strings.Contains(text, "the reason") {
			return fmt.Errorf("it says %q", text)
		}
		return nil
	})
	must.StrNotContains(t, said.String(), "ovs-vswitchd")
}

// lines is a buffer that several goroutines may use.
type lines struct {
	mu   sync.Mutex
	text strings.Builder
}

func (l *lines) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(b)
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

// TestUpUndoesItself interrupts and kills Up at several moments, and checks that nothing is left.
func TestUpUndoesItself(t *testing.T) {
	testhost.RequireRoot(t)
	must.NoError(t, Down(t.Context(), testLab))
	bin, err := filepath.Abs("../../bin")
	must.NoError(t, err)
	program := filepath.Join(t.TempDir(), "sif-lab")
	out, err := exec.Command("go", "build", "-o", program, "../cmd/sif-lab").CombinedOutput()
	must.NoError(t, err, must.Sprint(string(out)))
	t.Cleanup(func() { must.NoError(t, Down(context.Background(), testLab)) })
	before := machine(t)
	for name, tc := range map[string]struct {
		signal syscall.Signal
		after  time.Duration
		undoes bool
	}{
		"interrupt at once":    {syscall.SIGINT, 500 * time.Millisecond, true},
		"interrupt in between": {syscall.SIGINT, 3 * time.Second, true},
		"kill":                 {syscall.SIGKILL, 3 * time.Second, false},
	} {
		t.Run(name, func(t *testing.T) {
			cmd := exec.Command(program, "-lab", testLab, "up", "-servers-only", "-host=false", "-bin", bin)
			must.NoError(t, cmd.Start())
			time.Sleep(tc.after)
			must.NoError(t, cmd.Process.Signal(tc.signal))
			must.Error(t, cmd.Wait())
			if !tc.undoes {
				must.NoError(t, Down(t.Context(), testLab))
			}
			must.Eq(t, "", cmp.Diff(before, machine(t)))
		})
	}
}

// TestDownThaws shows that nothing is left of a lab whose file system stands still, and of a
// process that waits for it: a program that was killed has frozen it.
func TestDownThaws(t *testing.T) {
	testhost.RequireRoot(t)
	must.NoError(t, Down(t.Context(), testLab))
	before := machine(t)
	disk := filepath.Join(varRoot, testLab, "disk")
	must.NoError(t, os.MkdirAll(disk, 0o755))
	image := disk + ".img"
	for _, c := range [][]string{
		{"truncate", "-s", "8M", image}, {"mkfs.ext4", "-q", image}, {"mount", "-o", "loop", image, disk},
	} {
		out, err := exec.Command(c[0], c[1:]...).CombinedOutput()
		must.NoError(t, err, must.Sprint(c, string(out)))
	}
	dir, err := os.Open(disk)
	must.NoError(t, err)
	t.Cleanup(func() { // if the test fails
		_ = unix.IoctlSetInt(int(dir.Fd()), Thaw, 0)
		dir.Close()
		must.NoError(t, Down(context.Background(), testLab))
	})
	must.NoError(t, unix.IoctlSetInt(int(dir.Fd()), Freeze, 0))
	waits := exec.Command("touch", filepath.Join(disk, "file"))
	waits.Env = []string{labVariable + "=" + testLab}
	must.NoError(t, waits.Start())
	ended := make(chan error, 1)
	go func() { ended <- waits.Wait() }()
	eventually(t, 20*time.Second, func() error {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", waits.Process.Pid))
		if err == nil && !strings.Contains(string(stat), ") D ") {
			err = fmt.Errorf("it does not wait: %s", stat)
		}
		return err
	})
	must.NoError(t, Down(t.Context(), testLab))
	<-ended // killed, or by itself when it could
	must.Eq(t, "", cmp.Diff(before, machine(t)))
}

// machine lists everything that a lab could leave on the machine.
func machine(t *testing.T) []string {
	t.Helper()
	var found []string
	add := func(kind string, names []string) {
		for _, n := range names {
			found = append(found, kind+" "+n)
		}
	}
	glob := func(pattern string) []string {
		names, err := filepath.Glob(pattern)
		must.NoError(t, err)
		return names
	}
	mounts, err := mountPoints()
	must.NoError(t, err)
	add("mount", slices.DeleteFunc(mounts, func(m string) bool { return !strings.Contains(m, testLab) }))
	add("cgroup", glob("/sys/fs/cgroup/*"+testLab+"*"))
	add("cgroup", glob("/sys/fs/cgroup/*/*"+testLab+"*"))
	add("cgroup", glob("/sys/fs/cgroup/*/nomad/*-*"))
	for _, pattern := range []string{"/run/netns/*" + testLab + "*", "/run/netns/????????-*", "/run/*/" + testLab, "/var/lib/*/" + testLab, "/run/containerd/s/*", "/etc/docker/key.json"} {
		add("file", glob(pattern))
	}
	add("link", glob("/sys/class/net/*"+testLab+"*"))
	for _, dir := range glob("/proc/[0-9]*") {
		pid, err := strconv.Atoi(filepath.Base(dir))
		must.NoError(t, err)
		if _, err := bornAt(pid); err != nil {
			continue // it has ended, but init has not reaped it yet
		}
		environ, err := os.ReadFile(dir + "/environ")
		if err == nil && bytes.Contains(environ, []byte(labVariable+"="+testLab)) {
			found = append(found, "process "+dir)
		}
		cgroup, err := os.ReadFile(dir + "/cgroup")
		if err == nil && (bytes.Contains(cgroup, []byte(testLab)) || bytes.Contains(cgroup, []byte("/nomad/"))) {
			found = append(found, "process "+dir)
		}
	}
	return found
}

func eventually(t *testing.T, within time.Duration, f func() error) {
	t.Helper()
	deadline := time.Now().Add(within)
	for {
		err := f()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			must.NoError(t, err)
		}
		time.Sleep(100 * time.Millisecond)
	}
}
