// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package command

import (
	"cmp"
	"context"
	"flag"
	"fmt"
	"strings"
	"time"

	"github.com/sif-project/sif/api"
	"github.com/sif-project/sif/fabric"
)

// AuditListCommand is sif audit list.
type AuditListCommand struct {
	Meta
	filter api.AuditFilter
}

// Synopsis implements cli.Command.
func (c *AuditListCommand) Synopsis() string {
	return "List who asked for which change, and what became of it"
}

func (c *AuditListCommand) usage() string {
	return `
Usage: sif audit list [options]

  Lists the newest records of the audit logs of all controllers, the newest
  last. Each controller copies its log to Consul within a second, where it
  stays when the controller and its disk are gone. The token needs the policy
  sif-read.

  List what was refused since yesterday:

      $ sif audit list -refused -since=24h

  The exit code is 0, and 1 on an error.
`
}

func (c *AuditListCommand) options() []*flag.FlagSet {
	c.filter = api.AuditFilter{}
	o := newOptions("Audit Options")
	o.Func("since", "Only records from this `time` on: a time such as 2026-11-29T08:00:00Z, or how long ago, such as 24h.", optionalTime(&c.filter.Since))
	o.Func("until", "Only records up to this `time`, in the same form.", optionalTime(&c.filter.Until))
	o.StringVar(&c.filter.Actor, "actor", "", "Only records whose actor contains this `text`: the accessor of a token, or a node as zone/node.")
	o.StringVar(&c.filter.Action, "action", "", "Only records whose action contains this `text`, such as graph.apply or admission.")
	o.StringVar(&c.filter.Target, "target", "", "Only records whose target contains this `text`: a domain, a node, an endpoint.")
	o.BoolVar(&c.filter.Refused, "refused", false, "Only what was refused.")
	o.BoolVar(&c.filter.Begun, "begun", false, "Also the records that are written before something is carried out. Another one says how it ended.")
	o.IntVar(&c.filter.Limit, "limit", api.DefaultAuditLimit, fmt.Sprintf("The newest so `many` records, at most %d.", api.MaxAuditRecords))
	c.jsonOption(o, "Print the records in JSON.")
	return []*flag.FlagSet{c.generalOptions(), o}
}

// optionalTime parses a time, or how long ago it was.
func optionalTime(to *time.Time) func(string) error {
	return func(s string) error {
		if ago, err := time.ParseDuration(s); err == nil && ago >= 0 {
			*to = time.Now().Add(-ago)
			return nil
		}
		t, err := time.Parse(time.RFC3339, s)
		if err != nil {
			return fmt.Errorf("%q is neither a time such as 2026-11-29T08:00:00Z nor a duration such as 24h", s)
		}
		*to = t
		return nil
	}
}

func (c *AuditListCommand) run(ctx context.Context, _ []string) error {
	if c.filter.Limit < 1 || c.filter.Limit > api.MaxAuditRecords {
		return usagef("-limit must be from 1 to %d.", api.MaxAuditRecords)
	}
	client, err := c.client()
	if err != nil {
		return err
	}
	records, err := client.Audit(ctx, c.filter)
	if err != nil {
		return fmt.Errorf("reading the audit log: %w", err)
	}
	return c.output(records, func() string {
		if len(records) == 0 {
			return "There is no such record."
		}
		rows := [][]string{{"Time", "Actor", "Action", "Target", "Revision", "Result", "Controller"}}
		for _, r := range records {
			result := cmp.Or(r.Message, "done")
			switch {
			case r.LeftOut > 0:
				result = fmt.Sprintf("%d refused calls have no record", r.LeftOut)
			case r.Refused != "":
				result = "refused: " + r.Refused
			case r.Begun:
				result = "begins"
			}
			rows = append(rows, []string{r.Time.Local().Format(time.DateTime), r.Actor, r.Action, cmp.Or(r.Target, "-"), orDash(r.Revision), firstOf(result), cmp.Or(r.Address, r.Controller)})
		}
		var b strings.Builder
		table(&b, rows)
		return b.String()
	})
}

func orDash(n uint64) string {
	if n == 0 {
		return "-"
	}
	return fmt.Sprint(n)
}

// firstOf returns the first line of a text, or what fits of it.
func firstOf(s string) string {
	s, _, _ = strings.Cut(s, "\n")
	if r := []rune(s); len(r) > 80 {
		return string(r[:77]) + "..."
	}
	return s
}

// AuditVerifyCommand is sif audit verify.
type AuditVerifyCommand struct {
	Meta
	anchor anchor
}

// Synopsis implements cli.Command.
func (c *AuditVerifyCommand) Synopsis() string {
	return "Verify that no record of the audit log is missing or was changed"
}

func (c *AuditVerifyCommand) usage() string {
	return `
Usage: sif audit verify [options]

  Reads the audit logs of all controllers as Consul has them, and verifies them
  here: each record has a number and the hash of the one before it, so that none
  can be taken out, added or changed; the fabric has signed the hash of a newer
  one, so that nobody can write the log anew; and with each change, a controller
  has noted how far its log had come, so that a lost end is seen.

  Old records are deleted when the log of a controller has more than some
  hundred thousand, and the fabric has signed which one is the first since. That
  is not an error, and others that are missing at the beginning are.

  The exit code is 0 if all logs are sound, 2 if a record is missing or was
  changed, and 1 on an error.
`
}

func (c *AuditVerifyCommand) options() []*flag.FlagSet {
	o := newOptions("Verify Options")
	c.jsonOption(o, "Print the result in JSON.")
	return []*flag.FlagSet{c.generalOptions(), o, c.anchor.options()}
}

// auditResult is what was found of one log.
type auditResult struct {
	Controller string   `json:"controller"`
	Address    string   `json:"address,omitempty"`
	First      uint64   `json:"first"`
	Last       uint64   `json:"last"`
	Signed     uint64   `json:"signed"` // up to which record the fabric has signed it; 0: the signature was not checked
	Problems   []string `json:"problems"`
}

func (c *AuditVerifyCommand) run(ctx context.Context, _ []string) error {
	client, err := c.client()
	if err != nil {
		return err
	}
	var keys *fabric.KeySet
	trusted, err := c.anchor.read(ctx)
	if err != nil {
		return fmt.Errorf("verifying the audit log: %w", err)
	}
	if trusted != nil {
		keys = &trusted.Keys
	}
	logs, err := client.AuditLogs(ctx)
	if err != nil {
		return fmt.Errorf("reading the audit logs: %w", err)
	}
	results := []auditResult{}
	problems := 0
	for _, l := range logs {
		r, err := verifyLog(ctx, client, keys, l)
		if err != nil {
			return fmt.Errorf("reading the audit log of controller %s: %w", l.Controller, err)
		}
		problems += len(r.Problems)
		results = append(results, r)
	}
	if keys == nil && !c.json {
		c.UI.Warn("Warning: the signatures were not checked: set VAULT_ADDR, or give -keys.")
	}
	if err := c.output(results, func() string { return auditText(results, keys != nil) }); err != nil {
		return err
	}
	if problems > 0 {
		return exitDisagreement
	}
	return nil
}

// verifyLog verifies the log of a controller.
func verifyLog(ctx context.Context, client *api.Client, keys *fabric.KeySet, l api.AuditLog) (auditResult, error) {
	r := auditResult{Controller: l.Controller, Address: l.Address, First: l.First, Problems: []string{}}
	report := func(format string, args ...any) { r.Problems = append(r.Problems, fmt.Sprintf(format, args...)) }
	var signed api.AuditHead
	if keys != nil && len(l.Signed.Payload) > 0 {
		if err := keys.Verify(l.Signed, fabric.KindAudit, &signed); err != nil {
			report("the signature of its end is refused: %v", err)
		} else if signed.Controller != l.Controller {
			report("the signature of its end is that of controller %s", signed.Controller)
			signed = api.AuditHead{}
		}
	}
	var chain api.AuditChain
	for {
		page, err := client.AuditPage(ctx, l.Controller, chain.Last.Number)
		if err != nil {
			return r, err
		}
		before := chain.Last.Number
		for _, line := range page.Records {
			if err := chain.Take(line); err != nil {
				report("%v", err)
			}
			if chain.Last.Number == signed.Number && signed.Number > 0 {
				r.Signed = signed.Number
				if chain.Last.Hash != signed.Hash {
					report("record %d is another one than the one that the fabric has signed: the log was written anew", signed.Number)
				}
			}
		}
		if r.Last = max(r.Last, chain.Last.Number); chain.Last.Number <= before {
			break
		}
	}
	if r.Signed == 0 && signed.Number > 0 && signed.Number <= r.Last {
		report("record %d, which the fabric has signed, is not there: the log was written anew", signed.Number)
	}
	if signed.First > 0 && l.First > signed.First {
		report("records %d to %d are missing at its beginning, which the fabric has signed: somebody has removed them", signed.First, l.First-1)
	}
	end := max(signed.Number, l.Noted.Number)
	if end > r.Last {
		report("records %d to %d are missing at its end: they were lost with the disk of the controller, or somebody has removed them", r.Last+1, end)
	}
	if keys != nil && signed.Number == 0 && r.Last > 0 && len(r.Problems) == 0 {
		report("the fabric has signed none of it")
	}
	return r, nil
}

func auditText(results []auditResult, checked bool) string {
	if len(results) == 0 {
		return "There is no audit log yet."
	}
	var b strings.Builder
	rows := [][]string{{"Controller", "Address", "Records", "Signed up to", "State"}}
	for _, r := range results {
		state, signed := "sound", "-"
		if len(r.Problems) > 0 {
			state = "not sound"
		}
		if checked {
			signed = fmt.Sprint(r.Signed)
		}
		rows = append(rows, []string{r.Controller, cmp.Or(r.Address, "-"), fmt.Sprintf("%d-%d", r.First, r.Last), signed, state})
	}
	table(&b, rows)
	for _, r := range results {
		for _, p := range r.Problems {
			fmt.Fprintf(&b, "\ncontroller %s: %s", cmp.Or(r.Address, r.Controller), p)
		}
	}
	return b.String()
}
