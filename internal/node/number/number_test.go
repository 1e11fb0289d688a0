// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package number

import (
	"os"
	"path/filepath"
	"strconv"
	"testing"

	"github.com/shoenig/test/must"
	"pgregory.net/rapid"
)

// A number means one name for ever, across restarts.
func TestNumbersAreNeverReused(t *testing.T) {
	dir := t.TempDir()
	runs := 0
	rapid.Check(t, func(t *rapid.T) {
		runs++
		path := filepath.Join(dir, strconv.Itoa(runs))
		given := map[uint32]string{}
		r, err := Open(path)
		must.NoError(t, err)
		for _, name := range rapid.SliceOfN(rapid.StringMatching(`[a-d]{1,2}`), 1, 20).Draw(t, "names") {
			n, err := r.Of(name)
			must.NoError(t, err)
			must.GreaterEq(t, First, n)
			if other, ok := given[n]; ok {
				must.Eq(t, other, name)
			}
			given[n] = name
			if rapid.Bool().Draw(t, "restart") {
				r, err = Open(path)
				must.NoError(t, err)
			}
			must.Eq(t, name, r.Name(n))
		}
	})
}

func TestOpenRefusesDamage(t *testing.T) {
	path := filepath.Join(t.TempDir(), "n.json")
	for _, content := range []string{"{", "{}", "null", `{"next":40}`} {
		must.NoError(t, os.WriteFile(path, []byte(content), 0o600))
		_, err := Open(path)
		must.ErrorContains(t, err, path, must.Sprint(content))
	}
}
