// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

// Package version is which build of sif this is. It knows nothing else.
package version

// Version is the version of sif, without a leading "v". A release build sets it:
//
//	-ldflags "-X github.com/sif-project/sif/internal/version.Version=1.2.3".
var Version = "0.1.0-dev"
