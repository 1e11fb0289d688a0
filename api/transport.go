// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package api

import (
	"crypto/tls"
	"net"
	"net/http"
	"sync"
	"time"
)

// transport keeps connections to a controller that only it verifies. Before a certificate of an
// open connection ends, at either side, later calls use new connections. So none is sent to a
// controller whose certificate has ended, and a client that renews its certificate is not refused.
type transport struct {
	conf    *tls.Config
	expired time.Duration // how long ago a server's certificate may have ended

	mu      sync.Mutex
	current *http.Transport
	until   time.Time // when current must be replaced; zero: it has no connection
}

// dialTimeout bounds how long a controller may take to accept a connection, and for the handshake.
// An open connection on which nothing has come for pingAfter is pinged, and given up when no answer
// comes within pingTimeout.
const dialTimeout, pingAfter, pingTimeout = 5 * time.Second, 5 * time.Second, 5 * time.Second

// endedRest is how often connections are replaced at which a certificate has ended: in an outage
// such a one can be honoured.
const endedRest = time.Minute

// newTransport returns a transport that uses a copy of conf, and accepts certificates of servers
// that have ended up to expired ago.
func newTransport(conf *tls.Config, trustDomain string, expired time.Duration) *transport {
	conf = conf.Clone()
	t := &transport{conf: conf, expired: expired}
	verify := conf.VerifyConnection
	conf.VerifyConnection = func(state tls.ConnectionState) error { // also of resumed sessions
		if verify != nil {
			if err := verify(state); err != nil {
				return err
			}
		}
		if err := checkPeer(state, trustDomain); err != nil {
			return err
		}
		t.limit(state.PeerCertificates[0].NotAfter)
		return nil
	}
	if get := conf.GetClientCertificate; get != nil {
		conf.GetClientCertificate = func(r *tls.CertificateRequestInfo) (*tls.Certificate, error) {
			cert, err := get(r)
			if err == nil && cert.Leaf != nil {
				t.limit(cert.Leaf.NotAfter)
			}
			return cert, err
		}
	}
	t.current = t.fresh()
	return t
}

func (t *transport) fresh() *http.Transport {
	fresh := &http.Transport{
		TLSClientConfig:     t.conf.Clone(), // it modifies it
		ForceAttemptHTTP2:   true,
		DialContext:         (&net.Dialer{Timeout: dialTimeout}).DialContext,
		TLSHandshakeTimeout: dialTimeout,
		IdleConnTimeout:     90 * time.Second,
		MaxIdleConnsPerHost: 16,
		// A controller whose machine is gone, or which stands still, answers no ping: the calls to
		// it fail then, and another one is asked.
		HTTP2: &http.HTTP2Config{SendPingTimeout: pingAfter, PingTimeout: pingTimeout},
	}
	if t.expired > 0 {
		fresh.DialTLSContext = dialExpired(t.conf, t.expired)
	}
	return fresh
}

// limit has the connections replaced when two thirds of the time until end are over.
func (t *transport) limit(end time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	left := time.Until(end) * 2 / 3
	if left <= 0 {
		left = endedRest
	}
	if until := time.Now().Round(0).Add(left); t.until.IsZero() || until.Before(t.until) {
		t.until = until
	}
}

// RoundTrip implements http.RoundTripper.
func (t *transport) RoundTrip(r *http.Request) (*http.Response, error) {
	t.mu.Lock()
	if !t.until.IsZero() && !time.Now().Before(t.until) {
		// Calls in progress end as they would; then their connections are idle, and close.
		defer t.current.CloseIdleConnections()
		t.current, t.until = t.fresh(), time.Time{}
	}
	current := t.current
	t.mu.Unlock()
	return current.RoundTrip(r)
}

// CloseIdleConnections is called by http.Client.
func (t *transport) CloseIdleConnections() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.current.CloseIdleConnections()
}
