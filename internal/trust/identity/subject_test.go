// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package identity_test

import (
	"crypto/x509"
	"net/url"
	"testing"
	"time"

	"github.com/shoenig/test/must"
	"pgregory.net/rapid"

	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/internal/trust/identity"
	"github.com/sif-project/sif/internal/trust/identity/identitytest"
)

// uris replaces the URIs of a certificate.
func uris(list ...string) func(*x509.Certificate) {
	return func(c *x509.Certificate) {
		c.URIs = nil
		for _, s := range list {
			u, err := url.Parse(s)
			if err != nil {
				panic(err)
			}
			c.URIs = append(c.URIs, u)
		}
	}
}

func units(list ...string) func(*x509.Certificate) {
	return func(c *x509.Certificate) { c.Subject.OrganizationalUnit = list }
}

func node(zone, name string, kind fabric.NodeKind) identity.Subject {
	return identity.OfNode(fabric.Node{Zone: zone, Name: name, Kind: kind})
}

func TestRead(t *testing.T) {
	const (
		w1     = "/node/aws1/w1"
		p1     = "/node/aws1/p1"
		domain = "spiffe://" + identitytest.TrustDomain
	)
	ca := identitytest.NewCA(t)
	for _, c := range []struct {
		name   string
		path   string
		unit   string
		change func(*x509.Certificate)
		want   identity.Subject
		err    string // part of it; empty: the certificate is good
	}{
		{name: "workload node", path: w1, unit: "workload", want: node("aws1", "w1", fabric.KindWorkload)},
		{name: "processor node", path: p1, unit: "processor", want: node("aws1", "p1", fabric.KindProcessor)},
		{name: "service", path: "/aws1/w1", unit: "service", want: identity.Subject{Service: fabric.Ref{Domain: "aws1", Name: "w1"}}},
		{name: "service without a unit", path: "/app/web", want: identity.Subject{Service: fabric.Ref{Domain: "app", Name: "web"}}},
		{name: "controller", path: "/controller", unit: "controller", want: identity.Subject{Controller: true}},

		{name: "two URIs", path: w1, unit: "workload", change: uris(domain+w1, domain+p1), err: "more than one URI"},
		{name: "the same URI twice", path: w1, unit: "workload", change: uris(domain+w1, domain+w1), err: "more than one URI"},
		{name: "no URI", path: w1, unit: "workload", change: uris(), err: "no URI"},
		{name: "another scheme", path: w1, unit: "workload", change: uris("https://" + identitytest.TrustDomain + w1), err: "scheme"},
		{name: "another trust domain", path: w1, unit: "workload", change: uris("spiffe://evil.test" + w1), err: "trust domain"},
		{name: "a subdomain", path: w1, unit: "workload", change: uris("spiffe://x." + identitytest.TrustDomain + w1), err: "trust domain"},
		{name: "trust domain in upper case", path: w1, unit: "workload", change: uris("spiffe://SIF.test" + w1), err: "trust domain"},
		{name: "query", path: w1, unit: "workload", change: uris(domain + w1 + "?a=b"), err: "certificate"},
		{name: "empty query", path: w1, unit: "workload", change: uris(domain + w1 + "?"), err: "certificate"},
		{name: "fragment", path: w1, unit: "workload", change: uris(domain + w1 + "#a"), err: "certificate"},
		{name: "port", path: w1, unit: "workload", change: uris(domain + ":443" + w1), err: "trust domain"},
		{name: "user", path: w1, unit: "workload", change: uris("spiffe://root@" + identitytest.TrustDomain + w1), err: "trust domain"},
		{name: "escaped path", path: w1, unit: "workload", change: uris(domain + "/node/aws1/%771"), err: "certificate"},
		{name: "a long life", path: w1, unit: "workload", change: func(c *x509.Certificate) { c.NotAfter = c.NotBefore.Add(fabric.MaxCertificateLife + time.Minute) }, want: node("aws1", "w1", fabric.KindWorkload)},
		{name: "too long a life", path: w1, unit: "workload", change: func(c *x509.Certificate) { c.NotAfter = c.NotBefore.Add(fabric.MaxCertificateLife + time.Hour) }, err: "the fabric permits 72h"},
		{name: "authority", path: w1, unit: "workload", change: func(c *x509.Certificate) { c.IsCA, c.BasicConstraintsValid = true, true }, err: "authority"},
		{name: "may sign certificates", path: w1, unit: "workload", change: func(c *x509.Certificate) { c.KeyUsage |= x509.KeyUsageCertSign }, err: "authority"},
		{name: "may sign revocations", path: w1, unit: "workload", change: func(c *x509.Certificate) { c.KeyUsage |= x509.KeyUsageCRLSign }, err: "authority"},

		{name: "no path", path: "", unit: "workload", err: "domain/name"},
		{name: "slash", path: "/", unit: "workload", err: "certificate"},
		{name: "empty zone", path: "/node//w1", unit: "workload", err: "certificate"},
		{name: "empty node", path: "/node/aws1/", unit: "workload", err: "certificate"},
		{name: "no node", path: "/node/aws1", unit: "workload", err: "zone/node"},
		{name: "the reserved domain", path: "/node", unit: "workload", err: "domain/name"},
		{name: "more after a node", path: w1 + "/x", unit: "workload", err: "w1/x"},
		{name: "more after a service", path: "/app/web/x", err: "web/x"},
		{name: "more after the controller", path: "/controller/", unit: "controller", err: "certificate"},
		{name: "dots", path: "/node/../w1", unit: "workload", err: "certificate"},
		{name: "zone in upper case", path: "/node/Aws1/w1", unit: "workload", err: "lower-case"},
		{name: "node in upper case", path: "/node/aws1/W1", unit: "workload", err: "lower-case"},
		{name: "service in upper case", path: "/app/Web", err: "lower-case"},
		{name: "name with a double hyphen", path: "/app/web--1", err: "--"},
		{name: "something else", path: "/operator", err: "domain/name"},

		{name: "no kind", path: w1, err: "organizational units"},
		{name: "unknown kind", path: w1, unit: "service", err: "organizational units"},
		{name: "kind in upper case", path: w1, unit: "Workload", err: "organizational units"},
		{name: "both kinds", path: p1, change: units("workload", "processor"), want: node("aws1", "p1", fabric.KindBoth)},
		{name: "both kinds in one unit", path: p1, unit: "processor,workload", err: "organizational units"},
		{name: "a kind twice", path: p1, change: units("processor", "processor"), err: "organizational units"},
		{name: "a pool", path: w1, change: units("workload", "pool-20"), want: node("aws1", "w1", fabric.KindWorkload)},
		{name: "a pool of both kinds", path: p1, change: units("pool-24", "workload", "processor"), want: node("aws1", "p1", fabric.KindBoth)},
		{name: "a pool alone", path: w1, unit: "pool-20", err: "organizational units"},
		{name: "two pools", path: w1, change: units("workload", "pool-20", "pool-22"), err: "do not say once"},
		{name: "a pool twice", path: w1, change: units("workload", "pool-20", "pool-20"), err: "do not say once"},
		{name: "too large a pool", path: w1, change: units("workload", "pool-8"), err: "outside 20"},
		{name: "too small a pool", path: w1, change: units("workload", "pool-25"), err: "outside 20"},
		{name: "a pool of no size", path: w1, change: units("workload", "pool-"), err: "do not say once"},
		{name: "a pool of an odd form", path: w1, change: units("workload", "pool-+20"), err: "do not say once"},
		{name: "a kind and something else", path: p1, change: units("x", "processor"), err: "organizational units"},
	} {
		t.Run(c.name, func(t *testing.T) {
			var change []func(*x509.Certificate)
			if c.change != nil {
				change = append(change, c.change)
			}
			got, err := identity.Read(ca.Issue(c.path, c.unit, change...).Leaf, identitytest.TrustDomain)
			must.Eq(t, c.want, got)
			if c.err == "" {
				must.NoError(t, err)
			} else {
				must.ErrorContains(t, err, c.err)
			}
		})
	}
	_, err := identity.Read(ca.Issue(w1, "workload").Leaf, "")
	must.ErrorContains(t, err, "trust domain")
}

// No two subjects have one SPIFFE ID, but for nodes that differ in their kind: what SPIFFE writes,
// Read reads.
func TestReadWhatWasIssued(t *testing.T) {
	ca := identitytest.NewCA(t)
	name := rapid.StringMatching(`[a-z0-9]([a-z0-9]{0,3}-[a-z0-9]{1,3})?|node|controller`)
	rapid.Check(t, func(r *rapid.T) {
		var want identity.Subject
		unit := "service"
		switch a, b := name.Draw(r, "a"), name.Draw(r, "b"); rapid.IntRange(0, 2).Draw(r, "kind") {
		case 0:
			want = identity.Subject{Controller: true}
		case 1:
			unit = rapid.SampledFrom([]string{"workload", "processor"}).Draw(r, "unit")
			want = node(a, b, fabric.NodeKind(unit))
		case 2:
			if a == fabric.ReservedDomain {
				r.Skip("no service is in this domain")
			}
			want = identity.Subject{Service: fabric.Ref{Domain: a, Name: b}}
		}
		got, err := identity.Read(ca.Issue(want.SPIFFE(), unit).Leaf, identitytest.TrustDomain)
		must.NoError(r, err)
		must.Eq(r, want, got)
	})
}
