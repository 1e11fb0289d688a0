// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

// Command sif-internet runs one server of a lab's internet, in the network namespace that it finds
// itself in. It is a thin front end of package e2e/internet.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/sif-project/sif/e2e/internet"
)

const usage = `Usage: sif-internet host -addresses ADDRESS,...
       sif-internet resolver -addresses ADDRESS,... -records FILE

  host       Answers on port 9, TCP and UDP: says whom it saw, and echoes.
  resolver   Answers DNS questions from the records in a file of JSON, and
             prints them.
`

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			fmt.Print(usage)
			return
		}
		fmt.Fprintln(os.Stderr, "sif-internet:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	if len(args) == 0 {
		return flag.ErrHelp
	}
	flags := flag.NewFlagSet("sif-internet", flag.ContinueOnError)
	flags.SetOutput(io.Discard)
	addresses := flags.String("addresses", "", "")
	records := flags.String("records", "", "")
	if err := flags.Parse(args[1:]); err != nil {
		return err
	}
	port := map[string]uint16{"host": internet.HostPort, "resolver": internet.DNSPort}[args[0]]
	if port == 0 {
		return fmt.Errorf("unknown server %q; see sif-internet -h", args[0])
	}
	var at []netip.AddrPort
	for text := range strings.SplitSeq(*addresses, ",") {
		a, err := netip.ParseAddr(text)
		if err != nil {
			return fmt.Errorf("-addresses: %w", err)
		}
		at = append(at, netip.AddrPortFrom(a, port))
	}
	if args[0] == "host" {
		h, err := internet.ListenHost(at)
		if err != nil {
			return err
		}
		return h.Serve(ctx)
	}
	r, err := internet.ListenResolver(*records, at, os.Stdout)
	if err != nil {
		return err
	}
	return r.Serve(ctx)
}
