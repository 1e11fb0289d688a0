// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package controller

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	vaultapi "github.com/hashicorp/vault/api"
	"github.com/shoenig/test/must"

	"github.com/sif-project/sif/api"
	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/internal/kvkey"
	"github.com/sif-project/sif/internal/setup"
	"github.com/sif-project/sif/internal/trust/identity"
	"github.com/sif-project/sif/internal/trust/revocation"
	"github.com/sif-project/sif/internal/wellknown"
)

func TestRevoke(t *testing.T) {
	w := newWorld(t)
	w.backdate(t)
	t.Run("service and endpoint", func(t *testing.T) { testRevokeService(t, w) })
	t.Run("certificate", func(t *testing.T) { testRevokeCertificate(t, w) })
	t.Run("without Consul", func(t *testing.T) { testRevokeWithoutConsul(t, w) })
	t.Run("without Vault", func(t *testing.T) { testRevokeWithoutVault(t, w) })
}

var svc = fabric.Ref{Domain: "app", Name: "svc"}

// revocable is a controller with a graph, a node and two admitted endpoints of service app/svc.
func (w *world) revocable(t *testing.T) (*running, *testNode) {
	t.Helper()
	scheduler := &fakeScheduler{placed: map[string]Placement{allocation(1): placed("app", "g"), allocation(2): placed("app", "g")}}
	c := w.fresh(t, scheduler)
	_, err := c.operator.Apply(t.Context(), api.GraphRequest{Domains: domains(testDomain("app"))})
	must.NoError(t, err)
	w1 := w.reborn(t, c, "w1")
	w1.register(t, "10.0.0.1")
	for n := range 2 {
		_, err = w1.Admit(t.Context(), request4(n+1, byte(n+10)))
		must.NoError(t, err)
	}
	return c, w1
}

// stored is the list in Consul.
func (w *world) stored(t testing.TB, c *running) fabric.Revocations {
	t.Helper()
	value := w.value(t, kvkey.Revocations)
	if value == nil {
		return fabric.Revocations{}
	}
	var signed fabric.Signed
	must.NoError(t, json.Unmarshal(value, &signed))
	list, err := c.removal.list.Verify(signed)
	must.NoError(t, err)
	return list
}

// testRevokeService: what is revoked is not admitted and gets no certificate, nodes that wait for
// the list get it at once, and who may take rights away may not give them back.
func testRevokeService(t *testing.T, w *world) {
	c, w1 := w.revocable(t)
	ctx := t.Context()
	owner, other := w.reader(t, c, setup.DomainPolicy(setup.ApplyPolicy, "app")), w.reader(t, c, setup.ReadPolicy, setup.DomainPolicy(setup.ApplyPolicy, "shop"))

	for want, call := range map[string]func() error{
		api.CodeForbidden: func() error {
			_, err := other.Revoke(ctx, api.RevokeRequest{Service: svc})
			return err
		},
		api.CodeNotFound: func() error {
			_, err := c.operator.Revoke(ctx, api.RevokeRequest{Service: fabric.Ref{Domain: "app", Name: "swc"}})
			return err
		},
		api.CodeInvalid: func() error {
			_, err := c.operator.Revoke(ctx, api.RevokeRequest{Service: svc, Endpoint: allocation(1)})
			return err
		},
	} {
		code(t, want, call())
	}
	_, err := c.operator.Revoke(ctx, api.RevokeRequest{Serial: "shop/web"})
	must.ErrorContains(t, err, "not the serial number of a certificate")
	_, err = c.operator.Revoke(ctx, api.RevokeRequest{Endpoint: "0000"})
	must.ErrorContains(t, err, "is the beginning of several endpoints")
	_, err = c.operator.Revoke(ctx, api.RevokeRequest{Endpoint: "ffff"})
	must.ErrorContains(t, err, "no endpoint with a live admission")
	_, err = owner.Revoke(ctx, api.RevokeRequest{Serial: "0a:1b"})
	code(t, api.CodeForbidden, err)
	must.Eq(t, 0, w.stored(t, c).Sequence)

	// A node that waits has it with the revocation.
	got := make(chan api.ListReply, 1)
	go func() {
		reply, err := w1.AwaitRevocations(context.WithoutCancel(ctx), fabric.ListID{}, time.Minute)
		if err != nil {
			t.Error(err)
		}
		got <- reply
	}()
	endpoint, err := owner.Revoke(ctx, api.RevokeRequest{Endpoint: allocation(1)[:8], Reason: "odd traffic"})
	must.NoError(t, err)
	must.Eq(t, allocation(1), endpoint.Revocation.Endpoint)
	must.Eq(t, []string{allocation(1)}, endpoint.Endpoints)
	must.Eq(t, "", endpoint.Unstored)
	reply := <-got
	must.Eq(t, 1, reply.Has.Sequence)
	must.NotNil(t, reply.List)
	_, err = w1.Admit(ctx, request4(1, 10))
	must.StrContains(t, code(t, api.CodeRevoked, err).Message, "(odd traffic)")
	_, err = w1.Admit(ctx, request4(2, 11))
	must.NoError(t, err)
	must.Eq(t, 1, c.table.count())
	again, err := owner.Revoke(ctx, api.RevokeRequest{Endpoint: allocation(1)})
	must.NoError(t, err)
	must.True(t, again.Unchanged)

	service, err := owner.Revoke(ctx, api.RevokeRequest{Service: svc})
	must.NoError(t, err)
	must.Eq(t, []string{allocation(2)}, service.Endpoints)
	must.Eq(t, 2, service.Sequence)
	must.Eq(t, 0, c.table.count())
	must.Len(t, 2, w.stored(t, c).Revoked)
	_, err = w1.Admit(ctx, request4(2, 11))
	code(t, api.CodeRevoked, err)
	_, err = w1.Certificate(ctx, api.CertificateRequest{Service: svc, CSR: []byte("x")})
	code(t, api.CodeRevoked, err)

	// Status and list count it, and name who is behind.
	w1.report(t, api.NodeStatus{Authorities: &api.AuthorityStatus{Keys: []int{1}}, Revocations: 1, CertificateExpires: time.Now().Add(time.Hour), Endpoints: []api.EndpointStatus{{Endpoint: allocation(2), Service: svc}}})
	w.alertsKnowTheirMetrics(t, c)
	status, err := c.operator.Status(ctx)
	must.NoError(t, err)
	must.Eq(t, 1, status.Revocations.Services)
	must.Eq(t, 1, status.Revocations.Endpoints)
	must.Len(t, 1, status.Revocations.Behind)
	must.Eq(t, 1, status.Revocations.Behind[0].Sequence)
	must.StrContains(t, status.Nodes[0].Endpoints[0].Revoked, "service app/svc was revoked")
	answer, err := c.operator.Explain(ctx, api.Question{From: "app/proxy", To: "app/svc", Protocol: fabric.TCP, Port: 8080})
	must.NoError(t, err)
	must.False(t, answer.Allowed)
	must.StrContains(t, answer.Flows[0].Declared.Reasons[0].Why, "service app/svc was revoked")

	_, err = owner.Reinstate(ctx, api.ReinstateRequest{Service: svc})
	code(t, api.CodeForbidden, err)
	_, err = c.operator.Reinstate(ctx, api.ReinstateRequest{Service: fabric.Ref{Domain: "app", Name: "proxy"}})
	code(t, api.CodeNotFound, err)
	back, err := c.operator.Reinstate(ctx, api.ReinstateRequest{Service: svc})
	must.NoError(t, err)
	must.Eq(t, 3, back.Sequence)
	admitted, err := w1.Admit(ctx, request4(2, 11))
	must.NoError(t, err)
	var adm fabric.Admission
	must.NoError(t, w1.source.Keys().Verify(admitted.Admission, fabric.KindAdmission, &adm))
	must.True(t, adm.Issued.After(back.Revocation.Reinstated))
	must.Eq(t, "", c.removal.list.List().EndsAdmission(adm))
	_, err = w1.Admit(ctx, request4(1, 10))
	code(t, api.CodeRevoked, err)

	var logged []string
	for _, e := range auditLines(t, filepath.Join(c.dir, auditFile)) {
		if (e.Action == "revoke" || e.Action == "reinstate") && e.Refused == "" && !e.Begun {
			logged = append(logged, strings.TrimSpace(e.Action+" "+e.Target+" "+e.Message))
		}
	}
	must.Eq(t, []string{
		"revoke endpoint " + allocation(1) + " odd traffic", "revoke endpoint " + allocation(1),
		"revoke service app/svc", "reinstate service app/svc",
	}, logged)
}

// alertsKnowTheirMetrics: each metric that an alert of the packages names is there.
func (w *world) alertsKnowTheirMetrics(t *testing.T, c *running) {
	t.Helper()
	rules, err := os.ReadFile("../packaging/prometheus/sif.rules.yml")
	must.NoError(t, err)
	status, metrics, _ := get(t, w.rawClient(t, "127.0.0.1", nil), "https://"+c.address+"/metrics")
	must.Eq(t, http.StatusOK, status)
	names := regexp.MustCompile(`\bsif_[a-z_]+`).FindAllString(string(rules), -1)
	must.Greater(t, 5, len(names))
	for _, name := range names {
		must.StrContains(t, metrics, "# TYPE "+name+" gauge")
	}
	must.StrContains(t, metrics, `sif_revocations{kind="service"} 1`)
	must.StrContains(t, metrics, `sif_node_revocations_sequence{daemon="agent",node="aws1/w1"} 1`)
}

// testRevokeCertificate: a certificate is refused on connections that are open, which are closed,
// its node goes on with another, and Vault lists it if it gets the certificate.
func testRevokeCertificate(t *testing.T, w *world) {
	c, w1 := w.revocable(t)
	ctx := t.Context()
	leaked := w1.source.Certificate()
	client := w.rawClient(t, "127.0.0.1", leaked)
	tasks := fmt.Sprintf("https://%s/v1/node/tasks?wait=1ms", c.address)
	status, body, _ := get(t, client, tasks)
	must.Eq(t, http.StatusOK, status, must.Sprint(body))

	text := strings.ToUpper(strings.ReplaceAll(identity.Serial(leaked.Leaf), ":", "-"))
	revoked, err := c.operator.Revoke(ctx, api.RevokeRequest{Serial: text, Reason: "leaked"})
	must.NoError(t, err)
	must.Eq(t, identity.Serial(leaked.Leaf), revoked.Revocation.Serial)
	must.StrContains(t, revoked.Vault, "give the certificate itself")
	// It is closed without a call.
	eventually(t, func() error {
		c.sessions.mu.Lock()
		defer c.sessions.mu.Unlock()
		for conn := range c.sessions.open {
			if certs := conn.ConnectionState().PeerCertificates; len(certs) > 0 && certs[0].Equal(leaked.Leaf) {
				return fmt.Errorf("a connection of it is open")
			}
		}
		return nil
	})
	status, body, _ = get(t, client, tasks)
	must.Eq(t, http.StatusForbidden, status)
	must.StrContains(t, body, "was revoked at")
	_, err = w1.Admit(ctx, request4(1, 10))
	code(t, api.CodeRevoked, err)

	_, err = c.operator.Revoke(ctx, api.RevokeRequest{Serial: "0a", Certificate: leaked.Leaf.Raw})
	code(t, api.CodeInvalid, err)
	again, err := c.operator.Revoke(ctx, api.RevokeRequest{Certificate: leaked.Leaf.Raw})
	must.NoError(t, err)
	must.True(t, again.Unchanged)
	must.StrContains(t, again.Vault, "has it")
	crl, err := w.vaultRoot.Logical().List(wellknown.PKIMount + "/certs/revoked")
	must.NoError(t, err)
	must.StrContains(t, fmt.Sprint(crl.Data["keys"]), identity.Serial(leaked.Leaf))

	// Its node notices by the list, and gets another.
	w1.source.SetRevoked(func(s identity.Subject, leaf *x509.Certificate) error {
		return revocation.Certificate(c.removal.list.List(), s, leaf)
	})
	running, stop := context.WithCancel(ctx)
	ended := make(chan error, 1)
	go func() { ended <- w1.source.Run(running) }()
	w1.source.Review()
	eventually(t, func() error {
		if w1.source.Certificate().Leaf.Equal(leaked.Leaf) {
			return fmt.Errorf("it still has it")
		}
		return nil
	})
	stop()
	must.NoError(t, <-ended)
	_, err = w.node(t, c, "w1").Admit(ctx, request4(1, 10))
	must.NoError(t, err)
}

// testRevokeWithoutConsul: without Consul nobody leads, and each controller revokes by itself, with
// the token of Vault. Nodes get it from it, and Consul when it is back.
func testRevokeWithoutConsul(t *testing.T, w *world) {
	c, w1 := w.revocable(t)
	ctx := t.Context()
	operator := w.clientOf(t, at(c, vaultToken(w.vaultToken(t, &vaultapi.TokenCreateRequest{Policies: []string{setup.OperatorPolicy}}))))
	must.NoError(t, w.consulServer.Pause())
	resumed := false
	defer func() {
		if !resumed {
			must.NoError(t, w.consulServer.Resume())
		}
	}()
	// A leader may not have noticed, and then nobody leads.
	revoked, err := operator.Revoke(ctx, api.RevokeRequest{Endpoint: allocation(1)})
	must.NoError(t, err)
	must.StrContains(t, revoked.Unstored, "Consul")
	term := c.term.Swap(nil)
	got := make(chan api.ListReply, 1)
	go func() {
		reply, err := w1.AwaitRevocations(context.WithoutCancel(ctx), c.removal.list.ID(), time.Minute)
		if err != nil {
			t.Error(err)
		}
		got <- reply
	}()
	_, err = operator.Revoke(ctx, api.RevokeRequest{Service: svc})
	must.NoError(t, err)
	reply := <-got
	must.Eq(t, 2, reply.Has.Sequence)
	removal, err := operator.RemoveNode(ctx, fabric.NodeID{Zone: "aws1", Name: "w2"}, "stolen")
	must.NoError(t, err)
	must.Eq(t, 3, removal.Sequence)
	list, err := operator.RevocationList(ctx)
	must.NoError(t, err)
	must.Len(t, 1, list.Tombstones)
	_, err = operator.Reinstate(ctx, api.ReinstateRequest{Service: svc})
	code(t, api.CodeNotLeader, err)

	must.NoError(t, w.consulServer.Resume())
	resumed = true
	eventually(t, func() error {
		if s := w.stored(t, c).Sequence; s != 3 {
			return fmt.Errorf("Consul has list %d", s)
		}
		return nil
	})
	c.term.Store(term)
	eventually(t, func() error {
		if n := c.table.count(); n != 0 {
			return fmt.Errorf("%d admissions are live", n)
		}
		return nil
	})
}

// testRevokeWithoutVault: nothing can be signed, so nothing happens, and the error says so.
func testRevokeWithoutVault(t *testing.T, w *world) {
	c, w1 := w.revocable(t)
	must.NoError(t, w.vaultServer.Pause())
	defer func() { must.NoError(t, w.vaultServer.Resume()) }()
	eventually(t, func() error { // a process stops some time after it was told to
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := w.vaultRoot.Sys().HealthWithContext(ctx); err == nil {
			return fmt.Errorf("Vault still answers")
		}
		return nil
	})
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	_, err := c.operator.Revoke(ctx, api.RevokeRequest{Service: svc})
	refused := code(t, api.CodeUnavailable, err)
	must.StrContains(t, refused.Message, "nothing was revoked")
	must.StrContains(t, refused.Message, "Revoking while Vault is away")
	must.Eq(t, 0, c.removal.list.List().Sequence)
	must.Eq(t, 2, c.table.count())
	reply, err := w1.AwaitRevocations(ctx, fabric.ListID{}, 0)
	must.NoError(t, err)
	must.Nil(t, reply.List)
}
