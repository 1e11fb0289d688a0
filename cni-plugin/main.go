// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

// The CNI plugin of the fabric. Nomad runs it for each allocation in network
// mode cni/sif; it hands the call to the agent of the node and prints what
// that answers. All it does is in package plugin.
package main

import (
	"github.com/containernetworking/cni/pkg/skel"

	"github.com/sif-project/sif/cni-plugin/plugin"
	"github.com/sif-project/sif/internal/version"
)

func main() {
	// Nomad's fingerprint runs the plugin without any argument and parses this
	// line.
	skel.PluginMainFuncs(plugin.Funcs(), plugin.Versions(), "CNI sif plugin v"+version.Version)
}
