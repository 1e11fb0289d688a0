// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

// Command sif-cni is the CNI plugin of the fabric. Nomad runs it for each allocation in network
// mode cni/sif. It passes the call to the node's agent and prints the agent's answer. The code is
// in package plugin.
package main

import (
	"os"

	"github.com/sif-project/sif/cni-plugin/plugin"
	"github.com/sif-project/sif/internal/version"
)

func main() {
	// For its fingerprint Nomad runs the plugin without arguments and parses this line.
	os.Exit(plugin.Main(os.Getenv, os.Stdin, os.Stdout, os.Stderr, "CNI sif plugin v"+version.Version))
}
