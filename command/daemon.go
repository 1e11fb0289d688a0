// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package command

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/hashicorp/go-hclog"

	"github.com/sif-project/sif/internal/config"
	"github.com/sif-project/sif/internal/logkey"
)

// serveFunc serves as a configuration says until ctx ends. What comes over
// reload, at each SIGHUP, is the configuration as it was changed meanwhile, or
// nil if it cannot be read.
type serveFunc func(ctx context.Context, cfg *config.Config, reload <-chan *config.Config, log hclog.Logger) error

// runConfigured is the body of the commands of daemons that have a
// configuration file. flags may have options of the daemon's own.
func (m *Meta) runConfigured(flags *flag.FlagSet, role config.Role, args []string, serve serveFunc) int {
	path := flags.String("config", "/etc/sif/"+string(role)+".hcl", "")
	if code, ok := m.parseOptions(flags, args); !ok {
		return code
	}
	load := func() (*config.Config, error) {
		cfg, err := config.Load(*path)
		if err != nil {
			return nil, err
		}
		return cfg, cfg.Require(role)
	}
	cfg, err := load()
	if err != nil {
		m.UI.Error(err.Error())
		return 1
	}
	log := daemonLog(string(role), hclog.LevelFromString(cfg.LogLevel), cfg.LogJSON)
	reload := make(chan *config.Config)
	reread := func(ctx context.Context) {
		again, err := load()
		if err != nil {
			log.Error("configuration not reloaded; the old one stays in force", logkey.Error, err)
			again = nil
		}
		select {
		case reload <- again:
		case <-ctx.Done():
		}
	}
	return m.serve(string(role), log, reread, func(ctx context.Context) error { return serve(ctx, cfg, reload, log) })
}

// nodeDaemon is the daemon of a node, once it has started.
type nodeDaemon interface {
	Run(ctx context.Context) error
}

// onNode serves with the daemon of a node. Of a changed configuration that
// takes the log level.
func onNode[D nodeDaemon](start func(context.Context, *config.Config, hclog.Logger) (D, error)) serveFunc {
	return func(ctx context.Context, cfg *config.Config, reload <-chan *config.Config, log hclog.Logger) error {
		go func() {
			for {
				select {
				case again := <-reload:
					if again == nil {
						continue
					}
					log.SetLevel(hclog.LevelFromString(again.LogLevel))
					log.Info("configuration reloaded: the log level")
				case <-ctx.Done():
					return
				}
			}
		}()
		d, err := start(ctx, cfg, log)
		if err != nil {
			return err
		}
		log.Info("started")
		if err := d.Run(ctx); err != nil && ctx.Err() == nil {
			return err
		}
		return nil
	}
}

// daemonLog is the log of a daemon: standard error.
func daemonLog(name string, level hclog.Level, json bool) hclog.Logger {
	return hclog.New(&hclog.LoggerOptions{Name: name, Level: level, JSONFormat: json, Output: os.Stderr})
}

// serve runs a daemon until SIGINT or SIGTERM, and calls reload at each SIGHUP.
func (m *Meta) serve(name string, log hclog.Logger, reload func(context.Context), run func(context.Context) error) int {
	ctx, stop := interruptible()
	defer stop()
	hup := make(chan os.Signal, 1)
	signal.Notify(hup, syscall.SIGHUP)
	defer signal.Stop(hup)
	go func() {
		for {
			select {
			case <-hup:
				reload(ctx)
			case <-ctx.Done():
				return
			}
		}
	}()
	if err := run(ctx); err != nil {
		m.UI.Error(fmt.Sprintf("sif %s: %s", name, err))
		return 1
	}
	log.Info("stopped")
	return 0
}
