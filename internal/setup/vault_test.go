// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package setup_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"net"
	"net/url"
	"testing"
	"time"

	vaultapi "github.com/hashicorp/vault/api"
	"github.com/shoenig/test/must"

	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/internal/join"
	"github.com/sif-project/sif/internal/setup"
	"github.com/sif-project/sif/internal/setup/setuptest"
	"github.com/sif-project/sif/internal/testhost"
	"github.com/sif-project/sif/internal/trust/identity"
	"github.com/sif-project/sif/internal/wellknown"
)

const trustDomain = "sif.test"

var (
	w1 = setuptest.Node{NodeID: fabric.NodeID{Zone: "aws1", Name: "w1"}, Kind: fabric.KindWorkload}
	p1 = setuptest.Node{NodeID: fabric.NodeID{Zone: "aws1", Name: "p1"}, Kind: fabric.KindProcessor}
)

// login returns a client of Vault with the token of an AppRole.
func login(t *testing.T, root *vaultapi.Client, role join.Grant) *vaultapi.Client {
	t.Helper()
	client, err := root.Clone()
	must.NoError(t, err)
	secret, err := client.Logical().Write("auth/"+role.Settings.Vault.AppRoleMount+"/login", map[string]any{"role_id": role.RoleID, "secret_id": role.SecretID})
	must.NoError(t, err)
	client.SetToken(secret.Auth.ClientToken)
	return client
}

// request returns a signing request with the URIs, in PEM.
func request(t *testing.T, change func(*x509.CertificateRequest), uris ...string) string {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must.NoError(t, err)
	csr := &x509.CertificateRequest{}
	for _, text := range uris {
		u, err := url.Parse(text)
		must.NoError(t, err)
		csr.URIs = append(csr.URIs, u)
	}
	if change != nil {
		change(csr)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, csr, key)
	must.NoError(t, err)
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}))
}

// Whatever a node's token asks of Vault, what it gets is its own identity and nothing else.
func TestNodeGetsNoForeignCertificate(t *testing.T) {
	_, root := testhost.Vault(t)
	settings := setuptest.Settings("test", trustDomain)
	result := setuptest.Vault(t, root, settings, w1, p1)
	// A role as an earlier version wrote it loses what it permitted.
	role := wellknown.PKIMount + "/roles/" + wellknown.NodeRole("aws1", "w1")
	_, err := root.Logical().Write(role, map[string]any{
		"allowed_uri_sans": "spiffe://" + trustDomain + w1.SPIFFE(), "ou": "workload", "require_cn": false, "allow_ip_sans": true, "key_type": "ec",
	})
	must.NoError(t, err)
	result.Nodes[w1.NodeID] = setuptest.Machine(t, root, settings, w1.NodeID, join.Workload)

	const domain = "spiffe://" + trustDomain
	own := domain + w1.SPIFFE()
	sign := wellknown.PKIMount + "/sign/"
	ownRole := sign + wellknown.NodeRole("aws1", "w1")
	address := func(c *x509.CertificateRequest) { c.IPAddresses = []net.IP{net.IPv4(10, 1, 0, 11)} }
	for name, tt := range map[string]struct {
		path   string
		csr    string
		data   map[string]any
		signed bool // what is signed is the node's own identity
	}{
		"own":                       {csr: request(t, nil, own), signed: true},
		"another unit":              {csr: request(t, func(c *x509.CertificateRequest) { c.Subject.OrganizationalUnit = []string{"processor"} }, own), signed: true},
		"unit as a parameter":       {csr: request(t, nil, own), data: map[string]any{"ou": "processor"}, signed: true},
		"for a century":             {csr: request(t, nil, own), data: map[string]any{"ttl": "876000h"}, signed: true},
		"until next year":           {csr: request(t, nil, own), data: map[string]any{"not_after": time.Now().AddDate(1, 0, 0).UTC().Format(time.RFC3339)}},
		"from tomorrow on":          {csr: request(t, nil, own), data: map[string]any{"not_before": time.Now().AddDate(0, 0, 1).UTC().Format(time.RFC3339)}},
		"an address as parameter":   {csr: request(t, nil, own), data: map[string]any{"ip_sans": "10.1.0.11"}, signed: true}, // the request decides
		"an authority":              {csr: request(t, func(c *x509.CertificateRequest) { c.ExtraExtensions = authority(t) }, own), signed: true},
		"own address":               {csr: request(t, address, own)},
		"loopback":                  {csr: request(t, func(c *x509.CertificateRequest) { c.IPAddresses = []net.IP{net.IPv6loopback} }, own)},
		"a host name":               {csr: request(t, func(c *x509.CertificateRequest) { c.DNSNames = []string{"sif.example.com"} }, own)},
		"localhost":                 {csr: request(t, func(c *x509.CertificateRequest) { c.DNSNames = []string{"localhost"} }, own)},
		"a wildcard host name":      {csr: request(t, func(c *x509.CertificateRequest) { c.DNSNames = []string{"*"} }, own)},
		"a common name":             {csr: request(t, func(c *x509.CertificateRequest) { c.Subject.CommonName = "localhost" }, own)},
		"a mail address":            {csr: request(t, func(c *x509.CertificateRequest) { c.EmailAddresses = []string{"a@sif.example.com"} }, own)},
		"another node":              {csr: request(t, nil, domain+p1.SPIFFE())},
		"own and another node":      {csr: request(t, nil, own, domain+p1.SPIFFE())},
		"another node and own":      {csr: request(t, nil, domain+p1.SPIFFE(), own)},
		"a longer name":             {csr: request(t, nil, own+"1")},
		"a longer path":             {csr: request(t, nil, own+"/x")},
		"a wildcard":                {csr: request(t, nil, domain+"/node/aws1/*")},
		"the controller":            {csr: request(t, nil, domain+"/controller")},
		"a service":                 {csr: request(t, nil, domain+"/shop/web")},
		"another trust domain":      {csr: request(t, nil, "spiffe://other.test"+w1.SPIFFE())},
		"the controller's role":     {path: sign + wellknown.ControllerRole, csr: request(t, nil, domain+"/controller")},
		"the role of workloads":     {path: sign + setup.RoleWorkload, csr: request(t, nil, domain+"/shop/web")},
		"the role of applications":  {path: sign + setup.RoleApplication, csr: request(t, nil, domain+"/shop/web")},
		"a token of an application": {path: wellknown.TransitMount + "/sign/" + wellknown.JWTKey(wellknown.TransitKey), data: map[string]any{"input": "AAAA"}},
		"another node's role":       {path: sign + wellknown.NodeRole("aws1", "p1"), csr: request(t, nil, domain+p1.SPIFFE())},
		"verbatim":                  {path: wellknown.PKIMount + "/sign-verbatim", csr: request(t, nil, domain+"/controller")},
		"an intermediate":           {path: wellknown.PKIMount + "/root/sign-intermediate", csr: request(t, nil, domain), data: map[string]any{"common_name": "x"}},
		"a wider role":              {path: role, data: map[string]any{"allow_any_name": true, "allowed_uri_sans": "*"}},
		"another node's secret ID":  {path: "auth/sif-approle/role/sif-" + wellknown.NodeRole("aws1", "p1") + "/secret-id"},
		"its own secret ID":         {path: "auth/sif-approle/role/sif-" + wellknown.NodeRole("aws1", "w1") + "/secret-id"},
		"Nomad's identity token":    {path: "identity/oidc/token/sif-nomad"},
		"the fabric's settings":     {path: "sif-settings/fabric"},
		"a controller's address":    {path: "sif-settings/controllers/aws1--w1"},
		"the fabric's signature":    {path: wellknown.TransitMount + "/sign/" + wellknown.TransitKey, data: map[string]any{"input": "AAAA"}},
	} {
		t.Run(name, func(t *testing.T) {
			data := map[string]any{"uri_sans": own}
			if tt.csr != "" {
				data["csr"] = tt.csr
			}
			for k, v := range tt.data {
				data[k] = v
			}
			path := tt.path
			if path == "" {
				path = ownRole
			}
			secret, err := login(t, root, result.Nodes[w1.NodeID]).Logical().Write(path, data)
			if !tt.signed {
				must.Error(t, err, must.Sprint(secret))
				return
			}
			must.NoError(t, err)
			chain, err := identity.SignedChain(secret)
			must.NoError(t, err)
			leaf, err := x509.ParseCertificate(chain[0])
			must.NoError(t, err)
			got, err := identity.Read(leaf, trustDomain)
			must.NoError(t, err)
			must.Eq(t, identity.Subject{Node: identity.Node{NodeID: w1.NodeID, Kind: w1.Kind}}, got)
			must.Zero(t, len(leaf.IPAddresses)+len(leaf.DNSNames)+len(leaf.EmailAddresses))
			must.Less(t, setup.DefaultCertTTL+2*time.Minute, leaf.NotAfter.Sub(leaf.NotBefore))
		})
	}

	// The controller's certificate has addresses and names, and only the controller's ID.
	controller := login(t, root, result.Controller)
	for _, id := range []string{domain + "/controller", own} {
		_, err := controller.Logical().Write(sign+wellknown.ControllerRole, map[string]any{"csr": request(t, address, id)})
		must.Eq(t, id == own, err != nil)
	}
}

// authority is the extension by which a request asks for the certificate of an authority.
func authority(t *testing.T) []pkix.Extension {
	t.Helper()
	value, err := asn1.Marshal(struct{ IsCA bool }{true})
	must.NoError(t, err)
	return []pkix.Extension{{Id: asn1.ObjectIdentifier{2, 5, 29, 19}, Critical: true, Value: value}}
}

// Names of zones and nodes may contain "-": "a-b/c" and "a/b-c" share nothing.
func TestNodesDoNotShareARole(t *testing.T) {
	_, root := testhost.Vault(t)
	one := setuptest.Node{NodeID: fabric.NodeID{Zone: "a-b", Name: "c"}, Kind: fabric.KindWorkload}
	other := setuptest.Node{NodeID: fabric.NodeID{Zone: "a", Name: "b-c"}, Kind: fabric.KindWorkload}
	result := setuptest.Vault(t, root, setuptest.Settings("test", trustDomain), one, other)
	for _, n := range []setuptest.Node{one, other} {
		client := login(t, root, result.Nodes[n.NodeID])
		for _, id := range []fabric.NodeID{one.NodeID, other.NodeID} {
			csr := request(t, nil, "spiffe://"+trustDomain+id.SPIFFE())
			_, err := client.Logical().Write(wellknown.PKIMount+"/sign/"+wellknown.NodeRole(id.Zone, id.Name), map[string]any{"csr": csr})
			must.Eq(t, id == n.NodeID, err == nil)
		}
	}
}
