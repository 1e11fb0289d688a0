// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package command

import (
	"context"
	"flag"
	"fmt"
	"strings"

	"github.com/posener/complete"

	"github.com/sif-project/sif/api"
	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/internal/trust/signature"
)

// ExplainCommand is sif explain.
type ExplainCommand struct {
	Meta
	anchor anchor
}

// Synopsis implements cli.Command.
func (c *ExplainCommand) Synopsis() string { return "Explain why a flow is allowed or dropped" }

func (c *ExplainCommand) usage() string {
	return `
Usage: sif explain [options] <src> <dst> <port>[/<protocol>]

  Shows whether <src> may open a flow to <dst>, and why: the contract and where
  it is declared, requested roles, consent of other domains, expiry, and audit
  mode. Each data path on the way of live endpoints reads back what it enforces
  for the flow: eBPF at the sender, the switch at each zone boundary or at the
  exit to the outside, and eBPF at the receiver. Differences between declared
  and enforced policy are shown first.

  <src> and <dst> are each a service or an external (domain/name), the ID or an
  ID prefix of an endpoint or allocation, the name of an attached workload
  (also as zone/node/name), or an address. A service stands for all its live
  endpoints. <dst> may also be a DNS name outside the fabric, or "node": what
  listens on the node of <src>. The default protocol is tcp. For icmp and
  icmpv6, <port> is the type.

      $ sif explain shop/web shop/db 5432
      $ sif explain 203.0.113.7 shop/web 443/tcp
      $ sif explain 4a2f shop/db 8/icmp
      $ sif explain shop/web api.example.com 443
      $ sif explain shop/web node 8125/udp

  An address outside tells which external has it, and whether it is reserved.

  The token must have read access to the domains of both. The controller
  computes the answer; for a check that does not rely on the controller, run
  sif verify.

  The exit code is 0 if all flows are allowed, 3 if one is dropped, 2 if
  declared and enforced policy differ, and 1 on an error or if the signature of
  the revision is refused.
`
}

func (c *ExplainCommand) options() []*flag.FlagSet {
	o := newOptions("Explain Options")
	c.jsonOption(o, "Print the answer in JSON.")
	return []*flag.FlagSet{c.generalOptions(), o, c.anchor.options()}
}

func (c *ExplainCommand) arguments() arguments {
	return arguments{min: 3, max: 3, words: "<src>, <dst> and <port>", predict: complete.PredictAnything}
}

func (c *ExplainCommand) run(ctx context.Context, args []string) error {
	q := api.Question{From: args[0], To: args[1]}
	var err error
	if q.Protocol, q.Port, err = parsePort(args[2]); err != nil {
		return usageError{err}
	}
	client, err := c.client()
	if err != nil {
		return err
	}
	answer, err := client.Explain(ctx, q)
	if err != nil {
		return fmt.Errorf("explaining the flow: %w", err)
	}
	f, err := c.anchor.check(ctx, answer.Signed, answer.Pointer)
	if err := c.requireTrusted(f, err, answer.Pointer.Sequence); err != nil {
		return err
	}
	if err := c.outputSigned(f, answer.Pointer.Sequence, struct {
		signature.Finding
		api.Explanation
	}{f, answer}, func() string { return explainView(answer) }); err != nil {
		return err
	}
	switch {
	case !answer.Agree:
		return exitDisagreement
	case !answer.Allowed:
		return exitDropped
	}
	return nil
}

// parsePort parses "5432", "53/udp" or "8/icmp", and the order of rules: "udp/53".
func parsePort(s string) (protocol fabric.Protocol, port uint16, err error) {
	number, name, named := strings.Cut(s, "/")
	protocol = fabric.TCP
	if named {
		if _, err := fabric.ParseProtocol(number); err == nil {
			number, name = name, number
		}
		if protocol, err = fabric.ParseProtocol(name); err != nil {
			return 0, 0, err
		}
	}
	port, err = protocol.ParsePort(number)
	return protocol, port, err
}

// explainView shows an answer to people, differences first.
func explainView(a api.Explanation) string {
	var b strings.Builder
	for _, f := range a.Flows {
		for _, d := range f.Differs {
			fmt.Fprintf(&b, "DECLARED AND ENFORCED DIFFER: %s -> %s: %s\n", f.From, f.To, d)
		}
	}
	for i, f := range a.Flows {
		if i > 0 || b.Len() > 0 {
			b.WriteByte('\n')
		}
		verdict := "dropped"
		switch {
		case f.Declared.Audit:
			verdict = "allowed by audit mode"
		case f.Declared.Allowed:
			verdict = "allowed"
		}
		fmt.Fprintf(&b, "%s -> %s %s/%d: %s\n", f.From, f.To, a.Protocol, a.Port, verdict)
		for _, r := range f.Declared.Reasons {
			fmt.Fprintf(&b, "  %s\n", r)
		}
		for _, l := range f.Layers {
			fmt.Fprintf(&b, "  %s\n", l)
		}
		if f.Withheld != "" {
			fmt.Fprintf(&b, "  DNS does not answer with the destination: %s\n", f.Withheld)
		}
	}
	return strings.TrimSuffix(b.String(), "\n")
}
