// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

// Command sif-machine boots virtual machines with stock kernels on this machine, runs programs in
// them and removes them. It is a thin front end of package e2e/machines.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"text/tabwriter"

	"github.com/sif-project/sif/e2e/machines"
)

const usage = `Usage: sif-machine [-world NAME] COMMAND [options]

  Boots virtual machines with stock kernels and systemd, in a network of their
  own. They are emulated: a boot takes one to two minutes, and everything in
  them is about twenty times slower than here. Needs root.

Commands:

  run -- PROGRAM ARG...    Boot a machine, copy the program into it, run it as
                           root, remove the machine. Exits with the program's
                           exit code. For test binaries of "go test -c".
    -on=<name>             Use this machine of the world, which stays up.
    -with=<path>,<path>    Copy these files and directories as well, beside
                           the program, which runs in their directory.
    -image, -memory, -cpus, -lean    As for up.
  up NAME                  Boot a machine. Makes the world if there is none.
    -image=<image>         debian12 (Linux 6.1) or debian13 (Linux 6.12).
                           Default: debian12
    -zone=<zone>           a or b. Default: a
    -hostname=<name>       Default: NAME
    -memory=<MiB>          Default: 1024
    -cpus=<n>              Default: 2
    -lean=false            Start Docker and unattended upgrades as well.
  exec NAME -- CMD...      Run a command in a machine.
  cp FILE... NAME:PATH     Copy files into a machine; a PATH that ends with /
                           is a directory.
  net -- CMD...            Run a command in the network outside the machines.
  status                   List the machines.
  console NAME             Print what a machine printed on its console.
  reboot NAME              Reboot a machine and wait until it is up.
  stop NAME                Stop a machine as its power button does.
  kill NAME                Stop a machine as a power cut does.
  start NAME               Start a stopped machine.
  down                     Remove the world with all of its machines.

Options:

  -world=<name>            Default: dev
`

// exitCode makes the program exit with a code, without a message.
type exitCode int

func (e exitCode) Error() string { return fmt.Sprintf("exit code %d", int(e)) }

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	err := run(ctx, os.Args[1:])
	var exit exitCode
	switch {
	case err == nil:
	case errors.Is(err, flag.ErrHelp):
		fmt.Print(usage)
	case ctx.Err() != nil:
		fmt.Fprintln(os.Stderr, "sif-machine: interrupted")
		os.Exit(130)
	case errors.As(err, &exit):
		os.Exit(int(exit))
	default:
		fmt.Fprintln(os.Stderr, "sif-machine:", err)
		os.Exit(1)
	}
}

func newFlags(name string) *flag.FlagSet {
	f := flag.NewFlagSet(name, flag.ContinueOnError)
	f.SetOutput(io.Discard)
	return f
}

func run(ctx context.Context, args []string) error {
	global := newFlags("sif-machine")
	world := global.String("world", "dev", "")
	if err := global.Parse(args); err != nil {
		return err
	}
	if global.NArg() == 0 || global.Arg(0) == "help" {
		return flag.ErrHelp
	}
	args = global.Args()[1:]
	switch global.Arg(0) {
	case "run":
		return runProgram(ctx, *world, args)
	case "up":
		return up(ctx, *world, args)
	case "down":
		return machines.Down(ctx, *world)
	}
	w, err := machines.Open(*world, os.Stderr)
	if err != nil {
		return err
	}
	switch global.Arg(0) {
	case "exec":
		name, command, err := nameAndCommand(args)
		if err != nil {
			return err
		}
		m, err := w.Machine(name)
		if err != nil {
			return err
		}
		return codeOf(m.Run(ctx, os.Stdin, os.Stdout, os.Stderr, command...))
	case "cp":
		return copyFiles(ctx, w, args)
	case "net":
		if len(args) > 0 && args[0] == "--" {
			args = args[1:]
		}
		if len(args) == 0 {
			return errors.New("expected a command: sif-machine net -- COMMAND")
		}
		cmd := w.Command(ctx, args...)
		cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
		return codeOf(cmd.Run())
	case "status":
		return status(w)
	case "console", "reboot", "stop", "kill", "start":
		if len(args) != 1 {
			return fmt.Errorf("expected a machine: sif-machine %s NAME", global.Arg(0))
		}
		m, err := w.Machine(args[0])
		if err != nil {
			return err
		}
		return operate(ctx, m, global.Arg(0))
	}
	return fmt.Errorf("unknown command %q; see sif-machine -h", global.Arg(0))
}

func operate(ctx context.Context, m *machines.Machine, verb string) error {
	switch verb {
	case "reboot":
		return m.Reboot(ctx)
	case "stop":
		return m.PowerOff(ctx)
	case "kill":
		return m.Kill(ctx)
	case "start":
		if err := m.Start(ctx); err != nil {
			return err
		}
		return m.AwaitBoot(ctx)
	}
	console, err := os.Open(m.Console())
	if err != nil {
		return err
	}
	defer console.Close()
	_, err = io.Copy(os.Stdout, console)
	return err
}

// codeOf turns the failure of a command into this program's exit code.
func codeOf(err error) error {
	var exit *exec.ExitError
	if errors.As(err, &exit) && exit.ExitCode() > 0 {
		return exitCode(exit.ExitCode())
	}
	return err
}

func nameAndCommand(args []string) (string, []string, error) {
	if len(args) > 1 && args[1] == "--" {
		args = append(args[:1:1], args[2:]...)
	}
	if len(args) < 2 {
		return "", nil, errors.New("expected a machine and a command: sif-machine exec NAME -- COMMAND")
	}
	return args[0], args[1:], nil
}

// specFlags defines the flags that say what machine to boot.
func specFlags(f *flag.FlagSet) func() machines.Spec {
	image := f.String("image", "debian12", "")
	memory := f.Int("memory", 0, "")
	cpus := f.Int("cpus", 0, "")
	lean := f.Bool("lean", true, "")
	return func() machines.Spec {
		s := machines.Spec{Image: *image, MemoryMB: *memory, CPUs: *cpus}
		if *lean {
			s.Mask = machines.Lean()
		}
		return s
	}
}

func up(ctx context.Context, world string, args []string) error {
	flags := newFlags("up")
	spec := specFlags(flags)
	zone := flags.String("zone", "", "")
	hostname := flags.String("hostname", "", "")
	var name string
	if len(args) > 0 && !strings.HasPrefix(args[0], "-") {
		name, args = args[0], args[1:]
	}
	if err := flags.Parse(args); err != nil {
		return err
	}
	if name == "" {
		name = flags.Arg(0)
	}
	if name == "" {
		return errors.New("expected the name of the machine: sif-machine up NAME")
	}
	w, err := machines.Open(world, os.Stderr)
	if errors.Is(err, machines.ErrNone) {
		w, err = machines.Up(ctx, machines.Options{Name: world, Out: os.Stderr})
	}
	if err != nil {
		return err
	}
	s := spec()
	s.Name, s.Zone, s.Hostname = name, *zone, *hostname
	m, err := w.Boot(ctx, s)
	if err != nil {
		return err
	}
	return m.AwaitBoot(ctx)
}

// work is the directory of programs that run in a machine.
const work = "/root/run/"

func runProgram(ctx context.Context, world string, args []string) (err error) {
	flags := newFlags("run")
	spec := specFlags(flags)
	on := flags.String("on", "", "")
	with := flags.String("with", "", "")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if flags.NArg() == 0 {
		return errors.New("expected a program: sif-machine run -- PROGRAM ARGS")
	}
	program := flags.Arg(0)
	files := []machines.File{{From: program, To: work + filepath.Base(program), Mode: 0o755}}
	if *with != "" {
		for _, path := range strings.Split(*with, ",") {
			found, err := filesBelow(path, work)
			if err != nil {
				return err
			}
			files = append(files, found...)
		}
	}
	var m *machines.Machine
	if *on != "" {
		w, err := machines.Open(world, os.Stderr)
		if err != nil {
			return err
		}
		if m, err = w.Machine(*on); err != nil {
			return err
		}
	} else {
		w, err := machines.Up(ctx, machines.Options{Name: fmt.Sprintf("run-%d", os.Getpid()), Out: os.Stderr, Owner: os.Getpid()})
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, machines.Down(context.WithoutCancel(ctx), w.Name)) }()
		s := spec()
		s.Name = "run"
		if m, err = w.Boot(ctx, s); err != nil {
			return err
		}
		if err := m.AwaitBoot(ctx); err != nil {
			return err
		}
	}
	if err := m.Copy(ctx, files...); err != nil {
		return err
	}
	script := append([]string{"sh", "-c", `cd ` + work + ` && exec "$@"`, "sh", "./" + filepath.Base(program)}, flags.Args()[1:]...)
	return codeOf(m.Run(ctx, os.Stdin, os.Stdout, os.Stderr, script...))
}

// filesBelow lists the files of a path, for a directory of the machine.
func filesBelow(path, to string) ([]machines.File, error) {
	var files []machines.File
	parent := filepath.Dir(filepath.Clean(path))
	err := filepath.WalkDir(path, func(name string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		below, err := filepath.Rel(parent, name)
		files = append(files, machines.File{From: name, To: filepath.Join(to, below)})
		return err
	})
	return files, err
}

func copyFiles(ctx context.Context, w *machines.World, args []string) error {
	if len(args) < 2 {
		return errors.New("expected files and a destination: sif-machine cp FILE... NAME:PATH")
	}
	name, to, ok := strings.Cut(args[len(args)-1], ":")
	if !ok || !strings.HasPrefix(to, "/") {
		return fmt.Errorf("%s is not a machine and an absolute path in it, NAME:PATH", args[len(args)-1])
	}
	m, err := w.Machine(name)
	if err != nil {
		return err
	}
	var files []machines.File
	for _, from := range args[:len(args)-1] {
		if !strings.HasSuffix(to, "/") {
			files = append(files, machines.File{From: from, To: to})
			continue
		}
		found, err := filesBelow(from, to)
		if err != nil {
			return err
		}
		files = append(files, found...)
	}
	return m.Copy(ctx, files...)
}

func status(w *machines.World) error {
	t := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "NAME\tZONE\tADDRESS\tHOSTNAME\tIMAGE\tSTATE")
	for _, m := range w.Machines {
		state := "off"
		if m.Running() {
			state = "on"
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\n", m.Name, m.Zone, m.Address, m.Hostname, filepath.Base(m.Image), state)
	}
	return t.Flush()
}
