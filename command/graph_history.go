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
	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/internal/trust/signature"
)

// GraphHistoryCommand is sif graph history.
type GraphHistoryCommand struct {
	Meta
	anchor anchor
}

// Synopsis implements cli.Command.
func (c *GraphHistoryCommand) Synopsis() string { return "List the kept revisions of the graph" }

func (c *GraphHistoryCommand) usage() string {
	return `
Usage: sif graph history [options]

  Lists the kept revisions of the graph, newest first: who applied them, when
  and why. Each entry contains the hash of the entry before it, and the signed
  pointer contains the hash of the newest, so that entries cannot be changed or
  left out. If public keys are given, the command verifies this, and lists
  nothing that fails verification.

  The exit code is 0 on success, and 1 on an error or if verification fails.
`
}

func (c *GraphHistoryCommand) options() []*flag.FlagSet {
	o := newOptions("History Options")
	c.jsonOption(o, "Print the history in JSON, with the digests of the files.")
	return []*flag.FlagSet{c.generalOptions(), o, c.anchor.options()}
}

func (c *GraphHistoryCommand) run(ctx context.Context, _ []string) error {
	client, err := c.client()
	if err != nil {
		return err
	}
	history, err := client.History(ctx)
	if err != nil {
		return fmt.Errorf("reading the history: %w", err)
	}
	f, err := c.anchor.checkHistory(ctx, history)
	if err := c.requireTrusted(f, err, history.Pointer.Sequence); err != nil {
		return err
	}
	if len(history.Changes) == 0 && !c.json {
		c.UI.Warn(noGraph)
		return nil
	}
	return c.outputSigned(f, history.Pointer.Sequence, struct {
		signature.Finding
		api.History
	}{f, history}, func() string { return historyText(history.Changes) })
}

func historyText(changes []fabric.Change) string {
	rows := [][]string{{"Revision", "Time", "Root", "Author", "Message"}}
	for _, h := range changes {
		message := strings.Join(strings.Fields(h.Message), " ")
		if h.Rollback > 0 {
			message = strings.TrimSpace(fmt.Sprintf("(rollback to %d) %s", h.Rollback, message))
		}
		rows = append(rows, []string{fmt.Sprint(h.Sequence), h.Time.UTC().Format(time.RFC3339), fmt.Sprintf("%.12s", h.Root), h.Author, message})
	}
	var b strings.Builder
	table(&b, rows)
	return b.String()
}
