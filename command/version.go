// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package command

import (
	"context"

	"github.com/sif-project/sif/internal/version"
)

// VersionCommand is sif version.
type VersionCommand struct{ Meta }

// Synopsis implements cli.Command.
func (c *VersionCommand) Synopsis() string { return "Print the version of sif" }

func (c *VersionCommand) usage() string { return "Usage: sif version\n\n  Prints the version of sif." }

func (c *VersionCommand) run(context.Context, []string) error {
	c.UI.Output("sif v" + version.Version)
	return nil
}
