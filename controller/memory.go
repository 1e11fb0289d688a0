// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package controller

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sync/errgroup"

	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/internal/atomicfile"
)

// memory is the last verified revision on disk. revision.json is the signed
// pointer that the controller itself reads, obj/ holds the declared objects of
// its root by their hashes; pointer.json is a value of the pointer's key in
// Consul, so that an operator can put it back.
type memory struct{ dir string }

func (m memory) pointerFile() string  { return filepath.Join(m.dir, "pointer.json") }
func (m memory) revisionFile() string { return filepath.Join(m.dir, "revision.json") }
func (m memory) objectDir() string    { return filepath.Join(m.dir, "obj") }

func (m memory) objectFile(h fabric.Hash) string { return filepath.Join(m.objectDir(), h.String()) }

// keep replaces what is on disk. objects are those that the revision before
// had not; only what is declared of them is kept, nothing of what is compiled.
func (m memory) keep(signed fabric.Signed, objects map[fabric.Hash][]byte) error {
	if err := m.write(signed, objects); err != nil {
		return fmt.Errorf("keep the revision: %w", err)
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
	declared, err := m.declared(pointer.Root, objects)
	if err != nil {
		return err
	}
	var g errgroup.Group
	g.SetLimit(16)
	for h := range declared {
		data, fresh := objects[h]
		if !fresh {
			continue // the revision before had it
		}
		g.Go(func() error { return atomicfile.Write(m.objectFile(h), data, 0o600) })
	}
	if err := g.Wait(); err != nil {
		return err
	}
	if err := writeJSON(m.revisionFile(), signed); err != nil {
		return err
	}
	if err := writeJSON(m.pointerFile(), signed); err != nil {
		return err
	}
	files, err := os.ReadDir(m.objectDir())
	if err != nil {
		return err
	}
	for _, f := range files {
		var h fabric.Hash
		if h.UnmarshalText([]byte(f.Name())) != nil || !declared[h] {
			if err := os.Remove(filepath.Join(m.objectDir(), f.Name())); err != nil {
				return err
			}
		}
	}
	return nil
}

// declared returns the hashes of the objects that the graph of a root is made
// of.
func (m memory) declared(root fabric.Hash, objects map[fabric.Hash][]byte) (map[fabric.Hash]bool, error) {
	read := func(h fabric.Hash, v any) error {
		data, ok := objects[h]
		if !ok {
			var err error
			if data, err = os.ReadFile(m.objectFile(h)); err != nil {
				return err
			}
		}
		return fabric.DecodeObject(data, h, v)
	}
	var r fabric.Root
	if err := read(root, &r); err != nil {
		return nil, err
	}
	set := map[fabric.Hash]bool{root: true}
	if !r.Guardrails.IsZero() {
		set[r.Guardrails] = true
	}
	if !r.Domains.IsZero() {
		var index fabric.DomainIndex
		if err := read(r.Domains, &index); err != nil {
			return nil, err
		}
		set[r.Domains] = true
		for _, h := range index {
			set[h] = true
		}
	}
	return set, nil
}

// recall returns what was kept, or nil if there is nothing. A file that does
// not verify is an error: without it a controller could be led to sign on top
// of an older past.
func (m memory) recall(fabricName string, keys fabric.KeySet) (*inForce, error) {
	var signed fabric.Signed
	if err := readJSON(m.revisionFile(), &signed); errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	} else if err != nil {
		return nil, fmt.Errorf("recall the revision: %w", err)
	}
	var pointer fabric.Pointer
	if err := keys.Verify(signed, fabric.KindPointer, &pointer); err != nil {
		return nil, fmt.Errorf("recall the revision from %s: %w", m.revisionFile(), err)
	}
	if pointer.Fabric != fabricName {
		return nil, fmt.Errorf("recall the revision: %s is of fabric %q, not %q", m.revisionFile(), pointer.Fabric, fabricName)
	}
	graph, err := assemble(pointer.Root, func(hashes []fabric.Hash) (map[fabric.Hash][]byte, error) {
		found := map[fabric.Hash][]byte{}
		for _, h := range hashes {
			data, err := os.ReadFile(m.objectFile(h))
			if err != nil {
				return nil, err
			}
			found[h] = data
		}
		return found, nil
	})
	if err != nil {
		return nil, fmt.Errorf("recall the revision from %s: %w", m.dir, err)
	}
	// A crash can have left the copy for people one revision behind.
	if err := writeJSON(m.pointerFile(), signed); err != nil {
		return nil, fmt.Errorf("recall the revision: %w", err)
	}
	return enforce(signed, pointer, graph), nil
}

func writeJSON(path string, v any) error {
	data, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return atomicfile.Write(path, data, 0o600)
}

func readJSON(path string, v any) error {
	data, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(data, v); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return nil
}
