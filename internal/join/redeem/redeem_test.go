// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package redeem_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"testing"
	"time"

	vaultapi "github.com/hashicorp/vault/api"
	"github.com/shoenig/test/must"

	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/internal/join"
	"github.com/sif-project/sif/internal/join/redeem"
	"github.com/sif-project/sif/internal/testhost"
)

// front is a real Vault behind a proxy with a certificate, whose clock a test can set.
type front struct {
	*httptest.Server
	ahead  time.Duration // how far the clock of Vault is
	digest string
}

func newFront(t *testing.T, vault string) *front {
	f := &front{}
	target, err := url.Parse(vault)
	must.NoError(t, err)
	proxy := &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) { r.SetURL(target) },
		ModifyResponse: func(r *http.Response) error {
			r.Header.Set("Date", time.Now().Add(f.ahead).UTC().Format(http.TimeFormat))
			return nil
		},
	}
	f.Server = httptest.NewTLSServer(proxy)
	t.Cleanup(f.Close)
	sum := sha256.Sum256(f.Certificate().Raw)
	f.digest = hex.EncodeToString(sum[:])
	return f
}

func grant() join.Grant {
	return join.Grant{
		Settings: join.Settings{
			Fabric: "test", TrustDomain: "sif.test", CertTTL: 8 * time.Hour,
			Vault: join.VaultSettings{Address: "http://127.0.0.1:1", AppRoleMount: "approle", PKIMount: "sif-pki", TransitMount: "sif-transit", TransitKey: "sif"},
		},
		Node: fabric.NodeID{Zone: "aws1", Name: "w1"}, Kinds: []join.Kind{join.Workload}, Controllers: []string{"10.0.0.1:8440"},
		RoleID: "role", SecretID: "secret",
	}
}

// wrap has Vault wrap what a token gives.
func wrap(t *testing.T, root *vaultapi.Client, g join.Grant, ttl string) string {
	t.Helper()
	var data map[string]any
	text, err := json.Marshal(g)
	must.NoError(t, err)
	must.NoError(t, json.Unmarshal(text, &data))
	client, err := root.Clone()
	must.NoError(t, err)
	client.SetToken(root.Token())
	client.SetWrappingLookupFunc(func(string, string) string { return ttl })
	secret, err := client.Logical().Write("sys/wrapping/wrap", data)
	must.NoError(t, err)
	return secret.WrapInfo.Token
}

func TestRedeem(t *testing.T) {
	server, root := testhost.Vault(t)
	plain := "http://" + server.Address
	f := newFront(t, plain)
	ctx := t.Context()
	token := func(g join.Grant, ttl string) join.Token {
		return join.Token{Vault: f.URL, Digest: f.digest, Wrapping: wrap(t, root, g, ttl)}
	}
	one := token(grant(), "1m")

	refused := func(text string, change func(*join.Token)) {
		t.Helper()
		bad := one
		change(&bad)
		_, err := redeem.Connect(ctx, bad)
		must.ErrorContains(t, err, text)
	}
	refused("this is not the Vault for which the join token was made", func(t *join.Token) { t.Digest = fmt.Sprintf("%064x", 1) })
	refused("lacks the digest", func(t *join.Token) { t.Digest = "" })
	refused("its Vault "+plain+" has none", func(t *join.Token) { t.Vault = plain })
	refused("connection refused", func(t *join.Token) { t.Vault = "https://127.0.0.1:1" })
	refused("which is no URL", func(t *join.Token) { t.Vault = "vault" })
	// The certificate is for 127.0.0.1 and example.com.
	refused("the certificate of Vault", func(t *join.Token) { t.Vault = "https://localhost:" + must1(url.Parse(f.URL)).Port() })
	for ahead, word := range map[time.Duration]string{time.Hour: "1h0m0s behind Vault's", -time.Hour: "1h0m0s ahead of Vault's"} {
		f.ahead = ahead
		refused(word, func(*join.Token) {})
	}
	f.ahead = 3 * time.Second

	// Nothing of that used the token up.
	v, err := redeem.Connect(ctx, one)
	must.NoError(t, err)
	must.Between(t, -5*time.Second, v.Skew, -time.Second)
	must.StrContains(t, v.CA, "BEGIN CERTIFICATE")
	g, err := v.Unwrap(ctx)
	must.NoError(t, err)
	must.Eq(t, grant(), g)

	// Used twice, expired, and one that Vault never gave.
	f.ahead = 0
	unwrap := func(t2 join.Token) error {
		v, err := redeem.Connect(ctx, t2)
		must.NoError(t, err)
		_, err = v.Unwrap(ctx)
		return err
	}
	must.ErrorIs(t, unwrap(one), redeem.ErrUsed)
	short := token(grant(), "1s")
	time.Sleep(1500 * time.Millisecond)
	must.ErrorIs(t, unwrap(short), redeem.ErrUsed)
	never := one
	never.Wrapping = "hvs.nobody"
	must.ErrorIs(t, unwrap(never), redeem.ErrUsed)

	// Without TLS there is nothing to prove.
	must.NoError(t, unwrap(join.Token{Vault: plain, Wrapping: wrap(t, root, grant(), "1m")}))

	// What no machine can be.
	for text, change := range map[string]func(*join.Grant){
		"it names no kind":            func(g *join.Grant) { g.Kinds = nil },
		`"router" is not a kind`:      func(g *join.Grant) { g.Kinds = []join.Kind{"router"} },
		"fabric: ":                    func(g *join.Grant) { g.Settings.Fabric = "Not A Name" },
		"it lacks secret_id":          func(g *join.Grant) { g.SecretID = "" },
		"let a controller join first": func(g *join.Grant) { g.Controllers = nil },
	} {
		bad := grant()
		change(&bad)
		must.ErrorContains(t, unwrap(token(bad, "1m")), text)
	}
}

// Only the Vault of the token is believed: a chain that ends in the right certificate must be
// signed by it, and be valid. What the environment says of another Vault does not matter.
func TestOnlyTheTokensVault(t *testing.T) {
	server, root := testhost.Vault(t)
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must.NoError(t, err)
	certificate := func(life time.Duration, of *ecdsa.PrivateKey, parent *x509.Certificate, by *ecdsa.PrivateKey) *x509.Certificate {
		isCA := of == by
		template := &x509.Certificate{
			SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: fmt.Sprint("authority ", isCA)}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: isCA,
			BasicConstraintsValid: true, NotBefore: time.Now().Add(-2 * time.Hour), NotAfter: time.Now().Add(life), KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
		}
		if parent == nil {
			parent = template
		}
		der, err := x509.CreateCertificate(rand.Reader, template, parent, of.Public(), by)
		must.NoError(t, err)
		return must1(x509.ParseCertificate(der))
	}
	signer, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must.NoError(t, err)
	other, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must.NoError(t, err)
	ca, impostor := certificate(time.Hour, signer, nil, signer), certificate(time.Hour, other, nil, other)
	target := must1(url.Parse("http://" + server.Address))
	connect := func(leaf *x509.Certificate) error {
		s := httptest.NewUnstartedServer(&httputil.ReverseProxy{Rewrite: func(r *httputil.ProxyRequest) { r.SetURL(target) }})
		s.TLS = &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{leaf.Raw, ca.Raw}, PrivateKey: key}}}
		s.StartTLS()
		defer s.Close()
		sum := sha256.Sum256(ca.Raw)
		v, err := redeem.Connect(t.Context(), join.Token{Vault: s.URL, Digest: hex.EncodeToString(sum[:]), Wrapping: wrap(t, root, grant(), "1m")})
		if err == nil {
			_, err = v.Unwrap(t.Context())
		}
		return err
	}
	must.NoError(t, connect(certificate(time.Hour, key, ca, signer)))
	must.ErrorContains(t, connect(certificate(time.Hour, key, nil, key)), "the certificate of Vault")
	must.ErrorContains(t, connect(certificate(time.Hour, key, impostor, other)), "the certificate of Vault")
	must.ErrorContains(t, connect(certificate(-time.Hour, key, ca, signer)), "is valid from")

	t.Setenv(vaultapi.EnvVaultAgentAddr, "http://127.0.0.1:1")
	t.Setenv(vaultapi.EnvVaultNamespace, "theirs")
	must.NoError(t, connect(certificate(time.Hour, key, ca, signer)))
	t.Setenv(vaultapi.EnvVaultSkipVerify, "true")
	s := httptest.NewTLSServer(http.NotFoundHandler())
	defer s.Close()
	g := grant()
	g.Settings.Vault.Address = s.URL
	_, err = redeem.Login(t.Context(), g)
	must.ErrorContains(t, err, "certificate")
}

func must1[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}
