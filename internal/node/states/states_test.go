// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package states

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"math/big"
	"net/url"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/fabric/desired"
	"github.com/sif-project/sif/internal/trust/identity"
)

var (
	p1 = fabric.Node{Zone: "z1", Name: "p1", Kind: fabric.KindProcessor}
	p2 = fabric.Node{Zone: "z1", Name: "p2", Kind: fabric.KindProcessor}
	q1 = fabric.Node{Zone: "z2", Name: "p1", Kind: fabric.KindProcessor}
	w1 = fabric.Node{Zone: "z1", Name: "w1", Kind: fabric.KindWorkload}
)

// authority issues certificates of nodes.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(t testing.TB) authority {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must.NoError(t, err)
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test"}, NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	must.NoError(t, err)
	cert, err := x509.ParseCertificate(der)
	must.NoError(t, err)
	return authority{cert, key}
}

// signer returns the function that signs for a node, with a certificate that begins at a time.
func (a authority) signer(t testing.TB, n fabric.Node, begin time.Time) func([]byte) ([]byte, [][]byte, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must.NoError(t, err)
	uri, err := url.Parse("spiffe://sif.test" + n.ID().SPIFFE())
	must.NoError(t, err)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{OrganizationalUnit: []string{string(n.Kind)}}, URIs: []*url.URL{uri},
		NotBefore: begin, NotAfter: begin.Add(time.Hour), KeyUsage: x509.KeyUsageDigitalSignature,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, key.Public(), a.key)
	must.NoError(t, err)
	return func(msg []byte) ([]byte, [][]byte, error) {
		digest := sha256.Sum256(msg)
		sig, err := ecdsa.SignASN1(rand.Reader, key, digest[:])
		return sig, [][]byte{der}, err
	}
}

// lab is a set that knows the four nodes, and who may be removed from it.
type lab struct {
	*Set
	authority
	removed fabric.Revocations
}

func newLab(t testing.TB) *lab {
	l := &lab{authority: newAuthority(t)}
	roots := x509.NewCertPool()
	roots.AddCert(l.cert)
	l.Set = New(Verifier{
		VerifyBy: func(chain [][]byte, msg, sig []byte) (identity.Subject, *x509.Certificate, error) {
			return identity.VerifyBy(roots, "sif.test", chain, msg, sig)
		},
		Node: func(id fabric.NodeID) (fabric.Node, bool) {
			for _, n := range []fabric.Node{p1, p2, q1, w1} {
				if n.ID() == id {
					return n, true
				}
			}
			return fabric.Node{}, false
		},
		Removed: func() fabric.Revocations { return l.removed },
	})
	return l
}

func (l *lab) sign(t testing.TB, s desired.State, by fabric.Node) Signed {
	signed, err := Sign(s, l.signer(t, by, time.Now().Add(-time.Minute)))
	must.NoError(t, err)
	return signed
}

func TestNewestHolds(t *testing.T) {
	l := newLab(t)
	changes := 0
	l.OnChange(func() { changes++ })
	state := func(number uint64, ready bool) desired.State {
		return desired.State{Processor: p1.ID(), Number: number, Ready: ready, Silent: []desired.Hop{{Processor: q1.ID()}}, Unreached: []fabric.NodeID{w1.ID()}}
	}
	first, second := l.sign(t, state(5, false), p1), l.sign(t, state(7, true), p1)
	for _, step := range []struct {
		offer []Signed
		news  int
	}{{[]Signed{first}, 1}, {[]Signed{first}, 0}, {[]Signed{second, first}, 1}, {[]Signed{first, second}, 0}} {
		news, err := l.Take(step.offer)
		must.NoError(t, err)
		must.Len(t, step.news, news)
	}
	must.Eq(t, 2, changes)
	must.Eq(t, []desired.State{state(7, true)}, l.States())
	must.Eq(t, map[fabric.NodeID]uint64{p1.ID(): 7}, l.Numbers())

	// Two sets that compare have the same afterwards.
	_, err := l.Take([]Signed{l.sign(t, desired.State{Processor: p2.ID(), Number: 3}, p2)})
	must.NoError(t, err)
	newer, lacking := l.Compare(map[fabric.NodeID]uint64{p1.ID(): 9, q1.ID(): 1})
	must.Eq(t, []fabric.NodeID{p1.ID(), q1.ID()}, lacking)
	must.Len(t, 1, newer)
	must.Eq(t, []Signed{second}, l.Of([]fabric.NodeID{p1.ID(), q1.ID()}))

	// Who was removed is not listened to any more.
	l.removed = fabric.Revocations{Tombstones: []fabric.Tombstone{{Node: p1.ID(), Removed: time.Now()}}}
	must.Len(t, 1, l.States())
	news, err := l.Take([]Signed{second})
	must.ErrorContains(t, err, "removal")
	must.SliceEmpty(t, news)
}

// A processor can speak of itself and of its own tunnels only, and nobody else for it.
func TestRefused(t *testing.T) {
	l := newLab(t)
	good := desired.State{Processor: p1.ID(), Number: 1, Ready: true}
	of := func(change func(*desired.State)) desired.State {
		s := good
		change(&s)
		return s
	}
	altered := l.sign(t, good, p1)
	altered.State = []byte(`{"processor":"z1/p1","number":2}`)
	foreign, err := Sign(good, newAuthority(t).signer(t, p1, time.Now()))
	must.NoError(t, err)
	expired, err := Sign(good, l.signer(t, p1, time.Now().Add(-2*time.Hour)))
	must.NoError(t, err)
	long := l.sign(t, good, p1)
	for range maxChain {
		long.Certificate = append(long.Certificate, long.Certificate[0])
	}
	for name, signed := range map[string]Signed{
		"by another processor":  l.sign(t, good, p2),
		"by a workload node":    l.sign(t, good, w1),
		"of a workload node":    l.sign(t, of(func(s *desired.State) { s.Processor = w1.ID() }), w1),
		"of nobody":             l.sign(t, of(func(s *desired.State) { s.Processor.Name = "p9" }), fabric.Node{Zone: "z1", Name: "p9", Kind: fabric.KindProcessor}),
		"altered":               altered,
		"by another authority":  foreign,
		"expired":               expired,
		"too many certificates": long,
		"no certificate":        {State: altered.State},
		"no number":             l.sign(t, of(func(s *desired.State) { s.Number = 0 }), p1),
		"no name":               l.sign(t, of(func(s *desired.State) { s.Processor.Name = "" }), p1),
		"a node elsewhere":      l.sign(t, of(func(s *desired.State) { s.Unreached = []fabric.NodeID{q1.ID()} }), p1),
		"a tunnel inside":       l.sign(t, of(func(s *desired.State) { s.Silent = []desired.Hop{{Processor: p2.ID()}} }), p1),
		"too many tunnels":      l.sign(t, of(func(s *desired.State) { s.Silent = make([]desired.Hop, maxSilent+1) }), p1),
		"too large":             {State: make([]byte, maxSize+1)},
		"no JSON":               {State: []byte("{")},
	} {
		t.Run(name, func(t *testing.T) {
			news, err := l.Take([]Signed{signed})
			must.Error(t, err)
			must.SliceEmpty(t, news)
		})
	}
	must.SliceEmpty(t, l.States())
	// One that is refused does not affect the others.
	news, err := l.Take([]Signed{altered, l.sign(t, good, p1)})
	must.Error(t, err)
	must.Len(t, 1, news)
	_, err = l.Take(make([]Signed, MaxMessage+1))
	must.Error(t, err)
}

// Nobody keeps all nodes busy by many states.
func TestTooOften(t *testing.T) {
	l := newLab(t)
	by := l.signer(t, p1, time.Now().Add(-time.Minute))
	refused := 0
	for i := range 3 * statesAtOnce {
		signed, err := Sign(desired.State{Processor: p1.ID(), Number: uint64(i + 1)}, by)
		must.NoError(t, err)
		if _, err := l.Take([]Signed{signed}); err != nil {
			refused++
		}
	}
	must.Positive(t, refused)
	_, err := l.Take([]Signed{l.sign(t, desired.State{Processor: p2.ID(), Number: 1}, p2)})
	must.NoError(t, err)
}

// What is accepted is the same after it was written and read again, and within its limits.
func FuzzParse(f *testing.F) {
	b, err := json.Marshal(desired.State{Processor: p1.ID(), Number: 1, Ready: true, Silent: []desired.Hop{{Processor: q1.ID(), Link: "private"}}, Unreached: []fabric.NodeID{w1.ID()}})
	must.NoError(f, err)
	f.Add(b)
	f.Add([]byte(`{"processor":"z1/p1","number":18446744073709551615,"silent":["z2/p1#x"]}`))
	f.Add([]byte(`{"processor":"/","number":-1}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := Parse(b)
		if err != nil {
			return
		}
		must.Positive(t, s.Number)
		b, err = json.Marshal(s)
		must.NoError(t, err)
		again, err := Parse(b)
		must.NoError(t, err)
		must.Eq(t, s.Processor, again.Processor)
		must.Eq(t, len(s.Silent), len(again.Silent))
		for _, h := range s.Silent {
			must.NotEq(t, s.Processor.Zone, h.Processor.Zone)
		}
	})
}
