// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package api

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"time"
)

// MaxExpired is the longest time for which a client accepts a controller's certificate beyond its
// end: the longest bound of an outage.
const MaxExpired = 96 * time.Hour

// dialExpired returns a function that opens connections to servers whose certificates may have
// ended up to within ago. Everything else is verified as without that. conf is not modified.
func dialExpired(conf *tls.Config, within time.Duration) func(ctx context.Context, network, address string) (net.Conn, error) {
	return func(ctx context.Context, network, address string) (net.Conn, error) {
		host, _, err := net.SplitHostPort(address)
		if err != nil {
			return nil, err
		}
		c := conf.Clone()
		c.ServerName, c.NextProtos = host, []string{"h2", "http/1.1"}
		// VerifyConnection takes its place. It is given no server name that is an IP address.
		c.InsecureSkipVerify = true
		c.VerifyConnection = func(state tls.ConnectionState) error {
			if err := verifyExpired(state, host, c.RootCAs, within); err != nil {
				return err
			}
			return conf.VerifyConnection(state)
		}
		ctx, cancel := context.WithTimeout(ctx, 2*dialTimeout)
		defer cancel()
		return (&tls.Dialer{Config: c}).DialContext(ctx, network, address)
	}
}

func verifyExpired(state tls.ConnectionState, host string, roots *x509.CertPool, within time.Duration) error {
	if len(state.PeerCertificates) == 0 {
		return errors.New("the server showed no certificate")
	}
	leaf, now := state.PeerCertificates[0], time.Now()
	if now.After(leaf.NotAfter) && now.Before(leaf.NotAfter.Add(within)) {
		now = leaf.NotAfter
	}
	intermediates := x509.NewCertPool()
	for _, cert := range state.PeerCertificates[1:] {
		intermediates.AddCert(cert)
	}
	_, err := leaf.Verify(x509.VerifyOptions{DNSName: host, Roots: roots, Intermediates: intermediates, CurrentTime: now})
	return err
}
