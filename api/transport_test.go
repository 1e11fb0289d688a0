// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package api

import (
	"crypto/tls"
	"crypto/x509"
	"net"
	"net/http"
	"sync/atomic"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/internal/trust/identity/identitytest"
)

// No call goes over a connection on which a certificate has ended, at either side, and none fails
// because of that as long as the certificates are renewed.
func TestConnectionsAreReplacedBeforeCertificatesEnd(t *testing.T) {
	ca := identitytest.NewCA(t)
	// soon is renewed for each connection, and lives for 3 s.
	soon := func(path, unit string) *tls.Certificate {
		return ca.Issue(path, unit, identitytest.At(net.IPv4(127, 0, 0, 1)),
			func(c *x509.Certificate) { c.NotAfter = time.Now().Add(3 * time.Second) })
	}
	for name, tt := range map[string]struct{ client, server bool }{"of the client": {client: true}, "of the server": {server: true}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var connections atomic.Int64
			var shown atomic.Pointer[tls.Certificate] // by the server, on the newest connection
			server := ca.Controller(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				for _, leaf := range append(r.TLS.PeerCertificates, shown.Load().Leaf) {
					if !time.Now().Before(leaf.NotAfter) {
						w.WriteHeader(http.StatusUnauthorized)
					}
				}
			}))
			defer server.Close()
			server.TLS.ClientAuth = tls.RequestClientCert
			server.TLS.GetConfigForClient = func(*tls.ClientHelloInfo) (*tls.Config, error) {
				connections.Add(1)
				conf := server.TLS.Clone()
				if tt.server {
					conf.Certificates = []tls.Certificate{*soon(fabric.ControllerSPIFFE, "controller")}
				}
				shown.Store(&conf.Certificates[0])
				return conf, nil
			}
			conf := &tls.Config{RootCAs: ca.Roots()}
			if tt.client {
				conf.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
					return soon("/node/aws1/w1", "workload"), nil
				}
			}
			client, err := NewClient(Config{Address: server.URL, TLS: conf})
			must.NoError(t, err)
			defer client.Close()
			for end := time.Now().Add(4 * time.Second); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
				_, err := client.Graph(t.Context())
				must.NoError(t, err)
			}
			must.Greater(t, 1, connections.Load())
			must.Less(t, 20, connections.Load()) // and connections are used again
		})
	}
}
