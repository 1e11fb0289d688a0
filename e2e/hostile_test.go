// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

//go:build e2e

package e2e

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/shoenig/test/must"
)

// TestNodeCannotPoseAsTheController has a node answer with its own certificate where an operator
// calls the controller. No token is sent, and the operator learns who answered.
func TestNodeCannotPoseAsTheController(t *testing.T) {
	const node = "aws1-w2"
	file := filepath.Join(world.SIFDataDir(node), "identity", "certificate.pem")
	cert, err := tls.LoadX509KeyPair(file, file)
	must.NoError(t, err)
	var l net.Listener
	must.NoError(t, world.In(node, func() (err error) {
		l, err = tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{cert}})
		return err
	}))
	defer l.Close()
	received := make(chan string, 1)
	go func() {
		conn, err := l.Accept()
		if err != nil {
			received <- err.Error()
			return
		}
		defer conn.Close()
		conn.SetDeadline(time.Now().Add(5 * time.Second)) // a fooled client waits for an answer
		data := make([]byte, 4096)
		n, _ := io.ReadAtLeast(conn, data, 1)
		received <- string(data[:n])
	}()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	cmd, err := world.Command(ctx, node, filepath.Join(world.Bin, "sif"), "status", "-address", "https://"+l.Addr().String())
	must.NoError(t, err)
	cmd.Env = append(cmd.Env, world.Environment()...)
	out, err := cmd.CombinedOutput()
	must.Error(t, err)
	must.Eq(t, "", <-received)
	must.StrContains(t, string(out), `the server is node aws1/aws1-w2 of the trust domain`)
	must.StrContains(t, string(out), "no token was sent")
}

// TestFloodFromANode has a node open connections to an engine and to the controller that it does
// not use. Another node's agent that was killed meanwhile comes back, and operators are served.
func TestFloodFromANode(t *testing.T) {
	const bad = "aws1-w2"
	good, engine := world.Topology.Node("aws1-w1"), world.Topology.Node("aws1-p1")
	for address, connections := range map[string]int{
		world.EngineAddress(engine):                               400,
		strings.TrimPrefix(world.ControllerAddress(), "https://"): 200,
	} {
		for range connections {
			conn, err := world.Dial(bad)(t.Context(), "tcp", address)
			must.NoError(t, err)
			t.Cleanup(func() { conn.Close() })
		}
	}
	must.NoError(t, world.Signal(good.Name, daemonOf(good), syscall.SIGKILL))
	eventually(t, 10*time.Second, func() error {
		if world.Alive(good.Name, daemonOf(good)) {
			return errors.New("it is still running")
		}
		return nil
	})
	must.NoError(t, world.Start(good.Name, daemonOf(good)))
	world.allWell(t, 20*time.Second)
	for _, n := range world.status(t).Nodes {
		if n.Node == engine.Name {
			must.MapNotEmpty(t, n.Refused)
		}
	}
}
