// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package command

import (
	"context"
	"flag"
	"path/filepath"

	"github.com/hashicorp/go-hclog"

	"github.com/sif-project/sif/internal/logkey"
	"github.com/sif-project/sif/internal/node/link"
	"github.com/sif-project/sif/internal/supervisor"
	"github.com/sif-project/sif/internal/wellknown"
)

// LinkCommand is sif link, the process that runs the WireGuard devices of a node.
type LinkCommand struct {
	Meta
	server   link.ServerConfig
	cores    int
	logLevel string
	logJSON  bool
}

// Synopsis implements cli.Command.
func (c *LinkCommand) Synopsis() string { return "Run the encrypted links of a node" }

func (c *LinkCommand) usage() string {
	return `
Usage: sif link [options]
       sif link list
       sif link show <name>

  Runs the WireGuard devices of a node in user space. Each processor and
  workload node whose kernel has no WireGuard, or whose configuration says
  link { device = "userspace" }, runs one such process, supervised apart from
  the agent and the engine, which configure devices and peers over sockets in
  the run directory. Elsewhere it is not needed: it then has no devices.
  A restart of the agent or the engine does not affect the tunnels. While
  this process does not run, its devices stay with their routes and drop all
  packets. On start it takes them over.

  The subcommands list and show are about the links between zones that the
  graph declares; they ask the controller.

  SIGINT and SIGTERM stop the process. SIGHUP has no effect: there is no
  configuration to reload.
`
}

func (c *LinkCommand) options() []*flag.FlagSet {
	o := newOptions("Options")
	runDir, dataDir := filepath.Join(wellknown.RunDir, wellknown.LinkDir), filepath.Join(wellknown.DataDir, wellknown.LinkDir)
	o.StringVar(&c.server.RunDir, "run-dir", runDir, "The `path` to the directory of the sockets. Default: "+runDir)
	o.StringVar(&c.server.DataDir, "data-dir", dataDir, "The `path` to the directory of saved devices, including private keys. Default: "+dataDir)
	o.IntVar(&c.cores, "cores", 0, "The largest `number` of cores to use, if the traffic needs them. It begins with one, which suits small traffic best. Default: half of the machine's")
	o.StringVar(&c.logLevel, "log-level", "info", "Log level: `trace|debug|info|warn|error`. Default: info")
	o.BoolVar(&c.logJSON, "log-json", false, "Log in JSON.")
	return []*flag.FlagSet{o}
}

func (c *LinkCommand) run(ctx context.Context, _ []string) error {
	level := hclog.LevelFromString(c.logLevel)
	if level == hclog.NoLevel {
		return usagef("-log-level: %q is not one of trace, debug, info, warn, error", c.logLevel)
	}
	if c.cores < 0 {
		return usagef("-cores=%d: must be a number of cores, or 0 for half of the machine's", c.cores)
	}
	c.server.Logger = c.newLog(level, c.logJSON)
	if err := link.KeepMonitorAwake(); err != nil {
		c.server.Logger.Warn("packets take more of the processor than necessary", logkey.Error, err)
	}
	go link.AdaptCores(ctx, c.cores, c.server.Logger)
	reload := func(context.Context) {
		c.server.Logger.Info("nothing to reload: devices are configured over the socket")
	}
	c.server.Supervisor = supervisor.New(c.server.Logger)
	return c.serve(ctx, c.server.Supervisor, c.server.Logger, reload, link.NewServer(c.server).Run)
}
