// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package plugin

import (
	"fmt"
	"strings"
)

const (
	// argAllocation is the argument that names the allocation. Nomad does not let a job set
	// arguments with its prefix.
	argAllocation = "NOMAD_ALLOC_ID"
	// argVM is the argument that says that the workload is a virtual machine.
	argVM = "SIF_VM"
)

// arguments is what CNI_ARGS says of the workload.
type arguments struct {
	allocation string // "" if there is none
	vm         bool
}

// parseArguments parses CNI_ARGS ("K=V;K=V"). It ignores the arguments of others, because a
// workload's identity comes from the scheduler alone, and rejects ambiguous ones.
func parseArguments(args string) (arguments, error) {
	var parsed arguments
	seen := map[string]bool{}
	for pair := range strings.SplitSeq(args, ";") {
		if pair == "" {
			continue
		}
		key, value, ok := strings.Cut(pair, "=")
		if !ok || key == "" {
			return arguments{}, fmt.Errorf("%q is not of the form KEY=VALUE", pair)
		}
		if key != argAllocation && key != argVM {
			continue
		}
		if seen[key] {
			return arguments{}, fmt.Errorf("%s is given twice", key)
		}
		seen[key] = true
		switch {
		case key == argAllocation && value == "":
			return arguments{}, fmt.Errorf("%s is empty", key)
		case key == argAllocation:
			parsed.allocation = value
		case value == "true" || value == "1":
			parsed.vm = true
		case value != "false" && value != "0":
			return arguments{}, fmt.Errorf("%s is %q: it must be true or false", key, value)
		}
	}
	return parsed, nil
}
