// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package machine

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"syscall"
	"time"

	nomadapi "github.com/hashicorp/nomad/api"

	"github.com/sif-project/sif/internal/node/listener"
	"github.com/sif-project/sif/internal/retry"
	"github.com/sif-project/sif/internal/wellknown"
)

// pollInterval is the pause between questions to a server about what it will know soon.
const pollInterval = time.Second

// NetworkMode is the network mode of groups in the fabric, as Nomad names it.
const NetworkMode = "cni/" + wellknown.CNINetwork

// ReloadNomad has the Nomad agent of the machine look for CNI networks again: by its unit, else by
// a signal to the process that listens at its address. It returns what it did.
func (a NomadAgent) ReloadNomad(ctx context.Context, unit string) (string, error) {
	if HasSystemd() {
		if out, err := Systemctl(ctx, "show", "--property=LoadState", "--value", unit); err == nil && out == "loaded" {
			_, err := Systemctl(ctx, "reload", unit)
			return "systemctl reload " + unit, err
		}
	}
	u, err := url.Parse(a.Address)
	if err != nil || u.Port() == "" {
		return "", fmt.Errorf("reload Nomad: systemd has no unit %s, and the agent's address %q has no port: send it SIGHUP yourself", unit, a.Address)
	}
	sockets, err := listener.All()
	if err != nil {
		return "", fmt.Errorf("reload Nomad: %w", err)
	}
	host, err := netip.ParseAddr(u.Hostname())
	if err != nil {
		host = netip.Addr{}
	}
	for _, s := range sockets {
		if fmt.Sprint(s.Address.Port()) != u.Port() || host.IsValid() && !s.Address.Addr().IsUnspecified() && s.Address.Addr().Unmap() != host {
			continue
		}
		pid, name := s.Owner()
		if pid == 0 || !strings.Contains(name, "nomad") {
			continue
		}
		if err := syscall.Kill(pid, syscall.SIGHUP); err != nil {
			return "", fmt.Errorf("reload Nomad: signal process %d (%s): %w", pid, name, err)
		}
		return fmt.Sprintf("kill -HUP %d (%s)", pid, name), nil
	}
	return "", fmt.Errorf("reload Nomad: systemd has no unit %s, and no process named nomad listens at %s: say its unit with -nomad-unit, or send it SIGHUP yourself", unit, a.Address)
}

// WaitForNetwork waits until Nomad's servers list the fabric's network at the node, or not, as
// there says.
func WaitForNetwork(ctx context.Context, client *nomadapi.Client, node string, there bool) error {
	var last error
	for {
		n, _, err := client.Nodes().Info(node, (&nomadapi.QueryOptions{}).WithContext(ctx))
		switch {
		case err != nil:
			last = fmt.Errorf("ask Nomad for node %s: %w", node, err)
		case hasNetwork(n) == there:
			return nil
		case there:
			last = fmt.Errorf("the network %s at node %s is not in Nomad's list yet", NetworkMode, node)
		default:
			last = fmt.Errorf("the network %s at node %s is still in Nomad's list", NetworkMode, node)
		}
		if !retry.Sleep(ctx, pollInterval) {
			return errors.Join(last, context.Cause(ctx))
		}
	}
}

func hasNetwork(n *nomadapi.Node) bool {
	return n.NodeResources != nil && slices.ContainsFunc(n.NodeResources.Networks, func(r *nomadapi.NetworkResource) bool { return r.Mode == NetworkMode })
}

// missingNetwork is the reason with which Nomad filters nodes that lack the network of a group.
const missingNetwork = "missing network"

// EvaluateBlocked has Nomad evaluate the jobs again that no node with the network was found for:
// Nomad itself does not, since a network is not part of a node's class. It returns their names.
func EvaluateBlocked(ctx context.Context, client *nomadapi.Client) ([]string, error) {
	list, _, err := client.Evaluations().List((&nomadapi.QueryOptions{Namespace: nomadapi.AllNamespacesNamespace, Filter: `Status == "blocked"`}).WithContext(ctx))
	if err != nil {
		return nil, fmt.Errorf("list the blocked evaluations of Nomad: %w", err)
	}
	var jobs []string
	var errs []error
	for _, e := range list {
		lacks := false
		for _, m := range e.FailedTGAllocs {
			for reason := range m.ConstraintFiltered {
				lacks = lacks || strings.Contains(reason, missingNetwork)
			}
		}
		name := e.Namespace + "/" + e.JobID
		if !lacks || slices.Contains(jobs, name) {
			continue
		}
		opts := (&nomadapi.WriteOptions{Namespace: e.Namespace}).WithContext(ctx)
		if _, _, err := client.Jobs().EvaluateWithOpts(e.JobID, nomadapi.EvalOptions{}, opts); err != nil {
			errs = append(errs, fmt.Errorf("evaluate job %s again: %w", name, err))
			continue
		}
		jobs = append(jobs, name)
	}
	return jobs, errors.Join(errs...)
}
