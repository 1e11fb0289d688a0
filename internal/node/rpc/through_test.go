// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package rpc

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/internal/trust/identity"
	"github.com/sif-project/sif/internal/trust/identity/identitytest"
)

// passing runs a server that passes connections on to the nodes in addresses, until the test ends.
func passing(t *testing.T, id *identity.Source, addresses map[fabric.NodeID]string) string {
	t.Helper()
	s, err := NewServer(id.ServerTLS(tls.RequireAndVerifyClientCert), id, nil, deny)
	must.NoError(t, err)
	s.PassOn(func(ctx context.Context, from Peer, to fabric.NodeID) (net.Conn, error) {
		if from.Kind != fabric.KindProcessor {
			return nil, fmt.Errorf("%s is no processor", from.NodeID)
		}
		if addresses[to] == "" {
			return nil, fmt.Errorf("no link leads to %s", to)
		}
		return new(net.Dialer).DialContext(ctx, "tcp", addresses[to])
	})
	return run(t, s)
}

// Over any number of nodes, both ends know each other as if they were connected directly.
func TestConnectionThroughOthers(t *testing.T) {
	ca := identitytest.NewCA(t)
	names := []string{"a", "b", "c", "d"}
	ids, addresses := map[string]*identity.Source{}, map[string]string{}
	node := func(zone string) fabric.NodeID { return fabric.NodeID{Zone: zone, Name: "p1"} }
	for _, zone := range names {
		ids[zone] = ca.Node(zone, "p1", fabric.KindProcessor)
	}
	ended := make(chan struct{}, 8)
	addresses["d"] = serve(t, ids["d"], func(_ context.Context, c *Conn) {
		go func() {
			<-c.Done()
			ended <- struct{}{}
		}()
	}, func(_ context.Context, from Peer, method string, _ json.RawMessage) (any, error) {
		return AnnounceReply{Refused: map[string]string{"from": from.String(), "method": method}}, nil
	})
	addresses["c"] = passing(t, ids["c"], map[fabric.NodeID]string{node("d"): addresses["d"]})
	addresses["b"] = passing(t, ids["b"], map[fabric.NodeID]string{node("c"): addresses["c"]})
	through := func(as *identity.Source, path ...string) (net.Conn, error) {
		raw, err := net.Dial("tcp", addresses[path[0]])
		must.NoError(t, err)
		for i, via := range path[:len(path)-1] {
			if raw, err = Through(quiet(), raw, as.ClientTLS(engineAt(via, "p1")), as, node(path[i+1])); err != nil {
				return nil, err
			}
		}
		return raw, nil
	}
	raw, err := through(ids["a"], "b", "c", "d")
	must.NoError(t, err)
	c, err := DialBy(quiet(), raw, ids["a"].ClientTLS(engineAt("d", "p1")), ids["a"], deny)
	must.NoError(t, err)
	must.Eq(t, node("d"), c.Peer().NodeID)
	ctx, cancel := context.WithTimeout(quiet(), 10*time.Second)
	defer cancel()
	var reply AnnounceReply
	must.NoError(t, c.Call(ctx, MethodAnnounce, AnnounceParams{}, &reply))
	must.Eq(t, map[string]string{"from": "a/p1", "method": MethodAnnounce}, reply.Refused)
	c.Close()
	<-ended // the nodes between have closed theirs

	// Whoever is at the end must be who was asked for.
	raw, err = through(ids["a"], "b", "c", "d")
	must.NoError(t, err)
	_, err = DialBy(quiet(), raw, ids["a"].ClientTLS(engineAt("e", "p1")), ids["a"], deny)
	must.ErrorContains(t, err, "expected")

	var remote *RemoteError
	_, err = through(ids["a"], "b", "d")
	must.True(t, errors.As(err, &remote))
	must.ErrorContains(t, err, "no link leads to d/p1")
	agent := ca.Node("a", "w1", fabric.KindWorkload)
	_, err = through(agent, "b", "c")
	must.ErrorContains(t, err, "a/w1 is no processor")
	// An older version knows nothing of that.
	_, err = through(ids["a"], "d", "c")
	must.ErrorContains(t, err, "its version does not pass connections on")
	// Nobody without a certificate of the fabric gets as far as to ask.
	stranger := identitytest.NewCA(t).Node("a", "p1", fabric.KindProcessor)
	_, err = through(stranger, "b", "c")
	must.Error(t, err)
}

// What a node passes on is bounded for each node that asks.
func TestThroughIsBounded(t *testing.T) {
	b := identitytest.NewCA(t).Node("b", "p1", fabric.KindProcessor)
	s, err := NewServer(b.ServerTLS(tls.RequireAndVerifyClientCert), b, nil, deny)
	must.NoError(t, err)
	s.PassOn(func(context.Context, Peer, fabric.NodeID) (net.Conn, error) {
		near, far := net.Pipe()
		return far, near.Close()
	})
	open := func(zone string) error {
		_, err := s.open(t.Context(), peer(zone, "p1", fabric.KindProcessor), fabric.NodeID{Zone: "d", Name: "p1"})
		return err
	}
	for range maxThroughEach {
		must.NoError(t, open("a"))
	}
	must.ErrorContains(t, open("a"), "too many connections")
	must.NoError(t, open("c"))
}
