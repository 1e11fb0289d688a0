// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package api

import (
	"crypto/tls"
	"crypto/x509"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/internal/trust/identity/identitytest"
)

// Beyond its end, a certificate of the controller counts for as long as it was asked to, and is
// verified as before: its address, its authority, whose it is.
func TestExpired(t *testing.T) {
	ca, other := identitytest.NewCA(t), identitytest.NewCA(t)
	path := filepath.Join(t.TempDir(), "ca.pem")
	must.NoError(t, os.WriteFile(path, ca.PEM(), 0o600))
	ended := func(ago time.Duration) func(*x509.Certificate) {
		return func(c *x509.Certificate) {
			c.NotBefore, c.NotAfter = time.Now().Add(-ago-time.Minute), time.Now().Add(-ago)
		}
	}
	here, elsewhere := identitytest.At(net.IPv4(127, 0, 0, 1)), identitytest.At(net.IPv4(127, 0, 0, 9))
	for name, tt := range map[string]struct {
		cert    *tls.Certificate
		expired time.Duration
		want    string // of the error; empty: it is accepted
	}{
		"within":          {ca.Issue(fabric.ControllerSPIFFE, "controller", here, ended(30*time.Second)), time.Minute, ""},
		"not asked to":    {ca.Issue(fabric.ControllerSPIFFE, "controller", here, ended(30*time.Second)), 0, "SIF_EXPIRED=72h"},
		"longer ago":      {ca.Issue(fabric.ControllerSPIFFE, "controller", here, ended(90*time.Second)), time.Minute, "expired"},
		"of elsewhere":    {ca.Issue(fabric.ControllerSPIFFE, "controller", elsewhere, ended(30*time.Second)), time.Minute, "127.0.0.9"},
		"of a node":       {ca.Issue("/node/aws1/w1", "workload", here, ended(30*time.Second)), time.Minute, "not the controller"},
		"of another CA":   {other.Issue(fabric.ControllerSPIFFE, "controller", here, ended(30*time.Second)), time.Minute, "unknown authority"},
		"valid":           {ca.Issue(fabric.ControllerSPIFFE, "controller", here), time.Minute, ""},
		"valid elsewhere": {ca.Issue(fabric.ControllerSPIFFE, "controller", elsewhere), time.Minute, "127.0.0.9"},
	} {
		t.Run(name, func(t *testing.T) {
			server := ca.Controller(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if r.ProtoMajor != 2 {
					w.WriteHeader(http.StatusHTTPVersionNotSupported)
				}
			}))
			defer server.Close()
			server.TLS.GetConfigForClient = func(*tls.ClientHelloInfo) (*tls.Config, error) {
				conf := server.TLS.Clone()
				conf.Certificates, conf.NextProtos = []tls.Certificate{*tt.cert}, []string{"h2", "http/1.1"}
				return conf, nil
			}
			client, err := NewClient(Config{Address: server.URL, CACert: path, Expired: tt.expired, Patience: time.Nanosecond})
			must.NoError(t, err)
			defer client.Close()
			_, err = client.read(t.Context(), "/v1/graph", nil)
			if tt.want == "" {
				must.NoError(t, err)
			} else {
				must.ErrorContains(t, err, tt.want)
			}
		})
	}
}
