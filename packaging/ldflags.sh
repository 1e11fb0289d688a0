#!/usr/bin/env bash
# Copyright (c) The SIF Authors
# SPDX-License-Identifier: MPL-2.0
#
# Prints the flags of Go's linker that set the version of a build.
set -euo pipefail
eval "$("$(dirname "${BASH_SOURCE[0]}")/version.sh")"
package=github.com/sif-project/sif/internal/version
echo "-X $package.Version=$VERSION -X $package.Commit=$COMMIT -X $package.Date=$DATE"
