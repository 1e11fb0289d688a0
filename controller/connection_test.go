// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package controller

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"sync/atomic"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"github.com/sif-project/sif/internal/trust/identity"
	"github.com/sif-project/sif/internal/wellknown"
)

// issue has Vault issue a certificate of a node.
func (w *world) issue(t *testing.T, name string, life time.Duration) *tls.Certificate {
	t.Helper()
	for _, n := range testNodes {
		if n.Name != name {
			continue
		}
		secret, err := w.vaultRoot.Logical().Write(wellknown.PKIMount+"/issue/"+wellknown.NodeRole(n.Zone, n.Name), map[string]any{
			"uri_sans": "spiffe://" + trustDomain + n.SPIFFE(), "ttl": life.String(),
		})
		must.NoError(t, err)
		cert, err := tls.X509KeyPair([]byte(secret.Data["certificate"].(string)), []byte(secret.Data["private_key"].(string)))
		must.NoError(t, err)
		return &cert
	}
	t.Fatalf("no node %s", name)
	return nil
}

// rawClient is a client that keeps its connections as long as the controller lets it, and does not
// try again. It calls from an address of the loopback device.
func (w *world) rawClient(t *testing.T, from string, cert *tls.Certificate) *http.Client {
	t.Helper()
	roots := x509.NewCertPool()
	must.True(t, roots.AppendCertsFromPEM([]byte(w.vault.CA)))
	conf := &tls.Config{RootCAs: roots}
	if cert != nil {
		conf.Certificates = []tls.Certificate{*cert}
	}
	transport := &http.Transport{TLSClientConfig: conf, ForceAttemptHTTP2: true, DialContext: dialer(from).DialContext}
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport}
}

func dialer(from string) *net.Dialer {
	return &net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}}
}

// get returns the status and body of an answer, and whether it came on a connection that was open.
func get(t *testing.T, client *http.Client, url string) (status int, body string, reused bool) {
	t.Helper()
	ctx := httptrace.WithClientTrace(t.Context(), &httptrace.ClientTrace{GotConn: func(i httptrace.GotConnInfo) { reused = i.Reused }})
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	must.NoError(t, err)
	resp, err := client.Do(r)
	must.NoError(t, err)
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	must.NoError(t, err)
	return resp.StatusCode, string(data), reused
}

// A node's certificate is checked for each request, not only when the connection begins.
func TestCertificateIsCheckedForEachRequest(t *testing.T) {
	w := newWorld(t)
	r := w.fresh(t, &fakeScheduler{})
	tasks := fmt.Sprintf("https://%s/v1/node/tasks?wait=1ms", r.address)

	client := w.rawClient(t, "127.0.0.1", w.issue(t, "w1", 3*time.Second))
	status, body, _ := get(t, client, tasks)
	must.Eq(t, http.StatusOK, status, must.Sprint(body))
	time.Sleep(3 * time.Second)
	status, body, reused := get(t, client, tasks)
	must.Eq(t, http.StatusUnauthorized, status)
	must.StrContains(t, body, "the certificate of workload node aws1/w1 ended at ")
	must.True(t, reused)

	var removed atomic.Bool
	r.cfg.Identity.(*identity.Source).SetRevoked(func(s identity.Subject, _ *x509.Certificate) error {
		if removed.Load() && s.Node.Name == "w1" {
			return errors.New("the node was removed")
		}
		return nil
	})
	client = w.rawClient(t, "127.0.0.1", w.issue(t, "w1", time.Hour))
	status, body, _ = get(t, client, tasks)
	must.Eq(t, http.StatusOK, status, must.Sprint(body))
	removed.Store(true)
	status, body, reused = get(t, client, tasks)
	must.Eq(t, http.StatusUnauthorized, status)
	must.StrContains(t, body, "the certificate of workload node aws1/w1 is revoked: the node was removed")
	must.True(t, reused)
	// The connection is closed, and a new one is refused in the handshake.
	_, err := client.Get(tasks)
	must.Error(t, err)
	other := w.rawClient(t, "127.0.0.1", w.issue(t, "w2", time.Hour))
	status, body, _ = get(t, other, tasks)
	must.Eq(t, http.StatusOK, status, must.Sprint(body))
}
