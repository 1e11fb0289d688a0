// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package command

import (
	"context"
	"flag"
	"fmt"
	"strings"
	"time"

	"github.com/posener/complete"

	"github.com/sif-project/sif/api"
	"github.com/sif-project/sif/internal/retry"
)

// revoking is the common part of the commands that revoke.
type revoking struct {
	Meta
	reason string
	wait   time.Duration
}

// heededPause is the time between two questions whether all daemons heed a list.
const heededPause = 300 * time.Millisecond

func (c *revoking) options() []*flag.FlagSet {
	o := newOptions("Revoke Options")
	c.jsonOption(o, "Print the revocation in JSON.")
	o.StringVar(&c.reason, "reason", "", "A `message` that says why, for the list of revocations and the audit log.")
	o.DurationVar(&c.wait, "wait", 10*time.Second, "How long to wait until every daemon has reported that it heeds the revocation, as a `duration`. It is in force before that where a daemon has it. 0: do not wait.")
	return []*flag.FlagSet{c.generalOptions(), o}
}

// revokeReply is what the commands print with -json.
type revokeReply struct {
	api.Revoked
	Heeded bool             `json:"heeded"`           // every daemon has reported that it heeds the list
	Behind []api.ListBehind `json:"behind,omitempty"` // those that have not
}

// revoke makes the call and waits until it is heeded.
func (c *revoking) revoke(ctx context.Context, what string, req api.RevokeRequest) error {
	client, err := c.client()
	if err != nil {
		return err
	}
	req.Reason = c.reason
	revoked, err := client.Revoke(ctx, req)
	if err != nil {
		return fmt.Errorf("revoking %s: %w", what, err)
	}
	reply := revokeReply{Revoked: revoked}
	reply.Heeded, reply.Behind = c.await(ctx, client, revoked.Sequence)
	return c.output(reply, func() string { return c.text(reply) })
}

// await waits until every daemon has reported that it heeds the list of a sequence.
func (c *revoking) await(ctx context.Context, client *api.Client, sequence uint64) (heeded bool, behind []api.ListBehind) {
	ctx, cancel := context.WithTimeout(ctx, c.wait)
	defer cancel()
	for ctx.Err() == nil {
		list, err := client.RevocationList(ctx)
		if err == nil && list.Sequence >= sequence {
			if behind = list.Behind; len(behind) == 0 {
				return true, nil
			}
		}
		if api.IsCode(err, api.CodeForbidden) {
			break // the token may revoke, but not read the list
		}
		retry.Sleep(ctx, heededPause)
	}
	return false, behind
}

func (c *revoking) text(r revokeReply) string {
	var b strings.Builder
	subject := strings.ToUpper(r.Revocation.Subject()[:1]) + r.Revocation.Subject()[1:]
	if r.Unchanged {
		fmt.Fprintf(&b, "%s is revoked since %s.\n", subject, r.Revocation.Revoked.Format(time.RFC3339))
	} else {
		fmt.Fprintf(&b, "%s is revoked.\n", subject)
	}
	if n := len(r.Endpoints); n > 0 && r.Revocation.Endpoint == "" {
		fmt.Fprintf(&b, "%s lost their rights: %s\n", count(n, "endpoint"), strings.Join(r.Endpoints, ", "))
	}
	for _, note := range []string{r.Unchecked, r.Vault} {
		if note != "" {
			fmt.Fprintf(&b, "Note: %s.\n", note)
		}
	}
	if r.Unstored != "" {
		fmt.Fprintf(&b, "The controller hands it to the nodes, and they to one another; it is not in Consul yet: %s\n", r.Unstored)
	}
	switch {
	case r.Heeded:
		b.WriteString("Every daemon heeds it.\n")
	case len(r.Behind) > 0:
		var names []string
		for _, l := range r.Behind {
			names = append(names, fmt.Sprintf("%s (%s)", l.Node, l.Kind))
		}
		fmt.Fprintf(&b, "Not yet reported as heeded by %s; `sif revoke list` shows it.\n", strings.Join(names, ", "))
	}
	return b.String()
}

// RevokeServiceCommand is sif revoke service.
type RevokeServiceCommand struct{ revoking }

// Synopsis implements cli.Command.
func (c *RevokeServiceCommand) Synopsis() string { return "Take all rights of a service away" }

func (c *RevokeServiceCommand) usage() string {
	return `
Usage: sif revoke service [options] <domain>/<service>

  Takes all rights of a service away: its endpoints reach nobody and nobody
  reaches them, also on connections that are open, no endpoint of it is
  admitted, and no identity of it is issued, until "sif reinstate service".
  Every node keeps it on disk and enforces it within two seconds.

  The token must be an operator's, or may apply changes of the domain.
`
}

func (c *RevokeServiceCommand) arguments() arguments {
	return arguments{min: 1, max: 1, words: "one argument: <domain>/<service>", predict: complete.PredictAnything}
}

func (c *RevokeServiceCommand) run(ctx context.Context, args []string) error {
	service, err := serviceArgument(args[0])
	if err != nil {
		return err
	}
	return c.revoke(ctx, "service "+args[0], api.RevokeRequest{Service: service})
}
