// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package command

import (
	"cmp"
	"context"
	"errors"
	"strconv"

	"github.com/hashicorp/go-hclog"

	"github.com/sif-project/sif/controller"
	"github.com/sif-project/sif/internal/config"
	"github.com/sif-project/sif/internal/version"
)

// ControllerCommand is `sif controller`: the policy controller.
type ControllerCommand struct{ Meta }

// Synopsis implements cli.Command.
func (c *ControllerCommand) Synopsis() string { return "Run the policy controller" }

// Help implements cli.Command.
func (c *ControllerCommand) Help() string {
	return help(`
Usage: sif controller [options]

  Runs the policy controller of a fabric: it compiles, signs and publishes
  service graphs, gives nodes their address pools, and admits workloads after
  asking Nomad. Consul, Vault and Nomad must have been set up for the fabric.
  Of several controllers one leads.

  If Consul or Vault does not answer within 10 seconds, the controller ends
  with an error and has changed nothing. SIGINT and SIGTERM stop it after the
  calls under way. SIGHUP opens the audit log anew, as logrotate wants it, reads
  the configuration file again and takes the tokens and the log level from it;
  other changes need a restart.

  The data directory remembers the last signed revision. If the pointer in
  Consul is then altered by hand, the controller refuses to build on it and
  "sif status" says so. To recover, put the last one back, with a Consul token
  that may write it:

      consul kv put sif/v1/current @<data_dir>/revision/pointer.json

  An object that was altered or deleted is written again when the same graph
  is applied once more.

Options:

  -config=<path>  Configuration file. Default: /etc/sif/controller.hcl

  -history=<n>    How many revisions are kept, 1 to 10000. Overrides "history"
                  in the configuration file. Default: 100
`)
}

// Run implements cli.Command.
func (c *ControllerCommand) Run(args []string) int {
	history := 0
	flags := c.flagSet("controller")
	flags.Func("history", "", func(s string) (err error) {
		if history, err = strconv.Atoi(s); err != nil {
			return errors.New("not a number")
		}
		return config.CheckHistory(history)
	})
	return c.runConfigured(flags, config.RoleController, args,
		func(ctx context.Context, cfg *config.Config, reload <-chan *config.Config, log hclog.Logger) error {
			cfg.History = cmp.Or(history, cfg.History)
			return controller.Serve(ctx, cfg, reload, version.Version, log)
		})
}
