// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package rpc

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/internal/logkey"
)

// A connection can lead through the server of another node: whoever dials asks that one to pass
// bytes on to a third, and makes its TLS handshake with the third by them. So both ends know each
// other as if they were connected directly, and the node between them reads nothing.

// protocolThrough is what a client negotiates by ALPN that asks for that.
const protocolThrough = "sif-through"

// maxThrough limits the streams that a Server passes on, for each node that asks, and for all.
const (
	maxThroughEach = 256
	maxThrough     = 4096
)

// throughRequest is the first frame of the client, throughReply that of the server. What follows
// them is passed on.
type throughRequest struct {
	To fabric.NodeID `json:"to"`
}

type throughReply struct {
	Error string `json:"error,omitempty"`
}

// Onward connects to the node that a peer asks for, or says why this one does not.
type Onward func(ctx context.Context, from Peer, to fabric.NodeID) (net.Conn, error)

// PassOn makes the server pass on streams by connections that onward opens. It must be called
// before Serve.
func (s *Server) PassOn(onward Onward) {
	s.onward = onward
	s.conf = s.conf.Clone()
	s.conf.NextProtos = append(s.conf.NextProtos, protocolThrough)
}

// Through asks the server at the other end of raw, which conf describes as for Dial, to pass bytes
// on to a node. What it returns is the stream to that node. It closes raw if it fails.
func Through(ctx context.Context, raw net.Conn, conf *tls.Config, id Identity, to fabric.NodeID) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, handshakeTimeout)
	defer cancel()
	conf, own := noteOwn(conf)
	conf.NextProtos = []string{protocolThrough}
	t := tls.Client(raw, conf)
	c, err := handshake(ctx, t, id, own)
	if err == nil && t.ConnectionState().NegotiatedProtocol != protocolThrough {
		err = errors.New("its version does not pass connections on")
	}
	if err == nil {
		stop := context.AfterFunc(ctx, func() { _ = t.SetDeadline(time.Unix(1, 0)) })
		var reply throughReply
		if err = writeFrame(t, throughRequest{to}); err == nil {
			err = readOne(t, &reply)
		}
		if !stop() {
			err = ctx.Err()
		}
		_ = t.SetDeadline(time.Time{})
		if err == nil && reply.Error != "" {
			err = &RemoteError{Peer: c.peer, Method: "pass on", Message: reply.Error}
		}
	}
	if err != nil {
		raw.Close()
		return nil, fmt.Errorf("reach %s: %w", to, err)
	}
	return t, nil
}

// passOn serves a stream that c's peer wants to be passed on, until either end closes it, the
// peer's certificate ends or is revoked, or ctx ends.
func (s *Server) passOn(ctx context.Context, c *Conn) {
	defer c.conn.Close()
	var request throughRequest
	_ = c.conn.SetDeadline(time.Now().Add(handshakeTimeout))
	if readOne(c.conn, &request) != nil {
		return
	}
	onward, err := s.open(ctx, c.peer, request.To)
	var reply throughReply
	if err != nil {
		hclog.FromContext(ctx).Debug("cannot pass a connection on", logkey.Node, c.peer.NodeID, logkey.Error, err)
		reply.Error = err.Error()
	} else {
		defer s.through.Release(c.peer.NodeID)
		defer onward.Close()
	}
	if writeFrame(c.conn, reply) != nil || err != nil {
		return
	}
	_ = c.conn.SetDeadline(time.Time{})
	closeBoth := sync.OnceFunc(func() {
		c.conn.Close()
		onward.Close()
	})
	stop := context.AfterFunc(ctx, closeBoth)
	defer stop()
	ended := make(chan struct{})
	go func() {
		tick := time.NewTicker(pingInterval)
		defer tick.Stop()
		for {
			changed := c.changed()
			select {
			case <-ended:
				return
			case <-changed:
			case <-tick.C:
			}
			if c.judge() != nil {
				closeBoth()
				return
			}
		}
	}()
	var copying sync.WaitGroup
	for _, way := range [][2]net.Conn{{c.conn, onward}, {onward, c.conn}} {
		copying.Go(func() {
			_, _ = io.Copy(way[0], way[1]) // either end closed it
			closeBoth()
		})
	}
	copying.Wait()
	close(ended)
}

// open connects to the node that a peer asks for. If it succeeds, the peer has one stream more.
func (s *Server) open(ctx context.Context, from Peer, to fabric.NodeID) (net.Conn, error) {
	if !s.through.Take(from.NodeID) {
		return nil, errors.New("too many connections are passed on")
	}
	ctx, cancel := context.WithTimeout(ctx, handshakeTimeout)
	defer cancel()
	onward, err := s.onward(ctx, from, to)
	if err != nil {
		s.through.Release(from.NodeID)
		return nil, err
	}
	return onward, nil
}

// writeFrame writes v as a stream does.
func writeFrame(w net.Conn, v any) error { return (&stream{conn: w}).WriteObject(v) }

// readOne reads one frame into v, and nothing after it.
func readOne(r io.Reader, v any) error {
	body, err := readFrame(r)
	if err != nil {
		return err
	}
	return json.Unmarshal(body, v)
}
