// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package identity

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
)

// ServerTLS returns the configuration of a server that shows the current
// certificate. clientAuth says whether clients must show one; a chain that is
// shown is always verified against the current authorities and must carry one
// SPIFFE ID of the trust domain. Peer returns it.
func (s *Source) ServerTLS(clientAuth tls.ClientAuthType) *tls.Config {
	c := s.baseTLS(nil)
	c.GetCertificate = func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return s.Certificate(), nil }
	// Go's own verification knows only a fixed pool; ours replaces it.
	switch clientAuth {
	case tls.VerifyClientCertIfGiven:
		clientAuth = tls.RequestClientCert
	case tls.RequireAndVerifyClientCert:
		clientAuth = tls.RequireAnyClientCert
	}
	c.ClientAuth = clientAuth
	return c
}

// ClientTLS returns the configuration of a client that shows the current
// certificate. The server's chain is verified against the current authorities
// and must carry one SPIFFE ID of the trust domain, which takes the place of
// the host name; expect, if not nil, refuses further.
func (s *Source) ClientTLS(expect func(spiffePath string, leaf *x509.Certificate) error) *tls.Config {
	c := s.baseTLS(expect)
	c.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return s.Certificate(), nil }
	c.InsecureSkipVerify = true // the host name does not matter; VerifyConnection verifies the chain
	return c
}

func (s *Source) baseTLS(expect func(string, *x509.Certificate) error) *tls.Config {
	return &tls.Config{
		MinVersion:             tls.VersionTLS13,
		SessionTicketsDisabled: true, // every connection is judged by today's authorities
		VerifyConnection: func(state tls.ConnectionState) error {
			if len(state.PeerCertificates) == 0 {
				if expect != nil {
					return errors.New("the peer showed no certificate")
				}
				return nil // a server that does not require one; a client always has the server's
			}
			path, err := verifyChain(s.Roots(), s.config.TrustDomain, state.PeerCertificates)
			if err != nil {
				return err
			}
			if expect != nil {
				return expect(path, state.PeerCertificates[0])
			}
			return nil
		},
	}
}
