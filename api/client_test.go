// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package api

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/internal/trust/identity/identitytest"
)

func TestDefaultConfig(t *testing.T) {
	clear := func() {
		for _, name := range []string{EnvAddress, EnvToken, EnvVaultToken, EnvCACert, EnvClientCert, EnvClientKey, EnvTrustDomain, envConsul, envVault} {
			t.Setenv(name, "")
		}
	}
	clear()
	must.Eq(t, Config{Address: DefaultAddress}, DefaultConfig())
	t.Setenv(EnvAddress, "https://c:1")
	t.Setenv(EnvToken, "own")
	t.Setenv(EnvTrustDomain, "sif.test")
	must.Eq(t, Config{Address: "https://c:1", Token: "own", TrustDomain: "sif.test"}, DefaultConfig())

	// Which of several tokens is used.
	for _, tt := range []struct {
		set    []string
		consul string
		vault  string
	}{
		{[]string{envVault}, "", envVault},
		{[]string{envVault, envConsul}, envConsul, ""},
		{[]string{envVault, envConsul, EnvVaultToken}, "", EnvVaultToken},
		{[]string{envVault, envConsul, EnvToken}, EnvToken, ""},
		{[]string{envVault, EnvToken}, EnvToken, ""},
		{[]string{EnvToken, EnvVaultToken}, EnvToken, EnvVaultToken}, // NewClient refuses
	} {
		clear()
		for _, name := range tt.set {
			t.Setenv(name, name)
		}
		c := DefaultConfig()
		must.Eq(t, tt.consul, c.Token, must.Sprint(tt.set))
		must.Eq(t, tt.vault, c.VaultToken, must.Sprint(tt.set))
	}
}

func TestNewClientRefuses(t *testing.T) {
	empty := filepath.Join(t.TempDir(), "empty.pem")
	must.NoError(t, os.WriteFile(empty, nil, 0o600))
	for text, cfg := range map[string]Config{
		"must be of the form https://host:port": {Address: "http://c:1"},
		"read the CA of the controller":         {CACert: empty + ".no"},
		"contains no PEM certificate":           {CACert: empty},
		"read the client certificate":           {ClientCert: empty, ClientKey: empty},
		"set SIF_TOKEN or SIF_VAULT_TOKEN":      {Token: "a", VaultToken: "b"},
	} {
		_, err := NewClient(cfg)
		must.ErrorContains(t, err, text)
	}
}

// A token goes only to the configured controller, not to a host that it redirects to.
func TestTokensStayWithTheController(t *testing.T) {
	for _, tt := range []struct{ header, other, token, vaultToken string }{
		{TokenHeader, VaultTokenHeader, "secret", ""},
		{VaultTokenHeader, TokenHeader, "", "secret"},
	} {
		seen := 0
		server := identitytest.NewCA(t).Controller(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			seen++
			must.Eq(t, "secret", r.Header.Get(tt.header))
			must.MapNotContainsKey(t, r.Header, tt.other)
			http.Redirect(w, r, "/elsewhere", http.StatusTemporaryRedirect)
		}))
		defer server.Close()
		roots := x509.NewCertPool()
		roots.AddCert(server.Certificate())
		client, err := NewClient(Config{Address: server.URL, Token: tt.token, VaultToken: tt.vaultToken, TLS: &tls.Config{RootCAs: roots}})
		must.NoError(t, err)
		_, err = client.Graph(t.Context())
		must.ErrorContains(t, err, "answered 307 Temporary Redirect")
		must.Eq(t, 1, seen)
	}
}

func TestErrors(t *testing.T) {
	problem := fabric.Problem{Summary: "wrong", Remedy: "right it", Pos: fabric.Position{File: "a.sif.hcl", Line: 1, Column: 2}}
	answer := func(w http.ResponseWriter, r *http.Request) {
		must.Eq(t, "secret", r.Header.Get(TokenHeader))
		w.WriteHeader(http.StatusUnprocessableEntity)
		_, _ = io.WriteString(w, `{"code":"graph-has-problems","message":"bad","details":{"problems":[{"summary":"wrong","remedy":"right it","pos":{"file":"a.sif.hcl","line":1,"column":2}}]}}`)
	}
	server := identitytest.NewCA(t).Controller(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { answer(w, r) }))
	defer server.Close()
	ca := filepath.Join(t.TempDir(), "ca.pem")
	must.NoError(t, os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw}), 0o600))
	client, err := NewClient(Config{Address: server.URL, Token: "secret", CACert: ca})
	must.NoError(t, err)
	_, err = client.Apply(t.Context(), GraphRequest{})
	must.True(t, IsCode(err, CodeProblems))
	must.Eq(t, &Error{Code: CodeProblems, Message: "bad", Status: 422, Details: Details{Problems: []fabric.Problem{problem}}}, err.(*Error))
	must.Eq(t, "bad\n  a.sif.hcl:1:2: wrong; right it", err.Error())

	answer = func(w http.ResponseWriter, r *http.Request) { http.Error(w, "<html>\nproxy", http.StatusBadGateway) }
	_, err = client.Graph(t.Context())
	must.StrContains(t, err.Error(), "answered 502 Bad Gateway: <html>")
	must.False(t, IsCode(err, CodeProblems))

	stranger, err := NewClient(Config{Address: server.URL, TLS: &tls.Config{}})
	must.NoError(t, err)
	_, err = stranger.Graph(t.Context())
	must.StrContains(t, err.Error(), "set SIF_CACERT")
	server.Close()
	_, err = client.Graph(t.Context())
	must.StrContains(t, err.Error(), "ask the controller at 127.0.0.1:")
}

// A call beyond a limit is made again when the controller says so, if there is time.
func TestRetryAfter(t *testing.T) {
	calls := 0
	server := identitytest.NewCA(t).Controller(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		must.NoError(t, err)
		must.StrContains(t, string(body), "shop")
		if calls++; calls == 1 {
			w.Header().Set("Retry-After", "1")
			w.WriteHeader(http.StatusTooManyRequests)
			_, _ = io.WriteString(w, `{"code":"too-many-calls","message":"too many"}`)
			return
		}
		_, _ = io.WriteString(w, `{"changed":true}`)
	}))
	defer server.Close()
	roots := x509.NewCertPool()
	roots.AddCert(server.Certificate())
	client, err := NewClient(Config{Address: server.URL, TLS: &tls.Config{RootCAs: roots}})
	must.NoError(t, err)
	defer client.Close()
	reply, err := client.Apply(t.Context(), GraphRequest{RemoveDomains: []string{"shop"}})
	must.NoError(t, err)
	must.True(t, reply.Changed)
	must.Eq(t, 2, calls)

	calls = 0
	ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
	defer cancel()
	_, err = client.Apply(ctx, GraphRequest{RemoveDomains: []string{"shop"}})
	must.True(t, IsCode(err, CodeTooMany))
	must.Eq(t, 1, calls)
}
