// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package command

import (
	"bytes"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/spiffe/go-spiffe/v2/workloadapi"
)

// The files of sif cert, and the link by which they are replaced at once.
const (
	certFile    = "svid.pem"
	keyFile     = "svid-key.pem"
	bundleFile  = "bundle.pem"
	currentLink = ".current"
	versionDir  = ".version-"
)

type certFileOf struct {
	name string
	data []byte
	mode fs.FileMode
}

// write writes the files, and reports whether they differ from what is there.
func (c *CertCommand) write(x *workloadapi.X509Context) (changed bool, err error) {
	svid := x.DefaultSVID()
	cert, key, err := svid.Marshal()
	if err != nil {
		return false, fmt.Errorf("encode the certificate: %w", err)
	}
	bundle, ok := x.Bundles.Get(svid.ID.TrustDomain())
	if !ok {
		return false, fmt.Errorf("there are no authorities of %s", svid.ID.TrustDomain())
	}
	var authorities []byte
	for _, a := range bundle.X509Authorities() {
		authorities = append(authorities, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: a.Raw})...)
	}
	files := []certFileOf{{certFile, cert, c.certMode}, {keyFile, key, c.keyMode}, {bundleFile, authorities, c.certMode}}
	if sameFiles(c.dir, files) {
		return false, nil
	}
	return true, replaceFiles(c.dir, files)
}

func sameFiles(dir string, files []certFileOf) bool {
	for _, f := range files {
		data, err := os.ReadFile(filepath.Join(dir, f.name))
		if err != nil || !bytes.Equal(data, f.data) {
			return false
		}
		if info, err := os.Stat(filepath.Join(dir, f.name)); err != nil || info.Mode().Perm() != f.mode {
			return false
		}
	}
	return true
}

// replaceFiles writes the files into a new directory, has the link point to it, and removes the one
// before.
func replaceFiles(dir string, files []certFileOf) error {
	fresh, err := os.MkdirTemp(dir, versionDir)
	if err != nil {
		return err
	}
	if err = writeFiles(fresh, files); err == nil {
		err = putLink(dir, filepath.Base(fresh), currentLink)
	}
	if err != nil {
		return errors.Join(err, os.RemoveAll(fresh))
	}
	// From here on the new directory is in use, whatever fails.
	for _, f := range files {
		target := filepath.Join(currentLink, f.name)
		if is, err := os.Readlink(filepath.Join(dir, f.name)); err == nil && is == target {
			continue
		}
		if err := putLink(dir, target, f.name); err != nil {
			return err
		}
	}
	// What an earlier run left goes, too.
	entries, err := os.ReadDir(dir)
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), versionDir) && e.Name() != filepath.Base(fresh) {
			err = errors.Join(err, os.RemoveAll(filepath.Join(dir, e.Name())))
		}
	}
	return err
}

// writeFiles writes the files into a directory of their own.
func writeFiles(dir string, files []certFileOf) error {
	if err := os.Chmod(dir, 0o755); err != nil { // the files have modes of their own
		return err
	}
	for _, f := range files {
		path := filepath.Join(dir, f.name)
		// Not more than its mode at any time, whatever the umask is.
		if err := os.WriteFile(path, f.data, f.mode&0o600); err != nil {
			return err
		}
		if err := os.Chmod(path, f.mode); err != nil {
			return err
		}
	}
	return nil
}

// putLink puts a link in the place of what has its name.
func putLink(dir, target, name string) error {
	path := filepath.Join(dir, name)
	fresh := filepath.Join(dir, versionDir+"link")
	if err := os.Remove(fresh); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := os.Symlink(target, fresh); err != nil {
		return err
	}
	return os.Rename(fresh, path)
}
