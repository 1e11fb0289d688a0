// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package command

import (
	"context"
	"flag"
	"fmt"
	"strings"
	"time"

	"github.com/sif-project/sif/api"
)

// RevokeListCommand is sif revoke list.
type RevokeListCommand struct{ Meta }

// Synopsis implements cli.Command.
func (c *RevokeListCommand) Synopsis() string { return "List what is removed and revoked" }

func (c *RevokeListCommand) usage() string {
	return `
Usage: sif revoke list [options]

  Lists what the fabric's signed list contains: nodes that were removed, and
  services, endpoints and certificates that were revoked, or reinstated within
  the last week; and the daemons that do not heed the newest list yet, as they
  last reported. Every controller answers, also one that does not lead.

  Nodes and certificates stay in the list for a week: until nothing of them can
  be believed any more. Services and endpoints stay until they are reinstated.
`
}

func (c *RevokeListCommand) options() []*flag.FlagSet {
	o := newOptions("List Options")
	c.jsonOption(o, "Print the list in JSON.")
	return []*flag.FlagSet{c.generalOptions(), o}
}

func (c *RevokeListCommand) run(ctx context.Context, _ []string) error {
	client, err := c.client()
	if err != nil {
		return err
	}
	list, err := client.RevocationList(ctx)
	if err != nil {
		return fmt.Errorf("listing the revocations: %w", err)
	}
	return c.output(list, func() string { return formatRevocations(list) })
}

func formatRevocations(list api.RevocationList) string {
	var b strings.Builder
	at := func(t time.Time) string {
		if t.IsZero() {
			return "-"
		}
		return t.UTC().Format(time.RFC3339)
	}
	rows := [][]string{{"Revoked", "Since", "Reinstated", "Reason"}}
	for _, t := range list.Tombstones {
		rows = append(rows, []string{"node " + t.Node.String(), at(t.Removed), "-", t.Reason})
	}
	for _, v := range list.Revoked {
		rows = append(rows, []string{v.Subject(), at(v.Revoked), at(v.Reinstated), v.Reason})
	}
	if len(rows) == 1 {
		b.WriteString("Nothing is revoked.\n")
	} else {
		table(&b, rows)
	}
	behind := [][]string{{"Node", "Daemon", "List", "Reported"}}
	for _, l := range list.Behind {
		behind = append(behind, []string{l.Node.String(), string(l.Kind), fmt.Sprintf("%d of %d", l.Sequence, list.Sequence), at(l.Reported)})
	}
	section(&b, "Daemons that do not heed it yet", behind)
	return b.String()
}
