// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package guest

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
)

// archive is a cpio archive of the form that the kernel unpacks (newc). It is not compressed: an
// emulated processor copies faster than it unpacks.
type archive struct {
	buf  bytes.Buffer
	next int // inode number
}

const (
	modeDirectory = 0o040755
	modeFile      = 0o100755
	modeConsole   = 0o020600
)

func (a *archive) directory(name string) { a.entry(name, modeDirectory, 0, 0, nil) }

// console adds the device on which the first process writes before it has mounted /dev.
func (a *archive) console() { a.entry("dev/console", modeConsole, 5, 1, nil) }

func (a *archive) file(name, from string) error {
	data, err := os.ReadFile(from)
	if os.IsNotExist(err) && filepath.Base(filepath.Dir(from)) == "bin" {
		return fmt.Errorf("%w: run make build", err)
	}
	if err != nil {
		return err
	}
	a.entry(name, modeFile, 0, 0, data)
	return nil
}

func (a *archive) entry(name string, mode, major, minor int, data []byte) {
	a.next++
	fmt.Fprintf(&a.buf, "070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%s\x00",
		a.next, mode, 0, 0, 1, 0, len(data), 0, 0, major, minor, len(name)+1, 0, name)
	a.pad()
	a.buf.Write(data)
	a.pad()
}

func (a *archive) pad() { a.buf.Write(make([]byte, (4-a.buf.Len()%4)%4)) }

func (a *archive) bytes() []byte {
	if a.next > 0 {
		a.entry("TRAILER!!!", 0, 0, 0, nil)
	}
	return a.buf.Bytes()
}
