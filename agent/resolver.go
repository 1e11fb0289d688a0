// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package agent

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/sif-project/sif/agent/dns"
	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/internal/node/host"
	"github.com/sif-project/sif/internal/node/listener"
	"github.com/sif-project/sif/internal/retry"
)

// dnsRetry is the pause after which the agent tries again to listen for DNS.
const dnsRetry = time.Second

// serveDNS answers DNS questions of the node's endpoints. If it cannot, they have no names; nothing
// else of the agent depends on it.
func (a *Agent) serveDNS(ctx context.Context) error {
	for {
		server, err := dns.Listen(dns.Config{
			Listen: host.Resolver, Zone: a.node.Self.Zone, Ranges: a.node.Self.Ranges, View: view{a},
			Outside: a.resolver, Now: a.now, Observe: a.questions.count, Log: a.log.Named("dns"),
		})
		if err == nil {
			a.node.Degrade("dns", nil)
			err = server.Serve(ctx)
		}
		if ctx.Err() != nil {
			return err
		}
		a.node.Degrade("dns", whoListens(err))
		if !retry.Sleep(ctx, dnsRetry) {
			return nil
		}
	}
}

// questions counts the DNS questions that were refused, by outcome. It is safe for concurrent use.
type questions struct{ limited, notGranted atomic.Uint64 }

func (q *questions) count(o dns.Outcome) {
	switch o {
	case dns.Limited:
		q.limited.Add(1)
	case dns.NotGranted:
		q.notGranted.Add(1)
	}
}

// whoListens adds to an error of listening for DNS which process has the port, and what to do.
func whoListens(err error) error {
	if !errors.Is(err, syscall.EADDRINUSE) {
		return err
	}
	sockets, listing := listener.All()
	if listing != nil {
		return errors.Join(err, listing)
	}
	for _, s := range sockets {
		if s.Receives(fabric.UDP, host.Resolver) || s.Receives(fabric.TCP, host.Resolver) {
			return fmt.Errorf("%w: %s; the endpoints of this node have no names until the port is free: %s", err, s, host.ResolverRemedy)
		}
	}
	return err
}
