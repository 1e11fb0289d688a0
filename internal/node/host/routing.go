// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package host

import (
	"errors"
	"fmt"
	"os"

	"github.com/sif-project/sif/internal/node/kernel"
	"github.com/sif-project/sif/internal/wellknown"
)

// Routing tries whether packets can be led by their marks, as those to the outside are.
func Routing() Finding {
	f := Finding{"routing", "policy routing", Well, "leads packets by their marks", ""}
	err := kernel.Try(func() error {
		mark := kernel.Rule{Priority: wellknown.ExitPriority, Mark: wellknown.ExitMark(0), Mask: ^uint32(0), Table: wellknown.ExitTable(0)}
		return kernel.Set(kernel.State{Rules: []kernel.Rule{mark}})
	})
	switch {
	case errors.Is(err, os.ErrPermission):
		return failed(f.Check, f.Subject, err)
	case err != nil:
		f.Result, f.Detail = Wrong, fmt.Sprintf("does not lead packets by their marks (%v), so no workload reaches the outside", err)
		f.Remedy = "boot a kernel with CONFIG_IP_MULTIPLE_TABLES and CONFIG_IPV6_MULTIPLE_TABLES: the distribution's own has both"
	}
	return f
}
