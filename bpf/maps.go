// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package bpf

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

func put(m *ebpf.Map, name string, key, value any) error {
	err := m.Put(key, value)
	if errors.Is(err, unix.E2BIG) || errors.Is(err, unix.ENOSPC) {
		return &FullError{Map: name, Size: m.MaxEntries()}
	}
	if err != nil {
		return fmt.Errorf("write to map %s: %w", name, err)
	}
	return nil
}

// remove deletes an entry and reports whether it existed.
func remove(m *ebpf.Map, name string, key any) (bool, error) {
	err := m.Delete(key)
	if errors.Is(err, ebpf.ErrKeyNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("delete from map %s: %w", name, err)
	}
	return true, nil
}

// replace writes an entry and reports whether it changed an existing one.
func replace[V comparable](m *ebpf.Map, name string, key any, value V) (bool, error) {
	var old V
	err := m.Lookup(key, &old)
	if err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		return false, fmt.Errorf("read from map %s: %w", name, err)
	}
	altered := err == nil && old != value
	if err == nil && !altered {
		return false, nil
	}
	return altered, put(m, name, key, value)
}

type entry[K, V any] struct {
	key   K
	value V
}

// dump reads a whole map in batches. Unlike iteration by keys, a batch does not start over when an
// entry is deleted concurrently.
func dump[K, V any](m *ebpf.Map, name string) ([]entry[K, V], error) {
	const batch = 4096
	keys, values := make([]K, batch), make([]V, batch)
	var cursor ebpf.MapBatchCursor
	var all []entry[K, V]
	for {
		n, err := m.BatchLookup(&cursor, keys, values, nil)
		if err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return nil, fmt.Errorf("read map %s: %w", name, err)
		}
		for i := range n {
			all = append(all, entry[K, V]{keys[i], values[i]})
		}
		if err != nil {
			return all, nil
		}
	}
}
