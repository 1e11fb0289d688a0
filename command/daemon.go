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
	"github.com/sif-project/sif/internal/supervisor"
	"github.com/sif-project/sif/internal/version"
)

// serve runs a daemon until SIGINT or SIGTERM ends ctx, and calls reload on each SIGHUP. The daemon
// tells sup when it is ready and that it is alive.
func (m *Meta) serve(ctx context.Context, sup *supervisor.Supervisor, log hclog.Logger, reload func(context.Context), run func(context.Context) error) error {
	log.Info("starting", logkey.Version, version.Version, logkey.Commit, version.Commit)
	signals := make(chan os.Signal, 1)
	// SIGINT and SIGTERM are caught here too, so that a second one does not cut the shutdown short.
	signal.Notify(signals, syscall.SIGHUP, os.Interrupt, syscall.SIGTERM)
	defer signal.Stop(signals)
	go func() {
		for {
			select {
			case s := <-signals:
				if s == syscall.SIGHUP {
					sup.Reload(func() { reload(ctx) })
				}
			case <-ctx.Done():
				sup.Stopping()
				return
			}
		}
	}()
	if err := run(ctx); err != nil {
		return fmt.Errorf("running sif %s: %w", m.name, err)
	}
	log.Info("stopped")
	return nil
}

// newLog returns the log of a daemon, on standard error.
func (m *Meta) newLog(level hclog.Level, json bool) hclog.Logger {
	return hclog.New(&hclog.LoggerOptions{Name: m.name, Level: level, JSONFormat: json, Output: os.Stderr})
}

// configured is a daemon with a configuration file. The name of the command is its role.
type configured struct {
	Meta
	file string
}

// configOptions returns the options of the daemon.
func (d *configured) configOptions() *flag.FlagSet {
	o := newOptions("Options")
	file := "/etc/sif/" + d.name + ".hcl"
	o.StringVar(&d.file, "config", file, "The `path` to the configuration file. Default: "+file)
	return o
}

func (d *configured) load() (*config.Config, error) {
	cfg, err := config.Load(d.file, config.Role(d.name))
	if err != nil {
		return nil, fmt.Errorf("reading the configuration: %w", err)
	}
	return cfg, nil
}

// serveConfigured runs the daemon as its configuration file says. On SIGHUP it reads the file again
// and calls reload with it, or with nil if it is not valid.
func (d *configured) serveConfigured(ctx context.Context, reload func(context.Context, *config.Config, hclog.Logger), run func(context.Context, *config.Config, *supervisor.Supervisor, hclog.Logger) error) error {
	cfg, err := d.load()
	if err != nil {
		return err
	}
	log := d.newLog(hclog.LevelFromString(cfg.LogLevel), cfg.LogJSON)
	sup := supervisor.New(log)
	return d.serve(ctx, sup, log, func(ctx context.Context) {
		changed, err := d.load()
		if err != nil {
			log.Error("configuration not reloaded; the old one stays in force", logkey.Error, err)
			changed = nil
		}
		reload(ctx, changed, log)
	}, func(ctx context.Context) error { return run(ctx, cfg, sup, log) })
}

// nodeDaemon is the daemon of a node, after its start.
type nodeDaemon interface {
	Run(ctx context.Context, sup *supervisor.Supervisor) error
}

// serveNode runs the daemon of a node. A SIGHUP changes its log level; everything else needs a
// restart.
func serveNode[D nodeDaemon](ctx context.Context, d *configured, start func(context.Context, *config.Config, hclog.Logger) (D, error)) error {
	return d.serveConfigured(ctx, func(_ context.Context, changed *config.Config, log hclog.Logger) {
		if changed != nil {
			log.SetLevel(hclog.LevelFromString(changed.LogLevel))
			log.Info("log level reloaded")
		}
	}, func(ctx context.Context, cfg *config.Config, sup *supervisor.Supervisor, log hclog.Logger) error {
		daemon, err := start(ctx, cfg, log)
		if err != nil {
			return err
		}
		log.Info("started")
		if err := daemon.Run(ctx, sup); err != nil && ctx.Err() == nil {
			return err
		}
		return nil
	})
}
