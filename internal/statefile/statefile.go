// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

// Package statefile keeps the state of a daemon in a file, as JSON. It does not know what the state
// means.
package statefile

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"sync/atomic"

	"github.com/sif-project/sif/internal/atomicfile"
	"github.com/sif-project/sif/internal/coalesce"
)

// ErrCorrupt is returned for a file that can be read but does not contain a T.
var ErrCorrupt = errors.New("the file is corrupt")

// File is a file that contains a T, readable by its owner only.
type File[T any] struct {
	Path string
	What string // what it contains, for messages: "the leases"
	// Lazy leaves it to the kernel when the content goes to disk: for state that is of no use after
	// a crash of the machine.
	Lazy bool
}

// Read returns the content of the file. found is false if there is no file.
func (f File[T]) Read() (v T, found bool, err error) {
	data, err := os.ReadFile(f.Path)
	if errors.Is(err, fs.ErrNotExist) {
		return v, false, nil
	}
	if err != nil {
		return v, false, fmt.Errorf("read %s: %w", f.What, err)
	}
	if err := json.Unmarshal(data, &v); err != nil {
		var none T
		return none, true, fmt.Errorf("read %s from %s: %w: %w", f.What, f.Path, ErrCorrupt, err)
	}
	return v, true, nil
}

// Write replaces the content of the file. A crash leaves the old content or the new one.
func (f File[T]) Write(v T) error {
	return f.write(func() ([]byte, error) { return json.Marshal(v) })
}

// Update is Write for what the file often has already: it writes only what differs from that.
func (f File[T]) Update(v T) error {
	data, err := json.Marshal(v)
	if old, reading := os.ReadFile(f.Path); err == nil && reading == nil && bytes.Equal(old, data) {
		return nil
	}
	return f.write(func() ([]byte, error) { return data, err })
}

func (f File[T]) write(encode func() ([]byte, error)) error {
	data, err := encode()
	if err != nil {
		return fmt.Errorf("encode %s: %w", f.What, err)
	}
	write := atomicfile.Write
	if f.Lazy {
		write = atomicfile.WriteLazily
	}
	if err := write(f.Path, data, 0o600); err != nil {
		return fmt.Errorf("write %s: %w", f.What, err)
	}
	return nil
}

// Saver writes what a function returns, once for all who call it at the same time, and remembers
// whether that failed. It is safe for concurrent use.
type Saver struct {
	write  *coalesce.Func
	failed atomic.Bool
}

// Saver returns a Saver of what snapshot returns.
func (f File[T]) Saver(snapshot func() T) *Saver {
	return f.EncodedSaver(func() ([]byte, error) { return json.Marshal(snapshot()) })
}

// EncodedSaver returns a Saver of what encode returns, which is the JSON of a T.
func (f File[T]) EncodedSaver(encode func() ([]byte, error)) *Saver {
	s := &Saver{}
	s.write = coalesce.New(func() error {
		err := f.write(encode)
		s.failed.Store(err != nil)
		return err
	})
	return s
}

// Call writes.
func (s *Saver) Call() error { return s.write.Call() }

// Again writes if the last time failed. It returns nil if what there is is on disk.
func (s *Saver) Again() error {
	if !s.failed.Load() {
		return nil
	}
	return s.Call()
}

// Elements encodes a collection for an EncodedSaver. Each write encodes only those elements that
// were not in the one before. It is not safe for concurrent use.
type Elements[E any] struct {
	// Encode returns the JSON of an element, which is never modified: an array's, or an object's
	// with its name.
	Encode func(*E) ([]byte, error)

	encoded map[*E][]byte // the elements of the last document
	size    int           // of that
}

// Document returns the JSON of the elements between opening and closing, the brackets of an array
// or an object.
func (e *Elements[E]) Document(opening, closing byte, elements []*E) ([]byte, error) {
	data := append(make([]byte, 0, e.size+e.size/8), opening)
	encoded := make(map[*E][]byte, len(elements))
	for i, element := range elements {
		text, known := e.encoded[element]
		if !known {
			var err error
			if text, err = e.Encode(element); err != nil {
				return nil, err
			}
		}
		encoded[element] = text
		if i > 0 {
			data = append(data, ',')
		}
		data = append(data, text...)
	}
	e.encoded, e.size = encoded, len(data)
	return append(data, closing), nil
}
