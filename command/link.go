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

	"github.com/sif-project/sif/internal/link"
)

// LinkCommand is `sif link`: the process that holds a node's WireGuard devices.
type LinkCommand struct{ UI cli.Ui }

// Synopsis implements cli.Command.
func (c *LinkCommand) Synopsis() string { return "Hold this node's encrypted links" }

// Help implements cli.Command.
func (c *LinkCommand) Help() string {
	return strings.TrimSpace(`
Usage: sif link [options]

  Holds the WireGuard devices of this node in user space. One such process runs
  on every processor and workload node, supervised apart from the agent and the
  engine, which tell it over the sockets in its run dir which devices and peers
  there should be. Restarting them does not touch a tunnel; stopping this
  process takes the tunnels down. It restores its devices when it starts.

  SIGINT and SIGTERM stop it. SIGHUP does nothing: it has nothing to reload.

Options:

  -run-dir=<path>    Directory of the sockets. Default: /run/sif/link
  -data-dir=<path>   Directory of the saved devices, private keys included.
                     Default: /var/lib/sif/link
  -log-level=<level> trace, debug, info, warn or error. Default: info
  -log-json          Log in JSON.
`)
}

// Run implements cli.Command.
func (c *LinkCommand) Run(args []string) int {
	var config link.ServerConfig
	var logLevel string
	var logJSON bool
	flags := flag.NewFlagSet("link", flag.ContinueOnError)
	flags.SetOutput(io.Discard)
	flags.StringVar(&config.RunDir, "run-dir", "/run/sif/link", "")
	flags.StringVar(&config.DataDir, "data-dir", "/var/lib/sif/link", "")
	flags.StringVar(&logLevel, "log-level", "info", "")
	flags.BoolVar(&logJSON, "log-json", false, "")
	if err := flags.Parse(args); err == flag.ErrHelp {
		return cli.RunResultHelp
	} else if err != nil {
		c.UI.Error(err.Error())
		return 1
	}
	if flags.NArg() > 0 {
		c.UI.Error(fmt.Sprintf("sif link takes no arguments, got %q", flags.Args()))
		return 1
	}
	level := hclog.LevelFromString(logLevel)
	if level == hclog.NoLevel {
		c.UI.Error(fmt.Sprintf("-log-level: %q is none of trace, debug, info, warn, error", logLevel))
		return 1
	}
	config.Logger = hclog.New(&hclog.LoggerOptions{
		Name: "link", Level: level, JSONFormat: logJSON, Output: os.Stderr,
	})

	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	hup := make(chan os.Signal, 1)
	signal.Notify(hup, syscall.SIGHUP)
	defer signal.Stop(hup)
	go func() {
		for {
			select {
			case <-hup:
				config.Logger.Info("nothing to reload: devices come over the socket")
			case <-ctx.Done():
				return
			}
		}
	}()

	if err := link.NewServer(config).Run(ctx); err != nil {
		c.UI.Error(fmt.Sprintf("sif link: %s", err))
		return 1
	}
	config.Logger.Info("stopped")
	return 0
}
