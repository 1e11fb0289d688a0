// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package identity_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	vaultapi "github.com/hashicorp/vault/api"
	"github.com/shoenig/test/must"

	"github.com/sif-project/sif/internal/trust/identity"
)

// writeJWT writes a JWT as Nomad signs it for a task.
func writeJWT(t *testing.T, key *ecdsa.PrivateKey, file, subject string, life time.Duration) {
	t.Helper()
	part := func(v any) string {
		b, err := json.Marshal(v)
		must.NoError(t, err)
		return base64.RawURLEncoding.EncodeToString(b)
	}
	now := time.Now()
	text := part(map[string]any{"alg": "ES256", "typ": "JWT"}) + "." +
		part(map[string]any{"sub": subject, "aud": "vault.io", "iat": now.Unix(), "nbf": now.Unix(), "exp": now.Add(life).Unix()})
	digest := sha256.Sum256([]byte(text))
	r, s, err := ecdsa.Sign(rand.Reader, key, digest[:])
	must.NoError(t, err)
	sig := append(r.FillBytes(make([]byte, 32)), s.FillBytes(make([]byte, 32))...)
	must.NoError(t, os.WriteFile(file, []byte(text+"."+base64.RawURLEncoding.EncodeToString(sig)+"\n"), 0o600))
}

// A daemon that is a Nomad job has no secret: the JWT that Nomad keeps in a file is its login, each
// time the one that is in the file then.
func TestLoginWithJWT(t *testing.T) {
	_, v, conf := setUp(t, "1h")
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must.NoError(t, err)
	public, err := x509.MarshalPKIXPublicKey(key.Public())
	must.NoError(t, err)
	const job = "global:default:sif-controller:controller:controller:vault"
	must.NoError(t, v.Sys().EnableAuthWithOptions("sif-nomad", &vaultapi.EnableAuthOptions{Type: "jwt"}))
	for path, data := range map[string]map[string]any{
		"auth/sif-nomad/config": {"jwt_validation_pubkeys": string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: public}))},
		"auth/sif-nomad/role/controller": {
			"role_type": "jwt", "user_claim": "/sub", "user_claim_json_pointer": true, "bound_subject": job,
			"bound_audiences": "vault.io", "token_policies": "node", "token_period": "4s",
		},
	} {
		_, err := v.Logical().Write(path, data)
		must.NoError(t, err)
	}
	conf.RoleID, conf.SecretIDFile = "", ""
	conf.JWTMount, conf.JWTRole, conf.JWTFile = "sif-nomad", "controller", filepath.Join(t.TempDir(), "nomad_vault.jwt")
	open := func() (*identity.Source, error) {
		return identity.Open(context.Background(), conf, hclog.NewNullLogger())
	}

	_, err = open()
	must.ErrorIs(t, err, os.ErrNotExist)
	writeJWT(t, key, conf.JWTFile, "global:default:other-job:controller:controller:vault", time.Minute)
	_, err = open()
	must.ErrorContains(t, err, "log in to Vault at auth/sif-nomad/login with the JWT in "+conf.JWTFile)
	must.ErrorContains(t, err, "subject")

	writeJWT(t, key, conf.JWTFile, job, time.Minute)
	s, err := open()
	must.NoError(t, err)
	must.Eq(t, []string{"workload"}, s.Certificate().Leaf.Subject.OrganizationalUnit)

	// After the token is lost, the login uses what the file contains now.
	run(t, s)
	first := s.Vault().Token()
	writeJWT(t, key, conf.JWTFile, job, time.Hour)
	must.NoError(t, v.Auth().Token().RevokeTree(first))
	eventually(t, 10*time.Second, "it logs in again", func() bool {
		token := s.Vault().Token()
		return token != "" && token != first && len(s.Degraded()) == 0
	})
}
