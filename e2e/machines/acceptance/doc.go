// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

// Package acceptance tests the fabric as its users install it: from the package, on virtual
// machines with stock kernels, beside servers that servers.sh sets up without any knowledge of the
// fabric. It knows the command line and what a machine shows; it must not know the insides of the
// daemons. Its tests have the build tag "machines".
package acceptance
