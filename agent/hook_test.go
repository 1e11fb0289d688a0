// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package agent

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"net/http"
	"net/netip"
	"path/filepath"
	"testing"
	"time"

	"github.com/containernetworking/plugins/pkg/ns"
	"github.com/hashicorp/go-hclog"
	"github.com/shoenig/test/must"

	"github.com/sif-project/sif/agent/catalog"
	"github.com/sif-project/sif/api"
	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/internal/coalesce"
	"github.com/sif-project/sif/internal/config"
	"github.com/sif-project/sif/internal/metric"
	"github.com/sif-project/sif/internal/node/cnicall"
	"github.com/sif-project/sif/internal/node/daemon"
	"github.com/sif-project/sif/internal/node/firewall"
	"github.com/sif-project/sif/internal/testhost"
	"github.com/sif-project/sif/internal/trust/identity"
	"github.com/sif-project/sif/internal/trust/identity/identitytest"
	"github.com/sif-project/sif/internal/trust/revision"
	"github.com/sif-project/sif/internal/trust/revocation"
)

// An ADD that fails at any hook leaves nothing, here or elsewhere, and so does the DEL after it.
func TestFailedAttachLeavesNothing(t *testing.T) {
	testhost.RequireRoot(t)
	for what, fail := range map[string]struct {
		at  func(a *Agent, ep *endpoint)
		err string

		admitted bool
	}{
		"interface": {func(_ *Agent, ep *endpoint) { ep.HostIf = "sif0123456789abc" }, "interface", false},
		"addresses": {func(a *Agent, _ *endpoint) { a.addresses.pool4 = netip.MustParsePrefix("100.64.0.0/31") }, errPoolExhausted.Error(), false},
		"admission": {func(_ *Agent, ep *endpoint) { ep.ID = "unknown" }, "ask the controller to admit the workload", false},
		// The controller has admitted the workload by then.
		"certificate":  {func(a *Agent, ep *endpoint) { ep.ID = "uncertified" }, "get a certificate", true},
		"connectivity": {func(*Agent, *endpoint) {}, revision.ErrNoRevision.Error(), true},
	} {
		t.Run(what, func(t *testing.T) {
			node, workload := newNamespace(t), newNamespace(t)
			a, engine, released := hookedAgent(t)
			must.NoError(t, node.Do(func(ns.NetNS) error {
				_, err := a.firewall.Apply()
				must.NoError(t, err)
				ep := endpoint{ID: "alloc", Attachment: at("c1"), HostIf: "sif0123456789a",
					Ports: []cnicall.PortMapping{{Protocol: "tcp", HostPort: 80, ContainerPort: 80}}}
				fail.at(a, &ep)
				engine.holds[ep.ID] = fail.admitted
				adding := &attachment{namespace: workload, endpoint: ep, parts: stopwatch{last: time.Now()}}
				must.ErrorContains(t, a.attachAll(t.Context(), adding), fail.err)

				index, err := linkIndex("sif0123456789a")
				must.NoError(t, err)
				must.Zero(t, index)
				must.NoError(t, workload.Do(func(ns.NetNS) error {
					index, err := linkIndex("eth0")
					must.Zero(t, index)
					return err
				}))
				must.MapEmpty(t, a.addresses.taken)
				must.Eq(t, fail.admitted, len(a.addresses.resting) == 1)
				must.SliceEmpty(t, a.endpoints.all())
				kept, err := openEndpoints(filepath.Join(a.node.Config.DataDir, "endpoints.json"))
				must.NoError(t, err)
				must.SliceEmpty(t, kept.all())
				must.MapEmpty(t, a.engines.pending)
				must.Eq(t, fail.admitted, len(released()) == 1)
				if fail.admitted {
					must.SliceEmpty(t, engine.has())
				}
				for range 2 {
					must.NoError(t, a.remove(t.Context(), ep.Attachment))
				}
				return nil
			}))
		})
	}
}

// hookedAgent returns an agent with a controller that admits every allocation but "unknown", an
// engine, and no revision. released returns the endpoints whose admissions ended.
func hookedAgent(t testing.TB) (a *Agent, _ *fakeEngine, released func() []string) {
	return hookedAgentOf(t, identitytest.NewCA(t))
}

func hookedAgentOf(t testing.TB, ca *identitytest.CA) (a *Agent, _ *fakeEngine, released func() []string) {
	service := refOf("shop/web")
	gone := make(chan string, 1<<16)
	mux := http.NewServeMux()
	mux.HandleFunc("POST /v1/node/admission", func(w http.ResponseWriter, r *http.Request) {
		var req api.AdmissionRequest
		_ = json.NewDecoder(r.Body).Decode(&req)
		if req.Allocation == "unknown" {
			http.Error(w, "no such allocation", http.StatusForbidden)
			return
		}
		if req.Allocation == "refused" {
			w.WriteHeader(http.StatusForbidden)
			_ = json.NewEncoder(w).Encode(api.Errorf(http.StatusForbidden, api.CodeNoSelector, "no selector matched"))
			return
		}
		adm := fabric.Admission{Endpoint: req.Allocation, Zone: "z1", Node: "w1", Service: service, IPv4: req.IPv4, IPv6: req.IPv6,
			Issued: time.Now(), Expires: time.Now().Add(time.Hour)}
		if req.Allocation == "uncertified" {
			adm.Service = refOf("shop/other")
		}
		_ = json.NewEncoder(w).Encode(api.AdmissionReply{Admission: ca.Sign(fabric.KindAdmission, adm)})
	})
	mux.HandleFunc("POST /v1/node/certificate", func(w http.ResponseWriter, r *http.Request) {
		var req api.CertificateRequest
		_ = json.NewDecoder(r.Body).Decode(&req)
		if req.Service != service {
			http.Error(w, "Vault is away", http.StatusServiceUnavailable)
			return
		}
		_ = json.NewEncoder(w).Encode(api.CertificateReply{Certificate: ca.Certify(service.SPIFFE(), req.CSR, time.Hour)})
	})
	mux.HandleFunc("DELETE /v1/node/admission/{endpoint}", func(_ http.ResponseWriter, r *http.Request) { gone <- r.PathValue("endpoint") })
	mux.HandleFunc("GET /v1/node/admissions", func(w http.ResponseWriter, _ *http.Request) {
		_ = json.NewEncoder(w).Encode(api.NodeAdmissions{
			Live:    []api.LiveAdmission{{Endpoint: "kept", Issued: time.Unix(1, 0)}, {Endpoint: "gone", IPv4: netip.MustParseAddr("100.64.0.2"), Issued: time.Unix(1, 0)}},
			Resting: []api.RestingAddress{{Address: netip.MustParseAddr("100.64.0.3"), Until: time.Now().Add(rest)}},
		})
	})
	mux.HandleFunc("POST /v1/node/release", func(_ http.ResponseWriter, r *http.Request) {
		var req api.ReleaseRequest
		_ = json.NewDecoder(r.Body).Decode(&req)
		for endpoint := range req.Issued {
			gone <- endpoint
		}
	})
	server := ca.Controller(mux)
	t.Cleanup(server.Close)
	roots := x509.NewCertPool()
	roots.AddCert(server.Certificate())
	controller, err := api.NewClient(api.Config{Address: server.URL, TLS: &tls.Config{RootCAs: roots}})
	must.NoError(t, err)

	dir := t.TempDir()
	log := hclog.NewNullLogger()
	c := &config.Config{DataDir: dir, Link: &config.Link{MTU: 1420}}
	a = &Agent{
		node: &daemon.Node{Config: c, Log: log, Identity: ca.Node("z1", "w1", fabric.KindWorkload), Controller: controller, Revision: &revision.Follower{}, Removals: &revocation.Watcher{}},
		log:  log, now: time.Now, exits: newExits(), data: newMemory(), firewall: firewall.New(firewall.Config{Links: func() []uint16 { return nil }, DNSPackets: firewall.DNSPacketsPerSecond, Published: 1}),
		reprogram: coalesce.New(func() error { return nil }), reconcile: coalesce.New(func() error { return nil }),
		registrar: catalog.NewRegistrar(catalog.RegistrarConfig{}), health: catalog.NewHealth(catalog.HealthConfig{}), calls: metric.AgentCNI.NewHistograms(),
	}
	a.endpoints, err = openEndpoints(filepath.Join(dir, "endpoints.json"))
	must.NoError(t, err)
	a.standings, err = openStandings(filepath.Join(dir, "attached.json"))
	must.NoError(t, err)
	a.services, err = identity.OpenServiceKeys(filepath.Join(dir, "services"), identitytest.TrustDomain, never)
	must.NoError(t, err)
	a.addresses, err = openAddresses(filepath.Join(dir, "addresses.json"), netip.MustParsePrefix("100.64.0.0/24"), netip.MustParsePrefix("fd5f::/64"))
	must.NoError(t, err)
	a.engines = newEngines(a, log)
	own, err := newOwnPorts(&config.Underlay{})
	must.NoError(t, err)
	a.ports = newPorts("lo", own, a.firewall.SetPorts)
	a.ports.complete = true
	fake := &fakeEngine{holds: map[string]bool{}}
	id := fabric.NodeID{Zone: "z1", Name: "p1"}
	a.engines.conns[id] = &engine{id: id, conn: fake}
	return a, fake, func() (list []string) {
		for len(gone) > 0 {
			list = append(list, <-gone)
		}
		return list
	}
}
