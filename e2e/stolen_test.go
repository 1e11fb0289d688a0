// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

//go:build e2e

package e2e

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"github.com/sif-project/sif/api"
	"github.com/sif-project/sif/e2e/lab"
	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/internal/config"
	"github.com/sif-project/sif/internal/kvkey"
	"github.com/sif-project/sif/internal/node/rpc"
	"github.com/sif-project/sif/internal/trust/identity"
)

// hostile is a node of the fabric whose certificate and key somebody else uses.
type hostile struct {
	id       fabric.NodeID
	machine  string // its name in the lab
	config   *config.Config
	identity *identity.Source
	http     http.Client
}

// hostile returns a workload node of a zone.
func (f *fabricUnderTest) hostile(t *testing.T, zone string) *hostile {
	t.Helper()
	for _, n := range f.Topology.Nodes(lab.Workload) {
		if n.Zone == zone {
			return f.as(t, n)
		}
	}
	t.Fatalf("zone %s has no workload node", zone)
	return nil
}

// as returns a workload node, as which somebody calls others.
func (f *fabricUnderTest) as(t *testing.T, n *lab.Node) *hostile {
	t.Helper()
	h := &hostile{id: fabric.NodeID{Zone: n.Zone, Name: n.Name}, machine: n.Name}
	var err error
	h.config, err = config.Load(f.SIFConfig(n.Name, "agent"), config.RoleAgent)
	must.NoError(t, err)
	read := func(name string) []byte {
		text, err := os.ReadFile(filepath.Join(h.config.DataDir, "identity", name))
		must.NoError(t, err)
		return text
	}
	pair := read("certificate.pem")
	cert, err := tls.X509KeyPair(pair, pair)
	must.NoError(t, err)
	roots := x509.NewCertPool()
	must.True(t, roots.AppendCertsFromPEM(read("authorities.pem")))
	h.identity = identity.Fixed(h.config.TrustDomain, &cert, roots, fabric.KeySet{})
	h.http.Transport = &http.Transport{
		TLSClientConfig: h.identity.ClientTLS(identity.Subject{Controller: true}), DialContext: f.Dial(n.Name),
	}
	return h
}

// call calls the controller and returns the status and the text of its answer.
func (h *hostile) call(t *testing.T, method, path, body string) (int, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, "https://"+h.config.Controller.All()[0]+path, bytes.NewBufferString(body))
	must.NoError(t, err)
	resp, err := h.http.Do(req)
	must.NoError(t, err)
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	must.NoError(t, err)
	return resp.StatusCode, string(text)
}

// sign returns a link statement, signed as the node does it.
func (h *hostile) sign(t *testing.T, link fabric.Link) api.NodeRequest {
	t.Helper()
	text, err := json.Marshal(link)
	must.NoError(t, err)
	req := api.NodeRequest{Underlay: h.config.Underlay.Addr(), Link: text}
	req.Signature, req.Certificate, err = h.identity.Sign(fabric.LinkSigningInput(text))
	must.NoError(t, err)
	return req
}

// record returns the record of a node in Consul, and its link statement.
func (f *fabricUnderTest) record(t *testing.T, id fabric.NodeID) (r fabric.NodeRecord, l fabric.Link) {
	t.Helper()
	must.NoError(t, json.Unmarshal(f.get(t, kvkey.Node(id).String()), &r))
	must.NoError(t, json.Unmarshal(r.Link, &l))
	return r, l
}

// TestHostileNode has the certificate of a workload node call the controller and the engine with
// what spoils a set, if the set lets it. Everybody else goes on, and people can read the status.
func TestHostileNode(t *testing.T) {
	world.allWell(t, 30*time.Second)
	sequence := world.sequence(t)
	h := world.hostile(t, "aws1")
	other := fabric.NodeID{Zone: "gcp1", Name: "gcp1-w1"}
	_, own := world.record(t, h.id)
	_, theirs := world.record(t, other)
	victim := world.workload(t, "getaway-app/news-gw", "gcp1")
	altered := func(alter func(*fabric.Link)) fabric.Link {
		l := own
		l.Issued = time.Now().UTC()
		alter(&l)
		return l
	}
	links := map[string]struct {
		link fabric.Link
		says string
	}{
		"a key of zeros":        {altered(func(l *fabric.Link) { l.PublicKey = make([]byte, 32) }), "key"},
		"the key of another":    {altered(func(l *fabric.Link) { l.PublicKey = theirs.PublicKey }), "node " + theirs.Node.String() + " has the same public key"},
		"a link of another":     {altered(func(l *fabric.Link) { l.Node = other }), "it is about node " + other.String()},
		"a link of the future":  {altered(func(l *fabric.Link) { l.Issued = l.Issued.Add(24 * time.Hour) }), "in the future"},
		"a link without a port": {altered(func(l *fabric.Link) { l.Ports = map[fabric.NodeID]uint16{{}: 0} }), "port"},
	}
	for name, tc := range links {
		t.Run(name, func(t *testing.T) {
			req := h.sign(t, tc.link)
			body, err := json.Marshal(req)
			must.NoError(t, err)
			status, text := h.call(t, http.MethodPut, "/v1/node", string(body))
			must.Between(t, 400, status, 499, must.Sprint(text))
			must.StrContains(t, text, tc.says)
			must.StrContains(t, text, h.id.String())
		})
	}
	for name, body := range map[string]string{
		"a flow of nothing":     `{"flows":[{}]}`,
		"no flow":               `{"flows":[null]}`,
		"no endpoint":           `{"endpoints":[{}]}`,
		"an audited nothing":    `{"audited":[{}]}`,
		"a link to nowhere":     `{"links":[{"peer":""}]}`,
		"nothing":               `null`,
		"a number of nothing":   `{"sequence":-1}`,
		"another node's name":   fmt.Sprintf(`{"zone":%q,"node":%q}`, other.Zone, other.Name),
		"another's endpoint":    fmt.Sprintf(`{"endpoints":[{"endpoint":%q,"service":"getaway-app/news-gw","ipv4":%q}]}`, victim.alloc, victim.v4),
		"a sequence of its own": `{"sequence":18446744073709551615}`,
	} {
		t.Run("status: "+name, func(t *testing.T) {
			status, text := h.call(t, http.MethodPut, "/v1/node/status", body)
			must.Less(t, 500, status, must.Sprint(text))
			found := false
			for _, n := range world.status(t).Nodes {
				found = found || n.Node == victim.node && len(n.Endpoints) > 0
			}
			must.True(t, found)
		})
	}
	t.Run("endpoints of others", func(t *testing.T) {
		body := fmt.Sprintf(`{"allocation":%q,"ipv4":"100.64.0.9","ipv6":"fd5f:7369:6600::9"}`, victim.alloc)
		status, text := h.call(t, http.MethodPost, "/v1/node/admission", body)
		must.Between(t, 400, status, 499, must.Sprint(text))
		status, text = h.call(t, http.MethodDelete, "/v1/node/admission/"+victim.alloc, "")
		must.Less(t, 500, status, must.Sprint(text))
		world.allWell(t, 30*time.Second)
		world.unchanged(t, sequence)
	})
	t.Run("calls to the engine", func(t *testing.T) {
		var engine fabric.Node
		for _, n := range world.Topology.Nodes(lab.Processor) {
			if n.Zone == h.id.Zone {
				record, _ := world.record(t, fabric.NodeID{Zone: n.Zone, Name: n.Name})
				must.NoError(t, json.Unmarshal(record.Node.Payload, &engine))
			}
		}
		must.NoError(t, world.In(h.machine, func() error {
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			defer cancel()
			handler := func(context.Context, rpc.Peer, string, json.RawMessage) (any, error) { return nil, nil }
			conn, err := rpc.Dial(ctx, netip.AddrPortFrom(engine.Underlay, engine.Engine).String(), h.identity.ClientTLS(identity.OfNode(engine)), h.identity, handler)
			if err != nil {
				return err
			}
			defer conn.Close()
			must.Error(t, conn.Call(ctx, rpc.MethodConnect, rpc.ConnectParams{}, nil))
			must.Error(t, conn.Call(ctx, rpc.MethodForward, rpc.ForwardParams{}, nil))
			_ = conn.Call(ctx, rpc.MethodWithdraw, rpc.WithdrawParams{Endpoints: []string{victim.alloc, ""}}, nil)
			_ = conn.Call(ctx, rpc.MethodSync, json.RawMessage(`{"endpoints":null,"owners":[null]}`), nil)
			return nil
		}))
		world.unchanged(t, sequence)
	})
	// The same in Consul, behind the controller's back, while the node does not put its record
	// right: the others leave it out and name it, and go on.
	must.NoError(t, world.Stop(t.Context(), h.machine, "agent"))
	t.Cleanup(func() {
		must.NoError(t, world.Start(h.machine, "agent"))
		world.allWell(t, 60*time.Second)
		world.unchanged(t, sequence)
	})
	// Not the link of the future: nodes do not judge by their own clocks, and who has a node's key
	// may keep that node, and no other, from changing its link.
	delete(links, "a link of the future")
	for name, tc := range links {
		t.Run("in Consul: "+name, func(t *testing.T) {
			record, _ := world.record(t, h.id)
			req := h.sign(t, tc.link)
			record.Link, record.Certificate, record.Signature = req.Link, req.Certificate, req.Signature
			forged, err := json.Marshal(record)
			must.NoError(t, err)
			world.tamper(t, kvkey.Node(h.id).String(), func([]byte) []byte { return forged })
			says := []string{"the record of node " + h.id.String() + " is refused"}
			world.complains(t, complaint{kind: lab.Workload, says: says}, complaint{kind: lab.Processor, all: true, says: says})
			world.unchanged(t, sequence)
		})
	}
}
