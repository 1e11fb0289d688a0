// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

// Command sif-demo contains all services of the two demo applications, getaway and voting, in one
// static binary: the first argument selects the service.
//
// The services do not know the fabric. They call each other over plain HTTP by name
// (<service>.<domain>.sif) and show the answer and the instance that gave it, or the error. This
// package must not import any other package of ours: the demo shows that an application needs no
// changes, libraries or addresses to run in the fabric. Those that are to prove to each other who
// they are (jobs/identity) do so by the SPIFFE Workload API, with the library for it.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"syscall"
)

const (
	exitOK      = 0
	exitFailure = 1
	exitUsage   = 2
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	os.Exit(run(ctx, os.Args[1:], os.Getenv, os.Stderr))
}

// run is main with its environment as arguments. It returns the exit code.
func run(ctx context.Context, args []string, getenv func(string) string, stderr io.Writer) int {
	if len(args) == 0 {
		usage(stderr)
		return exitUsage
	}
	if args[0] == "-h" || args[0] == "-help" || args[0] == "--help" {
		usage(stderr)
		return exitOK
	}
	r, ok := findRole(args[0])
	if !ok {
		fmt.Fprintf(stderr, "sif-demo: unknown role %q\n\n", args[0])
		usage(stderr)
		return exitUsage
	}
	s, err := parseSettings(r, args[1:], getenv, stderr)
	if errors.Is(err, flag.ErrHelp) {
		return exitOK
	}
	if err != nil {
		fmt.Fprintf(stderr, "sif-demo %s: %v\n", r.name, err)
		return exitUsage
	}

	log := slog.New(slog.NewTextHandler(stderr, nil)).With("role", r.name)
	if err := runRole(ctx, r, s, log); err != nil {
		log.Error("stopped", "error", err)
		return exitFailure
	}
	log.Info("stopped")
	return exitOK
}

func runRole(ctx context.Context, r role, s settings, log *slog.Logger) error {
	svc, err := r.build(s, log)
	if err != nil {
		return fmt.Errorf("start %s: %w", r.name, err)
	}
	// Go uses multipath TCP by default, but a contract does not cover subflows over other
	// addresses.
	var lc net.ListenConfig
	lc.SetMultipathTCP(false)
	ln, err := lc.Listen(ctx, "tcp", s.listen)
	if err != nil {
		return errors.Join(fmt.Errorf("listen on %s: %w", s.listen, err), svc.close())
	}
	if len(s.callers) > 0 {
		if ln, err = proven.listenTLS(ctx, ln, s.callers); err != nil {
			return errors.Join(fmt.Errorf("serve by mutual TLS: %w", err), svc.close())
		}
		svc.handler = proved(s.self, svc.handler)
	}
	log.Info("listening", "address", ln.Addr().String(),
		"node", s.self.Node, "zone", s.self.Zone, "alloc", s.self.Alloc)
	return serve(ctx, ln, svc, log)
}

func usage(w io.Writer) {
	fmt.Fprint(w, `Usage: sif-demo <role> [options]

  Runs one service of the demo applications until SIGINT or SIGTERM.

Roles:
`)
	for _, r := range roles {
		fmt.Fprintf(w, "  %-18s %s/%s on port %d: %s\n", r.name, r.domain, r.service, r.port, r.about)
	}
	fmt.Fprint(w, "\nRun 'sif-demo <role> -h' for the options of a role.\n")
}
