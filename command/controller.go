// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package command

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"strconv"

	"github.com/hashicorp/go-hclog"

	"github.com/sif-project/sif/controller"
	"github.com/sif-project/sif/internal/config"
	"github.com/sif-project/sif/internal/supervisor"
	"github.com/sif-project/sif/internal/version"
)

// ControllerCommand is sif controller, the policy controller.
type ControllerCommand struct {
	configured
	history int
}

// Synopsis implements cli.Command.
func (c *ControllerCommand) Synopsis() string { return "Run the policy controller" }

func (c *ControllerCommand) usage() string {
	return `
Usage: sif controller [options]

  Runs the policy controller of a fabric. The controller compiles, signs and
  publishes service graphs, assigns address pools to nodes, and admits workloads
  after checking them with Nomad. Consul, Vault and Nomad must have been set up
  for the fabric. If several controllers run, one of them leads.

  The controller exits with an error if Consul or Vault does not answer within
  10 seconds; it has changed nothing then. SIGINT and SIGTERM stop it after it
  has finished the calls in progress. SIGHUP reopens the audit log, for
  logrotate, and reloads the addresses of Consul and Nomad and the log level
  from the configuration file; other changes need a restart.

  The controller remembers the last signed revision in its data directory. If
  somebody changes the pointer in Consul, the controller does not accept it, and
  "sif status" reports that. To recover, write the last pointer back with a
  Consul token that has write access:

      $ consul kv put sif/v1/current @<data_dir>/revision/pointer.json

  To restore an object that was changed or deleted, apply the same graph again.
`
}

func (c *ControllerCommand) options() []*flag.FlagSet {
	o := c.configOptions()
	c.history = 0
	o.Func("history", "The `number` of revisions to keep, from 1 to 10000. Overrides \"history\" of the configuration file. Default: 100",
		func(s string) (err error) {
			if c.history, err = strconv.Atoi(s); err != nil {
				return errors.New("not a number")
			}
			return config.CheckHistory(c.history)
		})
	return []*flag.FlagSet{o}
}

func (c *ControllerCommand) run(ctx context.Context, _ []string) error {
	reload := make(chan *config.Config)
	return c.serveConfigured(ctx, func(ctx context.Context, changed *config.Config, _ hclog.Logger) {
		select {
		case reload <- changed: // nil as well: the audit log is reopened in any case
		case <-ctx.Done():
		}
	}, func(ctx context.Context, cfg *config.Config, sup *supervisor.Supervisor, log hclog.Logger) error {
		cfg.History = cmp.Or(c.history, cfg.History)
		return controller.Serve(ctx, cfg, reload, version.Version, sup, log)
	})
}
