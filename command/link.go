// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package command

import (
	"context"
	"path/filepath"

	"github.com/hashicorp/go-hclog"

	"github.com/sif-project/sif/internal/node/link"
	"github.com/sif-project/sif/internal/wellknown"
)

// LinkCommand is `sif link`: the process that holds a node's WireGuard devices.
type LinkCommand struct{ Meta }

// Synopsis implements cli.Command.
func (c *LinkCommand) Synopsis() string { return "Hold this node's encrypted links" }

// Help implements cli.Command.
func (c *LinkCommand) Help() string {
	return help(`
Usage: sif link [options]

  Holds the WireGuard devices of this node in user space. One such process runs
  on every processor and workload node, supervised apart from the agent and the
  engine, which tell it over the sockets in its run dir which devices and peers
  there should be. Restarting them does not touch a tunnel; stopping this
  process takes the tunnels down. It restores its devices when it starts.

  SIGINT and SIGTERM stop it. SIGHUP does nothing: it has nothing to reload.

Options:

  -run-dir=<path>    Directory of the sockets. Default: ` + wellknown.RunDir + "/" + wellknown.LinkDir + `
  -data-dir=<path>   Directory of the saved devices, private keys included.
                     Default: ` + wellknown.DataDir + "/" + wellknown.LinkDir + `
  -log-level=<level> trace, debug, info, warn or error. Default: info
  -log-json          Log in JSON.
`)
}

// Run implements cli.Command.
func (c *LinkCommand) Run(args []string) int {
	var config link.ServerConfig
	flags := c.flagSet("link")
	flags.StringVar(&config.RunDir, "run-dir", filepath.Join(wellknown.RunDir, wellknown.LinkDir), "")
	flags.StringVar(&config.DataDir, "data-dir", filepath.Join(wellknown.DataDir, wellknown.LinkDir), "")
	logLevel := flags.String("log-level", "info", "")
	logJSON := flags.Bool("log-json", false, "")
	if code, ok := c.parseOptions(flags, args); !ok {
		return code
	}
	level := hclog.LevelFromString(*logLevel)
	if level == hclog.NoLevel {
		return c.usage("link", "-log-level: %q is none of trace, debug, info, warn, error", *logLevel)
	}
	config.Logger = daemonLog("link", level, *logJSON)
	nothing := func(context.Context) { config.Logger.Info("nothing to reload: devices come over the socket") }
	return c.serve("link", config.Logger, nothing, link.NewServer(config).Run)
}
