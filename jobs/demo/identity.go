// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
)

// identity is who this process can prove to be, by the SPIFFE Workload API at the address in
// SPIFFE_ENDPOINT_SOCKET. The zero value asks when it is first needed; from then on it follows.
type identity struct {
	mu     sync.Mutex
	source *workloadapi.X509Source
}

// proven is the process's identity. Only services that speak mutual TLS use it.
var proven identity

func (i *identity) get(ctx context.Context) (*workloadapi.X509Source, error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.source == nil {
		source, err := workloadapi.NewX509Source(ctx)
		if err != nil {
			return nil, fmt.Errorf("get an identity: %w", err)
		}
		i.source = source
	}
	return i.source, nil
}

// proof is what the other end of a connection has proved to be.
type proof struct {
	ID     string `json:"id"`
	Serial string `json:"serial"` // of its certificate
}

func proofOf(state *tls.ConnectionState) *proof {
	if state == nil || len(state.PeerCertificates) == 0 {
		return nil
	}
	leaf := state.PeerCertificates[0]
	p := &proof{Serial: leaf.SerialNumber.Text(16)}
	if len(leaf.URIs) == 1 {
		p.ID = leaf.URIs[0].String()
	}
	return p
}

// dialTLS opens a connection to a service by mutual TLS. Which service it must be, the name says:
// <service>.<domain>.sif.
func (i *identity) dialTLS(ctx context.Context, network, address string) (net.Conn, error) {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return nil, err
	}
	name := strings.Split(host, ".")
	if len(name) < 3 || name[len(name)-1] != "sif" {
		return nil, fmt.Errorf("%s is not of the form <service>.<domain>.sif, so that it is unknown whom to expect", host)
	}
	service := name[len(name)-3] + "." + name[len(name)-2]
	source, err := i.get(ctx)
	if err != nil {
		return nil, err
	}
	conn, err := new(net.Dialer).DialContext(ctx, network, address)
	if err != nil {
		return nil, err
	}
	c := tls.Client(conn, tlsconfig.MTLSClientConfig(source, source, authorize(source, []string{service})))
	if err := c.HandshakeContext(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("prove identities to %s: %w", host, err), conn.Close())
	}
	return c, nil
}

// authorize accepts services ("<service>.<domain>") of the trust domain of this process.
func authorize(source *workloadapi.X509Source, services []string) tlsconfig.Authorizer {
	return tlsconfig.AdaptMatcher(func(id spiffeid.ID) error {
		own, err := source.GetX509SVID()
		if err != nil {
			return err
		}
		domain, service, _ := strings.Cut(strings.TrimPrefix(id.Path(), "/"), "/")
		if !id.MemberOf(own.ID.TrustDomain()) || !slices.Contains(services, service+"."+domain) {
			return fmt.Errorf("%s is not one of %s in %s", id, strings.Join(services, ", "), own.ID.TrustDomain())
		}
		return nil
	})
}

// listenTLS has a listener speak TLS, and prove who it is.
func (i *identity) listenTLS(ctx context.Context, ln net.Listener, callers []string) (net.Listener, error) {
	source, err := i.get(ctx)
	if err != nil {
		return nil, err
	}
	config := tlsconfig.MTLSServerConfig(source, source, authorize(source, callers))
	// Health checks prove nothing, and get nothing else: see proved.
	config.ClientAuth = tls.RequestClientCert
	verify := config.VerifyPeerCertificate
	config.VerifyPeerCertificate = func(chain [][]byte, verified [][]*x509.Certificate) error {
		if len(chain) == 0 {
			return nil
		}
		return verify(chain, verified)
	}
	return tls.NewListener(ln, config), nil
}

// proved refuses requests of callers that have proved nothing, but for the health.
func proved(self instance, next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/health" && proofOf(r.TLS) == nil {
			writeError(w, self, http.StatusForbidden, errors.New("show a certificate: this service speaks mutual TLS"))
			return
		}
		next.ServeHTTP(w, r)
	})
}
