// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package command

import (
	"strings"
	"testing"

	"github.com/hashicorp/cli"
	"github.com/posener/complete"
	"github.com/shoenig/test/must"
)

// run runs a command by its name.
func run(ui cli.Ui, name string, args ...string) int {
	c, err := commands(ui)[name]()
	if err != nil {
		panic(err)
	}
	return c.Run(args)
}

// The help of each command names it, fits into 80 columns and lists its options, which a shell can
// complete.
func TestHelp(t *testing.T) {
	for name, factory := range commands(cli.NewMockUi()) {
		c, err := factory()
		must.NoError(t, err)
		help := c.Help()
		must.StrHasPrefix(t, "Usage: sif "+name, help)
		for line := range strings.Lines(help) {
			must.LessEq(t, 81, len(line), must.Sprint(name, line))
		}
		r, ok := c.(*runner)
		if !ok {
			continue
		}
		for option := range r.AutocompleteFlags() {
			must.StrContains(t, help, "\n  "+option, must.Sprint(name))
		}
		must.Eq(t, len(r.options()) > 0, strings.Contains(help, "Options:"), must.Sprint(name))
	}
}

// A shell completes the value of an option by the name of the value.
func TestCompletionOfValues(t *testing.T) {
	c, err := commands(cli.NewMockUi())["matrix"]()
	must.NoError(t, err)
	flags := c.(*runner).AutocompleteFlags()
	must.Eq(t, []string{"4", "6", "all"}, flags["-ip"].Predict(complete.Args{}))
	must.Nil(t, flags["-json"])
	c, err = commands(cli.NewMockUi())["job plan"]()
	must.NoError(t, err)
	must.Eq(t, []string{"true", "false"}, c.(*runner).AutocompleteFlags()["-diff"].Predict(complete.Args{}))
}
