// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package api

import (
	"crypto/tls"
	"crypto/x509"
	"io"
	"net"
	"net/url"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"github.com/sif-project/sif/internal/trust/identity/identitytest"
)

// impostor listens with a certificate and returns its address, and what it received from each
// connection inside TLS.
func impostor(t *testing.T, cert *tls.Certificate) (address string, received chan string) {
	t.Helper()
	l, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{*cert}})
	must.NoError(t, err)
	t.Cleanup(func() { l.Close() })
	received = make(chan string, 16)
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			conn.SetDeadline(time.Now().Add(5 * time.Second)) // a fooled client waits for an answer
			data := make([]byte, 4096)
			n, _ := io.ReadAtLeast(conn, data, 1)
			received <- string(data[:n])
			conn.Close()
		}
	}()
	return l.Addr().String(), received
}

// Nobody but the controller gets a token, even with a certificate of the fabric's CA for the very
// address that the client calls.
func TestTokenIsSentOnlyToTheController(t *testing.T) {
	const domain = "spiffe://" + identitytest.TrustDomain
	ca := identitytest.NewCA(t)
	loopback := identitytest.At(net.IPv4(127, 0, 0, 1))
	uris := func(list ...string) func(*x509.Certificate) {
		return func(c *x509.Certificate) {
			c.URIs = nil
			for _, text := range list {
				u, err := url.Parse(text)
				must.NoError(t, err)
				c.URIs = append(c.URIs, u)
			}
		}
	}
	for name, tt := range map[string]struct {
		path, unit  string
		change      []func(*x509.Certificate)
		trustDomain string
		want        string
	}{
		"a node":                {"/node/aws1/aws1-w2", "workload", []func(*x509.Certificate){loopback}, "", "the server is node aws1/aws1-w2 of the trust domain"},
		"a node elsewhere":      {"/node/aws1/aws1-w2", "workload", nil, "", "the server is node aws1/aws1-w2 of the trust domain"},
		"a service":             {"/shop/web", "service", []func(*x509.Certificate){loopback}, "", "the server is service shop/web of"},
		"a web server":          {"", "", []func(*x509.Certificate){loopback, uris()}, "", "without a SPIFFE ID"},
		"two URIs":              {"", "", []func(*x509.Certificate){loopback, uris(domain+"/controller", domain+"/node/aws1/w2")}, "", "with 2 URIs"},
		"no trust domain":       {"", "", []func(*x509.Certificate){loopback, uris("spiffe:///controller")}, "", "a controller of the trust domain \"\""},
		"a query":               {"", "", []func(*x509.Certificate){loopback, uris(domain + "/controller?a")}, "", "not the controller"},
		"an escape":             {"", "", []func(*x509.Certificate){loopback, uris(domain + "/%63ontroller")}, "", "not the controller"},
		"a port":                {"", "", []func(*x509.Certificate){loopback, uris("spiffe://sif.test:1/controller")}, "", "not the controller"},
		"another scheme":        {"", "", []func(*x509.Certificate){loopback, uris("https://sif.test/controller")}, "", "not the controller"},
		"deeper":                {"/controller/x", "controller", []func(*x509.Certificate){loopback}, "", "not the controller"},
		"another fabric":        {"/controller", "controller", []func(*x509.Certificate){loopback}, "other.test", `SIF_TRUST_DOMAIN, which is "other.test"`},
		"an authority":          {"/controller", "", []func(*x509.Certificate){loopback, func(c *x509.Certificate) { c.IsCA, c.BasicConstraintsValid = true, true }}, "", "not the controller"},
		"a node of this fabric": {"/node/aws1/aws1-w2", "workload", []func(*x509.Certificate){loopback}, identitytest.TrustDomain, "the server is node aws1/aws1-w2"},
	} {
		t.Run(name, func(t *testing.T) {
			address, received := impostor(t, ca.Issue(tt.path, tt.unit, tt.change...))
			for _, cfg := range []Config{{Token: "secret"}, {VaultToken: "secret"}} {
				cfg.Address, cfg.TrustDomain, cfg.TLS = address, tt.trustDomain, &tls.Config{RootCAs: ca.Roots()}
				client, err := NewClient(cfg)
				must.NoError(t, err)
				_, err = client.Graph(t.Context())
				must.Eq(t, "", <-received)
				must.ErrorContains(t, err, "ask the controller at "+address+": the server is ")
				must.ErrorContains(t, err, tt.want)
				must.ErrorContains(t, err, "not the controller; no token was sent; correct SIF_HTTP_ADDR")
			}
		})
	}
}

// A session that is resumed is judged like a new one.
func TestResumedSessionIsJudged(t *testing.T) {
	ca := identitytest.NewCA(t)
	server := ca.Controller(nil)
	defer server.Close()
	conf := &tls.Config{RootCAs: ca.Roots(), ClientSessionCache: tls.NewLRUClientSessionCache(1)}
	first, err := NewClient(Config{Address: server.URL, TLS: conf})
	must.NoError(t, err)
	_, err = first.Graph(t.Context())
	must.ErrorContains(t, err, "404")
	second, err := NewClient(Config{Address: server.URL, TLS: conf, TrustDomain: "other.test"})
	must.NoError(t, err)
	_, err = second.Graph(t.Context())
	must.ErrorContains(t, err, "not the controller")
}
