// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package main

import (
	"bufio"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
)

// Limits of a store, in bytes.
const (
	maxStored   = 16 << 20 // all keys and values, which are in memory
	maxValue    = 64 << 10 // of one value
	fileSlack   = 1 << 20  // the file may be larger than twice its content by this much
	maxNameSize = 128      // of the name of a key or queue
)

var (
	errNoKey    = errors.New("no such key")
	errConflict = errors.New("the value was changed in between")
	errFull     = errors.New("the store is full")
	errTooLarge = fmt.Errorf("a value may have at most %d bytes", maxValue)
)

// store contains versioned values by key, and queues that only grow. If it has a file, each change
// is on disk before it is acknowledged.
type store struct {
	mu     sync.Mutex
	id     string // of the data; a store that lost its data gets a new one
	values map[string]versioned
	queues map[string][]json.RawMessage
	held   int64 // bytes of names and values in memory

	path     string
	file     *os.File // nil: in memory only
	fileSize int64
}

// versioned is a value and the number of times that it was set.
type versioned struct {
	Value   json.RawMessage `json:"value"`
	Version uint64          `json:"version"`
}

// record is one line of the file.
type record struct {
	ID      string          `json:"id,omitempty"` // first line only
	Key     string          `json:"key,omitempty"`
	Version uint64          `json:"version,omitempty"`
	Queue   string          `json:"queue,omitempty"`
	Value   json.RawMessage `json:"value,omitempty"`
}

// openStore opens the store in the file at path, and creates the file if it does not exist. With an
// empty path the store is in memory only.
func openStore(path string) (*store, error) {
	s := &store{
		id:     rand.Text(),
		values: make(map[string]versioned),
		queues: make(map[string][]json.RawMessage),
		path:   path,
	}
	if path == "" {
		return s, nil
	}
	if err := s.load(); err != nil {
		return nil, fmt.Errorf("load %s: %w", path, err)
	}
	// Rewriting the file removes replaced values and a last line that a crash left incomplete.
	if err := s.rewrite(); err != nil {
		return nil, fmt.Errorf("write %s: %w", path, err)
	}
	return s, nil
}

func (s *store) load() error {
	f, err := os.Open(s.path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	lines := bufio.NewReader(f)
	for n := 1; ; n++ {
		line, err := lines.ReadBytes('\n')
		if errors.Is(err, io.EOF) {
			return nil // data after the last newline was not acknowledged
		}
		if err != nil {
			return err
		}
		var rec record
		if err := json.Unmarshal(line, &rec); err != nil {
			return fmt.Errorf("line %d: %w", n, err)
		}
		if rec.ID != "" {
			s.id = rec.ID
			continue
		}
		s.apply(rec)
	}
}

// apply applies a record in memory.
func (s *store) apply(rec record) {
	if rec.Queue != "" {
		s.queues[rec.Queue] = append(s.queues[rec.Queue], rec.Value)
		s.held += size(rec.Queue, rec.Value)
		return
	}
	if old, ok := s.values[rec.Key]; ok {
		s.held -= size(rec.Key, old.Value)
	}
	s.values[rec.Key] = versioned{Value: rec.Value, Version: rec.Version}
	s.held += size(rec.Key, rec.Value)
}

func size(name string, value json.RawMessage) int64 { return int64(len(name) + len(value)) }

// get returns the value of a key, or errNoKey.
func (s *store) get(key string) (versioned, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	v, ok := s.values[key]
	if !ok {
		return versioned{}, fmt.Errorf("%w: %q", errNoKey, key)
	}
	return v, nil
}

// put sets the value of a key if it has this version (0: no value yet), and returns the new
// version. If it has another version, put returns errConflict.
func (s *store) put(key string, value json.RawMessage, version uint64) (uint64, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	old := s.values[key]
	if old.Version != version {
		return 0, fmt.Errorf("%w: key %q has version %d, not %d", errConflict, key, old.Version, version)
	}
	rec := record{Key: key, Version: version + 1, Value: value}
	return rec.Version, s.change(rec, size(key, value)-size(key, old.Value))
}

// add appends a value to a queue and returns its position, counted from 0.
func (s *store) add(queue string, value json.RawMessage) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	position := len(s.queues[queue])
	return position, s.change(record{Queue: queue, Value: value}, size(queue, value))
}

// change writes a record, by which the store grows by a number of bytes, and applies it. The caller
// must hold the lock.
func (s *store) change(rec record, growth int64) error {
	if len(rec.Value) > maxValue {
		return errTooLarge
	}
	if s.held+growth > maxStored {
		return errFull
	}
	if s.file != nil {
		if s.fileSize > 2*s.held+fileSlack {
			if err := s.rewrite(); err != nil {
				return fmt.Errorf("compact %s: %w", s.path, err)
			}
		}
		if err := s.write(rec); err != nil {
			return fmt.Errorf("write %s: %w", s.path, err)
		}
	}
	s.apply(rec)
	return nil
}

func (s *store) write(rec record) error {
	line, err := json.Marshal(rec)
	if err != nil {
		return err
	}
	line = append(line, '\n')
	_, err = s.file.Write(line)
	if err == nil {
		err = s.file.Sync()
	}
	if err != nil {
		// An incomplete line would corrupt the next one.
		return errors.Join(err, s.file.Truncate(s.fileSize))
	}
	s.fileSize += int64(len(line))
	return nil
}

// rewrite replaces the file by one with only the current state.
func (s *store) rewrite() error {
	next, err := os.OpenFile(s.path+".new", os.O_CREATE|os.O_TRUNC|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	size, err := s.dump(next)
	if err == nil {
		err = next.Sync()
	}
	if err == nil {
		err = os.Rename(next.Name(), s.path)
	}
	if err == nil {
		err = syncDir(filepath.Dir(s.path))
	}
	if err != nil {
		return errors.Join(err, next.Close())
	}
	old := s.file
	s.file, s.fileSize = next, size
	if old != nil {
		return old.Close()
	}
	return nil
}

// dump writes the current state as records and returns their size in bytes.
func (s *store) dump(w io.Writer) (int64, error) {
	out := bufio.NewWriter(w)
	var written int64
	line := func(rec record) error {
		b, err := json.Marshal(rec)
		if err != nil {
			return err
		}
		n, err := out.Write(append(b, '\n'))
		written += int64(n)
		return err
	}
	if err := line(record{ID: s.id}); err != nil {
		return 0, err
	}
	for key, v := range s.values {
		if err := line(record{Key: key, Version: v.Version, Value: v.Value}); err != nil {
			return 0, err
		}
	}
	for queue, values := range s.queues {
		for _, value := range values {
			if err := line(record{Queue: queue, Value: value}); err != nil {
				return 0, err
			}
		}
	}
	return written, out.Flush()
}

func syncDir(path string) error {
	dir, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}

// slice returns entries of a queue from a position, at most limit of them and at most about half
// the size of a message, and the position after the last one.
func (s *store) slice(queue string, from, limit int) (entries []json.RawMessage, next int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := s.queues[queue]
	bytes := 0
	for next = from; next < len(all) && next-from < limit && bytes < maxBody/2; next++ {
		bytes += len(all[next])
		entries = append(entries, all[next])
	}
	return entries, next
}

func (s *store) close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.file == nil {
		return nil
	}
	return s.file.Close()
}
