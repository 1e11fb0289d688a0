// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package catalog

import (
	"context"
	"crypto/ed25519"
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	consulapi "github.com/hashicorp/consul/api"
	"github.com/hashicorp/go-hclog"
	"github.com/shoenig/test/must"
	"github.com/shoenig/test/wait"

	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/internal/trust/identity"
	"github.com/sif-project/sif/internal/trust/identity/identitytest"
)

// signer signs admissions with the fabric's key, and issues certificates of nodes.
type signer struct {
	key  ed25519.PrivateKey
	keys fabric.KeySet
	ca   *identitytest.CA
}

func newSigner(t testing.TB) signer {
	t.Helper()
	ca := identitytest.NewCA(t)
	public, private, err := ed25519.GenerateKey(nil)
	must.NoError(t, err)
	return signer{private, fabric.KeySet{Keys: map[int]ed25519.PublicKey{1: public}, Min: 1}, ca}
}

func (s signer) verify(signed fabric.Signed) (a fabric.Admission, err error) {
	return a, s.keys.Verify(signed, fabric.KindAdmission, &a)
}

// speaker is HealthConfig.Speaker.
func (s signer) speaker(chain [][]byte, msg, sig []byte) (fabric.NodeID, error) {
	signer, _, err := identity.VerifyBy(s.ca.Roots(), identitytest.TrustDomain, chain, msg, sig)
	return signer.Node.NodeID, err
}

// node returns the identity of a workload node of zone aws1.
func (s signer) node(name string) Signer { return s.ca.Node("aws1", name, fabric.KindWorkload) }

func (s signer) register(t testing.TB, a fabric.Admission) Registration {
	t.Helper()
	payload, err := json.Marshal(a)
	must.NoError(t, err)
	signed := fabric.Signed{Kind: fabric.KindAdmission, Payload: payload, Version: 1}
	signed.Signature = ed25519.Sign(s.key, fabric.SigningInput(signed.Kind, payload))
	return Registration{Admission: a, Signed: signed}
}

// The services of the tests.
var (
	web = fabric.Ref{Domain: "app", Name: "web"}
	db  = fabric.Ref{Domain: "app", Name: "db"}
)

// allocation is the ID of the n-th endpoint.
func allocation(n int) string { return fmt.Sprintf("%08d-0000-0000-0000-000000000000", n) }

func admit(n int, service fabric.Ref) fabric.Admission {
	var roles fabric.Roles
	for i := range 12 { // more than fits into one value of metadata
		roles.Respond = append(roles.Respond, fabric.Ref{Domain: service.Domain, Name: fmt.Sprintf("contract-%d", i)})
	}
	return fabric.Admission{
		Fabric: "test", Endpoint: allocation(n), Zone: "aws1", Node: "aws1-w1", Service: service, Roles: roles,
		IPv4: netip.AddrFrom4([4]byte{100, 64, 1, byte(n)}), IPv6: netip.MustParseAddr(fmt.Sprintf("fd5f:1::%x", n)),
		Issued: time.Now().UTC(), Expires: time.Now().Add(time.Hour).UTC(),
	}
}

// wanted is a set of registrations that tests change.
type wanted struct {
	mu   sync.Mutex
	list []Registration
}

func (w *wanted) set(list ...Registration) { w.mu.Lock(); w.list = list; w.mu.Unlock() }
func (w *wanted) get() []Registration      { w.mu.Lock(); defer w.mu.Unlock(); return slices.Clone(w.list) }

// reports stores the last reported error.
type reports struct {
	mu  sync.Mutex
	n   int
	err error
}

func (r *reports) report(err error) { r.mu.Lock(); r.n++; r.err = err; r.mu.Unlock() }
func (r *reports) last() (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.n, r.err
}

// startRegistrar runs a Registrar of node aws1-w1.
func startRegistrar(t *testing.T, consul *consulapi.Client, s signer, w *wanted) (*Registrar, *reports) {
	t.Helper()
	reported := &reports{}
	r := NewRegistrar(RegistrarConfig{Consul: consul, Zone: "aws1", Node: "aws1-w1", Identity: s.node("aws1-w1"), Want: w.get, Report: reported.report, Log: hclog.NewNullLogger()})
	run(t, r.Run)
	return r, reported
}

// startHealth runs a Health that watches services.
func startHealth(t *testing.T, consul *consulapi.Client, s signer, services ...fabric.Ref) *Health {
	t.Helper()
	h := NewHealth(HealthConfig{Consul: consul, Verify: s.verify, Speaker: s.speaker, Log: hclog.NewNullLogger()})
	h.Follow(services)
	run(t, h.Run)
	return h
}

// run runs f until the test ends, and checks that f then returns.
func run(t *testing.T, f func(context.Context) error) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- f(ctx) }()
	t.Cleanup(func() {
		cancel()
		select {
		case err := <-done:
			must.NoError(t, err)
		case <-time.After(5 * time.Second):
			t.Error("it does not end")
		}
	})
}

// eventually waits until ok is true.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	must.Wait(t, wait.InitialSuccess(wait.BoolFunc(ok), wait.Timeout(15*time.Second), wait.Gap(20*time.Millisecond)), must.Sprint(what))
}

// nomadService registers a service as Nomad does, with a check of this status.
func nomadService(t *testing.T, consul *consulapi.Client, allocation, status string) (id string) {
	t.Helper()
	id = "_nomad-task-" + allocation + "-group-proxy-web-http"
	must.NoError(t, consul.Agent().ServiceRegister(&consulapi.AgentServiceRegistration{
		ID: id, Name: "web", Check: &consulapi.AgentServiceCheck{CheckID: "check-" + allocation, TTL: "1h", Status: status},
	}))
	return id
}

func setCheck(t *testing.T, consul *consulapi.Client, allocation, status string) {
	t.Helper()
	must.NoError(t, consul.Agent().UpdateTTL("check-"+allocation, "by the test", status))
}
