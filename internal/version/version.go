// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

// Package version contains the version of this build of sif.
package version

// Version is the version of sif, without a leading "v". Release builds set it with:
//
//	-ldflags "-X github.com/sif-project/sif/internal/version.Version=1.2.3".
var Version = "0.1.0-dev"
