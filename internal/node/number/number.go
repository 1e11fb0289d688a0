// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

// Package number gives names node-local numbers for use in maps, registers
// and connection labels. A number is never given to a second name, and the
// assignment survives restarts, because the kernel may still hold it.
// It knows nothing of what the names mean.
package number

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"sync"

	"github.com/sif-project/sif/internal/atomicfile"
)

// First is the lowest number given out; lower ones are left to the data path
// for meanings of its own.
const First = 16

// Registry assigns numbers. It is safe for concurrent use.
type Registry struct {
	path string

	mu    sync.Mutex
	state state
	names map[uint32]string
}

type state struct {
	Next    uint32            `json:"next"`
	Numbers map[string]uint32 `json:"numbers"`
}

// Open reads the registry kept at path, or starts an empty one. A registry
// that cannot be read is an error: guessing would reuse numbers.
func Open(path string) (*Registry, error) {
	r := &Registry{path: path, state: state{Next: First, Numbers: map[string]uint32{}}, names: map[uint32]string{}}
	data, err := os.ReadFile(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return r, nil
	case err != nil:
		return nil, fmt.Errorf("read the registry of numbers: %w", err)
	}
	if err := json.Unmarshal(data, &r.state); err != nil {
		return nil, fmt.Errorf("read the registry of numbers %s: %w", path, err)
	}
	for name, n := range r.state.Numbers {
		r.names[n] = name
	}
	return r, nil
}

// Of returns the number of name, assigning and recording one if it has none.
func (r *Registry) Of(name string) (uint32, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if n, ok := r.state.Numbers[name]; ok {
		return n, nil
	}
	n := r.state.Next
	if n == 0 {
		return 0, errors.New("the registry of numbers is exhausted; drain the node and remove " + r.path)
	}
	r.state.Next++
	r.state.Numbers[name] = n
	r.names[n] = name
	if err := r.save(); err != nil {
		r.state.Next--
		delete(r.state.Numbers, name)
		delete(r.names, n)
		return 0, err
	}
	return n, nil
}

// Name returns the name that has number n, or "".
func (r *Registry) Name(n uint32) string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.names[n]
}

// save writes the registry before a number is used, so that a crash can lose
// a number but never give it out twice.
func (r *Registry) save() error {
	data, err := json.Marshal(r.state)
	if err != nil {
		return fmt.Errorf("encode the registry of numbers: %w", err)
	}
	if err := atomicfile.Write(r.path, data, 0o600); err != nil {
		return fmt.Errorf("write the registry of numbers: %w", err)
	}
	return nil
}
