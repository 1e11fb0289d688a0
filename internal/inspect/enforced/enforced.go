// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

// Package enforced reads the declared state and what nodes enforce, at a moment when neither
// changed. It does not interpret either of them.
package enforced

import (
	"context"
	"fmt"
	"reflect"
	"time"

	"github.com/sif-project/sif/api"
	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/internal/inspect/verify"
	"github.com/sif-project/sif/internal/retry"
)

const (
	// attempts is the number of times that state is read again because it changed while it was
	// read.
	attempts = 10
	// pause is the time for a change to arrive everywhere. Nodes report every 2 s.
	pause = time.Second
)

// Source provides the state of a fabric.
type Source interface {
	// Declared returns the graph, its pointer, and the status.
	Declared(ctx context.Context) (verify.Fabric, error)
	// Dumps asks nodes to read back what they enforce. For a node that cannot, failed contains the
	// reason.
	Dumps(ctx context.Context, nodes []fabric.NodeID) (dumps map[fabric.NodeID]api.Dump, failed map[fabric.NodeID]string, err error)
}

// Read asks the nodes that pick returns; all nodes if pick is nil. If the fabric keeps changing,
// Read returns what it read last.
func Read(ctx context.Context, s Source, pick func(verify.Fabric) ([]fabric.NodeID, error)) (verify.Fabric, error) {
	for attempt := 1; ; attempt++ {
		f, err := s.Declared(ctx)
		if err != nil {
			return f, err
		}
		f.Now = time.Now()
		var nodes []fabric.NodeID
		if pick != nil {
			if nodes, err = pick(f); err != nil {
				return f, err
			}
		} else {
			for _, n := range verify.Enforcing(f.Status) {
				nodes = append(nodes, n.ID())
			}
		}
		if f.Dumps, f.Failed, err = s.Dumps(ctx, nodes); err != nil {
			return f, fmt.Errorf("have the nodes read back what they enforce: %w", err)
		}
		after, err := s.Declared(ctx)
		if err != nil {
			return f, err
		}
		if attempt == attempts || same(f, after) {
			return f, nil
		}
		if !retry.Sleep(ctx, pause) {
			return f, ctx.Err()
		}
	}
}

// same reports whether the desired state is the same before and after.
func same(before, after verify.Fabric) bool {
	return before.Pointer.Sequence == after.Pointer.Sequence && before.Pointer.Root == after.Pointer.Root &&
		reflect.DeepEqual(placement(before.Status), placement(after.Status)) &&
		verify.NextExpiry(before.Graph, before.Now).Equal(verify.NextExpiry(before.Graph, time.Now()))
}

// placement returns the part of the status that the desired state depends on.
func placement(s api.Status) map[fabric.NodeID]map[string]api.EndpointStatus {
	nodes := map[fabric.NodeID]map[string]api.EndpointStatus{}
	for _, n := range verify.Enforcing(s) {
		endpoints := map[string]api.EndpointStatus{}
		nodes[n.ID()] = endpoints
		for _, e := range n.Endpoints {
			endpoints[e.Endpoint] = api.EndpointStatus{Service: e.Service, Roles: e.Roles, IPv4: e.IPv4, IPv6: e.IPv6, Checks: e.Checks}
		}
	}
	return nodes
}

// Controller is the Source that reads from a controller's API.
type Controller struct{ *api.Client }

// Declared implements Source.
func (c Controller) Declared(ctx context.Context) (verify.Fabric, error) {
	var f verify.Fabric
	var err error
	if f.Status, err = c.Status(ctx); err != nil {
		return f, fmt.Errorf("read the status: %w", err)
	}
	reply, err := c.Graph(ctx)
	if err != nil {
		return f, fmt.Errorf("read the graph: %w", err)
	}
	f.Graph, f.Pointer, f.Signed = reply.Graph, reply.Pointer, reply.Signed
	if f.Graph == nil {
		f.Graph = &fabric.Graph{}
	}
	return f, nil
}
