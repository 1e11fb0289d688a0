// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package command

import (
	"context"
	"flag"
	"fmt"

	"github.com/sif-project/sif/api"
)

// KeyRotateCommand is sif key rotate.
type KeyRotateCommand struct{ keyCommand }

// Synopsis implements cli.Command.
func (c *KeyRotateCommand) Synopsis() string { return "Have new versions of the fabric's keys sign" }

func (c *KeyRotateCommand) usage() string {
	return `
Usage: sif key rotate [options]

  Replaces the versions of the fabric's two keys that sign, in three steps:

    1. a new version of each is made in Vault, and every daemon learns it;
    2. when all know it, it signs, and nothing else does;
    3. when every controller signs with it, the command ends.

  What older versions signed counts as before, and is signed again; "sif key
  retire" ends that. Nothing is interrupted at any step. All state is in Vault:
  the command can be stopped at any time, and run again to go on; "sif key
  abort" goes back.

  Who verifies signatures with a file of public keys needs a new one before step
  2, and files that were made before stay good for what was signed before.

  VAULT_ADDR names Vault; the token is VAULT_TOKEN or that of vault login, and
  must be allowed to read the two keys, and to update "rotate" and "config"
  under each.
`
}

func (c *KeyRotateCommand) options() []*flag.FlagSet {
	o := newOptions("Rotate Options")
	c.jsonOption(o, "Print the keys in JSON at the end. No approval is asked for.")
	c.rotationOptions(o, true)
	return []*flag.FlagSet{c.generalOptions(), o}
}

func (c *KeyRotateCommand) run(ctx context.Context, _ []string) error {
	keys, client, err := c.open(ctx)
	if err != nil {
		return err
	}
	daemons, err := c.daemons(ctx, client)
	if err != nil {
		return fmt.Errorf("rotating the keys: %w", err)
	}
	for _, d := range daemons {
		if why := explicit(d); why != "" && d.silent == "" {
			return fmt.Errorf("rotating the keys: %s: %s; nothing was changed", d.who, why)
		}
	}
	if err := c.make(ctx, keys); err != nil {
		return fmt.Errorf("rotating the keys: %w", err)
	}
	for _, k := range keys {
		if err := c.use(ctx, k, client); err != nil {
			return fmt.Errorf("rotating the keys: %w", err)
		}
	}
	return c.show(ctx, keys, client, "\nWhat older versions signed still counts. Have it signed again, and end them, which cannot be undone:\n\n    sif key retire")
}

// make makes a new version of each key, unless a rotation is under way.
func (c *KeyRotateCommand) make(ctx context.Context, keys []*fabricKey) error {
	var fresh []*fabricKey
	for _, k := range keys {
		switch signs := k.signs(); {
		case k.key.Latest > signs:
			c.say("%s: going on with version %d", k, k.key.Latest)
		case len(k.older()) > 0:
			c.say("%s: version %d signs already; older ones count until \"sif key retire\"", k, signs)
		default:
			fresh = append(fresh, k)
		}
	}
	if len(fresh) == 0 {
		return nil
	}
	if err := c.ask("Make new versions of the keys that sign?"); err != nil {
		return err
	}
	for _, k := range fresh {
		if err := k.Pin(ctx, k.signs()); err != nil { // so that the new one signs nothing yet
			return err
		}
		if err := k.Rotate(ctx); err != nil {
			return err
		}
		if err := k.read(ctx); err != nil {
			return err
		}
		c.say("%s: made version %d", k, k.key.Latest)
	}
	return nil
}

// use has the newest version of a key sign, once everybody knows it.
func (c *KeyRotateCommand) use(ctx context.Context, k *fabricKey, client *api.Client) error {
	latest := k.key.Latest
	if k.signs() != latest || k.key.Pinned == 0 {
		if k.signs() != k.key.Pinned {
			if err := k.Pin(ctx, k.signs()); err != nil { // somebody rotated it by hand
				return err
			}
		}
		if err := c.await(ctx, client, fmt.Sprintf("version %d of %s is known", latest, k), k.knows(latest)); err != nil {
			return err
		}
		if err := k.Pin(ctx, latest); err != nil {
			return err
		}
		c.say("%s: version %d signs now", k, latest)
	}
	return c.await(ctx, client, fmt.Sprintf("version %d of %s is in use", latest, k), k.signing(latest))
}
