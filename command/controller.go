// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package command

import (
	"context"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/hashicorp/cli"
	"github.com/hashicorp/go-hclog"

	"github.com/sif-project/sif/controller"
	"github.com/sif-project/sif/internal/config"
	"github.com/sif-project/sif/internal/logkey"
	"github.com/sif-project/sif/internal/version"
)

// ControllerCommand is `sif controller`: the policy controller.
type ControllerCommand struct{ UI cli.Ui }

// Synopsis implements cli.Command.
func (c *ControllerCommand) Synopsis() string { return "Run the policy controller" }

// Help implements cli.Command.
func (c *ControllerCommand) Help() string {
	return strings.TrimSpace(`
Usage: sif controller -config=<path>

  Runs the policy controller of a fabric: it compiles, signs and publishes
  service graphs, gives nodes their address pools, and admits workloads after
  asking Nomad. Consul, Vault and Nomad must have been set up for the fabric.
  Of several controllers one leads.

  If Consul or Vault does not answer within 10 seconds, the controller ends
  with an error and has changed nothing. SIGINT and SIGTERM stop it after the
  calls under way. SIGHUP reads the configuration file again and takes the
  tokens and the log level from it; other changes need a restart.

  The data directory remembers the last signed revision. If the pointer in
  Consul is then altered by hand, the controller refuses to build on it and
  "sif status" says so. To recover, put the last one back, with a Consul token
  that may write it:

      consul kv put sif/v1/current @<data_dir>/revision/pointer.json

  An object that was altered or deleted is written again when the same graph
  is applied once more.

Options:

  -config=<path>  Configuration file. Required.
`)
}

// Run implements cli.Command.
func (c *ControllerCommand) Run(args []string) int {
	var path string
	flags := flag.NewFlagSet("controller", flag.ContinueOnError)
	flags.SetOutput(io.Discard)
	flags.StringVar(&path, "config", "", "")
	if err := flags.Parse(args); err == flag.ErrHelp {
		return cli.RunResultHelp
	} else if err != nil {
		c.UI.Error(err.Error())
		return 1
	}
	if flags.NArg() > 0 {
		c.UI.Error(fmt.Sprintf("sif controller takes no arguments, got %q", flags.Args()))
		return 1
	}
	if path == "" {
		c.UI.Error("sif controller needs -config=<path>")
		return 1
	}
	file, err := loadController(path)
	if err != nil {
		c.UI.Error(err.Error())
		return 1
	}
	log := hclog.New(&hclog.LoggerOptions{
		Name: "controller", Level: hclog.LevelFromString(file.LogLevel), JSONFormat: file.LogJSON, Output: os.Stderr,
	})
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	hup := make(chan os.Signal, 1)
	signal.Notify(hup, syscall.SIGHUP)
	defer signal.Stop(hup)
	reload := make(chan *config.Config)
	go func() {
		for {
			select {
			case <-ctx.Done():
				return
			case <-hup:
			}
			again, err := loadController(path)
			if err != nil {
				log.Error("configuration not reloaded", logkey.Error, err)
				continue
			}
			select {
			case reload <- again:
			case <-ctx.Done():
			}
		}
	}()
	if err := controller.Serve(ctx, file, reload, version.Version, log); err != nil {
		c.UI.Error(fmt.Sprintf("sif controller: %s", err))
		return 1
	}
	log.Info("stopped")
	return 0
}

func loadController(path string) (*config.Config, error) {
	file, err := config.Load(path)
	if err != nil {
		return nil, err
	}
	return file, file.Require(config.RoleController)
}
