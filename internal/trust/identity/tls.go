// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package identity

import (
	"crypto/tls"
	"fmt"
)

// ServerTLS returns the configuration of a server that shows the current certificate. clientAuth
// says whether clients must show one; a chain that is shown is always verified against the current
// authorities, and Read must accept its leaf. Peer returns the client.
func (s *Source) ServerTLS(clientAuth tls.ClientAuthType) *tls.Config {
	c := s.baseTLS()
	c.GetCertificate = func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return s.Certificate(), nil }
	c.VerifyConnection = func(state tls.ConnectionState) error {
		if len(state.PeerCertificates) == 0 {
			return nil // clientAuth decides whether a client needs a certificate
		}
		_, err := s.verifyPeer(state.PeerCertificates)
		return err
	}
	// Go's own verification knows only a fixed pool of authorities; VerifyConnection replaces it.
	switch clientAuth {
	case tls.VerifyClientCertIfGiven:
		clientAuth = tls.RequestClientCert
	case tls.RequireAndVerifyClientCert:
		clientAuth = tls.RequireAnyClientCert
	}
	c.ClientAuth = clientAuth
	return c
}

// ClientTLS returns the configuration of a client that shows the current certificate and talks to
// no other server than the given one. The server's chain is verified against the current
// authorities; whom its certificate was issued to takes the place of the host name.
func (s *Source) ClientTLS(server Subject) *tls.Config {
	c := s.baseTLS()
	c.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return s.Certificate(), nil }
	c.InsecureSkipVerify = true // the host name does not matter; VerifyConnection verifies the chain
	c.VerifyConnection = func(state tls.ConnectionState) error {
		peer, err := s.verifyPeer(state.PeerCertificates)
		if err == nil && peer != server {
			err = fmt.Errorf("the server is %s, expected %s", peer, server)
		}
		return err
	}
	return c
}

func (s *Source) baseTLS() *tls.Config {
	return &tls.Config{
		MinVersion:             tls.VersionTLS13,
		SessionTicketsDisabled: true, // every connection is judged by the current authorities
	}
}
