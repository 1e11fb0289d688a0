// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package netspace

import (
	"context"
	"os"
	"path/filepath"
	"slices"

	"github.com/sif-project/sif/internal/leftover"
)

// KindNamespace is the kind of a Leftover that is a namespace.
const KindNamespace = "network namespace"

// Leftovers returns the namespaces that we made and the files that we wrote for namespaces.
func (l Layout) Leftovers() []leftover.Leftover {
	var list []leftover.Leftover
	marks, _ := os.ReadDir(l.Marks) // there need not be any
	for _, m := range marks {
		name := m.Name()
		if l.Made(name) {
			list = append(list, leftover.Leftover{Kind: KindNamespace, Name: l.Path(name), Remove: func(context.Context) error { return l.Remove(name) }})
		}
	}
	paths, _ := filepath.Glob(l.ResolverPath("*")) // the pattern is well-formed
	slices.Sort(paths)
	for _, path := range paths {
		if ours, err := isOurs(path); err == nil && ours {
			name := filepath.Base(filepath.Dir(path))
			list = append(list, leftover.Leftover{Kind: leftover.KindFile, Name: path, Remove: func(context.Context) error { return l.RemoveResolver(name) }})
		}
	}
	return list
}
