// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package command

import (
	"context"
	"fmt"
	"reflect"
	"time"

	"github.com/sif-project/sif/api"
	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/internal/verify"
)

const (
	// gatherAttempts is how often state is read that changed while it was read.
	gatherAttempts = 10
	// gatherPause lets a change arrive everywhere: nodes report every 2 s.
	gatherPause = time.Second
)

// gather reads what is declared and what the nodes enforce, at a moment at
// which neither changes. pick chooses the nodes; nil: all.
func gather(ctx context.Context, client *api.Client, pick func(verify.Fabric) ([]string, error)) (verify.Fabric, error) {
	for attempt := 1; ; attempt++ {
		f, err := declared(ctx, client)
		if err != nil {
			return f, err
		}
		f.Now = time.Now()
		var nodes []string
		if pick != nil {
			if nodes, err = pick(f); err != nil {
				return f, err
			}
		} else {
			for _, n := range f.Status.Nodes {
				nodes = append(nodes, n.ID())
			}
		}
		if f.Dumps, f.Failed, err = client.Dumps(ctx, nodes); err != nil {
			return f, fmt.Errorf("have the nodes read back what they enforce: %w", err)
		}
		after, err := declared(ctx, client)
		if err != nil {
			return f, err
		}
		same := f.Pointer.Sequence == after.Pointer.Sequence && f.Pointer.Root == after.Pointer.Root && reflect.DeepEqual(placement(f.Status), placement(after.Status)) &&
			verify.NextExpiry(f.Graph, f.Now).Equal(verify.NextExpiry(f.Graph, time.Now()))
		if same || attempt == gatherAttempts {
			return f, nil
		}
		select {
		case <-ctx.Done():
			return f, ctx.Err()
		case <-time.After(gatherPause):
		}
	}
}

// declared reads graph and status.
func declared(ctx context.Context, client *api.Client) (verify.Fabric, error) {
	var f verify.Fabric
	var err error
	if f.Status, err = client.Status(ctx); err != nil {
		return f, fmt.Errorf("read the status: %w", err)
	}
	reply, err := client.Graph(ctx)
	if err != nil {
		return f, fmt.Errorf("read the graph: %w", err)
	}
	f.Graph, f.Pointer, f.Signed = reply.Graph, reply.Pointer, reply.Signed
	if f.Graph == nil {
		f.Graph = &fabric.Graph{}
	}
	return f, nil
}

// placement is the part of the status that says what has to be enforced where.
func placement(s api.Status) map[string]api.EndpointStatus {
	endpoints := map[string]api.EndpointStatus{}
	for _, n := range s.Nodes {
		endpoints[n.ID()] = api.EndpointStatus{}
		for _, e := range n.Endpoints {
			endpoints[n.ID()+" "+e.Endpoint] = api.EndpointStatus{Service: e.Service, Roles: e.Roles, IPv4: e.IPv4, IPv6: e.IPv6, Checks: e.Checks}
		}
	}
	return endpoints
}
