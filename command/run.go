// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package command

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"os/user"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/mattn/go-isatty"
	"github.com/posener/complete"
	"golang.org/x/sys/unix"

	"github.com/sif-project/sif/internal/node/cnicall"
	"github.com/sif-project/sif/internal/node/netspace"
)

// RunCommand is sif run.
type RunCommand struct {
	Meta
	attachOptions
	name, user string
}

// Synopsis implements cli.Command.
func (c *RunCommand) Synopsis() string { return "Run a program with an endpoint of its own" }

func (c *RunCommand) usage() string {
	return `
Usage: sif run [options] -consul-service=<service> -- <program> [args]

  Runs a program in a network namespace of its own, with an endpoint of the
  fabric in it, as sif attach does it for others:

      $ sif run -consul-service=postgres -user=postgres -- postgres -D /data

  The program asks the fabric's resolver: it has a mount namespace of its own,
  in which that is /etc/resolv.conf. It gets the signals that sif run gets. When
  it ends, or sif run does, the endpoint ends, too. The namespace has no name;
  enter it with nsenter --net --target <PID>.

  Without -user the program is root, who can leave every namespace.

  The exit code is that of the program, or 128 and the number of the signal that
  ended it. It is 125 if sif run itself failed, 126 if the program cannot be
  run, and 127 if it does not exist.
`
}

func (c *RunCommand) options() []*flag.FlagSet {
	o := newOptions("Run Options")
	o.StringVar(&c.name, "name", "", "The `name` under which the program is attached. Default: the service and the PID of sif run.")
	o.StringVar(&c.user, "user", os.Getenv("SIF_USER"), "The `user` that runs the program, with its groups, or user:group, by names or numbers. Overrides SIF_USER. Default: root.")
	return []*flag.FlagSet{c.attachOptions.options(), o}
}

func (c *RunCommand) arguments() arguments {
	return arguments{min: 1, max: -1, words: "a program", predict: complete.PredictFiles("*")}
}

// Exit codes as those of env(1).
const (
	exitRunFailed exitCode = 125
	exitNoRun     exitCode = 126
	exitNoProgram exitCode = 127
)

func (c *RunCommand) failure() exitCode { return exitRunFailed }

func (c *RunCommand) run(ctx context.Context, args []string) error {
	w, err := c.check(cmp.Or(c.name, defaultName(c.consul, os.Getpid())))
	if err != nil {
		return err
	}
	if err := requireRoot(); err != nil {
		return fmt.Errorf("running %s: %w", args[0], err)
	}
	cmd := exec.Command(args[0], args[1:]...)
	if cmd.Err != nil {
		return c.cannotRun(args[0], cmd.Err)
	}
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := as(cmd, c.user); err != nil {
		return fmt.Errorf("running %s: %w", args[0], err)
	}
	lock, err := c.lock(w.Name)
	if err != nil {
		return fmt.Errorf("running %s: %w", args[0], err)
	}
	defer lock.Close()
	until := time.Now().Add(c.wait)
	list, err := c.list(ctx, until)
	if err == nil && attachedAs(list, w.Name) != nil || c.spaces().Made(w.Name) {
		err = fmt.Errorf("the name %q is taken: choose another one with -name", w.Name)
	}
	if err != nil {
		return fmt.Errorf("running %s: %w", args[0], err)
	}
	// From here on the program's signals are caught, so that nothing is left behind.
	signals := make(chan os.Signal, 16)
	signal.Notify(signals, forwarded...)
	defer signal.Stop(signals)
	space, err := netspace.New()
	if err != nil {
		return fmt.Errorf("running %s: %w", args[0], err)
	}
	defer space.Close()
	place := cnicall.Space{Path: fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), space.Fd()), Owner: os.Getpid()}
	defer func() {
		if err := c.drop(w.Name); err != nil {
			c.UI.Warn(fmt.Sprintf("%s: %v; the agent detaches it when it sees that this process has ended", w.Name, err))
		}
	}()
	if err := c.hand(ctx, w, space, place, until); err != nil {
		return fmt.Errorf("running %s: %w", args[0], err)
	}
	_ = os.Remove(lock.Name())
	lock.Close() // from here on the agent knows that the name is taken
	return c.runInside(space, cmd, signals)
}

// defaultName is the name of a program that was given none.
func defaultName(service string, pid int) string {
	base := strings.Trim(strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= '0' && r <= '9' || r == '-' || r == '.' {
			return r
		}
		return '-'
	}, strings.ToLower(service)), "-.")
	return fmt.Sprintf("%s-%d", cmp.Or(base[:min(len(base), 30)], "run"), pid)
}

// cannotRun says why a program cannot be run.
func (c *RunCommand) cannotRun(program string, err error) error {
	c.UI.Error(fmt.Sprintf("Error running %s: %v", program, err))
	if errors.Is(err, exec.ErrNotFound) || errors.Is(err, os.ErrNotExist) {
		return exitNoProgram
	}
	return exitNoRun
}

// runInside runs the program in a namespace and returns its exit code.
func (c *RunCommand) runInside(space *os.File, cmd *exec.Cmd, signals <-chan os.Signal) error {
	started, ended := make(chan error, 1), make(chan error, 1)
	go func() {
		// The program dies with this thread, which therefore stays until the program has ended.
		if err := enter(space, func(format string, args ...any) { c.UI.Warn(fmt.Sprintf(format, args...)) }); err != nil {
			started <- fmt.Errorf("running %s: %w", cmd.Path, err)
			return
		}
		if err := cmd.Start(); err != nil {
			started <- c.cannotRun(cmd.Path, err)
			return
		}
		started <- nil
		ended <- cmd.Wait()
	}()
	if err := <-started; err != nil {
		return err
	}
	for {
		select {
		case s := <-signals:
			if !terminalSent(s) {
				_ = cmd.Process.Signal(s) // it may have ended
			}
		case err := <-ended:
			var exit *exec.ExitError
			if err != nil && !errors.As(err, &exit) {
				return fmt.Errorf("running %s: wait for it: %w", cmd.Path, err)
			}
			status := cmd.ProcessState.Sys().(syscall.WaitStatus)
			switch {
			case status.Signaled():
				return exitCode(128 + int(status.Signal()))
			case status.ExitStatus() != 0:
				return exitCode(status.ExitStatus())
			}
			return nil
		}
	}
}

// forwarded are the signals that the program gets.
var forwarded = []os.Signal{
	unix.SIGHUP, unix.SIGINT, unix.SIGQUIT, unix.SIGTERM, unix.SIGUSR1, unix.SIGUSR2, unix.SIGALRM, unix.SIGWINCH, unix.SIGCONT,
}

// terminalSent reports whether the terminal sends a signal to the program as well.
func terminalSent(s os.Signal) bool {
	if !slices.Contains([]os.Signal{unix.SIGINT, unix.SIGQUIT, unix.SIGWINCH}, s) || !isatty.IsTerminal(os.Stdin.Fd()) {
		return false
	}
	group, err := unix.IoctlGetInt(int(os.Stdin.Fd()), unix.TIOCGPGRP)
	return err == nil && group == unix.Getpgrp()
}

// as has a command run as "user" or "user:group". Empty is who calls.
func as(cmd *exec.Cmd, who string) error {
	if who == "" {
		return nil
	}
	name, group, hasGroup := strings.Cut(who, ":")
	credential := &syscall.Credential{}
	u, err := user.Lookup(name)
	if _, numeric := number(name); err != nil && numeric {
		u, err = user.LookupId(name)
		if err != nil && hasGroup { // one that has no name here
			u, err = &user.User{Uid: name}, nil
		}
	}
	if err != nil {
		return fmt.Errorf("-user=%s: %w", who, err)
	}
	credential.Uid, _ = number(u.Uid)
	if hasGroup {
		gid, numeric := number(group)
		if g, err := user.LookupGroup(group); err == nil {
			gid, _ = number(g.Gid)
		} else if !numeric {
			return fmt.Errorf("-user=%s: %w", who, err)
		}
		credential.Gid = gid
	} else {
		credential.Gid, _ = number(u.Gid)
		groups, err := u.GroupIds()
		if err != nil {
			return fmt.Errorf("-user=%s: find the groups: %w", who, err)
		}
		for _, g := range groups {
			if gid, ok := number(g); ok {
				credential.Groups = append(credential.Groups, gid)
			}
		}
	}
	cmd.SysProcAttr.Credential = credential
	if u.Username != "" {
		cmd.Env = append(os.Environ(), "USER="+u.Username, "LOGNAME="+u.Username, "HOME="+u.HomeDir)
	}
	return nil
}

func number(s string) (uint32, bool) {
	n, err := strconv.ParseUint(s, 10, 32)
	return uint32(n), err == nil && n != 1<<32-1
}
