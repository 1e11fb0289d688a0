// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package guest

import (
	"bytes"
	"os"
	"path/filepath"
	"strconv"
	"testing"

	"github.com/shoenig/test/must"
)

// The archive has the form that the kernel reads: headers of 110 bytes in hexadecimal, names and
// data padded to four bytes, and an end.
func TestArchive(t *testing.T) {
	from := filepath.Join(t.TempDir(), "x")
	must.NoError(t, os.WriteFile(from, []byte("hello"), 0o600))
	var a archive
	a.directory("etc")
	a.console()
	must.NoError(t, a.file("init", from))
	must.ErrorContains(t, a.file("init", filepath.Join(t.TempDir(), "none")), "no such file")
	must.ErrorContains(t, a.file("init", filepath.Join(t.TempDir(), "bin/sif-guest")), "run make build")

	rest := a.bytes()
	field := func(n int) int {
		v, err := strconv.ParseUint(string(rest[6+8*n:14+8*n]), 16, 32)
		must.NoError(t, err)
		return int(v)
	}
	pad := func(n int) int { return (n + 3) / 4 * 4 }
	type entry struct {
		name         string
		mode, device int
		data         string
	}
	var got []entry
	for len(rest) > 0 {
		must.True(t, bytes.HasPrefix(rest, []byte("070701")))
		size, named := field(6), field(11)
		body := pad(110 + named)
		got = append(got, entry{string(rest[110 : 110+named-1]), field(1), field(9)<<8 | field(10), string(rest[body : body+size])})
		must.Eq(t, 0, int(rest[110+named-1]))
		rest = rest[pad(body+size):]
	}
	must.Eq(t, []entry{{"etc", modeDirectory, 0, ""}, {"dev/console", modeConsole, 0x501, ""}, {"init", modeFile, 0, "hello"}, {"TRAILER!!!", 0, 0, ""}}, got)
}
