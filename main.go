// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

// Command sif is the Service Interconnection Fabric: its daemons and its command line in one
// binary. See package command.
package main

import (
	"os"

	"github.com/sif-project/sif/command"
)

func main() { os.Exit(command.Run(os.Args[1:])) }
