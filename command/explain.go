// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package command

import (
	"fmt"
	"strings"

	"github.com/posener/complete"

	"github.com/sif-project/sif/api"
	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/internal/trust/signature"
)

// exitDropped is what `sif explain` exits with when the flow is not allowed.
const exitDropped = 3

// ExplainCommand is `sif explain`.
type ExplainCommand struct {
	Meta
	anchor anchor
}

// Synopsis implements cli.Command.
func (c *ExplainCommand) Synopsis() string {
	return "Say whether a flow passes, why, and what each layer does"
}

// Help implements cli.Command.
func (c *ExplainCommand) Help() string {
	return help(`
Usage: sif explain [options] <src> <dst> <port>[/<protocol>]

  Says whether <src> may open a flow to <dst>, and why: the contract and where
  it is declared, roles requested, consent of other domains, expiry, audit
  mode. For live endpoints it also has each data path on the way read back what
  it holds about the flow: eBPF at the sender, the switch at each boundary of a
  zone, eBPF at the receiver. Where declared and enforced differ, it says so
  first.

  <src> and <dst> are services or externals (domain/name), endpoints or
  allocations by their ID or the beginning of it, or addresses. A service stands
  for all its live endpoints. The protocol is tcp unless it is named; of icmp
  and icmpv6, <port> is the type.

  The token must be allowed to read the domains of both. The controller gives
  the answer: sif verify is what takes nobody's word.

  Exits with 0 if every flow is allowed, with 3 if one is dropped, with 2 if
  declared and enforced differ, and with 1 if the question cannot be answered
  or the signature of the revision is refused.

      $ sif explain shop/web shop/db 5432
      $ sif explain 203.0.113.7 shop/web 443/tcp
      $ sif explain 4a2f shop/db 8/icmp
`, `
Explain Options:

  -json
    Print the answer in JSON.
`, signatureOptions, controllerOptions)
}

// AutocompleteFlags implements cli.CommandAutocomplete.
func (c *ExplainCommand) AutocompleteFlags() complete.Flags {
	return controllerPredictions(signaturePredictions(complete.Flags{"-json": complete.PredictNothing}))
}

// AutocompleteArgs implements cli.CommandAutocomplete.
func (c *ExplainCommand) AutocompleteArgs() complete.Predictor { return complete.PredictAnything }

// Run implements cli.Command.
func (c *ExplainCommand) Run(args []string) int {
	flags := c.flagSet("explain")
	c.controllerFlags(flags)
	c.jsonFlag(flags)
	c.anchor.flags(flags)
	if code, ok := c.parse(flags, args); !ok {
		return code
	}
	if flags.NArg() != 3 {
		return c.usage("explain", "This command takes <src>, <dst> and <port>, got %q.", flags.Args())
	}
	q := api.Question{From: flags.Arg(0), To: flags.Arg(1)}
	var err error
	if q.Protocol, q.Port, err = parsePort(flags.Arg(2)); err != nil {
		return c.usage("explain", "%s", err)
	}
	client, err := c.client()
	if err != nil {
		return c.fail("reaching the controller", err)
	}
	ctx, stop := interruptible()
	defer stop()
	answer, err := client.Explain(ctx, q)
	if err != nil {
		return c.fail("explaining", err)
	}
	f, err := c.anchor.check(ctx, answer.Signed, answer.Pointer)
	if err != nil {
		return c.fail("checking the signature", err)
	}
	if f.State == signature.Refused {
		c.tellSignature(f, answer.Pointer.Sequence)
		return 1
	}
	code := 0
	switch {
	case !answer.Agree:
		code = exitDisagreement
	case !answer.Allowed:
		code = exitDropped
	}
	if c.json {
		if failed := c.outputJSON(struct {
			signature.Finding
			api.Explanation
		}{f, answer}); failed != 0 {
			return failed
		}
		return code
	}
	c.UI.Output(explainView(answer))
	c.tellSignature(f, answer.Pointer.Sequence)
	return code
}

// parsePort parses "5432", "53/udp" or "8/icmp".
func parsePort(s string) (protocol fabric.Protocol, port uint16, err error) {
	number, name, named := strings.Cut(s, "/")
	protocol = fabric.TCP
	if named {
		if protocol, err = fabric.ParseProtocol(name); err != nil {
			return 0, 0, err
		}
	}
	port, err = protocol.ParsePort(number)
	return protocol, port, err
}

// explainView shows an answer to people: first what is wrong.
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
	}
	return strings.TrimSuffix(b.String(), "\n")
}
