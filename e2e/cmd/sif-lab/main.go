// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

// Command sif-lab brings up a fabric on this machine, shows its state and removes it. It is a thin
// front end of package e2e/lab.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/sif-project/sif/e2e/lab"
)

const usage = `Usage: sif-lab [-lab NAME] COMMAND [options]

  Brings up a whole fabric on this machine, in network namespaces: Consul,
  Vault, Nomad, Docker, Open vSwitch and the SIF daemons. Needs root.

Commands:

  up                   Bring the fabric up. First removes what an earlier
                       one left; if interrupted, removes everything again.
    -topology=<file>   Zones and nodes. Default: two zones.
    -servers-only      Leave out the SIF daemons.
    -host=false        Give this machine no address in the users' network.
    -apps=<dir>,<dir>  Applications to deploy: graphs and jobs.
    -cert-ttl=<time>   Life of the fabric's certificates. Default: 8h.
    -key-period=<time> After which nodes replace the keys of their links.
                       Default: 24h.
    -admission-life=<time>  Life of admissions. Default: 24h.
    -outage-bound=<time>    For how long an outage is honoured. Default: 72h.
    -bin=<dir>         Directory of sif, sif-cni and sif-demo. Default: that
                       of sif-lab.
  down                 Remove it.
  status [-q]          Show what runs where. -q prints nothing. Exits with 0
                       if every daemon is running, else with 1.
  env                  Print the environment for consul, vault, nomad and sif:
                       eval "$(sif-lab env)"
  exec NODE -- CMD...  Run a command on a node: in its network namespace.
  start NODE NAME      Start a daemon of a node again.
  stop NODE NAME       Stop a daemon of a node.

Options:

  -lab=<name>          Name of the lab. Default: dev
`

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	err := run(ctx, os.Args[1:])
	var exit exitCode
	switch {
	case err == nil:
	case errors.Is(err, flag.ErrHelp):
		fmt.Print(usage)
	case ctx.Err() != nil && errors.Is(err, context.Canceled):
		fmt.Fprintln(os.Stderr, "sif-lab: interrupted")
		os.Exit(130)
	case errors.As(err, &exit):
		os.Exit(int(exit))
	default:
		fmt.Fprintln(os.Stderr, "sif-lab:", err)
		os.Exit(1)
	}
}

// exitCode makes the program exit with a code, without a message.
type exitCode int

func (e exitCode) Error() string { return fmt.Sprintf("exit code %d", int(e)) }

func run(ctx context.Context, args []string) error {
	global := newFlags("sif-lab")
	name := global.String("lab", "dev", "")
	if err := global.Parse(args); err != nil {
		return err
	}
	if global.NArg() == 0 {
		return flag.ErrHelp
	}
	args = global.Args()[1:]
	switch global.Arg(0) {
	case "up":
		return up(ctx, *name, args)
	case "down":
		return lab.Down(ctx, *name)
	case "status":
		return status(*name, args)
	case "env":
		return env(*name)
	case "exec":
		return execOn(*name, args)
	case "start", "stop":
		return startStop(ctx, global.Arg(0), *name, args)
	case "help":
		return flag.ErrHelp
	}
	return fmt.Errorf("unknown command %q; see sif-lab -h", global.Arg(0))
}

func newFlags(name string) *flag.FlagSet {
	f := flag.NewFlagSet(name, flag.ContinueOnError)
	f.SetOutput(io.Discard)
	return f
}

func up(ctx context.Context, name string, args []string) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	flags := newFlags("up")
	topology := flags.String("topology", "", "")
	serversOnly := flags.Bool("servers-only", false, "")
	host := flags.Bool("host", true, "")
	apps := flags.String("apps", "", "")
	bin := flags.String("bin", filepath.Dir(self), "")
	certTTL := flags.Duration("cert-ttl", 0, "")
	keyPeriod := flags.Duration("key-period", 0, "")
	admissionLife := flags.Duration("admission-life", 0, "")
	outageBound := flags.Duration("outage-bound", 0, "")
	if err := flags.Parse(args); err != nil {
		return err
	}
	o := lab.Options{
		Name: name, Bin: *bin, ServersOnly: *serversOnly, HostAccess: *host, Out: os.Stdout,
		CertTTL: *certTTL, KeyPeriod: *keyPeriod, AdmissionLife: *admissionLife, OutageBound: *outageBound,
	}
	if *topology != "" {
		if o.Topology, err = lab.LoadTopology(*topology); err != nil {
			return err
		}
	}
	l, err := lab.Up(ctx, o)
	if err != nil {
		return err
	}
	if *apps != "" {
		if err := l.RunApplications(ctx, strings.Split(*apps, ",")...); err != nil {
			if _, gone := lab.Open(name); gone != nil && ctx.Err() == nil {
				return fmt.Errorf("another program removed the lab meanwhile: %w", gone)
			}
			if ctx.Err() == nil {
				return fmt.Errorf("%w\nthe fabric stays up for inspection; `sif-lab down` removes it", err)
			}
			fmt.Println("removing everything again")
			return errors.Join(ctx.Err(), l.Down(context.WithoutCancel(ctx)))
		}
	}
	fmt.Println()
	return l.WriteSummary(os.Stdout)
}

func status(name string, args []string) error {
	flags := newFlags("status")
	quiet := flags.Bool("q", false, "")
	if err := flags.Parse(args); err != nil {
		return err
	}
	l, err := lab.Open(name)
	if err != nil {
		return err
	}
	out := io.Writer(os.Stdout)
	if *quiet {
		out = io.Discard
	}
	ok, err := l.WriteStatus(out)
	if err == nil && !ok {
		return exitCode(1)
	}
	return err
}

func env(name string) error {
	l, err := lab.Open(name)
	if err != nil {
		return err
	}
	for _, v := range l.Environment() {
		key, value, _ := strings.Cut(v, "=")
		fmt.Printf("export %s='%s'\n", key, value)
	}
	return nil
}

func execOn(name string, args []string) error {
	if len(args) > 1 && args[1] == "--" {
		args = append(args[:1:1], args[2:]...)
	}
	if len(args) < 2 {
		return errors.New("expected a node and a command: sif-lab exec NODE -- COMMAND")
	}
	l, err := lab.Open(name)
	if err != nil {
		return err
	}
	cmd, err := l.Command(context.Background(), args[0], args[1], args[2:]...)
	if err != nil {
		return err
	}
	return syscall.Exec(cmd.Path, cmd.Args, append(os.Environ(), cmd.Env...))
}

func startStop(ctx context.Context, verb, name string, args []string) error {
	if len(args) != 2 {
		return fmt.Errorf("expected a node and a daemon: sif-lab %s NODE NAME", verb)
	}
	l, err := lab.Open(name)
	if err != nil {
		return err
	}
	if verb == "stop" {
		return l.Stop(ctx, args[0], args[1])
	}
	return l.Start(args[0], args[1])
}
