// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package command

import (
	"context"
	"flag"
)

// KeyStatusCommand is sif key status.
type KeyStatusCommand struct{ keyCommand }

// Synopsis implements cli.Command.
func (c *KeyStatusCommand) Synopsis() string {
	return "Show the versions of the fabric's keys, and who knows them"
}

func (c *KeyStatusCommand) usage() string {
	return `
Usage: sif key status [options]

  Shows the versions of the fabric's two keys in Vault that count: of the one
  that signs revisions, admissions, node records and revocations, and of the one
  that signs tokens of applications. For each: whether it signs, by how many
  daemons it is known, and how many signed statements of it the daemons hold. It
  names the daemons of which that is not known, or that do not know all of them.

  VAULT_ADDR names Vault; the token is VAULT_TOKEN or that of vault login, and
  must be allowed to read the two keys and the settings.
`
}

func (c *KeyStatusCommand) options() []*flag.FlagSet {
	o := newOptions("Status Options")
	c.jsonOption(o, "Print the keys in JSON.")
	c.rotationOptions(o, false)
	return []*flag.FlagSet{c.generalOptions(), o}
}

func (c *KeyStatusCommand) run(ctx context.Context, _ []string) error {
	keys, client, err := c.open(ctx)
	if err != nil {
		return err
	}
	return c.show(ctx, keys, client, "")
}
