// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package controller

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"reflect"

	"golang.org/x/sync/errgroup"

	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/internal/atomicfile"
	"github.com/sif-project/sif/internal/statefile"
)

// memory is a directory with the last verified revision: the signed pointer in revision.json, and
// the objects of its declared graph in obj/, named by their hashes. Compiled objects are not
// stored. pointer.json is a copy of the pointer in the form in which Consul stores it, with which
// an operator restores the key.
type memory struct{ dir string }

func (m memory) revisionFile() statefile.File[fabric.Signed] {
	return statefile.File[fabric.Signed]{Path: filepath.Join(m.dir, "revision.json"), What: "the last verified revision"}
}

func (m memory) pointerFile() statefile.File[fabric.Signed] {
	return statefile.File[fabric.Signed]{Path: filepath.Join(m.dir, "pointer.json"), What: "the copy of the pointer"}
}

func (m memory) objectDir() string               { return filepath.Join(m.dir, "obj") }
func (m memory) objectFile(h fabric.Hash) string { return filepath.Join(m.objectDir(), h.String()) }

// keep replaces the stored revision. objects must contain what the graph has that the stored
// revision does not have.
func (m memory) keep(signed fabric.Signed, objects map[fabric.Hash][]byte) error {
	if err := m.write(signed, objects); err != nil {
		return fmt.Errorf("store the revision in %s: %w", m.dir, err)
	}
	return nil
}

func (m memory) write(signed fabric.Signed, objects map[fabric.Hash][]byte) error {
	var pointer fabric.Pointer
	if err := json.Unmarshal(signed.Payload, &pointer); err != nil {
		return err
	}
	if err := os.MkdirAll(m.objectDir(), 0o700); err != nil {
		return err
	}
	manifest, err := readManifest(pointer.Root, func(h fabric.Hash, v any) error {
		data, ok := objects[h]
		if !ok {
			var err error
			if data, err = os.ReadFile(m.objectFile(h)); err != nil {
				return err
			}
		}
		return fabric.DecodeObject(data, h, v)
	})
	if err != nil {
		return err
	}
	declared := manifest.objects()
	var g errgroup.Group
	g.SetLimit(16)
	for h := range declared {
		data, ok := objects[h]
		if !ok {
			continue // the stored revision has it
		}
		g.Go(func() error { return atomicfile.Write(m.objectFile(h), data, 0o600) })
	}
	if err := g.Wait(); err != nil {
		return err
	}
	if err := m.revisionFile().Write(signed); err != nil {
		return err
	}
	if err := m.pointerFile().Write(signed); err != nil {
		return err
	}
	return m.deleteOthers(declared)
}

// deleteOthers deletes the objects that are not in keep.
func (m memory) deleteOthers(keep map[fabric.Hash]bool) error {
	files, err := os.ReadDir(m.objectDir())
	if err != nil {
		return err
	}
	for _, f := range files {
		var h fabric.Hash
		if h.UnmarshalText([]byte(f.Name())) != nil || !keep[h] {
			if err := os.Remove(filepath.Join(m.objectDir(), f.Name())); err != nil {
				return err
			}
		}
	}
	return nil
}

// recall reads the stored revision, or returns nil if there is none. A revision that does not
// verify is an error: without it, the controller could be made to sign the next revision on top of
// an old one.
func (m memory) recall(fabricName string, keys fabric.KeySet) (*inForce, error) {
	signed, found, err := m.revisionFile().Read()
	if err != nil {
		return nil, fmt.Errorf("recall the revision: %w", err)
	}
	if !found {
		return nil, nil
	}
	var pointer fabric.Pointer
	if err := keys.Kept().Verify(signed, fabric.KindPointer, &pointer); err != nil {
		return nil, fmt.Errorf("recall the revision from %s: %w", m.revisionFile().Path, err)
	}
	if pointer.Fabric != fabricName {
		return nil, fmt.Errorf("recall the revision: %s is of fabric %q, not %q", m.revisionFile().Path, pointer.Fabric, fabricName)
	}
	graph, err := assemble(pointer.Root, m.readObjects)
	if err != nil {
		return nil, fmt.Errorf("recall the revision from %s: %w", m.dir, err)
	}
	// A crash between the two writes leaves the operator's copy one revision behind.
	if copied, found, err := m.pointerFile().Read(); err != nil || !found || !reflect.DeepEqual(copied, signed) {
		if err := m.pointerFile().Write(signed); err != nil {
			return nil, fmt.Errorf("recall the revision: %w", err)
		}
	}
	return compile(signed, pointer, graph), nil
}

func (m memory) readObjects(hashes []fabric.Hash) (map[fabric.Hash][]byte, error) {
	found := map[fabric.Hash][]byte{}
	for _, h := range hashes {
		data, err := os.ReadFile(m.objectFile(h))
		if err != nil {
			return nil, err
		}
		found[h] = data
	}
	return found, nil
}
