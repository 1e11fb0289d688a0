// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package command

import (
	"github.com/hashicorp/cli"

	"github.com/sif-project/sif/internal/version"
)

// VersionCommand is `sif version`.
type VersionCommand struct{ UI cli.Ui }

// Synopsis implements cli.Command.
func (c *VersionCommand) Synopsis() string { return "Print the version" }

// Help implements cli.Command.
func (c *VersionCommand) Help() string { return "Usage: sif version\n\n  Prints the version of sif." }

// Run implements cli.Command.
func (c *VersionCommand) Run([]string) int {
	c.UI.Output("sif v" + version.Version)
	return 0
}
