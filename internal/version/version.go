// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

// Package version contains the version of this build: what the linker set, or else what the Go tool
// recorded of the module and of the checkout. It knows nothing else of the program.
package version

import (
	"runtime"
	"runtime/debug"
)

// What packaging/version.sh finds out from Git; `make build` and `make packages` set it with
// -ldflags "-X github.com/sif-project/sif/internal/version.Version=1.2.3 ...".
var (
	Version string // without a leading "v"
	Commit  string // in hexadecimal, in full; may be empty
	Date    string // of the commit, in RFC 3339 and UTC; may be empty
)

func init() {
	if info, ok := debug.ReadBuildInfo(); ok {
		fill(info)
	}
	if Version == "" {
		Version = unknown
	}
}

// unknown is the version of a build from a tree that is no checkout.
const unknown = "0.0.0-dev"

// fill takes what the linker has not set from the build's own record.
func fill(info *debug.BuildInfo) {
	if v := info.Main.Version; Version == "" && v != "" && v != "(devel)" {
		Version = v[1:] // a module's version begins with "v"
	}
	for _, s := range info.Settings {
		switch {
		case s.Key == "vcs.revision" && Commit == "":
			Commit = s.Value
		case s.Key == "vcs.time" && Date == "":
			Date = s.Value
		}
	}
}

// Info is the version for programs.
type Info struct {
	Version string `json:"version"`
	Commit  string `json:"commit,omitempty"`
	Date    string `json:"date,omitempty"`
	Go      string `json:"go"`       // the compiler: "go1.26.8"
	System  string `json:"platform"` // "linux/amd64"
}

// Current returns the version of this build.
func Current() Info {
	return Info{Version: Version, Commit: Commit, Date: Date, Go: runtime.Version(), System: runtime.GOOS + "/" + runtime.GOARCH}
}
