// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package command

import (
	"flag"
)

// RevokeNodeCommand is sif revoke node: sif node remove under the name that goes with the other
// revocations.
type RevokeNodeCommand struct{ NodeRemoveCommand }

// Synopsis implements cli.Command.
func (c *RevokeNodeCommand) Synopsis() string { return "Take all rights of a node away, for good" }

func (c *RevokeNodeCommand) usage() string {
	return `
Usage: sif revoke node [options] <zone>/<node>

  Takes all rights of a node away: its links, its endpoints and its
  certificates, on every other node, within two seconds and on connections that
  are open. It is the same as "sif node remove", with -reason for -message. It
  cannot be taken back: the machine joins again as a new node, with a new key.

  If VAULT_ADDR is set, the command first deletes the machine's credential in
  Vault, with VAULT_TOKEN or the token of vault login, so that the machine gets
  no new certificate. Otherwise, or if that fails, it says what to delete.

  If standard input is a terminal, the command shows what it would remove and
  asks for approval. The token must be an operator's.
`
}

func (c *RevokeNodeCommand) options() []*flag.FlagSet {
	list := c.NodeRemoveCommand.options()
	list[len(list)-1].StringVar(&c.message, "reason", "", "A `message` that says why, for the list of revocations and the audit log.")
	return list
}
