// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package command

import (
	"context"
	"flag"
	"fmt"
)

// KeyAbortCommand is sif key abort.
type KeyAbortCommand struct{ keyCommand }

// Synopsis implements cli.Command.
func (c *KeyAbortCommand) Synopsis() string {
	return "Have the versions of the fabric's keys from before a rotation sign"
}

func (c *KeyAbortCommand) usage() string {
	return `
Usage: sif key abort [options]

  Goes back from a rotation that was begun with "sif key rotate": the versions
  of the fabric's two keys from before sign again, until "sif key retire" has
  ended them. What the new ones signed counts as before. They stay in Vault, and
  the next "sif key rotate" goes on with them. Nothing is interrupted.

  VAULT_ADDR names Vault; the token is VAULT_TOKEN or that of vault login, and
  must be allowed to read the two keys, and to update "config" under each.
`
}

func (c *KeyAbortCommand) options() []*flag.FlagSet {
	o := newOptions("Abort Options")
	c.jsonOption(o, "Print the keys in JSON at the end. No approval is asked for.")
	c.rotationOptions(o, true)
	return []*flag.FlagSet{c.generalOptions(), o}
}

func (c *KeyAbortCommand) run(ctx context.Context, _ []string) error {
	keys, client, err := c.open(ctx)
	if err != nil {
		return err
	}
	back := map[*fabricKey]int{}
	begun := false
	for _, k := range keys {
		if older := k.older(); len(older) > 0 {
			back[k] = older[len(older)-1]
		}
		begun = begun || k.key.Latest > k.signs()
	}
	switch {
	case len(back) == 0 && begun:
		c.say("The new versions sign nothing, so there is nothing to go back from.")
		return c.show(ctx, keys, client, "")
	case len(back) == 0:
		return fmt.Errorf("aborting the rotation: %w", errNoOlder)
	}
	if err := c.ask("Have the versions of the keys from before the rotation sign again?"); err != nil {
		return err
	}
	for _, k := range keys {
		version, ok := back[k]
		if !ok {
			continue
		}
		if err := k.Pin(ctx, version); err != nil {
			return fmt.Errorf("aborting the rotation: %w", err)
		}
		c.say("%s: version %d signs again", k, version)
		if err := c.await(ctx, client, fmt.Sprintf("version %d of %s is in use", version, k), k.signing(version)); err != nil {
			return fmt.Errorf("aborting the rotation: %w", err)
		}
	}
	return c.show(ctx, keys, client, "")
}
