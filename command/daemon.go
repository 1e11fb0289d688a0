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
	"syscall"

	"github.com/hashicorp/cli"
	"github.com/hashicorp/go-hclog"

	"github.com/sif-project/sif/internal/config"
	"github.com/sif-project/sif/internal/logkey"
)

// runner is a daemon that has started: it serves until its context ends.
type runner interface {
	Run(ctx context.Context) error
}

// runDaemon is the body of the commands of agent and engine: it reads
// -config, starts the daemon, and serves until SIGINT or SIGTERM. SIGHUP
// rereads the log level.
func runDaemon(ui cli.Ui, role config.Role, args []string, start func(context.Context, *config.Config, hclog.Logger) (runner, error)) int {
	var path string
	flags := flag.NewFlagSet(string(role), flag.ContinueOnError)
	flags.SetOutput(io.Discard)
	flags.StringVar(&path, "config", "/etc/sif/"+string(role)+".hcl", "")
	if err := flags.Parse(args); err == flag.ErrHelp {
		return cli.RunResultHelp
	} else if err != nil {
		ui.Error(err.Error())
		return 1
	}
	if flags.NArg() > 0 {
		ui.Error(fmt.Sprintf("sif %s takes no arguments, got %q", role, flags.Args()))
		return 1
	}
	load := func() (*config.Config, error) {
		c, err := config.Load(path)
		if err != nil {
			return nil, err
		}
		return c, c.Require(role)
	}
	c, err := load()
	if err != nil {
		ui.Error(err.Error())
		return 1
	}
	log := hclog.New(&hclog.LoggerOptions{
		Name: string(role), Level: hclog.LevelFromString(c.LogLevel), JSONFormat: c.LogJSON, Output: os.Stderr,
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
				c, err := load()
				if err != nil {
					log.Error("configuration not reloaded; the old one stays in force", logkey.Error, err)
					continue
				}
				log.SetLevel(hclog.LevelFromString(c.LogLevel))
				log.Info("configuration reloaded: the log level")
			case <-ctx.Done():
				return
			}
		}
	}()
	d, err := start(ctx, c, log)
	if err != nil {
		ui.Error(fmt.Sprintf("sif %s: %s", role, err))
		return 1
	}
	log.Info("started")
	if err := d.Run(ctx); err != nil && ctx.Err() == nil {
		ui.Error(fmt.Sprintf("sif %s: %s", role, err))
		return 1
	}
	log.Info("stopped; what is enforced stays enforced")
	return 0
}
