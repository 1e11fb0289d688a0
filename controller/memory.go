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

	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/internal/atomicfile"
)

// memory is the last verified revision on disk. revision.json is what the
// controller itself reads; pointer.json is, byte for byte, a value of the
// pointer's key in Consul, so that an operator can put it back.
type memory struct{ dir string }

// kept is revision.json: the root and the domains of a signed pointer.
type kept struct {
	Signed  fabric.Signed          `json:"signed"`
	Objects map[fabric.Hash][]byte `json:"objects"`
}

func (m memory) pointerFile() string  { return filepath.Join(m.dir, "pointer.json") }
func (m memory) revisionFile() string { return filepath.Join(m.dir, "revision.json") }

// keep replaces what is on disk. Of objects only the root and the domains are
// kept.
func (m memory) keep(signed fabric.Signed, objects map[fabric.Hash][]byte) error {
	var pointer fabric.Pointer
	if err := json.Unmarshal(signed.Payload, &pointer); err != nil {
		return fmt.Errorf("keep the revision: %w", err)
	}
	var root fabric.Root
	if err := fabric.DecodeObject(objects[pointer.Root], pointer.Root, &root); err != nil {
		return fmt.Errorf("keep the revision: %w", err)
	}
	k := kept{Signed: signed, Objects: map[fabric.Hash][]byte{pointer.Root: objects[pointer.Root]}}
	for _, h := range root.Domains {
		k.Objects[h] = objects[h]
	}
	if err := os.MkdirAll(m.dir, 0o700); err != nil {
		return fmt.Errorf("keep the revision: %w", err)
	}
	if err := writeJSON(m.revisionFile(), k); err != nil {
		return fmt.Errorf("keep the revision: %w", err)
	}
	if err := writeJSON(m.pointerFile(), signed); err != nil {
		return fmt.Errorf("keep the revision: %w", err)
	}
	return nil
}

// recall returns what was kept, or nil if there is nothing. A file that does
// not verify is an error: without it a controller could be led to sign on top
// of an older past.
func (m memory) recall(fabricName string, keys fabric.KeySet) (*inForce, error) {
	var k kept
	if err := readJSON(m.revisionFile(), &k); errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	} else if err != nil {
		return nil, fmt.Errorf("recall the revision: %w", err)
	}
	var pointer fabric.Pointer
	if err := keys.Verify(k.Signed, fabric.KindPointer, &pointer); err != nil {
		return nil, fmt.Errorf("recall the revision from %s: %w", m.revisionFile(), err)
	}
	if pointer.Fabric != fabricName {
		return nil, fmt.Errorf("recall the revision: %s is of fabric %q, not %q", m.revisionFile(), pointer.Fabric, fabricName)
	}
	held, err := assemble(k.Signed, pointer, func(h fabric.Hash) ([]byte, error) {
		if data, ok := k.Objects[h]; ok {
			return data, nil
		}
		return nil, fmt.Errorf("object %s is not on disk", h)
	})
	if err != nil {
		return nil, fmt.Errorf("recall the revision from %s: %w", m.revisionFile(), err)
	}
	// A crash can have left the copy for people one revision behind.
	if err := writeJSON(m.pointerFile(), k.Signed); err != nil {
		return nil, fmt.Errorf("recall the revision: %w", err)
	}
	return held, nil
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
