// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package identity_test

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/shoenig/test/must"

	"github.com/sif-project/sif/internal/trust/identity"
)

// A new issuer of Vault is trusted beside the old one, and the old one until Vault says that it is
// revoked: that it is not listed any more is not its end.
func TestAuthorities(t *testing.T) {
	_, v, conf := setUp(t, "1h")
	open := func() *identity.Source {
		t.Helper()
		s, err := identity.Open(context.Background(), conf, hclog.NewNullLogger())
		must.NoError(t, err)
		return s
	}
	write := func(path string, data map[string]any) map[string]any {
		t.Helper()
		secret, err := v.Logical().Write(path, data)
		must.NoError(t, err)
		return secret.Data
	}
	s := open()
	must.Len(t, 1, s.Authorities())
	first := s.Authorities()[0]
	must.Eq(t, first, identity.IssuedBy(s.Certificate().Leaf))
	must.False(t, s.Superseded(s.Certificate().Leaf))
	listed, err := v.Logical().Read("sif-pki/issuer/default")
	must.NoError(t, err)
	firstIssuer := listed.Data["issuer_id"].(string)

	made := write("sif-pki/root/rotate/internal", map[string]any{"common_name": "sif", "issuer_name": "second", "key_type": "ec", "ttl": "87600h"})
	s = open()
	must.Len(t, 2, s.Authorities())
	must.SliceContains(t, s.Authorities(), first)
	second := s.Authorities()[1-slices.Index(s.Authorities(), first)]

	// What it issues is accepted with the old one's, and an old certificate is superseded only when
	// it has been in use for a while.
	write("sif-pki/config/issuers", map[string]any{"default": made["issuer_id"]})
	s = open()
	must.Eq(t, first, identity.IssuedBy(s.Certificate().Leaf))
	must.False(t, s.Superseded(s.Certificate().Leaf))
	aged := *s.Certificate().Leaf
	aged.NotBefore = aged.NotBefore.Add(-5 * time.Minute)
	must.True(t, s.Superseded(&aged))
	must.NoError(t, os.Remove(filepath.Join(conf.DataDir, "identity", "certificate.pem")))
	s = open()
	must.Eq(t, second, identity.IssuedBy(s.Certificate().Leaf))

	// The old one is gone from Vault: it stays trusted, and that is said.
	text := listed.Data["certificate"]
	_, err = v.Logical().Delete("sif-pki/issuer/" + firstIssuer)
	must.NoError(t, err)
	s = open()
	must.SliceContainsAll(t, s.Authorities(), []string{first, second})
	must.True(t, slices.ContainsFunc(s.Degraded(), func(d string) bool {
		return strings.Contains(d, "authority "+first) && strings.Contains(d, "vault write sif-pki/issuers/import/cert")
	}), must.Sprint(s.Degraded()))

	// The remedy, and the end.
	back := write("sif-pki/issuers/import/cert", map[string]any{"pem_bundle": text})
	s = open()
	must.SliceEmpty(t, s.Degraded())
	issuers, _ := back["imported_issuers"].([]any)
	must.Len(t, 1, issuers)
	write("sif-pki/issuer/"+issuers[0].(string)+"/revoke", nil)
	s = open()
	must.Eq(t, []string{second}, s.Authorities())
	must.SliceEmpty(t, s.Degraded())

	// All revoked: the last one stays, since a node that trusts nobody could never learn better.
	write("sif-pki/issuer/"+made["issuer_id"].(string)+"/revoke", nil)
	off, err := identity.Open(context.Background(), conf, hclog.NewNullLogger())
	must.NoError(t, err)
	must.Eq(t, []string{second}, off.Authorities())
	must.True(t, slices.ContainsFunc(off.Degraded(), func(d string) bool { return strings.Contains(d, "every issuer of sif-pki is revoked") }), must.Sprint(off.Degraded()))
}

// Authorities that could not be written to the disk are trusted, and written as soon as that works:
// otherwise a process that starts while Vault is away would not know them.
func TestAuthoritiesAreKept(t *testing.T) {
	_, v, conf := setUp(t, "1h")
	s, err := identity.Open(context.Background(), conf, hclog.NewNullLogger())
	must.NoError(t, err)
	_, err = v.Logical().Write("sif-pki/root/rotate/internal", map[string]any{"common_name": "sif", "issuer_name": "second", "key_type": "ec", "ttl": "87600h"})
	must.NoError(t, err)
	file := filepath.Join(conf.DataDir, "identity", "authorities.pem")
	must.NoError(t, os.Remove(file))
	must.NoError(t, os.Mkdir(file, 0o700)) // no file can take its place
	run(t, s)
	eventually(t, time.Minute, "it trusts both, and says that it could not keep them", func() bool {
		return len(s.Authorities()) == 2 && slices.ContainsFunc(s.Degraded(), func(d string) bool { return strings.HasPrefix(d, "authorities: ") })
	})
	must.NoError(t, os.Remove(file))
	eventually(t, time.Minute, "it keeps both", func() bool {
		text, err := os.ReadFile(file)
		return err == nil && strings.Count(string(text), "BEGIN CERTIFICATE") == 2
	})
}
