// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package command

import (
	"context"
	"flag"
	"fmt"

	"github.com/sif-project/sif/api"
	"github.com/sif-project/sif/internal/setup"
)

// CAAbortCommand is sif ca abort.
type CAAbortCommand struct{ authorityCommand }

// Synopsis implements cli.Command.
func (c *CAAbortCommand) Synopsis() string { return "Go back to the authority from before a rotation" }

func (c *CAAbortCommand) usage() string {
	return `
Usage: sif ca abort [options]

  Ends a rotation that was begun with "sif ca rotate" and not finished: the old
  authority issues the certificates again, and the daemons renew theirs. When
  none of the new one is in use, the new one is ended. Nothing is interrupted.

  The command can be stopped at any time, and run again to go on.

  VAULT_ADDR names Vault; the token is VAULT_TOKEN or that of vault login, and
  must be an administrator's of the PKI mount.
`
}

func (c *CAAbortCommand) options() []*flag.FlagSet {
	o := newOptions("Abort Options")
	c.jsonOption(o, "Print the authorities in JSON at the end. No approval is asked for.")
	c.rotationOptions(o, true)
	return []*flag.FlagSet{c.generalOptions(), o}
}

func (c *CAAbortCommand) run(ctx context.Context, _ []string) error {
	pki, set, client, err := c.open(ctx)
	if err != nil {
		return err
	}
	if old := set.Old(); len(old) > 0 {
		back := old[len(old)-1]
		if err := c.ask(fmt.Sprintf("Have authority %s (%s) issue the certificates again?", short(back.ID), back.Subject)); err != nil {
			return err
		}
		if err := pki.Use(ctx, back); err != nil {
			return fmt.Errorf("aborting the rotation: %w", err)
		}
		c.say("authority %s issues the certificates again", short(back.ID))
		if set, err = pki.Authorities(ctx); err != nil {
			return err
		}
	}
	next, ok := set.Next()
	if !ok {
		return fmt.Errorf("aborting the rotation: %w", errNoRotation)
	}
	if err := c.await(ctx, client, "certificates of the new authority are given up", abandoned([]setup.Authority{next})); err != nil {
		return fmt.Errorf("aborting the rotation: %w", err)
	}
	if err := pki.End(ctx, next); err != nil {
		return fmt.Errorf("aborting the rotation: %w", err)
	}
	c.say("authority %s is ended", short(next.ID))
	return c.show(ctx, pki, client)
}

// show shows the authorities as they are now.
func (c *authorityCommand) show(ctx context.Context, pki setup.PKI, client *api.Client) error {
	set, err := pki.Authorities(ctx)
	if err != nil {
		return err
	}
	s, err := c.look(ctx, set, client)
	if err != nil {
		return err
	}
	return c.output(s, func() string { return formatAuthorities(s) })
}
