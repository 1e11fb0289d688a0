// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package api

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"time"
)

// MaxExpired is the longest time for which a client accepts a controller's certificate beyond its
// end: the longest bound of an outage.
const MaxExpired = 96 * time.Hour

// acceptExpired has a client accept a server's certificate for a while beyond its end. Everything
// else is verified as without that.
func acceptExpired(c *tls.Config, within time.Duration) {
	roots := c.RootCAs
	c.InsecureSkipVerify = true // VerifyConnection takes its place
	c.VerifyConnection = func(state tls.ConnectionState) error {
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
		_, err := leaf.Verify(x509.VerifyOptions{DNSName: state.ServerName, Roots: roots, Intermediates: intermediates, CurrentTime: now})
		return err
	}
}
