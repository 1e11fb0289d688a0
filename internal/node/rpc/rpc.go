// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

// Package rpc is the RPC among agents and engines: JSON-RPC 2.0 over mutual TLS, with calls in
// both directions. It knows connections, their peers and the messages; it does not decide whether
// to believe a message.
package rpc

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync/atomic"
	"time"

	"github.com/sif-project/sif/internal/trust/identity"
)

const handshakeTimeout = 10 * time.Second

// Handler answers one call. Calls are handled concurrently: a caller that depends on the order
// waits for each reply. The caller receives an error as a *RemoteError. ctx ends with the
// connection.
type Handler func(ctx context.Context, from Peer, method string, params json.RawMessage) (any, error)

// Identity judges peers by their certificates. *identity.Source implements it.
type Identity interface {
	// Peer returns who is at the other end. It fails when the certificate has ended or is revoked:
	// it is asked at the beginning of a connection, for each call, and before each call.
	Peer(state tls.ConnectionState) (identity.Subject, *x509.Certificate, error)
	// Changed returns a channel that is closed when Peer may answer otherwise than before.
	Changed() <-chan struct{}
	// Stands reports whether a certificate that this side showed may still be used.
	Stands(own *x509.Certificate) bool
}

// Peer is the node at the other end of a connection, as its certificate attests it.
type Peer = identity.Node

// Dial connects to addr ("host:port"). conf must come from identity.ClientTLS, which verifies the
// peer. ctx bounds only the set-up of the connection.
func Dial(ctx context.Context, addr string, conf *tls.Config, id Identity, h Handler) (*Conn, error) {
	return DialFrom(ctx, netip.Addr{}, addr, conf, id, h)
}

// DialFrom is Dial from an address of this machine.
func DialFrom(ctx context.Context, from netip.Addr, addr string, conf *tls.Config, id Identity, h Handler) (*Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, handshakeTimeout)
	defer cancel()
	raw, err := open(ctx, from, addr)
	if err != nil {
		return nil, err
	}
	c, err := DialBy(ctx, raw, conf, id, h)
	if err != nil {
		return nil, fmt.Errorf("connect to %s: %w", addr, err)
	}
	return c, nil
}

// Open is the first step of Dial, for DialBy and Through.
func Open(ctx context.Context, addr string) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, handshakeTimeout)
	defer cancel()
	return open(ctx, netip.Addr{}, addr)
}

func open(ctx context.Context, from netip.Addr, addr string) (net.Conn, error) {
	d := net.Dialer{KeepAliveConfig: keepAlive}
	if from.IsValid() {
		d.LocalAddr = net.TCPAddrFromAddrPort(netip.AddrPortFrom(from, 0))
	}
	d.SetMultipathTCP(false)
	raw, err := d.DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("connect to %s: %w", addr, err)
	}
	return raw, nil
}

// DialBy is Dial by a stream that is there already. It closes raw if it fails.
func DialBy(ctx context.Context, raw net.Conn, conf *tls.Config, id Identity, h Handler) (*Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, handshakeTimeout)
	defer cancel()
	conf, own := noteOwn(conf)
	c, err := handshake(ctx, tls.Client(raw, conf), id, own)
	if err != nil {
		raw.Close()
		return nil, err
	}
	// The connection outlives ctx, and keeps its values.
	c.start(context.WithoutCancel(ctx), h, nil, newLoad())
	return c, nil
}

// noteOwn returns a copy of conf, and where the handshake notes the certificate that this side
// shows. It changes over time, but not for a connection.
func noteOwn(conf *tls.Config) (*tls.Config, *atomic.Pointer[tls.Certificate]) {
	own := new(atomic.Pointer[tls.Certificate])
	note := func(cert *tls.Certificate, err error) (*tls.Certificate, error) {
		if err == nil {
			own.Store(cert)
		}
		return cert, err
	}
	conf = conf.Clone()
	if get := conf.GetCertificate; get != nil {
		conf.GetCertificate = func(h *tls.ClientHelloInfo) (*tls.Certificate, error) { return note(get(h)) }
	}
	if get := conf.GetClientCertificate; get != nil {
		conf.GetClientCertificate = func(r *tls.CertificateRequestInfo) (*tls.Certificate, error) { return note(get(r)) }
	}
	return conf, own
}

// handshake completes the TLS handshake and identifies the peer.
func handshake(ctx context.Context, t *tls.Conn, id Identity, own *atomic.Pointer[tls.Certificate]) (*Conn, error) {
	if err := t.HandshakeContext(ctx); err != nil {
		return nil, err
	}
	state := t.ConnectionState()
	peer, leaf, err := id.Peer(state)
	if err != nil {
		return nil, err
	}
	if !peer.IsNode() {
		return nil, fmt.Errorf("the peer is %s, expected a node", peer)
	}
	ends := leaf.NotAfter
	if cert := own.Load(); cert != nil && cert.Leaf != nil && cert.Leaf.NotAfter.Before(ends) {
		ends = cert.Leaf.NotAfter
	}
	judge := func() error {
		if cert := own.Load(); cert != nil && cert.Leaf != nil && !id.Stands(cert.Leaf) {
			return errors.New("the certificate that this side showed has ended")
		}
		_, _, err := id.Peer(state)
		return err
	}
	return &Conn{peer: peer.Node, conn: t, judge: judge, changed: id.Changed, ends: ends, done: make(chan struct{}), ready: make(chan struct{})}, nil
}
