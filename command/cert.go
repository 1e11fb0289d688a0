// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package command

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/spiffe/go-spiffe/v2/workloadapi"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/sif-project/sif/internal/wellknown"
)

// CertCommand is sif cert.
type CertCommand struct {
	Meta
	socket, dir              string
	keyMode, certMode        fs.FileMode
	once                     bool
	wait                     time.Duration
	command, signal, pidFile string
	reported                 string // the last trouble, which is told once
	number                   unix.Signal
}

// Synopsis implements cli.Command.
func (c *CertCommand) Synopsis() string { return "Write a workload's certificate to files" }

func (c *CertCommand) usage() string {
	return `
Usage: sif cert [options] -dir=<path>

  Writes the certificate of the workload in which it runs to files, for programs
  that cannot speak the SPIFFE Workload API, and writes them anew whenever there
  is another one:

      svid.pem      the certificate and its intermediates
      svid-key.pem  its private key, in PKCS #8
      bundle.pem    the authorities by which to judge others

  The three are links into a directory that is replaced as a whole, so that a
  program which reads them never finds two that do not belong together. After
  that the program is told:

      $ sif cert -dir=/secrets -reload-command="nginx -s reload"
      $ sif cert -dir=/secrets -reload-signal=HUP -reload-pid-file=/run/app.pid

  It runs until it is interrupted, beside the program: in Nomad, as a task of
  the same group, with a directory that both have, such as /alloc/data. With
  -once it ends when the files are written, for a task with the lifecycle hook
  "prestart"; the program must then be restarted before the certificate ends.

  The exit code is 0 if it was interrupted, or if the files are written, with
  -once. It is 1 on any error; what may pass is tried again.
`
}

func (c *CertCommand) options() []*flag.FlagSet {
	o := newOptions("Cert Options")
	o.StringVar(&c.dir, "dir", "", "The `path` to the directory of the files. It must exist.")
	o.StringVar(&c.socket, "socket", cmp.Or(os.Getenv(wellknown.WorkloadAPIEnv), wellknown.WorkloadAPIAddress),
		"The `address` of the Workload API, such as unix:///run/sif-workload/api.sock. Overrides "+wellknown.WorkloadAPIEnv+". Default: "+wellknown.WorkloadAPIAddress)
	c.keyMode, c.certMode = 0o600, 0o644
	o.Func("key-mode", "The `mode` of svid-key.pem, in octal. Default: 0600", fileMode(&c.keyMode))
	o.Func("cert-mode", "The `mode` of the other files, in octal. Default: 0644", fileMode(&c.certMode))
	o.BoolVar(&c.once, "once", false, "Write the files once, and end.")
	o.DurationVar(&c.wait, "wait", time.Minute, "With -once, how long a `duration` to wait for a certificate.")
	o.StringVar(&c.command, "reload-command", "", "A `command` for the shell, which is run after the files have changed. Its failure is reported, and changes nothing.")
	o.StringVar(&c.signal, "reload-signal", "", "A `signal`, such as HUP, for the process in -reload-pid-file, after the files have changed.")
	o.StringVar(&c.pidFile, "reload-pid-file", "", "The `path` to a file with the ID of the process that gets -reload-signal.")
	return []*flag.FlagSet{o}
}

func (c *CertCommand) arguments() arguments { return arguments{words: "no arguments"} }

// fileMode returns a flag's function that reads the permissions of a file.
func fileMode(to *fs.FileMode) func(string) error {
	return func(s string) error {
		n, err := strconv.ParseUint(s, 8, 32)
		if err != nil || n > 0o777 {
			return errors.New("write it in octal, from 0000 to 0777")
		}
		*to = fs.FileMode(n)
		return nil
	}
}

func (c *CertCommand) run(ctx context.Context, _ []string) error {
	if err := c.check(); err != nil {
		return err
	}
	if err := workloadapi.ValidateAddress(c.socket); err != nil {
		return usagef("-socket=%s: %w", c.socket, err)
	}
	if info, err := os.Stat(c.dir); err != nil || !info.IsDir() {
		return fmt.Errorf("writing certificates: %s is not a directory: make it, or name another one with -dir", c.dir)
	}
	if c.once {
		return c.runOnce(ctx)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	err := workloadapi.WatchX509Context(ctx, &certWatcher{c, cancel}, workloadapi.WithAddr(c.socket))
	if cause := context.Cause(ctx); cause != nil && !errors.Is(cause, context.Canceled) {
		return cause
	}
	if err != nil && ctx.Err() == nil {
		return fmt.Errorf("getting certificates from %s: %w", c.socket, err)
	}
	return nil
}

func (c *CertCommand) check() error {
	switch {
	case c.dir == "":
		return usagef("This command needs -dir: the directory of the files.")
	case (c.signal == "") != (c.pidFile == ""):
		return usagef("-reload-signal and -reload-pid-file need each other.")
	case c.signal == "":
		return nil
	}
	name := strings.ToUpper(c.signal)
	if c.number = unix.SignalNum("SIG" + strings.TrimPrefix(name, "SIG")); c.number == 0 {
		return usagef("-reload-signal=%s is not a signal, such as HUP.", c.signal)
	}
	return nil
}

func (c *CertCommand) runOnce(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, c.wait)
	defer cancel()
	for {
		x, err := workloadapi.FetchX509Context(ctx, workloadapi.WithAddr(c.socket))
		if err == nil {
			if _, err := c.write(x); err != nil {
				return fmt.Errorf("writing certificates: %w", err)
			}
			return c.tell(x)
		}
		c.trouble(err)
		select {
		case <-ctx.Done():
			return fmt.Errorf("getting a certificate from %s within %s: %w", c.socket, c.wait, err)
		case <-time.After(time.Second):
		}
	}
}

// trouble tells once what may pass.
func (c *CertCommand) trouble(err error) {
	s, _ := status.FromError(errors.Unwrap(err))
	if s == nil || s.Code() == codes.Unknown {
		s = status.Convert(err)
	}
	text := fmt.Sprintf("Error getting a certificate from %s: %s", c.socket, s.Message())
	if text != c.reported && s.Code() != codes.Canceled {
		c.UI.Warn(text + "; trying again")
		c.reported = text
	}
}

// tell tells the user and the program that the files have changed.
func (c *CertCommand) tell(x *workloadapi.X509Context) error {
	c.reported = ""
	svid := x.DefaultSVID()
	c.UI.Output(fmt.Sprintf("%s: the certificate of %s, until %s", c.dir, svid.ID, svid.Certificates[0].NotAfter.UTC().Format(time.RFC3339)))
	return c.reload()
}

// reload tells the program that the files have changed.
func (c *CertCommand) reload() error {
	if c.command != "" {
		cmd := exec.Command("/bin/sh", "-c", c.command)
		cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
		if err := cmd.Run(); err != nil {
			return fmt.Errorf("running the reload command: %w", err)
		}
	}
	if c.signal == "" {
		return nil
	}
	text, err := os.ReadFile(c.pidFile)
	if err != nil {
		return fmt.Errorf("signalling the program: %w", err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil || pid <= 0 {
		return fmt.Errorf("signalling the program: %s does not contain the ID of a process", c.pidFile)
	}
	if err := syscall.Kill(pid, c.number); err != nil {
		return fmt.Errorf("signalling the program: process %d of %s: %w", pid, c.pidFile, err)
	}
	return nil
}

// certWatcher writes what the Workload API sends. It implements workloadapi.X509ContextWatcher.
type certWatcher struct {
	*CertCommand
	fail context.CancelCauseFunc
}

// OnX509ContextUpdate implements workloadapi.X509ContextWatcher. The program may not run yet, so
// that only files that cannot be written end the command.
func (w *certWatcher) OnX509ContextUpdate(x *workloadapi.X509Context) {
	changed, err := w.write(x)
	if err != nil {
		w.fail(fmt.Errorf("writing certificates: %w", err))
		return
	}
	if !changed {
		return
	}
	if err := w.tell(x); err != nil {
		w.UI.Warn("Error " + err.Error())
	}
}

// OnX509ContextWatchError implements workloadapi.X509ContextWatcher.
func (w *certWatcher) OnX509ContextWatchError(err error) { w.trouble(err) }
