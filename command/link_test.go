// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package command

import (
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
			must.Eq(t, tc.code, (&LinkCommand{UI: ui}).Run(tc.args))
			must.StrContains(t, ui.ErrorWriter.String(), tc.want)
		})
	}
}
