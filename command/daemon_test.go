// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package command

import (
	"os"
	"path/filepath"
	"testing"

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
