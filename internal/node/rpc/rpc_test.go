// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package rpc

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/shoenig/test/must"
	"go.uber.org/goleak"

	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/internal/trust/identity"
	"github.com/sif-project/sif/internal/trust/identity/identitytest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func quiet() context.Context {
	return hclog.WithContext(context.Background(), hclog.NewNullLogger())
}

func deny(context.Context, Peer, string, json.RawMessage) (any, error) {
	return nil, errors.New("nothing is served here")
}

// serve runs a server until the test ends and returns its address.
func serve(t *testing.T, id *identity.Source, onConn func(context.Context, *Conn), h Handler) string {
	t.Helper()
	addr, _ := serveCounting(t, id, onConn, h)
	return addr
}

// serveCounting is serve for tests that look at the server.
func serveCounting(t *testing.T, id *identity.Source, onConn func(context.Context, *Conn), h Handler) (string, *Server) {
	t.Helper()
	s, err := NewServer(id.ServerTLS(tls.RequireAndVerifyClientCert), id, onConn, h)
	must.NoError(t, err)
	return run(t, s), s
}

// run runs a server until the test ends and returns its address.
func run(t *testing.T, s *Server) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must.NoError(t, err)
	ctx, cancel := context.WithCancel(quiet())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx, l) }()
	t.Cleanup(func() {
		cancel()
		must.NoError(t, <-done)
	})
	return l.Addr().String()
}

// dial connects as client to a server.
func dial(addr string, client *identity.Source, server identity.Subject, h Handler) (*Conn, error) {
	return Dial(quiet(), addr, client.ClientTLS(server), client, h)
}

func peer(zone, name string, kind fabric.NodeKind) Peer {
	return Peer{NodeID: fabric.NodeID{Zone: zone, Name: name}, Kind: kind}
}

// engineAt is the engine of a node, as clients expect it.
func engineAt(zone, name string) identity.Subject {
	return identity.Subject{Node: peer(zone, name, fabric.KindProcessor)}
}

func TestBothSidesCall(t *testing.T) {
	ca := identitytest.NewCA(t)
	agent := ca.Node("aws1", "aws1-w1", fabric.KindWorkload)
	engine := ca.Node("aws1", "aws1-p1", fabric.KindProcessor)

	conns := make(chan *Conn, 1)
	// The engine's handler calls the agent back before it answers.
	addr := serve(t, engine, func(_ context.Context, c *Conn) { conns <- c },
		func(ctx context.Context, from Peer, method string, params json.RawMessage) (any, error) {
			if method != MethodConnect || from != peer("aws1", "aws1-w1", fabric.KindWorkload) {
				return nil, fmt.Errorf("unexpected %s from %v", method, from)
			}
			c := <-conns
			conns <- c
			var reply AnnounceReply
			if err := c.Call(ctx, MethodAnnounce, AnnounceParams{}, &reply); err != nil {
				return nil, err
			}
			return ConnectReply{Pending: []string{reply.Refused["e"]}}, nil
		})
	c, err := Dial(quiet(), addr, agent.ClientTLS(engineAt("aws1", "aws1-p1")), agent,
		func(_ context.Context, from Peer, method string, _ json.RawMessage) (any, error) {
			return AnnounceReply{Refused: map[string]string{"e": from.String() + " " + method}}, nil
		})
	must.NoError(t, err)
	defer c.Close()
	must.Eq(t, peer("aws1", "aws1-p1", fabric.KindProcessor), c.Peer())

	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	var reply ConnectReply
	must.NoError(t, c.Call(ctx, MethodConnect, ConnectParams{}, &reply))
	must.Eq(t, []string{"aws1/aws1-p1 announce"}, reply.Pending)

	err = c.Call(ctx, "nonsense", nil, nil)
	var remote *RemoteError
	must.True(t, errors.As(err, &remote))
	must.StrContains(t, remote.Message, "unexpected nonsense")
}

func TestRefusedPeers(t *testing.T) {
	ca, other := identitytest.NewCA(t), identitytest.NewCA(t)
	engine := ca.Node("aws1", "aws1-p1", fabric.KindProcessor)
	addr := serve(t, engine, nil,
		func(context.Context, Peer, string, json.RawMessage) (any, error) { return "in", nil })

	good := ca.Node("aws1", "aws1-w1", fabric.KindWorkload)
	node := fabric.NodeID{Zone: "aws1", Name: "aws1-w1"}.SPIFFE()
	for name, cert := range map[string]*tls.Certificate{
		"none":            {},
		"other authority": other.Issue(node, "workload"),
		"service":         ca.Issue("/getaway-app/http-proxy", "workload"),
		"controller":      ca.Issue("/controller", "workload"),
		"no kind":         ca.Issue(node, ""),
		"odd kind":        ca.Issue(node, "printer"),
		"a kind twice": ca.Issue(node, "", func(c *x509.Certificate) {
			c.Subject.OrganizationalUnit = []string{"workload", "workload"}
		}),
		"deeper path": ca.Issue(node+"/x", "workload"),
		"bad name":    ca.Issue("/node/aws1/Aws", "workload"),
		"two URIs":    ca.Issue(node, "workload", func(c *x509.Certificate) { c.URIs = append(c.URIs, c.URIs[0]) }),
		"other domain": ca.Issue(node, "workload", func(c *x509.Certificate) {
			u := *c.URIs[0]
			u.Host = "evil.test"
			c.URIs[0] = &u
		}),
		"expired":   ca.Issue(node, "workload", func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Second) }),
		"authority": ca.Issue(node, "workload", func(c *x509.Certificate) { c.IsCA, c.BasicConstraintsValid = true, true }),
	} {
		t.Run(name, func(t *testing.T) {
			conf := good.ClientTLS(engineAt("aws1", "aws1-p1"))
			conf.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return cert, nil }
			c, err := Dial(quiet(), addr, conf, good, deny)
			if err == nil { // in TLS 1.3 the client learns of its refusal afterwards
				defer c.Close()
				ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
				defer cancel()
				var got string
				err = c.Call(ctx, MethodConnect, nil, &got)
				must.NotEq(t, "in", got)
				must.ErrorIs(t, err, ErrClosed)
			}
			must.Error(t, err)
		})
	}
	t.Run("the server is not who was expected", func(t *testing.T) {
		for want, expected := range map[identity.Subject]string{
			engineAt("gcp1", "gcp1-p1"):                            "processor node gcp1/gcp1-p1",
			{Node: peer("aws1", "aws1-p1", fabric.KindWorkload)}:   "workload node aws1/aws1-p1",
			{Service: fabric.Ref{Domain: "aws1", Name: "aws1-p1"}}: "service aws1/aws1-p1",
			{Controller: true}:                                     "the controller",
		} {
			_, err := Dial(quiet(), addr, good.ClientTLS(want), good, deny)
			must.ErrorContains(t, err, "the server is processor node aws1/aws1-p1, expected "+expected)
		}
	})
	t.Run("the server is of another authority", func(t *testing.T) {
		_, err := dial(addr, other.Node("aws1", "aws1-w1", fabric.KindWorkload), engineAt("aws1", "aws1-p1"), deny)
		must.ErrorContains(t, err, "unknown authority")
	})
	t.Run("a server that asks for no certificate", func(t *testing.T) {
		_, err := NewServer(engine.ServerTLS(tls.RequestClientCert), engine, nil, deny)
		must.ErrorContains(t, err, "does not require client certificates")
	})
}

// connect returns both ends of a connection.
func connect(t *testing.T, server, client Handler) (atServer, atClient *Conn) {
	t.Helper()
	ca := identitytest.NewCA(t)
	conns := make(chan *Conn, 1)
	addr := serve(t, ca.Node("z", "p", fabric.KindProcessor), func(_ context.Context, c *Conn) { conns <- c }, server)
	c, err := dial(addr, ca.Node("z", "w", fabric.KindWorkload), engineAt("z", "p"), client)
	must.NoError(t, err)
	t.Cleanup(func() { c.Close() })
	return <-conns, c
}

func TestHandlers(t *testing.T) {
	var running, most atomic.Int64
	release := make(chan struct{})
	_, c := connect(t, func(ctx context.Context, _ Peer, method string, params json.RawMessage) (any, error) {
		switch method {
		case "panic":
			panic("oops")
		case "large":
			return strings.Repeat("x", maxFrame), nil
		case "wait":
			n := running.Add(1)
			for m := most.Load(); n > m && !most.CompareAndSwap(m, n); m = most.Load() {
			}
			defer running.Add(-1)
			select {
			case <-release:
			case <-ctx.Done():
			}
		}
		return params, nil
	}, deny)
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()

	must.ErrorContains(t, c.Call(ctx, "panic", nil, nil), "internal error")
	must.ErrorContains(t, c.Call(ctx, "large", nil, nil), "a frame has at most")
	must.ErrorContains(t, c.Call(ctx, "echo", strings.Repeat("x", maxFrame), nil), "a frame has at most")
	var got string
	must.NoError(t, c.Call(ctx, "echo", "still here", &got))
	must.Eq(t, "still here", got)

	// A call's own time ends it, and only it.
	short, stop := context.WithTimeout(ctx, 50*time.Millisecond)
	defer stop()
	must.ErrorIs(t, c.Call(short, "wait", nil, nil), context.DeadlineExceeded)

	// Handlers are bounded, and calls beyond the bound of waiting are refused.
	const n = maxWaiting + 50
	errs := make(chan error, n)
	for range n {
		go func() { errs <- c.Call(ctx, "wait", nil, nil) }()
	}
	refused := 0
	for refused < 50 { // one waits from above
		must.ErrorContains(t, <-errs, "too many calls")
		refused++
	}
	close(release)
	for range n - refused {
		if err := <-errs; err != nil {
			must.ErrorContains(t, err, "too many calls")
		}
	}
	must.LessEq(t, maxRunning, most.Load())
	must.NoError(t, c.Call(ctx, "echo", "and now", &got))
}

func TestCloseEndsCallsAndHandlers(t *testing.T) {
	started := make(chan struct{})
	ended := make(chan struct{})
	s, c := connect(t, func(ctx context.Context, _ Peer, _ string, _ json.RawMessage) (any, error) {
		close(started)
		<-ctx.Done()
		close(ended)
		return nil, ctx.Err()
	}, deny)
	errs := make(chan error, 1)
	go func() { errs <- c.Call(context.Background(), "wait", nil, nil) }()
	<-started
	must.NoError(t, s.Close())
	must.NoError(t, s.Close())
	<-ended
	<-s.Done()
	must.ErrorIs(t, <-errs, ErrClosed)
	<-c.Done()
	must.ErrorIs(t, c.Call(context.Background(), "x", nil, nil), ErrClosed)
	must.ErrorIs(t, c.Notify(context.Background(), "x", nil), ErrClosed)
}

// TestDeadPeerIsNoticed uses a relay between two peers that drops everything, as if the host of the
// peer were down.
func TestDeadPeerIsNoticed(t *testing.T) {
	if testing.Short() {
		t.Skip("takes as long as a dead peer goes unnoticed")
	}
	t.Parallel()
	ca := identitytest.NewCA(t)
	addr := serve(t, ca.Node("z", "p", fabric.KindProcessor), nil, deny)
	relay, err := net.Listen("tcp", "127.0.0.1:0")
	must.NoError(t, err)
	defer relay.Close()
	var silent atomic.Bool
	go func() {
		in, err := relay.Accept()
		if err != nil {
			return
		}
		defer in.Close()
		out, err := net.Dial("tcp", addr)
		if err != nil {
			return
		}
		defer out.Close()
		pass := func(to, from net.Conn) {
			buf := make([]byte, 4096)
			for {
				n, err := from.Read(buf)
				if err != nil {
					return
				}
				if !silent.Load() {
					to.Write(buf[:n])
				}
			}
		}
		go pass(in, out)
		pass(out, in)
	}()
	c, err := dial(relay.Addr().String(), ca.Node("z", "w", fabric.KindWorkload), engineAt("z", "p"), deny)
	must.NoError(t, err)
	silent.Store(true)
	select {
	case <-c.Done():
	case <-time.After(30 * time.Second):
		c.Close()
		t.Fatal("the connection is still thought to live after 30 s")
	}
}

// until ends a certificate at that time.
func until(end time.Time) func(*x509.Certificate) {
	return func(c *x509.Certificate) { c.NotAfter = end }
}

// source returns the identity of a node whose certificate ends at that time.
func source(ca *identitytest.CA, zone, name string, kind fabric.NodeKind, end time.Time) *identity.Source {
	cert := ca.Issue(fabric.NodeID{Zone: zone, Name: name}.SPIFFE(), string(kind), until(end))
	return identity.Fixed(identitytest.TrustDomain, cert, ca.Roots(), ca.Keys())
}

// The certificates are checked for each call, on both sides, on connections that are open.
func TestNoCallAfterTheCertificateEnds(t *testing.T) {
	t.Parallel()
	ca := identitytest.NewCA(t)
	for name, ends := range map[string]struct{ server, client time.Duration }{
		"of the client": {time.Hour, 2 * time.Second},
		"of the server": {2 * time.Second, time.Hour},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			now := time.Now()
			conns := make(chan *Conn, 1)
			var handled atomic.Int64
			count := func(context.Context, Peer, string, json.RawMessage) (any, error) { return handled.Add(1), nil }
			addr := serve(t, source(ca, "z", "p", fabric.KindProcessor, now.Add(ends.server)), func(_ context.Context, c *Conn) { conns <- c }, count)
			c, err := dial(addr, source(ca, "z", "w", fabric.KindWorkload, now.Add(ends.client)), engineAt("z", "p"), count)
			must.NoError(t, err)
			defer c.Close()
			s := <-conns
			for _, side := range []*Conn{c, s} {
				must.NoError(t, side.Call(t.Context(), "before", nil, nil))
			}
			time.Sleep(time.Until(now.Add(2 * time.Second))) // no ping has noticed yet
			for _, side := range []*Conn{c, s} {
				err := side.Call(t.Context(), "after", nil, nil)
				must.ErrorIs(t, err, ErrClosed)
				must.ErrorContains(t, err, "ended")
				must.ErrorIs(t, side.Notify(t.Context(), "after", nil), ErrClosed)
			}
			must.Eq(t, 2, handled.Load())
			<-c.Done()
			<-s.Done()
		})
	}
}

// A certificate that is revoked is refused at the handshake, and at the next call on connections
// that are open, whoever calls.
func TestRevokedPeer(t *testing.T) {
	ca := identitytest.NewCA(t)
	client, server := ca.Node("z", "w", fabric.KindWorkload), ca.Node("z", "p", fabric.KindProcessor)
	var gone atomic.Bool
	server.SetRevoked(func(s identity.Subject, leaf *x509.Certificate) error {
		if gone.Load() && s.Node == peer("z", "w", fabric.KindWorkload) && leaf.Equal(client.Certificate().Leaf) {
			return errors.New("the node was removed")
		}
		return nil
	})
	conns := make(chan *Conn, 3)
	var handled atomic.Int64
	count := func(context.Context, Peer, string, json.RawMessage) (any, error) { return handled.Add(1), nil }
	addr := serve(t, server, func(_ context.Context, c *Conn) { conns <- c }, count)
	connected := func() (atClient, atServer *Conn) {
		c, err := dial(addr, client, engineAt("z", "p"), count)
		must.NoError(t, err)
		t.Cleanup(func() { c.Close() })
		must.NoError(t, c.Call(t.Context(), "x", nil, nil))
		return c, <-conns
	}
	first, _ := connected()
	second, atServer := connected()
	idle, _ := connected()
	must.Eq(t, 3, handled.Load())
	gone.Store(true)
	err := first.Call(t.Context(), "x", nil, nil)
	must.ErrorIs(t, err, ErrClosed)
	must.ErrorContains(t, err, "the certificate of workload node z/w is revoked: the node was removed")
	<-first.Done()
	must.ErrorContains(t, atServer.Call(t.Context(), "x", nil, nil), "the node was removed")
	<-second.Done()
	must.Eq(t, 3, handled.Load())
	// A connection on which nobody calls is closed when the list is reviewed, not with the next
	// ping.
	server.Review()
	select {
	case <-idle.Done():
	case <-time.After(pingInterval - time.Second):
		t.Fatal("an idle connection of a revoked peer stays open")
	}
	c, err := dial(addr, client, engineAt("z", "p"), count)
	if err == nil { // in TLS 1.3 the client learns of its refusal afterwards
		must.ErrorIs(t, c.Call(t.Context(), "x", nil, nil), ErrClosed)
	}
	must.Eq(t, 3, handled.Load())
}

// A connection is replaced before its certificates end, and no call is lost meanwhile.
func TestConnectionOutlivesItsCertificates(t *testing.T) {
	t.Parallel()
	ca := identitytest.NewCA(t)
	addr := serve(t, ca.Node("z", "p", fabric.KindProcessor), nil,
		func(_ context.Context, _ Peer, _ string, params json.RawMessage) (any, error) {
			time.Sleep(50 * time.Millisecond) // so that calls are in progress whenever the connection changes
			return params, nil
		})
	ctx, cancel := context.WithCancel(quiet())
	defer cancel()
	var current atomic.Pointer[Conn]
	ready, ended := make(chan *Conn, 16), make(chan error, 1)
	go func() {
		ended <- Stay(ctx, func(ctx context.Context) (*Conn, error) {
			client := source(ca, "z", "w", fabric.KindWorkload, time.Now().Add(4*time.Second)) // renewed each time
			return Dial(ctx, addr, client.ClientTLS(engineAt("z", "p")), client, deny)
		}, func(_ context.Context, c *Conn) error {
			current.Store(c)
			ready <- c
			return nil
		})
	}()
	first := <-ready
	for len(ready) < 3 { // three replacements: longer than the first certificate lives
		var got string
		must.NoError(t, current.Load().Call(ctx, "echo", "x", &got))
		must.Eq(t, "x", got)
	}
	<-first.Done()
	current.Load().conn.Close()
	must.ErrorIs(t, <-ended, ErrClosed)

	// When ctx ends, every connection is closed.
	go func() {
		ended <- Stay(ctx, func(ctx context.Context) (*Conn, error) {
			return dial(addr, ca.Node("z", "w", fabric.KindWorkload), engineAt("z", "p"), deny)
		}, func(_ context.Context, c *Conn) error {
			current.Store(c)
			cancel()
			return nil
		})
	}()
	must.NoError(t, <-ended)
	<-current.Load().Done()
}

func FuzzReadFrame(f *testing.F) {
	f.Add([]byte{0, 0, 0, 2, '{', '}'})
	f.Add([]byte{0xff, 0xff, 0xff, 0xff})
	f.Add([]byte{0, 0, 0, 9, '{'})
	f.Fuzz(func(t *testing.T, data []byte) {
		body, err := readFrame(bytes.NewReader(data))
		if err != nil {
			return
		}
		if want := binary.BigEndian.Uint32(data); len(body) != int(want) {
			t.Fatalf("%d bytes instead of %d", len(body), want)
		}
	})
}

func TestReadFrameLimits(t *testing.T) {
	head := binary.BigEndian.AppendUint32(nil, maxFrame+1)
	_, err := readFrame(bytes.NewReader(head))
	must.ErrorContains(t, err, "at most")
	_, err = readFrame(bytes.NewReader([]byte{0, 0, 0, 9, '{'}))
	must.ErrorIs(t, err, io.ErrUnexpectedEOF)
}
