// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package machine

import (
	"os"
	"path/filepath"
	"slices"

	"github.com/sif-project/sif/internal/leftover"
)

// Absent returns those of the directories of a machine that do not exist before it joins: leaving
// takes them away, and empties the others.
func (l Layout) Absent(more ...string) []string {
	var list []string
	for _, dir := range append([]string{l.ConfigDir, l.DataDir, l.RunDir, l.BPFDir}, more...) {
		for ; dir != "" && dir != "/" && dir != "."; dir = filepath.Dir(dir) {
			if _, err := os.Stat(dir); err == nil {
				break
			}
			if !slices.Contains(list, dir) {
				list = append(list, dir)
			}
		}
	}
	return list
}

// Leftovers returns the directories and files of a machine that joined. made are the directories
// that joining made. With keep, the configuration and the credential stay.
func Leftovers(l Layout, made []string, keep bool) []leftover.Leftover {
	stays := func(dir string) bool { return !slices.Contains(made, dir) }
	list := slices.Concat(leftover.Directory(l.RunDir, stays(l.RunDir)), leftover.Directory(l.DataDir, stays(l.DataDir)))
	if keep {
		return list
	}
	// join.json is the last file: whoever is interrupted can go on.
	list = append(list, leftover.Files(l.Files()...)...)
	for _, dir := range made { // the deepest of each path comes first
		if dir != l.RunDir && dir != l.DataDir {
			list = append(list, leftover.EmptyDirectory(dir)...)
		}
	}
	return list
}
