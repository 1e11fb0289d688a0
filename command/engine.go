// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package command

import (
	"context"
	"flag"

	"github.com/sif-project/sif/engine"
)

// EngineCommand is sif engine, the daemon of a processor node.
type EngineCommand struct{ configured }

// Synopsis implements cli.Command.
func (c *EngineCommand) Synopsis() string { return "Run the policy engine of a processor node" }

func (c *EngineCommand) usage() string {
	return `
Usage: sif engine [options]

  Runs the policy engine of a processor node. The engine validates connectivity
  requests of the agents in its zone, programs the Open vSwitch bridge at the
  zone's boundary, and exchanges requests with the engines of other zones. It
  must run as root, and ovs-vswitchd must be running.

  SIGINT and SIGTERM stop the engine. Policy stays enforced while it is stopped,
  and the next start takes it over. SIGHUP reloads the log level.
`
}

func (c *EngineCommand) options() []*flag.FlagSet { return []*flag.FlagSet{c.configOptions()} }

func (c *EngineCommand) run(ctx context.Context, _ []string) error {
	return serveNode(ctx, &c.configured, engine.Start)
}
