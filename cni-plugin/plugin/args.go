// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package plugin

import (
	"fmt"
	"strings"
)

// argAllocation is the argument that names the allocation. Nomad does not let a job set arguments
// with its prefix.
const argAllocation = "NOMAD_ALLOC_ID"

// allocationID returns the allocation that CNI_ARGS ("K=V;K=V") names, or "" if it names none. It
// ignores other arguments, because a workload's identity comes from the scheduler alone, and
// rejects ambiguous ones.
func allocationID(args string) (string, error) {
	id := ""
	for pair := range strings.SplitSeq(args, ";") {
		if pair == "" {
			continue
		}
		key, value, ok := strings.Cut(pair, "=")
		if !ok || key == "" {
			return "", fmt.Errorf("%q is not of the form KEY=VALUE", pair)
		}
		if key != argAllocation {
			continue
		}
		if id != "" {
			return "", fmt.Errorf("%s is given twice", argAllocation)
		}
		if id = value; id == "" {
			return "", fmt.Errorf("%s is empty", argAllocation)
		}
	}
	return id, nil
}
