// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package command

import (
	"context"
	"flag"
	"fmt"
	"time"

	"github.com/posener/complete"

	"github.com/sif-project/sif/api"
	"github.com/sif-project/sif/fabric"
)

// ReinstateCommand is sif reinstate.
type ReinstateCommand struct {
	Meta
	reason string
}

// Synopsis implements cli.Command.
func (c *ReinstateCommand) Synopsis() string {
	return "Take the revocation of a service or an endpoint back"
}

func (c *ReinstateCommand) usage() string {
	return `
Usage: sif reinstate [options] service <domain>/<service>
       sif reinstate [options] endpoint <endpoint>

  Takes a revocation back. The endpoints that still run are admitted again
  within seconds, with new keys; what was issued before stays without rights,
  so that a stolen copy of it is worth nothing.

  The removal of a node and the revocation of a certificate cannot be taken
  back: the machine joins again, and a new certificate was issued at once.

  The token must be an operator's: who may revoke a service of a domain may not
  reinstate it.
`
}

func (c *ReinstateCommand) options() []*flag.FlagSet {
	o := newOptions("Reinstate Options")
	c.jsonOption(o, "Print the revocation in JSON.")
	o.StringVar(&c.reason, "reason", "", "A `message` that says why, for the audit log.")
	return []*flag.FlagSet{c.generalOptions(), o}
}

func (c *ReinstateCommand) arguments() arguments {
	return arguments{min: 2, max: 2, words: "two arguments: service <domain>/<service>, or endpoint <endpoint>", predict: complete.PredictSet("service", "endpoint")}
}

func (c *ReinstateCommand) run(ctx context.Context, args []string) error {
	req := api.ReinstateRequest{Reason: c.reason}
	switch args[0] {
	case "service":
		var err error
		if req.Service, err = serviceArgument(args[1]); err != nil {
			return err
		}
	case "endpoint":
		req.Endpoint = args[1]
	case "node":
		return usagef("The removal of a node cannot be taken back: let the machine join again, with a token of \"sif node create\".")
	case "certificate":
		return usagef("The revocation of a certificate cannot be taken back: its holder has got another one from Vault.")
	default:
		return usagef("%q cannot be reinstated; a service or an endpoint can.", args[0])
	}
	client, err := c.client()
	if err != nil {
		return err
	}
	reply, err := client.Reinstate(ctx, req)
	if err != nil {
		return fmt.Errorf("reinstating %s %s: %w", args[0], args[1], err)
	}
	return c.output(reply, func() string {
		since := reply.Revocation.Reinstated.Format(time.RFC3339)
		if reply.Unchanged {
			return fmt.Sprintf("%s %s was reinstated at %s already.", args[0], args[1], since)
		}
		return fmt.Sprintf("%s %s is reinstated. What was issued until %s stays without rights.", args[0], args[1], since)
	})
}

// serviceArgument parses domain/service.
func serviceArgument(text string) (fabric.Ref, error) {
	service, err := fabric.ParseRef(text)
	if err != nil {
		return service, usagef("%v", err)
	}
	return service, nil
}
