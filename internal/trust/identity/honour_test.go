// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package identity

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"math/big"
	"net/url"
	"path/filepath"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/shoenig/test/must"

	"github.com/sif-project/sif/fabric"
)

const trustDomain = "sif.test"

// authority issues certificates of nodes that began an hour ago, and of which some have ended.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(t *testing.T) authority {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must.NoError(t, err)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-24 * time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	must.NoError(t, err)
	cert, err := x509.ParseCertificate(der)
	must.NoError(t, err)
	return authority{cert, key}
}

// node issues a certificate that ends after a time from now, which may be negative.
func (a authority) node(t *testing.T, name string, left time.Duration) *tls.Certificate {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must.NoError(t, err)
	serial, err := rand.Int(rand.Reader, big.NewInt(1<<62))
	must.NoError(t, err)
	template := &x509.Certificate{
		SerialNumber: serial, URIs: []*url.URL{{Scheme: "spiffe", Host: trustDomain, Path: fabric.NodeID{Zone: "z", Name: name}.SPIFFE()}},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(left), KeyUsage: x509.KeyUsageDigitalSignature,
	}
	template.Subject.OrganizationalUnit = fabric.KindWorkload.Units()
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, key.Public(), a.key)
	must.NoError(t, err)
	leaf, err := x509.ParseCertificate(der)
	must.NoError(t, err)
	return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}
}

// In an outage, a certificate that has ended counts if it was valid when that began and had been
// met before, and is not revoked; the own one counts if it was valid. Without an outage, none does.
func TestHonouredCertificates(t *testing.T) {
	ca := newAuthority(t)
	roots := x509.NewCertPool()
	roots.AddCert(ca.cert)
	var began time.Time
	path := filepath.Join(t.TempDir(), metFile)
	var s *Source
	revoked := ""
	restart := func() {
		s = Fixed(trustDomain, ca.node(t, "self", -10*time.Minute), roots, fabric.KeySet{})
		s.config.Outage, s.config.SPIFFEPath = func() time.Time { return began }, fabric.NodeID{Zone: "z", Name: "self"}.SPIFFE()
		s.met = openMet(path, hclog.NewNullLogger())
		s.SetRevoked(func(_ Subject, leaf *x509.Certificate) error {
			if Serial(leaf) == revoked {
				return errors.New("somebody said so")
			}
			return nil
		})
	}
	restart()
	accepts := func(cert *tls.Certificate) error {
		state := tls.ConnectionState{PeerCertificates: []*x509.Certificate{cert.Leaf}}
		if _, err := s.verifyPeer(state.PeerCertificates); err != nil {
			return err
		}
		if _, _, err := s.Peer(state); err != nil {
			return err
		}
		sig, chain, err := signWith(cert, []byte("word"), true)
		must.NoError(t, err)
		_, _, err = s.VerifyBy(chain, []byte("word"), sig)
		return err
	}
	met := func(cert *tls.Certificate, ago time.Duration) *tls.Certificate {
		holder, err := Read(cert.Leaf, trustDomain)
		must.NoError(t, err)
		s.met.note(cert.Leaf, holder, time.Now().Add(-ago), time.Time{})
		return cert
	}
	valid := ca.node(t, "valid", time.Hour)
	must.NoError(t, accepts(valid))
	known := met(ca.node(t, "known", -time.Minute), time.Hour)
	stranger, late := ca.node(t, "stranger", -time.Minute), met(ca.node(t, "late", -time.Minute), 5*time.Minute)
	before := met(ca.node(t, "before", -40*time.Minute), time.Hour)
	must.NoError(t, s.met.saved.Call())

	must.NoError(t, accepts(valid))
	for _, cert := range []*tls.Certificate{known, stranger, late, before} {
		must.Error(t, accepts(cert))
	}
	_, _, err := s.Sign([]byte("word"))
	must.ErrorContains(t, err, "expired")

	began = time.Now().Add(-30 * time.Minute)
	for range 2 {
		must.NoError(t, accepts(valid))
		must.NoError(t, accepts(known))
		for name, cert := range map[string]*tls.Certificate{"nobody has met it": stranger, "it was met later": late, "it had ended": before} {
			must.Error(t, accepts(cert), must.Sprint(name))
		}
		must.True(t, s.Stands(s.Certificate().Leaf))
		must.NoError(t, s.suits(s.Certificate()), must.Sprint("a restart goes on with it"))
		_, _, err = s.Sign([]byte("word"))
		must.NoError(t, err)
		restart()
	}
	revoked = Serial(known.Leaf)
	must.ErrorContains(t, accepts(known), "somebody said so")
	began = time.Time{}
	must.False(t, s.Stands(s.Certificate().Leaf))
}

// What is remembered does not grow with each renewal: what has ended is forgotten, unless the
// present outage honours it. One holder does not take the place of others.
func TestMetIsBounded(t *testing.T) {
	start := time.Date(2026, 11, 27, 18, 0, 0, 0, time.UTC)
	m, none, serial := &met{list: map[string]meeting{}}, time.Time{}, int64(0)
	holder := func(n int) Subject {
		return Subject{Node: Node{NodeID: fabric.NodeID{Zone: "z", Name: fmt.Sprint("n", n)}}}
	}
	meet := func(n int, now, began time.Time) *x509.Certificate {
		serial++
		leaf := &x509.Certificate{SerialNumber: big.NewInt(serial), NotBefore: now, NotAfter: now.Add(8 * time.Hour)}
		m.note(leaf, holder(n), now, began)
		return leaf
	}
	const nodes = 50
	renewals := func(from, until time.Duration, began time.Time) (first, last *x509.Certificate) {
		for at := from; at < until; at += 5 * time.Hour {
			for n := range nodes {
				last = meet(n, start.Add(at), began)
				if first == nil {
					first = last
				}
			}
		}
		return first, last
	}
	_, last := renewals(0, 1000*time.Hour, none)
	must.LessEq(t, 2*nodes, len(m.list))
	began := start.Add(1000 * time.Hour)
	must.True(t, m.honours(last, began))
	later, _ := renewals(1001*time.Hour, 1070*time.Hour, began)
	must.LessEq(t, 4*nodes, len(m.list))
	must.True(t, m.honours(last, began), must.Sprint("forgotten in the outage"))
	must.False(t, m.honours(later, began))

	now := start.Add(2000 * time.Hour)
	for range maxMet {
		meet(1, now, none)
	}
	must.MapLen(t, maxMetOf, m.list)
	must.True(t, m.honours(meet(2, now, none), now))
}
