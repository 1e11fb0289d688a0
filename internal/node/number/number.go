// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

// Package number assigns node-local numbers to names, for use in maps, registers and connection
// labels. A number is never assigned to a second name, and the assignment survives restarts,
// because the kernel may still use the number. The package does not know what the names mean.
package number

import (
	"errors"
	"fmt"
	"sync"

	"github.com/sif-project/sif/internal/statefile"
)

// First is the lowest number that is assigned. Lower ones are reserved for the data path.
const First = 16

// Registry assigns numbers. It is safe for concurrent use.
type Registry struct {
	file statefile.File[state]

	mu    sync.Mutex
	state state
	names map[uint32]string
}

type state struct {
	Next    uint32            `json:"next"`
	Numbers map[string]uint32 `json:"numbers"`
}

// Open reads the registry at path, or returns an empty one if there is no file. A file that cannot
// be read is an error, because an empty registry would reuse numbers.
func Open(path string) (*Registry, error) {
	r := &Registry{file: statefile.File[state]{Path: path, What: "the registry of numbers"}, names: map[uint32]string{}}
	var found bool
	var err error
	if r.state, found, err = r.file.Read(); err != nil {
		return nil, err
	}
	switch {
	case !found:
		r.state = state{Next: First, Numbers: map[string]uint32{}}
	case r.state.Numbers == nil:
		return nil, fmt.Errorf("read %s from %s: %w: it contains no numbers", r.file.What, path, statefile.ErrCorrupt)
	}
	for name, n := range r.state.Numbers {
		r.names[n] = name
	}
	return r, nil
}

// Of returns the number of name. If it has none, Of assigns one and saves the registry.
func (r *Registry) Of(name string) (uint32, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if n, ok := r.state.Numbers[name]; ok {
		return n, nil
	}
	n := r.state.Next
	if n == 0 {
		return 0, errors.New("the registry of numbers is exhausted; drain the node and remove " + r.file.Path)
	}
	r.state.Next++
	r.state.Numbers[name] = n
	r.names[n] = name
	// The registry is on disk before the number is used, so that a crash may lose a number but
	// never assigns it twice.
	if err := r.file.Write(r.state); err != nil {
		r.state.Next--
		delete(r.state.Numbers, name)
		delete(r.names, n)
		return 0, err
	}
	return n, nil
}

// Name returns the name with number n, or "".
func (r *Registry) Name(n uint32) string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.names[n]
}
