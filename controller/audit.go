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
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/sif-project/sif/internal/logkey"
)

// auditEntry is one line of the audit log: who asked for which change, and
// what came of it.
type auditEntry struct {
	Time     time.Time `json:"time"`
	Actor    string    `json:"actor"`  // an operator's token or entity, zone/node, or unknownActor
	Remote   string    `json:"remote"` // address:port of the caller
	Action   string    `json:"action"` // for instance "graph.apply"
	Target   string    `json:"target,omitempty"`
	Message  string    `json:"message,omitempty"` // the caller's reason
	Revision uint64    `json:"revision,omitempty"`
	Refused  string    `json:"refused,omitempty"` // why; empty: accepted
	Code     string    `json:"code,omitempty"`

	harmless bool // the call changes nothing: it is recorded only if it is forbidden
}

// unknownActor is who was not authenticated.
const unknownActor = "unknown"

// Rotation bounds the audit log. The zero value does not rotate it.
type Rotation struct {
	Bytes    int64 // how large a file may grow, unless a single entry is larger; 0: any size
	MaxFiles int   // how many old files are kept; 0: all
}

const (
	auditFile = "audit.log"
	// Files that were rotated out are named by when that was: the names sort
	// by time.
	auditOld   = "audit-"
	auditStamp = "20060102T150405.000000000Z"
)

// audit appends entries to a file, one JSON object a line. When the file would
// grow beyond its bound it is set aside under a name with the time, and the
// oldest of those are removed.
type audit struct {
	dir      string
	rotation Rotation
	log      hclog.Logger

	mu   sync.Mutex
	file *os.File
	torn bool // the last line was not written in full
}

func openAudit(dir string, rotation Rotation, log hclog.Logger) (*audit, error) {
	a := &audit{dir: dir, rotation: rotation, log: log}
	return a, a.reopen()
}

// reopen goes on in the file that has the log's name now, a new one if
// somebody moved the old one away. If that fails, the old one stays in use.
func (a *audit) reopen() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if err := a.open(); err != nil {
		return fmt.Errorf("open the audit log: %w", err)
	}
	return nil
}

func (a *audit) open() error {
	f, err := os.OpenFile(filepath.Join(a.dir, auditFile), os.O_CREATE|os.O_APPEND|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	torn, err := isTorn(f)
	if err != nil {
		f.Close()
		return err
	}
	if a.file != nil {
		a.file.Close()
	}
	a.file, a.torn = f, torn
	return nil
}

// isTorn reports whether the last line of a file has no end, because a machine
// or a disk failed.
func isTorn(f *os.File) (bool, error) {
	info, err := f.Stat()
	if err != nil || info.Size() == 0 {
		return false, err
	}
	var last [1]byte
	if _, err := f.ReadAt(last[:], info.Size()-1); err != nil {
		return false, err
	}
	return last[0] != '\n', nil
}

func (a *audit) write(e auditEntry) error {
	e.Time = time.Now().UTC()
	line, err := json.Marshal(e)
	if err != nil {
		return fmt.Errorf("encode an audit entry: %w", err)
	}
	line = append(line, '\n')
	a.mu.Lock()
	defer a.mu.Unlock()
	if err := a.makeRoom(len(line), e.Time); err != nil {
		a.log.Warn("the audit log is not rotated, and goes on as it is", logkey.Error, err)
	}
	if a.torn {
		line = append([]byte{'\n'}, line...)
	}
	if n, err := a.file.Write(line); err != nil {
		a.torn = a.torn || n > 0
		return fmt.Errorf("write the audit log: %w", err)
	}
	a.torn = false
	return nil
}

// makeRoom rotates the file if it would grow beyond its bound.
func (a *audit) makeRoom(more int, now time.Time) error {
	if a.rotation.Bytes == 0 {
		return nil
	}
	info, err := a.file.Stat()
	if err != nil || info.Size() == 0 || info.Size()+int64(more) <= a.rotation.Bytes {
		return err
	}
	old, err := a.old()
	if err != nil {
		return err
	}
	if len(old) > 0 { // a clock may have been set back
		if newest := old[len(old)-1]; !now.After(newest) {
			now = newest.Add(time.Nanosecond)
		}
	}
	err = os.Rename(filepath.Join(a.dir, auditFile), a.oldPath(now))
	if err != nil && !errors.Is(err, fs.ErrNotExist) { // somebody else moved it away
		return err
	}
	if err := a.open(); err != nil || a.rotation.MaxFiles == 0 {
		return err
	}
	var errs []error
	old = append(old, now)
	for _, t := range old[:max(0, len(old)-a.rotation.MaxFiles)] {
		errs = append(errs, os.Remove(a.oldPath(t)))
	}
	return errors.Join(errs...)
}

func (a *audit) oldPath(t time.Time) string {
	return filepath.Join(a.dir, auditOld+t.UTC().Format(auditStamp)+filepath.Ext(auditFile))
}

// old lists when files were rotated out that are still there, the oldest
// first.
func (a *audit) old() ([]time.Time, error) {
	files, err := os.ReadDir(a.dir) // sorted by name
	if err != nil {
		return nil, err
	}
	var times []time.Time
	for _, f := range files {
		t, err := time.Parse(auditOld+auditStamp+filepath.Ext(auditFile), f.Name())
		if err == nil {
			times = append(times, t)
		}
	}
	return times, nil
}

// Close closes the file.
func (a *audit) Close() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.file.Close()
}
