// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package command

import (
	"github.com/sif-project/sif/engine"
	"github.com/sif-project/sif/internal/config"
)

// EngineCommand is `sif engine`: the daemon of a processor node.
type EngineCommand struct{ Meta }

// Synopsis implements cli.Command.
func (c *EngineCommand) Synopsis() string { return "Run the policy engine of a processor node" }

// Help implements cli.Command.
func (c *EngineCommand) Help() string {
	return help(`
Usage: sif engine [options]

  Runs the policy engine of a processor node. It validates the connectivity
  requests of its zone's agents, programs the Open vSwitch bridge at the zone's
  boundary, and carries requests to and from the engines of other zones. It
  needs root and a running ovs-vswitchd.

  SIGINT and SIGTERM stop it; what it enforces stays enforced, and the next
  start takes it over. SIGHUP rereads the log level.

Options:

  -config=<path>  Configuration file. Default: /etc/sif/engine.hcl
`)
}

// Run implements cli.Command.
func (c *EngineCommand) Run(args []string) int {
	return c.runConfigured(c.flagSet("engine"), config.RoleEngine, args, onNode(engine.Start))
}
