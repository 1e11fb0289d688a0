// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package lab

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"fmt"
	"slices"

	"golang.org/x/sync/errgroup"
)

// startServers starts everything except SIF and Nomad's clients. The clients look for CNI networks
// when they start, so they come after the agents. Independent parts start at the same time.
func (l *Lab) startServers(ctx context.Context) error {
	var err error
	if l.ca, err = newAuthority(l.varDir("tls")); err != nil {
		return err
	}
	l.makeSecrets()
	if err := l.buildRoot(); err != nil {
		return fmt.Errorf("make the tasks' root filesystem: %w", err)
	}
	if err := l.raiseReceiveBuffer(); err != nil {
		return err
	}
	consul := make(chan struct{})
	parent := ctx
	g, ctx := errgroup.WithContext(ctx)
	after := func(done <-chan struct{}) error {
		select {
		case <-done:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	g.Go(func() error {
		if err := l.startConsulServer(ctx); err != nil {
			return err
		}
		close(consul)
		return l.registerOutside(ctx)
	})
	g.Go(func() error { return l.startOutside(ctx) })
	if slices.ContainsFunc(l.Topology.Nodes(), func(n *Node) bool { return n.HasDriver("java") }) {
		g.Go(func() error { return l.buildJava(ctx) })
	}
	g.Go(func() error { return l.startVault(ctx) })
	g.Go(func() error {
		if err := after(consul); err != nil {
			return err
		}
		return l.startNomadServer(ctx)
	})
	for _, n := range l.Topology.Nodes() {
		if n == l.Topology.Orchestrator() {
			continue // it has the server
		}
		if n.HasDriver("docker") {
			g.Go(func() error { return l.startDocker(ctx, n) })
		}
		if n.HasSwitch() {
			g.Go(func() error {
				if err := l.startOVS(ctx, n); err != nil {
					return err
				}
				l.progress.line("%s: Open vSwitch", n.Name)
				return nil
			})
		}
		g.Go(func() error {
			if err := after(consul); err != nil {
				return err
			}
			if err := l.startConsulClient(ctx, n); err != nil {
				return err
			}
			l.progress.line("%s: Consul agent", n.Name)
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	return l.setUp(parent)
}

// startNomadClients starts the Nomad clients of all workload nodes.
func (l *Lab) startNomadClients(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	for _, n := range l.Topology.Nodes(Workload) {
		g.Go(func() error { return l.startNomadClient(ctx, n) })
	}
	return g.Wait()
}

// makeSecrets generates the tokens that the servers accept from their operator, so that no step
// must wait for them.
func (l *Lab) makeSecrets() {
	l.Secrets.ConsulManagement = newUUID()
	l.Secrets.NomadManagement = newUUID()
	l.Secrets.NomadConsul = newUUID()
	l.Secrets.ConsulAgents = make(map[string]string)
	for _, n := range l.Topology.Nodes() {
		l.Secrets.ConsulAgents[n.Name] = newUUID()
	}
	gossip := make([]byte, 32)
	rand.Read(gossip) // never returns an error
	l.Secrets.GossipKey = base64.StdEncoding.EncodeToString(gossip)
}

func newUUID() string {
	b := make([]byte, 16)
	rand.Read(b) // never returns an error
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}
