// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package command

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/shoenig/test/must"
)

// The files belong together at any time, whatever was there before, and nothing else stays.
func TestReplaceFiles(t *testing.T) {
	defer syscall.Umask(syscall.Umask(0))
	dir := t.TempDir()
	of := func(n int) []certFileOf {
		text := []byte(fmt.Sprint(n))
		return []certFileOf{{certFile, text, 0o644}, {keyFile, text, 0o640}, {bundleFile, text, 0o444}}
	}
	must.NoError(t, os.WriteFile(filepath.Join(dir, keyFile), []byte("of another program"), 0o666))
	must.NoError(t, os.Mkdir(filepath.Join(dir, versionDir+"old"), 0o755)) // an earlier run was killed
	stop := make(chan struct{})
	torn := make(chan error, 1)
	go func() {
		defer close(torn)
		for {
			select {
			case <-stop:
				return
			default:
			}
			// As a program that resolves the directory once.
			current, err := filepath.EvalSymlinks(filepath.Join(dir, currentLink))
			if err != nil {
				continue
			}
			cert, err1 := os.ReadFile(filepath.Join(current, certFile))
			key, err2 := os.ReadFile(filepath.Join(current, keyFile))
			if err1 == nil && err2 == nil && string(cert) != string(key) {
				torn <- fmt.Errorf("the certificate is %s and the key %s", cert, key)
				return
			}
		}
	}()
	for n := range 200 {
		must.False(t, sameFiles(dir, of(n)))
		must.NoError(t, replaceFiles(dir, of(n)))
		must.True(t, sameFiles(dir, of(n)))
	}
	close(stop)
	must.NoError(t, <-torn)
	for name, mode := range map[string]fs.FileMode{certFile: 0o644, keyFile: 0o640, bundleFile: 0o444} {
		info, err := os.Stat(filepath.Join(dir, name))
		must.NoError(t, err)
		must.Eq(t, mode, info.Mode().Perm(), must.Sprint(name))
	}
	entries, err := os.ReadDir(dir)
	must.NoError(t, err)
	must.Len(t, 5, entries, must.Sprint(entries))
}

// A program keeps what it has when a link cannot be put in place: here a directory has its name.
func TestReplaceFilesKeepsWhatIsInUse(t *testing.T) {
	dir := t.TempDir()
	of := func(text string) []certFileOf {
		return []certFileOf{{certFile, []byte(text), 0o644}, {keyFile, []byte(text), 0o600}, {bundleFile, []byte(text), 0o644}}
	}
	must.NoError(t, replaceFiles(dir, of("old")))
	must.NoError(t, os.Remove(filepath.Join(dir, bundleFile)))
	must.NoError(t, os.Mkdir(filepath.Join(dir, bundleFile), 0o755))
	must.Error(t, replaceFiles(dir, of("new")))
	for _, name := range []string{certFile, keyFile} {
		text, err := os.ReadFile(filepath.Join(dir, name))
		must.NoError(t, err)
		must.Eq(t, "new", string(text))
	}
	must.NoError(t, os.Remove(filepath.Join(dir, bundleFile)))
	must.NoError(t, replaceFiles(dir, of("newer")))
	must.True(t, sameFiles(dir, of("newer")))
}
