// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package controller

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/sif-project/sif/api"
	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/internal/limit"
	"github.com/sif-project/sif/internal/logkey"
	"github.com/sif-project/sif/internal/retry"
	"github.com/sif-project/sif/internal/statefile"
)

// auditEntry is one line of the audit log: who asked for which change, and whether it was accepted.
// It has the fields of api.AuditRecord.
type auditEntry struct {
	Number   uint64      `json:"n"`             // from 1
	Previous fabric.Hash `json:"prev,omitzero"` // of the line before, without its newline

	Time     time.Time `json:"time"`
	Actor    string    `json:"actor"`  // the accessor of an operator's token or his entity, zone/node, or unknownActor
	Remote   string    `json:"remote"` // address:port of the caller
	Action   string    `json:"action"` // for instance "graph.apply"
	Target   string    `json:"target,omitempty"`
	Message  string    `json:"message,omitempty"`  // the caller's reason
	Revision uint64    `json:"revision,omitempty"` // the sequence after the change
	Refused  string    `json:"refused,omitempty"`  // why the change was refused; empty: it was accepted
	Code     string    `json:"code,omitempty"`     // of the refusal
	LeftOut  int       `json:"leftOut,omitempty"`  // refused calls of the same actor, or source if it is unknown, that have no entry

	// Begun says that the call is about to be carried out. Another entry says how it ended.
	Begun bool `json:"begun,omitempty"`

	harmless bool // the call changes nothing, so it is recorded only if the caller may not make it
	intended bool // an entry with Begun was written
}

// unknownActor is the actor of a call that was not authenticated.
const unknownActor = "unknown"

// What a controller records of itself: that it has begun to lead.
const actorSelf, actionLead = "controller", "controller.lead"

// Rotation bounds the audit log. The zero value does not rotate it.
type Rotation struct {
	Bytes    int64 // the maximum size of a file, unless a single entry is larger; 0: no maximum
	MaxFiles int   // how many rotated files are kept; 0: all
}

const (
	auditFile = "audit.log"
	// A rotated file has the time of its rotation in its name, so that the names sort by time.
	rotatedPrefix = "audit-"
	rotatedTime   = "20060102T150405.000000000Z"
	// headFile has the last record while no file of the log does: when somebody else rotates it.
	headFile = "audit.head"
)

// Refused calls of one actor, or of one source of unknown actors: so many have an entry at once,
// and then one each interval. Others are counted in one entry each summaryInterval.
const (
	refusedBurst    = 20
	refusedInterval = 5 * time.Second
	summaryInterval = time.Minute
	summaryAction   = "refused"
	maxSummaries    = 1000 // in one interval; the rest is one for unknown actors
)

// refuser is whose refused calls are counted together.
type refuser struct {
	actor  string
	source netip.Prefix // of an unknown actor
}

// audit is the audit log: a file with one JSON object per line. A file that would exceed its
// maximum size is rotated, and the oldest rotated files are deleted.
type audit struct {
	dir      string
	rotation Rotation
	log      hclog.Logger

	refusals *limit.Rate[refuser]

	mu   sync.Mutex
	file *os.File
	torn bool // the last line is incomplete

	last         api.AuditHead // the last record
	waiting      []auditLine   // the records that Consul does not have
	waitingBytes int
	missed       bool   // later ones wait on the disk only
	wrong        string // what was found to be wrong with the log on disk, for people

	leftOut map[refuser]int // refused calls without an entry, since the last summary
}

func openAudit(dir string, rotation Rotation, log hclog.Logger) (*audit, error) {
	a := &audit{
		dir: dir, rotation: rotation, log: log,
		refusals: limit.NewRate[refuser](refusedInterval, refusedBurst), leftOut: map[refuser]int{},
	}
	if err := a.reopen(); err != nil {
		return nil, err
	}
	if err := a.recall(); err != nil {
		a.file.Close()
		return nil, fmt.Errorf("read the end of the audit log: %w", err)
	}
	return a, nil
}

// recall finds the last record: in the newest file that has one, or beside the log.
func (a *audit) recall() error {
	names, err := a.names()
	if err != nil {
		return err
	}
	for _, name := range slices.Backward(names) {
		found := false
		err := backward(filepath.Join(a.dir, name), func(line []byte) bool {
			var head api.AuditHead
			if head, found = headOf(line); found {
				a.last = head
			}
			return !found && !json.Valid(line) // a rest of an incomplete one; else it is of an earlier version
		})
		if err != nil {
			return err
		}
		if found {
			break
		}
	}
	kept, _, err := a.headFile().Read()
	if err != nil {
		a.log.Warn("the last record of the audit log is not where it was noted", logkey.Error, err)
	}
	if kept.Number > a.last.Number {
		a.last = kept
	}
	return nil
}

// backwardChunk is how many bytes backward reads at once.
const backwardChunk = 256 << 10

// backward calls yield with the lines of a file, without their newlines, the last one first, until
// yield returns false. It leaves out what comes after the last newline. A line is valid only during
// the call. A log can be large, and what is looked for is at its end.
func backward(path string, yield func(line []byte) bool) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	at, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return err
	}
	complete := false // the newline after rest was read
	var rest []byte   // the end of a line whose beginning was not read
	for at > 0 {
		n := min(at, backwardChunk)
		at -= n
		text := make([]byte, n, int(n)+len(rest))
		if _, err := f.ReadAt(text, at); err != nil {
			return err
		}
		for text = append(text, rest...); ; complete = true {
			i := bytes.LastIndexByte(text, '\n')
			if i < 0 {
				break
			}
			if complete && !yield(text[i+1:]) {
				return nil
			}
			text = text[:i]
		}
		rest = text
	}
	if complete {
		yield(rest)
	}
	return nil
}

func (a *audit) headFile() statefile.File[api.AuditHead] {
	return statefile.File[api.AuditHead]{Path: filepath.Join(a.dir, headFile), What: "the last record of the audit log"}
}

// reopen opens the file by its name again, so that somebody else can rotate it by moving it away.
// If that fails, the old file stays in use.
func (a *audit) reopen() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.last.Number > 0 {
		if err := a.headFile().Write(a.last); err != nil {
			return err
		}
	}
	if err := a.open(); err != nil {
		return fmt.Errorf("open the audit log: %w", err)
	}
	return nil
}

// open is reopen for callers that hold a.mu.
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

// isTorn reports whether the last line of a file is incomplete, as after a failure of the machine
// or the disk.
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

// admits reports whether a refused call gets an entry. Otherwise it is counted for a summary, so
// that nobody fills the disk, or has the entries of others rotated away.
func (a *audit) admits(e auditEntry) bool {
	who := refuser{actor: e.Actor}
	if addr, err := netip.ParseAddrPort(e.Remote); err == nil && e.Actor == unknownActor {
		who.source = limit.Source(net.TCPAddrFromAddrPort(addr))
	}
	if ok, _ := a.refusals.Allow(who); ok {
		return true
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if _, known := a.leftOut[who]; !known && len(a.leftOut) >= maxSummaries {
		who = refuser{actor: unknownActor}
	}
	a.leftOut[who]++
	return false
}

// summarise writes the summaries until ctx ends.
func (a *audit) summarise(ctx context.Context) error {
	for retry.Sleep(ctx, summaryInterval) {
		if err := a.writeSummaries(); err != nil {
			a.log.Error("cannot write how many refused calls were left out of the audit log", logkey.Error, err)
		}
	}
	return nil
}

func (a *audit) writeSummaries() error {
	a.mu.Lock()
	leftOut := a.leftOut
	a.leftOut = map[refuser]int{}
	a.mu.Unlock()
	var errs []error
	for who, n := range leftOut {
		e := auditEntry{Actor: who.actor, Action: summaryAction, LeftOut: n}
		if who.source.IsValid() {
			e.Remote = who.source.String()
		}
		errs = append(errs, a.write(e))
	}
	return errors.Join(errs...)
}

// write appends an entry, with the current time.
func (a *audit) write(e auditEntry) error {
	e.Time = time.Now().UTC()
	for _, text := range []*string{&e.Target, &e.Message, &e.Refused} {
		*text = shortened(*text)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	e.Number, e.Previous = a.last.Number+1, a.last.Hash
	record, err := json.Marshal(e)
	if err != nil {
		return fmt.Errorf("encode an audit entry: %w", err)
	}
	line := append(slices.Clip(record), '\n')
	if err := a.makeRoom(len(line), e.Time); err != nil {
		a.log.Warn("cannot rotate the audit log, continuing in the same file", logkey.Error, err)
	}
	if a.torn {
		line = append([]byte{'\n'}, line...)
	}
	if n, err := a.file.Write(line); err != nil {
		a.torn = a.torn || n > 0
		return fmt.Errorf("write the audit log: %w", err)
	}
	a.torn = false
	a.last = api.AuditHead{Number: e.Number, Hash: fabric.HashOf(record), Time: e.Time}
	if a.missed = a.missed || a.waitingBytes+len(record) > maxUnshipped; !a.missed {
		a.waiting, a.waitingBytes = append(a.waiting, auditLine{e.Number, record}), a.waitingBytes+len(record)
	}
	return nil
}

// maxText is the longest text of a caller in an entry, in bytes.
const maxText = 1024

// shortened cuts a text that a caller chose: the log must have room for the entries of others.
func shortened(s string) string {
	if len(s) <= maxText {
		return s
	}
	return strings.ToValidUTF8(s[:maxText], "") + "..."
}

// makeRoom rotates the file if it would exceed its maximum size with more bytes. The caller holds
// a.mu.
func (a *audit) makeRoom(more int, now time.Time) error {
	if a.rotation.Bytes == 0 {
		return nil
	}
	info, err := a.file.Stat()
	if err != nil || info.Size() == 0 || info.Size()+int64(more) <= a.rotation.Bytes {
		return err
	}
	old, err := a.rotated()
	if err != nil {
		return err
	}
	if len(old) > 0 { // the clock may have been set back
		if newest := old[len(old)-1]; !now.After(newest) {
			now = newest.Add(time.Nanosecond)
		}
	}
	err = os.Rename(filepath.Join(a.dir, auditFile), a.rotatedPath(now))
	if err != nil && !errors.Is(err, fs.ErrNotExist) { // somebody else moved it away
		return err
	}
	if err := a.open(); err != nil || a.rotation.MaxFiles == 0 {
		return err
	}
	var errs []error
	old = append(old, now)
	for _, t := range old[:max(0, len(old)-a.rotation.MaxFiles)] {
		errs = append(errs, os.Remove(a.rotatedPath(t)))
	}
	return errors.Join(errs...)
}

func (a *audit) rotatedPath(t time.Time) string {
	return filepath.Join(a.dir, rotatedPrefix+t.UTC().Format(rotatedTime)+filepath.Ext(auditFile))
}

// rotated returns the times of the rotated files that exist, oldest first.
func (a *audit) rotated() ([]time.Time, error) {
	files, err := os.ReadDir(a.dir) // sorted by name
	if err != nil {
		return nil, err
	}
	var times []time.Time
	for _, f := range files {
		t, err := time.Parse(rotatedPrefix+rotatedTime+filepath.Ext(auditFile), f.Name())
		if err == nil {
			times = append(times, t)
		}
	}
	return times, nil
}

// Close writes the summaries and closes the file.
func (a *audit) Close() error {
	err := a.writeSummaries()
	a.mu.Lock()
	defer a.mu.Unlock()
	return errors.Join(err, a.file.Close())
}
