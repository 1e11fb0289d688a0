// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package controller

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	consulapi "github.com/hashicorp/consul/api"
	"github.com/hashicorp/go-hclog"
	vaultapi "github.com/hashicorp/vault/api"
	"github.com/shoenig/test/must"

	"github.com/sif-project/sif/api"
	"github.com/sif-project/sif/fabric"
	joining "github.com/sif-project/sif/internal/join"
	"github.com/sif-project/sif/internal/nomadlife"
	"github.com/sif-project/sif/internal/setup"
	"github.com/sif-project/sif/internal/setup/setuptest"
	"github.com/sif-project/sif/internal/testhost"
	"github.com/sif-project/sif/internal/trust/identity"
	"github.com/sif-project/sif/internal/wellknown"
)

const (
	testFabric  = "test"
	trustDomain = "sif.test"
	management  = "8e3b2a61-2f6c-4b26-9d3c-0d1f6f2a7f10"
)

var testNodes = []setuptest.Node{
	{NodeID: fabric.NodeID{Zone: "aws1", Name: "w1"}, Kind: fabric.KindWorkload},
	{NodeID: fabric.NodeID{Zone: "aws1", Name: "w2"}, Kind: fabric.KindWorkload},
	{NodeID: fabric.NodeID{Zone: "aws1", Name: "p1"}, Kind: fabric.KindProcessor},
	{NodeID: fabric.NodeID{Zone: "aws1", Name: "b1"}, Kind: fabric.KindBoth},
}

// world is a real Consul and a real Vault, set up for a fabric. The subtests of a test share it,
// and begin with an empty KV store.
type world struct {
	signer func(Signer) Signer // what the next controllers sign with; nil: as it is

	consulServer  *testhost.Server
	vaultServer   *testhost.Server
	consulAddress string
	consul        *consulapi.Client // with the management token
	tokens        *setuptest.ConsulTokens
	vaultAddress  string
	vaultRoot     *vaultapi.Client // with the root token
	vault         *setuptest.Credentials
	dir           string
	caFile        string
	sources       map[string]*identity.Source
	nodePrefix    int // of controllers that are started
}

func newWorld(t testing.TB) *world {
	t.Helper()
	return newWorldOn(t, testhost.Consul)
}

func newWorldOn(t testing.TB, startConsul func(testing.TB, ...string) (*testhost.Server, *consulapi.Client)) *world {
	t.Helper()
	server, _ := startConsul(t, fmt.Sprintf(`
acl {
  enabled        = true
  default_policy = "deny"
  tokens {
    initial_management = %q
    agent              = %q
  }
}`, management, management))
	vaultServer, vault := testhost.Vault(t)
	w := &world{consulServer: server, vaultServer: vaultServer, consulAddress: server.Address, vaultAddress: "http://" + vaultServer.Address, vaultRoot: vault, dir: t.TempDir(), sources: map[string]*identity.Source{}}
	w.consul = w.consulClient(t, management)
	settings := setuptest.Settings(testFabric, trustDomain)
	w.tokens = setuptest.Consul(t, w.consul, settings, testNodes...)
	w.vault = setuptest.Vault(t, vault, settings, testNodes...)
	setuptest.LogIns(t, setup.Clients{Vault: vault, Consul: w.consul}, settings, w.vaultAddress)
	w.caFile = filepath.Join(w.dir, "ca.pem")
	must.NoError(t, os.WriteFile(w.caFile, []byte(w.vault.CA), 0o600))
	return w
}

func (w *world) consulClient(t testing.TB, token string) *consulapi.Client {
	t.Helper()
	client, err := consulapi.NewClient(&consulapi.Config{Address: w.consulAddress, Token: token})
	must.NoError(t, err)
	return client
}

// reset empties the KV store.
func (w *world) reset(t testing.TB) {
	t.Helper()
	_, err := w.consul.KV().DeleteTree("sif/", nil)
	must.NoError(t, err)
}

// source returns the identity of a process from Vault.
func (w *world) source(t testing.TB, name string, role joining.Grant, pkiRole, path string, ips ...net.IP) *identity.Source {
	t.Helper()
	if s := w.sources[name]; s != nil {
		return s
	}
	dir := filepath.Join(w.dir, name)
	must.NoError(t, os.MkdirAll(dir, 0o700))
	secret := filepath.Join(dir, "secret-id")
	must.NoError(t, os.WriteFile(secret, []byte(role.SecretID), 0o600))
	s, err := identity.Open(t.Context(), identity.Config{
		VaultAddress: w.vaultAddress, RoleID: role.RoleID, SecretIDFile: secret, PKIMount: wellknown.PKIMount, PKIRole: pkiRole,
		TransitMount: wellknown.TransitMount, TransitKey: wellknown.TransitKey, TrustDomain: trustDomain,
		SPIFFEPath: path, IPs: ips, DataDir: dir,
	}, hclog.NewNullLogger())
	must.NoError(t, err)
	w.sources[name] = s
	return s
}

// running is a controller under test.
type running struct {
	*Controller
	address  string
	operator *api.Client
	dir      string
	stop     func()
}

// start starts a controller with the data directory dir. Unless follow is set, it waits until the
// controller leads.
func (w *world) start(t testing.TB, dir string, scheduler Scheduler, follow bool) *running {
	t.Helper()
	if scheduler == nil { // one that has placed nothing
		scheduler = &fakeScheduler{}
	}
	if w.nodePrefix == 0 {
		w.nodePrefix = fabric.SmallestNodePrefix // the numbers of pools are easy to read
	}
	if scheduler == nil {
		scheduler = &fakeScheduler{}
	}
	source := w.source(t, "controller", w.vault.Controller, wellknown.ControllerRole, fabric.ControllerSPIFFE, net.IPv4(127, 0, 0, 1))
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	must.NoError(t, err)
	consul := w.consulClient(t, w.tokens.Controller)
	signer := Signer(Transit{Vault: source.Vault, Mount: wellknown.TransitMount, Key: wellknown.TransitKey, Version: source.SigningVersion})
	if w.signer != nil {
		signer = w.signer(signer)
	}
	c, err := New(Config{
		Fabric: testFabric, TrustDomain: trustDomain, DataDir: dir, Address: listener.Addr().String(), Version: "test",
		Pool4: netip.MustParsePrefix("100.64.0.0/10"), Pool6: netip.MustParsePrefix("fd5f:7369:6600::/48"), NodePrefix: w.nodePrefix,
		Consul: func() *consulapi.Client { return consul }, Vault: source.Vault, Identity: source,
		Signer:    signer,
		Authority: PKI{Vault: source.Vault, Mount: wellknown.PKIMount, Role: setup.RoleWorkload, TrustDomain: trustDomain},
		SVIDs: newSVIDs(source.Vault, PKI{Vault: source.Vault, Mount: wellknown.PKIMount, Role: setup.RoleApplication, TrustDomain: trustDomain},
			wellknown.TransitMount, wellknown.JWTKey(wellknown.TransitKey)),
		Scheduler: scheduler, Log: testLogger(t),
	})
	must.NoError(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- c.Run(ctx, listener) }()
	r := &running{Controller: c, address: listener.Addr().String(), dir: dir}
	r.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("controller: %v", err)
		}
	})
	t.Cleanup(r.stop)
	r.operator = w.client(t, r.address, w.tokens.Operator)
	if !follow {
		eventually(t, func() error {
			_, err := r.operator.Health(t.Context())
			return err
		})
	}
	return r
}

func (w *world) fresh(t testing.TB, scheduler Scheduler) *running {
	t.Helper()
	w.reset(t)
	return w.start(t, t.TempDir(), scheduler, false)
}

func (w *world) client(t testing.TB, address, token string) *api.Client {
	t.Helper()
	return w.clientOf(t, api.Config{Address: address, Token: token})
}

func (w *world) clientOf(t testing.TB, cfg api.Config) *api.Client {
	t.Helper()
	cfg.CACert, cfg.Alone = w.caFile, true // a test says which controller it asks
	client, err := api.NewClient(cfg)
	must.NoError(t, err)
	t.Cleanup(client.Close)
	return client
}

// testNode is a node that calls the controller.
type testNode struct {
	*api.Client
	id     fabric.NodeID
	source *identity.Source
}

func (w *world) node(t testing.TB, r *running, name string) *testNode {
	t.Helper()
	for _, n := range testNodes {
		if n.Name != name {
			continue
		}
		source := w.source(t, n.String(), w.vault.Nodes[n.NodeID], wellknown.NodeRole(n.Zone, n.Name), n.SPIFFE())
		client, err := api.NewClient(api.Config{Address: r.address, TLS: source.ClientTLS(identity.Subject{Controller: true}), Alone: true})
		must.NoError(t, err)
		t.Cleanup(client.Close)
		return &testNode{Client: client, id: n.NodeID, source: source}
	}
	t.Fatalf("no node %s", name)
	return nil
}

// register registers a node without a link and returns what was signed.
func (n *testNode) register(t testing.TB, underlay string) fabric.Node {
	t.Helper()
	record, err := n.RegisterNode(t.Context(), api.NodeRequest{Underlay: netip.MustParseAddr(underlay)})
	must.NoError(t, err)
	var node fabric.Node
	must.NoError(t, n.source.Keys().Verify(record.Node, fabric.KindNode, &node))
	return node
}

// report sends a status.
func (n *testNode) report(t testing.TB, s api.NodeStatus) api.ReportReply {
	t.Helper()
	reply, err := n.Report(t.Context(), s)
	must.NoError(t, err)
	return reply
}

func testLogger(t testing.TB) hclog.Logger {
	if testing.Verbose() {
		return hclog.New(&hclog.LoggerOptions{Level: hclog.Debug, Output: t.Output()})
	}
	return hclog.NewNullLogger()
}

// eventually waits until try succeeds.
func eventually(t testing.TB, try func() error) {
	t.Helper()
	deadline := time.Now().Add(30 * time.Second)
	for {
		err := try()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// code asserts that err is a refusal with that code, and returns it.
func code(t testing.TB, want string, err error) *api.Error {
	t.Helper()
	var e *api.Error
	if !errors.As(err, &e) {
		t.Fatalf("want a refusal of code %s, not: %v", want, err)
	}
	must.Eq(t, want, e.Code, must.Sprint(e.Message))
	return e
}

// testDomain returns a domain with a proxy that may reach a service on port 8080.
func testDomain(name string) *fabric.Domain {
	ref := func(n string) fabric.Ref { return fabric.Ref{Domain: name, Name: n} }
	return &fabric.Domain{
		Name: name,
		Services: []fabric.Service{
			{Name: "proxy", Selectors: []fabric.Selector{{Kind: fabric.SelectNomad, Namespace: "default", Job: name + "-web", Group: "proxy"}}},
			{Name: "svc", Selectors: []fabric.Selector{{Kind: fabric.SelectNomad, Namespace: "default", Job: name}}},
		},
		Contracts: []fabric.Contract{{
			Name: "frontend", Originators: []fabric.Ref{ref("proxy")}, Responders: []fabric.Ref{ref("svc")},
			Rules: []fabric.Rule{{Protocol: fabric.TCP, Ports: []fabric.PortRange{{From: 8080, To: 8080}}}},
		}},
	}
}

func domains(list ...*fabric.Domain) map[string]*fabric.Domain {
	m := map[string]*fabric.Domain{}
	for _, d := range list {
		m[d.Name] = d
	}
	return m
}

// fakeScheduler attests the placements that a test sets.
type fakeScheduler struct {
	mu       sync.Mutex
	placed   map[string]Placement
	machines []Machine
	err      error
}

// Lives implements Scheduler: nothing is known of any allocation.
func (f *fakeScheduler) Lives(changed func([]string), _ hclog.Logger) Follower {
	return &fakeFollower{changed: changed, lives: map[string]nomadlife.Life{}}
}

// fakeFollower tells the lives that a test sets.
type fakeFollower struct {
	changed func(ids []string)

	mu       sync.Mutex
	lives    map[string]nomadlife.Life
	canary   map[string]bool
	followed []string
}

func (f *fakeFollower) Follow(ids []string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.followed = slices.Sorted(slices.Values(ids))
}

func (f *fakeFollower) set(id string, life nomadlife.Life) {
	f.mu.Lock()
	f.lives[id] = life
	f.mu.Unlock()
	f.changed([]string{id})
}

func (f *fakeFollower) Of(id string) nomadlife.Life {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.lives[id]
}

func (f *fakeFollower) Canary(id string) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.canary[id]
}

func (f *fakeFollower) Trouble() error { return nil }

func (f *fakeFollower) Run(ctx context.Context) error {
	<-ctx.Done()
	return nil
}

func (f *fakeScheduler) Machine(_ context.Context, id string) (Machine, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, m := range f.machines {
		if m.ID == id {
			return m, f.err
		}
	}
	return Machine{}, errors.Join(ErrNoMachine, f.err)
}

func (f *fakeScheduler) MachinesAt(_ context.Context, address netip.Addr) (list []Machine, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, m := range f.machines {
		if slices.Contains(m.Addresses, address) {
			list = append(list, m)
		}
	}
	return list, f.err
}

func (f *fakeScheduler) Placement(_ context.Context, allocation, _ string) (Placement, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.err != nil {
		return Placement{}, f.err
	}
	p, ok := f.placed[allocation]
	if !ok {
		return p, ErrNoAllocation
	}
	return p, nil
}
