// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package atomicfile

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/shoenig/test/must"
)

func TestWrite(t *testing.T) {
	for name, write := range map[string]func(string, []byte, os.FileMode) error{"on disk": Write, "lazily": WriteLazily} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			path := filepath.Join(dir, "f")
			for _, content := range []string{"one", "two, longer", ""} {
				must.NoError(t, write(path, []byte(content), 0o600))
				b, err := os.ReadFile(path)
				must.NoError(t, err)
				must.Eq(t, content, string(b))
			}
			info, err := os.Stat(path)
			must.NoError(t, err)
			must.Eq(t, os.FileMode(0o600), info.Mode().Perm())
			list, err := os.ReadDir(dir)
			must.NoError(t, err)
			must.Len(t, 1, list) // nothing temporary stays

			must.ErrorIs(t, write(filepath.Join(dir, "no", "f"), nil, 0o600), os.ErrNotExist)
		})
	}
}
