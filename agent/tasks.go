// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package agent

import (
	"context"
	"fmt"
	"net/netip"
	"time"

	"github.com/containernetworking/plugins/pkg/ns"

	"github.com/sif-project/sif/agent/probe"
	"github.com/sif-project/sif/api"
	"github.com/sif-project/sif/internal/node/daemon"
	"github.com/sif-project/sif/internal/node/host"
)

// taskParallel limits the number of concurrent tasks. Observations do not count, because they only
// wait.
const taskParallel = 16

// serveTasks runs the controller's tasks, which `sif matrix`, `sif verify`, `sif explain` and `sif
// flows` need.
func (a *Agent) serveTasks(ctx context.Context) error {
	defer a.observers.Close()
	slots := make(chan struct{}, taskParallel)
	return a.node.ServeTasks(ctx, func(tasks []api.Task) {
		var sends []api.Task
		for _, t := range tasks {
			if t.Kind == api.TaskSend {
				sends = append(sends, t)
				continue
			}
			if t.Kind == api.TaskFlows {
				go a.serveFlows(ctx, t)
				continue
			}
			go func() {
				if t.Kind != api.TaskObserve {
					slots <- struct{}{}
					defer func() { <-slots }()
				}
				a.node.TaskDone(ctx, a.carryOut(ctx, t))
			}()
		}
		// Probes are sent in order: the arrival of the last one proves that the others had time to
		// arrive.
		for _, t := range sends {
			result := a.carryOut(ctx, t)
			go a.node.TaskDone(ctx, result)
		}
	})
}

func (a *Agent) carryOut(ctx context.Context, t api.Task) api.TaskResult {
	if t.Kind == api.TaskDump {
		return daemon.DumpTask(ctx, t, a.dump)
	}
	ctx, cancel := context.WithTimeout(ctx, t.Timeout)
	defer cancel()
	start := time.Now()
	result := api.TaskResult{ID: t.ID}
	ep, ok := a.endpoints.find(func(ep endpoint) bool { return ep.ID == t.Endpoint })
	if !ok {
		result.Error = fmt.Sprintf("endpoint %s is not on this node", t.Endpoint)
		return result
	}
	if ep.VM && (t.Kind == api.TaskRequest || t.Kind == api.TaskListening) {
		result.Guest, result.Error = true, errGuest.Error()
		return result
	}
	var err error
	switch t.Kind {
	case api.TaskObserve:
		err = a.observe(ctx, ep, t, &result)
	case api.TaskSend:
		err = a.inside(ep, func(namespace ns.NetNS) error {
			return a.way(ep).Send(namespace, netip.AddrPortFrom(ep.address(t.Peer.Addr()), 0), t.Peer, t.Protocol, t.Nonce)
		})
		result.Done = err == nil
	case api.TaskRequest:
		err = a.inside(ep, func(namespace ns.NetNS) error {
			to := t.Peer
			if t.Name != "" {
				address, err := probe.Resolve(ctx, namespace, host.Resolver, t.Name, to.Addr().Is6())
				if err != nil {
					return err
				}
				to = netip.AddrPortFrom(address, to.Port())
			}
			answered, err := probe.Request(ctx, namespace, to, t.Protocol, t.Nonce)
			if err == nil && !answered {
				result.Reason = "connected, no answer"
			}
			return err
		})
		result.Done = err == nil
	case api.TaskListening:
		err = a.inside(ep, func(namespace ns.NetNS) (err error) {
			result.Done, err = probe.Listening(namespace, t.Peer, t.Protocol)
			return err
		})
	default:
		err = fmt.Errorf("unknown kind of task %q", t.Kind)
	}
	if err != nil {
		result.Error = err.Error()
	}
	result.Duration = time.Since(start)
	return result
}

// observe waits until a probe arrives or the time is over.
func (a *Agent) observe(ctx context.Context, ep endpoint, t api.Task, result *api.TaskResult) error {
	open := func() (ns.NetNS, error) { return a.namespaces.Find(ep.HostIf) }
	seen, stop, err := a.observers.Expect(ep.ID, open, ep.Attachment.IfName, t.Peer, t.Protocol, t.Nonce)
	if err != nil {
		return err
	}
	defer stop()
	if err := a.node.Controller.TaskDone(ctx, api.TaskResult{ID: t.ID, Ready: true}); err != nil {
		return fmt.Errorf("tell the controller that the observation has started: %w", err)
	}
	select {
	case o, came := <-seen:
		if !came {
			return fmt.Errorf("the interface of endpoint %s was removed", ep.ID)
		}
		result.Done, result.Source = true, o.Src.Addr()
	case <-ctx.Done():
	}
	return nil
}

// inside opens the network namespace of an endpoint for do.
func (a *Agent) inside(ep endpoint, do func(namespace ns.NetNS) error) error {
	namespace, err := a.namespaces.Find(ep.HostIf)
	if err != nil {
		return err
	}
	defer namespace.Close()
	return do(namespace)
}

// address returns the endpoint's address of the same family as peer.
func (ep endpoint) address(peer netip.Addr) netip.Addr {
	if peer.Is4() {
		return ep.IPv4
	}
	return ep.IPv6
}
