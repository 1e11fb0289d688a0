// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package command

import (
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/cli"
	"github.com/shoenig/test/must"
)

func TestLinkCommandRefusesBadArguments(t *testing.T) {
	for name, tc := range map[string]struct {
		args []string
		code int
		want string
	}{
		"unknown flag":   {[]string{"-bogus"}, 1, "-bogus"},
		"argument":       {[]string{"x"}, 1, "takes no arguments"},
		"log level":      {[]string{"-log-level=loud"}, 1, `"loud"`},
		"run dir a file": {[]string{"-run-dir=/dev/null", "-data-dir=/dev/null"}, 1, "/dev/null"},
		"help":           {[]string{"-h"}, cli.RunResultHelp, ""},
	} {
		t.Run(name, func(t *testing.T) {
			ui := cli.NewMockUi()
			must.Eq(t, tc.code, run(ui, "link", tc.args...))
			must.StrContains(t, ui.ErrorWriter.String(), tc.want)
		})
	}
}

// A daemon tells its supervisor when it serves, that it goes on, when it reloads, and that it ends.
func TestDaemonTellsItsSupervisor(t *testing.T) {
	address := &net.UnixAddr{Name: filepath.Join(t.TempDir(), "notify"), Net: "unixgram"}
	l, err := net.ListenUnixgram("unixgram", address)
	must.NoError(t, err)
	t.Cleanup(func() { l.Close() })
	t.Setenv("NOTIFY_SOCKET", address.Name)
	told := func(want string) {
		t.Helper()
		must.NoError(t, l.SetReadDeadline(time.Now().Add(10*time.Second)))
		for buf := make([]byte, 1024); ; {
			n, err := l.Read(buf)
			must.NoError(t, err, must.Sprintf("waiting for %q", want))
			if strings.HasPrefix(string(buf[:n]), want) {
				return
			}
		}
	}
	self, err := os.FindProcess(os.Getpid())
	must.NoError(t, err)

	ended := make(chan int, 1)
	go func() { ended <- run(cli.NewMockUi(), "link", "-run-dir="+t.TempDir(), "-data-dir="+t.TempDir()) }()
	told("READY=1")
	told("WATCHDOG=1\nSTATUS=running 0 devices")
	must.NoError(t, self.Signal(syscall.SIGHUP))
	told("RELOADING=1\nMONOTONIC_USEC=")
	told("READY=1")
	told("WATCHDOG=1")
	must.NoError(t, self.Signal(syscall.SIGTERM))
	told("STOPPING=1")
	must.Eq(t, 0, <-ended)
}

func TestDaemonsRefuseBadArguments(t *testing.T) {
	bad := filepath.Join(t.TempDir(), "bad.hcl")
	must.NoError(t, os.WriteFile(bad, []byte("log_level = \"loud\"\n"), 0o600))
	for _, role := range []string{"controller", "engine", "agent"} {
		for want, args := range map[string][]string{
			"flag provided but not defined: -bogus":   {"-bogus"},
			"takes no arguments, got [\"x\"]":         {"-config=" + bad, "x"},
			"Run 'sif " + role + " -h' for its usage": {"x"},
			bad + ".no: no such file":                 {"-config=" + bad + ".no"},
			bad + ":1:1":                              {"-config=" + bad},
		} {
			ui := cli.NewMockUi()
			must.Eq(t, 1, run(ui, role, args...), must.Sprint(role, args))
			must.StrContains(t, ui.ErrorWriter.String(), want)
		}
	}
}
