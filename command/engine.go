// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package command

import (
	"context"
	"strings"

	"github.com/hashicorp/cli"
	"github.com/hashicorp/go-hclog"

	"github.com/sif-project/sif/engine"
	"github.com/sif-project/sif/internal/config"
)

// EngineCommand is `sif engine`: the daemon of a processor node.
type EngineCommand struct{ UI cli.Ui }

// Synopsis implements cli.Command.
func (c *EngineCommand) Synopsis() string { return "Run the policy engine of a processor node" }

// Help implements cli.Command.
func (c *EngineCommand) Help() string {
	return strings.TrimSpace(`
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
	return runDaemon(c.UI, config.RoleEngine, args, func(ctx context.Context, cfg *config.Config, log hclog.Logger) (runner, error) {
		return engine.Start(ctx, cfg, log)
	})
}
