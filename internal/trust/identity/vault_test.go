// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package identity_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	vaultapi "github.com/hashicorp/vault/api"
	"github.com/shoenig/test/must"

	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/internal/testhost"
	"github.com/sif-project/sif/internal/trust/identity"
)

const trustDomain = "sif.test"

// setUp prepares a Vault as the fabric's is and returns the configuration of node aws1/aws1-w1,
// whose certificates live that long.
func setUp(t *testing.T, life string) (*testhost.Server, *vaultapi.Client, identity.Config) {
	t.Helper()
	server, v := testhost.Vault(t)
	write := func(path string, data map[string]any) *vaultapi.Secret {
		t.Helper()
		s, err := v.Logical().Write(path, data)
		must.NoError(t, err)
		return s
	}
	must.NoError(t, v.Sys().Mount("sif-pki", &vaultapi.MountInput{Type: "pki", Config: vaultapi.MountConfigInput{MaxLeaseTTL: "87600h"}}))
	must.NoError(t, v.Sys().Mount("sif-transit", &vaultapi.MountInput{Type: "transit"}))
	must.NoError(t, v.Sys().EnableAuthWithOptions("approle", &vaultapi.EnableAuthOptions{Type: "approle"}))
	write("sif-pki/root/generate/internal", map[string]any{"common_name": "sif", "key_type": "ec", "key_bits": 256, "ttl": "87600h"})
	write("sif-transit/keys/sif", map[string]any{"type": "ed25519"})
	write("sif-pki/roles/node-aws1-aws1-w1", map[string]any{
		"allowed_uri_sans": "spiffe://" + trustDomain + "/node/aws1/aws1-w1", "ou": "workload", "require_cn": false,
		"allow_ip_sans": true, "key_type": "ec", "key_bits": 256, "no_store": true, "ttl": life, "max_ttl": life, "not_before_duration": "1s",
	})
	must.NoError(t, v.Sys().PutPolicy("node", `
path "sif-pki/sign/node-aws1-aws1-w1" { capabilities = ["update"] }
path "sif-transit/keys/sif" { capabilities = ["read"] }
path "sif-pki/issuer/*" { capabilities = ["read"] }
`))
	write("auth/approle/role/node", map[string]any{"token_policies": "node", "token_ttl": "4s", "token_max_ttl": "1h"})
	role, err := v.Logical().Read("auth/approle/role/node/role-id")
	must.NoError(t, err)
	secret := write("auth/approle/role/node/secret-id", nil)
	dir := t.TempDir()
	file := filepath.Join(dir, "secret")
	must.NoError(t, os.WriteFile(file, []byte(secret.Data["secret_id"].(string)+"\n"), 0o600))
	return server, v, identity.Config{
		VaultAddress: "http://" + server.Address, RoleID: role.Data["role_id"].(string), SecretIDFile: file,
		AppRoleMount: "approle", PKIMount: "sif-pki", PKIRole: "node-aws1-aws1-w1", TransitMount: "sif-transit", TransitKey: "sif",
		TrustDomain: trustDomain, SPIFFEPath: fabric.NodeID{Zone: "aws1", Name: "aws1-w1"}.SPIFFE(), IPs: []net.IP{net.IPv4(10, 1, 0, 11)}, DataDir: dir,
	}
}

// transitSign signs a pointer as the controller does.
func transitSign(t *testing.T, v *vaultapi.Client, payload string) fabric.Signed {
	t.Helper()
	s, err := v.Logical().Write("sif-transit/sign/sif", map[string]any{
		"input": base64.StdEncoding.EncodeToString(fabric.SigningInput(fabric.KindPointer, []byte(payload))),
	})
	must.NoError(t, err)
	parts := strings.Split(s.Data["signature"].(string), ":") // vault:v1:base64
	version, err := strconv.Atoi(parts[1][1:])
	must.NoError(t, err)
	sig, err := base64.StdEncoding.DecodeString(parts[2])
	must.NoError(t, err)
	return fabric.Signed{Kind: fabric.KindPointer, Payload: []byte(payload), Version: version, Signature: sig}
}

func run(t *testing.T, s *identity.Source) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	var stopped bool
	stop = func() {
		if !stopped {
			stopped = true
			cancel()
			must.NoError(t, <-done)
		}
	}
	t.Cleanup(stop)
	return stop
}

func eventually(t *testing.T, within time.Duration, what string, cond func() bool) {
	t.Helper()
	for end := time.Now().Add(within); !cond(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not within %s: %s", within, what)
		}
	}
}

func TestIdentityFromVault(t *testing.T) {
	_, v, conf := setUp(t, "1h")
	ctx := context.Background()
	s, err := identity.Open(ctx, conf, hclog.NewNullLogger())
	must.NoError(t, err)
	must.SliceEmpty(t, s.Degraded())
	leaf := s.Certificate().Leaf
	must.Eq(t, []string{"workload"}, leaf.Subject.OrganizationalUnit)
	must.True(t, leaf.IPAddresses[0].Equal(net.IPv4(10, 1, 0, 11)))
	must.Eq(t, leaf.NotAfter, s.Expiry())

	// What it signs verifies, and nothing else does.
	sig, chain, err := s.Sign([]byte("hello"))
	must.NoError(t, err)
	signer, got, err := identity.VerifyBy(s.Roots(), trustDomain, chain, []byte("hello"), sig)
	must.NoError(t, err)
	must.Eq(t, conf.SPIFFEPath, signer.SPIFFE())
	must.True(t, got.Equal(leaf))
	_, _, err = identity.VerifyBy(s.Roots(), trustDomain, chain, []byte("hallo"), sig)
	must.ErrorContains(t, err, "does not verify")
	_, _, err = identity.VerifyBy(s.Roots(), "other.test", chain, []byte("hello"), sig)
	must.ErrorContains(t, err, "trust domain")
	_, _, err = identity.VerifyBy(x509.NewCertPool(), trustDomain, chain, []byte("hello"), sig)
	must.ErrorContains(t, err, "unknown authority")
	_, _, err = identity.VerifyBy(nil, trustDomain, chain, []byte("hello"), sig)
	must.ErrorContains(t, err, "no authority")
	_, _, err = identity.VerifyBy(s.Roots(), trustDomain, nil, nil, nil)
	must.Error(t, err)

	// The fabric's key, before and after a rotation in Vault.
	var p map[string]any
	must.NoError(t, s.Keys().Verify(transitSign(t, v, `{}`), fabric.KindPointer, &p))
	_, err = v.Logical().Write("sif-transit/keys/sif/rotate", nil)
	must.NoError(t, err)
	second := transitSign(t, v, `{}`)
	must.Error(t, s.Keys().Verify(second, fabric.KindPointer, &p))
	s2, err := identity.Open(ctx, conf, hclog.NewNullLogger())
	must.NoError(t, err)
	must.NoError(t, s2.Keys().Verify(second, fabric.KindPointer, &p))
	must.True(t, s2.Certificate().Leaf.Equal(leaf)) // still good: not asked for again

	// Another address needs another certificate.
	conf.IPs = append(conf.IPs, net.IPv4(10, 1, 0, 12))
	s3, err := identity.Open(ctx, conf, hclog.NewNullLogger())
	must.NoError(t, err)
	must.False(t, s3.Certificate().Leaf.Equal(leaf))

	// Only the owner can read the files.
	files, err := filepath.Glob(filepath.Join(conf.DataDir, "identity", "*"))
	must.NoError(t, err)
	must.Len(t, 3, files)
	for _, f := range files {
		info, err := os.Stat(f)
		must.NoError(t, err)
		must.Eq(t, os.FileMode(0o600), info.Mode().Perm())
	}
}

func TestRefusedByVault(t *testing.T) {
	_, _, conf := setUp(t, "1h")
	ctx := context.Background()
	_, err := identity.Open(ctx, conf, hclog.NewNullLogger())
	must.NoError(t, err)
	for name, tc := range map[string]struct {
		change func(*identity.Config)
		want   string
	}{
		"another node's ID": {func(c *identity.Config) { c.SPIFFEPath = "/node/aws1/aws1-w2" }, "sign the certificate"},
		"another role":      {func(c *identity.Config) { c.PKIRole = "node-aws1-aws1-w2"; c.DataDir = t.TempDir() }, "permission denied"},
		"bad role ID":       {func(c *identity.Config) { c.RoleID = "x" }, "log in to Vault"},
		"no secret":         {func(c *identity.Config) { c.SecretIDFile = "/nowhere" }, "read the secret ID"},
		"no transit key":    {func(c *identity.Config) { c.TransitKey = "none" }, "permission denied"},
		"nobody there":      {func(c *identity.Config) { c.VaultAddress = "http://127.0.0.1:1"; c.DataDir = t.TempDir() }, "connection refused"},
	} {
		t.Run(name, func(t *testing.T) {
			c := conf
			tc.change(&c)
			_, err := identity.Open(ctx, c, hclog.NewNullLogger())
			must.ErrorContains(t, err, tc.want)
		})
	}
}

func TestRotationAndVaultAway(t *testing.T) {
	server, v, conf := setUp(t, "12s")
	ctx := context.Background()
	s, err := identity.Open(ctx, conf, hclog.NewNullLogger())
	must.NoError(t, err)
	first := s.Certificate().Leaf
	stop := run(t, s)
	// Past two thirds, with the token renewed on the way (it lives for 4 s).
	eventually(t, 15*time.Second, "the certificate is replaced", func() bool { return !s.Certificate().Leaf.Equal(first) })
	must.Less(t, first.NotAfter.UnixNano(), time.Now().UnixNano(), must.Sprint("it was replaced only after its end"))
	must.SliceEmpty(t, s.Degraded())

	// All tokens of the role revoked: it logs in again.
	_, err = v.Logical().Write("sys/leases/revoke-prefix/auth/approle/login", nil)
	must.NoError(t, err)
	second := s.Certificate().Leaf
	eventually(t, 20*time.Second, "the certificate is replaced with a new token", func() bool { return !s.Certificate().Leaf.Equal(second) })
	stop()

	// Vault cannot be reached: a start uses what is on disk, and recovers.
	must.NoError(t, server.Pause())
	c := conf
	c.VaultAddress = "http://127.0.0.1:1"
	off, err := identity.Open(ctx, c, hclog.NewNullLogger())
	must.NoError(t, err)
	must.True(t, slices.ContainsFunc(off.Degraded(), func(d string) bool { return strings.Contains(d, "connection refused") }))
	_, _, err = off.Sign([]byte("x"))
	must.NoError(t, err)
	must.NotNil(t, off.Roots())
	must.MapNotEmpty(t, off.Keys().Keys)
	must.NoError(t, server.Resume())

	// Expired and no Vault: no identity.
	time.Sleep(time.Until(off.Expiry()) + time.Second)
	_, _, err = off.Sign([]byte("x"))
	must.ErrorContains(t, err, "expired")
	_, err = identity.Open(ctx, c, hclog.NewNullLogger())
	must.Error(t, err)
	s, err = identity.Open(ctx, conf, hclog.NewNullLogger())
	must.NoError(t, err)
	must.SliceEmpty(t, s.Degraded())
}

func TestPinnedKeyMustNotChange(t *testing.T) {
	_, v, conf := setUp(t, "1h")
	s, err := identity.Open(context.Background(), conf, hclog.NewNullLogger())
	must.NoError(t, err)
	before := s.Keys()
	_, err = v.Logical().Write("sif-transit/keys/sif/config", map[string]any{"deletion_allowed": true})
	must.NoError(t, err)
	_, err = v.Logical().Delete("sif-transit/keys/sif")
	must.NoError(t, err)
	_, err = v.Logical().Write("sif-transit/keys/sif", map[string]any{"type": "ed25519"})
	must.NoError(t, err)
	s, err = identity.Open(context.Background(), conf, hclog.NewNullLogger())
	must.NoError(t, err)
	must.Eq(t, before, s.Keys())
	must.StrContains(t, strings.Join(s.Degraded(), "\n"), "differs from the pinned one")
}

// The version that signs is the one that is pinned in Vault, as soon as it is or Vault refuses the
// one before. Versions that were retired are kept, but do not count.
func TestVersions(t *testing.T) {
	_, v, conf := setUp(t, "1h")
	ctx := context.Background()
	config := func(data map[string]any) {
		t.Helper()
		_, err := v.Logical().Write("sif-transit/keys/sif/config", data)
		must.NoError(t, err)
	}
	s, err := identity.Open(ctx, conf, hclog.NewNullLogger())
	must.NoError(t, err)
	must.Eq(t, 1, s.Signing())
	first := transitSign(t, v, `{}`)
	_, err = v.Logical().Write("sif-transit/keys/sif/rotate", nil)
	must.NoError(t, err)
	signs := func(want, refused int) {
		t.Helper()
		version, err := s.SigningVersion(ctx, refused)
		must.NoError(t, err)
		must.Eq(t, want, version)
		must.Eq(t, want, s.Signing())
	}
	signs(1, 0)
	signs(1, 1) // nobody has chosen the new one, and not everybody knows it
	must.Eq(t, []int{1, 2}, s.Keys().Accepted())
	config(map[string]any{"min_encryption_version": 2})
	signs(1, 0) // it is not asked for each time
	signs(2, 1)
	signs(2, 1)
	config(map[string]any{"min_encryption_version": 1})
	signs(1, 2)
	config(map[string]any{"min_encryption_version": 2})
	config(map[string]any{"min_decryption_version": 2})
	signs(2, 1)
	var p map[string]any
	must.Eq(t, []int{2}, s.Keys().Accepted())
	must.ErrorContains(t, s.Keys().Verify(first, fabric.KindPointer, &p), "the lowest accepted is 2")
	must.NoError(t, s.Keys().Kept().Verify(first, fabric.KindPointer, &p))

	// The next process has the same; one of another machine has never seen the first version.
	s, err = identity.Open(ctx, conf, hclog.NewNullLogger())
	must.NoError(t, err)
	must.ErrorContains(t, s.Keys().Verify(first, fabric.KindPointer, &p), "the lowest accepted is 2")
	must.NoError(t, s.Keys().Kept().Verify(first, fabric.KindPointer, &p))
	conf.DataDir = t.TempDir()
	s, err = identity.Open(ctx, conf, hclog.NewNullLogger())
	must.NoError(t, err)
	must.ErrorContains(t, s.Keys().Kept().Verify(first, fabric.KindPointer, &p), "unknown here")
}

func TestNewAuthorityOverlaps(t *testing.T) {
	_, v, conf := setUp(t, "1h")
	ctx := context.Background()
	s, err := identity.Open(ctx, conf, hclog.NewNullLogger())
	must.NoError(t, err)
	sig, chain, err := s.Sign([]byte("old"))
	must.NoError(t, err)
	root, err := v.Logical().Write("sif-pki/root/rotate/internal", map[string]any{"common_name": "sif 2", "key_type": "ec", "key_bits": 256, "ttl": "87600h"})
	must.NoError(t, err)
	_, err = v.Logical().Write("sif-pki/config/issuers", map[string]any{"default": root.Data["issuer_id"]})
	must.NoError(t, err)
	conf.DataDir = t.TempDir()
	s, err = identity.Open(ctx, conf, hclog.NewNullLogger())
	must.NoError(t, err)
	_, _, err = identity.VerifyBy(s.Roots(), trustDomain, chain, []byte("old"), sig)
	must.NoError(t, err)
	sig, chain, err = s.Sign([]byte("new"))
	must.NoError(t, err)
	_, _, err = identity.VerifyBy(s.Roots(), trustDomain, chain, []byte("new"), sig)
	must.NoError(t, err)
}

func TestServerTLS(t *testing.T) {
	_, _, conf := setUp(t, "1h")
	s, err := identity.Open(context.Background(), conf, hclog.NewNullLogger())
	must.NoError(t, err)
	self := identity.OfNode(fabric.Node{Zone: "aws1", Name: "aws1-w1", Kind: fabric.KindWorkload})
	l, err := tls.Listen("tcp", "127.0.0.1:0", s.ServerTLS(tls.VerifyClientCertIfGiven))
	must.NoError(t, err)
	defer l.Close()
	states := make(chan tls.ConnectionState, 1)
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			if c.(*tls.Conn).Handshake() == nil {
				states <- c.(*tls.Conn).ConnectionState()
			}
			c.Close()
		}
	}()
	c, err := tls.Dial("tcp", l.Addr().String(), s.ClientTLS(self))
	must.NoError(t, err)
	c.Close()
	peer, _, err := s.Peer(<-states)
	must.NoError(t, err)
	must.Eq(t, self, peer)
	must.Eq(t, conf.SPIFFEPath, peer.SPIFFE())

	// An operator without a certificate is let in, and has no identity.
	bare := s.ClientTLS(self)
	bare.GetClientCertificate = nil
	c, err = tls.Dial("tcp", l.Addr().String(), bare)
	must.NoError(t, err)
	c.Close()
	_, _, err = s.Peer(<-states)
	must.ErrorContains(t, err, "no certificate")
}
