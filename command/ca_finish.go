// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package command

import (
	"cmp"
	"context"
	"flag"
	"fmt"
)

// CAFinishCommand is sif ca finish.
type CAFinishCommand struct{ authorityCommand }

// Synopsis implements cli.Command.
func (c *CAFinishCommand) Synopsis() string { return "End the old authority after a rotation" }

func (c *CAFinishCommand) usage() string {
	return `
Usage: sif ca finish [options]

  Ends the authorities from before a rotation: Vault revokes them, and within a
  minute no daemon trusts their certificates. It cannot be undone. It is refused
  while a daemon uses a certificate of one, or does not trust the current one.

  They stay listed in Vault as revoked, so that a machine that is away now
  learns of it. Do not delete them there before all machines have been back.

  VAULT_ADDR names Vault; the token is VAULT_TOKEN or that of vault login, and
  must be an administrator's of the PKI mount.
`
}

func (c *CAFinishCommand) options() []*flag.FlagSet {
	o := newOptions("Finish Options")
	c.jsonOption(o, "Print the authorities in JSON at the end. No approval is asked for.")
	c.rotationOptions(o, true)
	return []*flag.FlagSet{c.generalOptions(), o}
}

func (c *CAFinishCommand) run(ctx context.Context, _ []string) error {
	pki, set, client, err := c.open(ctx)
	if err != nil {
		return err
	}
	if next, ok := set.Next(); ok {
		return fmt.Errorf("finishing the rotation: authority %s is not in use yet: go on with \"sif ca rotate\", or give it up with \"sif ca abort\"", short(next.ID))
	}
	old := set.Old()
	if len(old) == 0 {
		return fmt.Errorf("finishing the rotation: %w", errNoRotation)
	}
	daemons, err := c.daemons(ctx, client)
	if err != nil {
		return err
	}
	current, _ := set.Current()
	still := func(d reported) string { return cmp.Or(trusts(current)(d), abandoned(old)(d)) }
	if lack := lacking(daemons, still); len(lack) > 0 {
		return fmt.Errorf("finishing the rotation: the old authority is still needed, and nothing was changed:%s\n\"sif ca rotate\" waits for them, and -without leaves out nodes that are away for good", someOf(lack))
	}
	if err := c.ask(fmt.Sprintf("End authority %s (%s), of which nobody uses a certificate? It cannot be undone.", short(old[0].ID), old[0].Subject)); err != nil {
		return err
	}
	for _, a := range old {
		if err := pki.End(ctx, a); err != nil {
			return fmt.Errorf("finishing the rotation: %w", err)
		}
		c.say("authority %s is ended", short(a.ID))
	}
	return c.show(ctx, pki, client)
}
