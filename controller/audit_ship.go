// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package controller

import (
	"bytes"
	"cmp"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	consulapi "github.com/hashicorp/consul/api"
	"github.com/hashicorp/go-hclog"

	"github.com/sif-project/sif/api"
	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/internal/kvkey"
	"github.com/sif-project/sif/internal/logkey"
	"github.com/sif-project/sif/internal/retry"
)

const (
	// shipInterval is how long a record is at most only on the disk of its controller, while Consul
	// answers.
	shipInterval = time.Second
	// segmentBytes is the size from which a segment is not extended any more, and segmentText that
	// of its records. maxSegments is how many of a controller are kept.
	segmentBytes = 48 << 10
	segmentText  = 512 << 10
	maxSegments  = 256
	// maxUnshipped bounds the records in memory that wait for Consul, in bytes. The rest is read
	// from the disk again.
	maxUnshipped = 16 << 20
)

// shipper copies the audit log of this controller to Consul: in segments that are extended, and
// replaced by others when they are full. Only this controller writes them. The newest head is
// signed, so that nobody else can continue, replace or rewrite the log.
type shipper struct {
	cfg   Config
	id    string // of the controller
	audit *audit
	log   hclog.Logger

	mu       sync.Mutex // held while records are shipped
	began    bool       // what Consul has is known
	first    uint64     // of the open segment; 0: there is none
	text     []byte     // its records, each with a newline
	packed   int        // how many bytes of Consul they need
	shipped  uint64     // number of the last record in Consul
	segments []uint64   // the first numbers of the segments in Consul, ordered
	signed   uint64     // number of the last signed head
	oldest   uint64     // number of the first record, by that; 0: it is not known
	most     int        // how many segments are kept

	told    sync.Mutex // never held while Consul or Vault is asked
	trouble error
}

func newShipper(cfg Config, id string, a *audit) *shipper {
	return &shipper{cfg: cfg, id: id, most: maxSegments, audit: a, log: cfg.Log.Named("audit")}
}

// run ships until ctx ends, and then what is left.
func (s *shipper) run(ctx context.Context) error {
	for {
		over := !retry.Sleep(ctx, shipInterval)
		if over {
			var cancel context.CancelFunc
			ctx, cancel = context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
			defer cancel()
		}
		err := s.ship(ctx)
		s.told.Lock()
		if err != nil && (s.trouble == nil || s.trouble.Error() != err.Error()) {
			s.log.Warn("cannot copy the audit log to Consul, retrying", logkey.Error, err)
		}
		s.trouble = err
		s.told.Unlock()
		if over {
			return nil
		}
	}
}

// degraded returns what is wrong with the copy of the log, for people.
func (s *shipper) degraded() []string {
	var list []string
	s.told.Lock()
	if s.trouble != nil {
		list = append(list, fmt.Sprintf("the audit log is not copied to Consul, or the copy is not signed: %v", s.trouble))
	}
	s.told.Unlock()
	if why := s.audit.changed(); why != "" {
		list = append(list, why)
	}
	return list
}

// ship writes the records to Consul that it does not have.
func (s *shipper) ship(ctx context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.began {
		if err := s.begin(ctx); err != nil {
			return err
		}
		s.began = true
	}
	for {
		lines, more := s.audit.unshipped(s.shipped)
		if len(lines) == 0 && s.audit.behind() {
			if err := s.audit.reread(s.shipped); err != nil {
				return err
			}
			if lines, more = s.audit.unshipped(s.shipped); len(lines) == 0 {
				break
			}
		}
		if len(lines) == 0 {
			break
		}
		if err := s.extend(ctx, lines); err != nil {
			return err
		}
		if !more && !s.audit.behind() {
			break
		}
	}
	return errors.Join(s.sign(ctx), s.trim(ctx))
}

// begin reads what Consul has of the log, and where it ends. A controller whose disk was set back
// continues with the number that it had reached.
func (s *shipper) begin(ctx context.Context) error {
	q := (&consulapi.QueryOptions{RequireConsistent: true}).WithContext(ctx)
	var err error
	if s.segments, err = auditSegments(s.cfg.Consul(), s.id, q); err != nil {
		return fmt.Errorf("list the segments of the log: %w", err)
	}
	var last api.AuditHead
	if n := len(s.segments); n > 0 {
		first := s.segments[n-1]
		kv, _, err := s.cfg.Consul().KV().Get(kvkey.AuditSegment(s.id, first), q)
		if err != nil {
			return fmt.Errorf("read the last segment of the log: %w", err)
		}
		if kv != nil {
			s.first, last.Number = first, first-1 // if it cannot be read, it is written again
			text, err := unpackSegment(kv.Value)
			if head, ok := headOf(text); err == nil && ok {
				s.text, s.packed, last = text, len(kv.Value), head
			} else {
				s.log.Error("a segment of the audit log in Consul cannot be read", logkey.Key, kv.Key, logkey.Error, err)
			}
		}
	}
	kv, _, err := s.cfg.Consul().KV().Get(kvkey.AuditHead(s.id), q)
	if err != nil {
		return fmt.Errorf("read where the log begins: %w", err)
	}
	// What was signed counts, not what is there: a beginning that is missing stays so.
	var sealed fabric.Signed
	var head api.AuditHead
	if kv != nil && json.Unmarshal(kv.Value, &sealed) == nil && s.cfg.Identity.Keys().Verify(sealed, fabric.KindAudit, &head) == nil && head.Controller == s.id {
		s.oldest = head.First
	}
	if kv, _, err = s.cfg.Consul().KV().Get(kvkey.AuditNote(s.id), q); err != nil {
		return fmt.Errorf("read where the log ends: %w", err)
	}
	var noted api.AuditHead
	if kv != nil && json.Unmarshal(kv.Value, &noted) == nil && noted.Number > last.Number {
		s.audit.advance(noted)
	}
	s.shipped = last.Number
	s.audit.advance(last)
	return s.audit.reread(last.Number)
}

// auditSegments returns the first numbers of the segments of a controller's log in Consul, ordered.
func auditSegments(consul *consulapi.Client, id string, q *consulapi.QueryOptions) ([]uint64, error) {
	keys, _, err := consul.KV().Keys(kvkey.AuditLog(id), "", q)
	if err != nil {
		return nil, err
	}
	var list []uint64
	for _, key := range keys {
		if _, first, err := kvkey.ParseAuditSegment(key); err == nil {
			list = append(list, first)
		}
	}
	slices.Sort(list)
	return list, nil
}

// note returns the operation that notes the head of the log, to be carried out together with a
// change: so a change whose record is lost is seen, even if the disk of this controller is gone.
func (s *shipper) note() *consulapi.TxnOp {
	head := s.audit.head()
	head.Controller = s.id
	value, err := json.Marshal(head)
	if err != nil || head.Number == 0 {
		return nil
	}
	return &consulapi.TxnOp{KV: &consulapi.KVTxnOp{Verb: consulapi.KVSet, Key: kvkey.AuditNote(s.id), Value: value}}
}

// extend writes lines to the open segment, or to a new one. The caller holds s.mu.
func (s *shipper) extend(ctx context.Context, lines []auditLine) error {
	if len(s.text) >= segmentText || s.packed >= segmentBytes {
		s.first, s.text = 0, nil
	}
	first, text := s.first, slices.Clone(s.text)
	if first == 0 {
		first = lines[0].number
	}
	for _, l := range lines {
		text = append(append(text, l.text...), '\n')
	}
	value, err := packSegment(text)
	if err != nil {
		return err
	}
	kv := s.cfg.Consul().KV()
	w := (&consulapi.WriteOptions{}).WithContext(ctx)
	if _, err := kv.Put(&consulapi.KVPair{Key: kvkey.AuditSegment(s.id, first), Value: value}, w); err != nil {
		return fmt.Errorf("write a segment of the log: %w", err)
	}
	if len(s.segments) == 0 || s.segments[len(s.segments)-1] != first {
		s.segments = append(s.segments, first)
	}
	s.first, s.text, s.packed, s.shipped = first, text, len(value), lines[len(lines)-1].number
	s.audit.forget(s.shipped)
	return nil
}

// trim deletes the segments that are too many. That they are has been signed before, so that others
// that are missing are seen; only if nobody can sign for long, it is done without. The caller holds
// s.mu.
func (s *shipper) trim(ctx context.Context) error {
	for len(s.segments) > s.most && (s.segments[0] < s.oldest || len(s.segments) > 2*s.most) {
		if _, err := s.cfg.Consul().KV().Delete(kvkey.AuditSegment(s.id, s.segments[0]), (&consulapi.WriteOptions{}).WithContext(ctx)); err != nil {
			return fmt.Errorf("delete the oldest segment of the log: %w", err)
		}
		s.segments = s.segments[1:]
	}
	return nil
}

// sign has the head of what Consul has signed. Without Vault, the one before stays. The caller
// holds s.mu.
func (s *shipper) sign(ctx context.Context) error {
	if s.signed == s.shipped || len(s.text) == 0 {
		return nil
	}
	oldest := cmp.Or(s.oldest, s.segments[0])
	if n := len(s.segments) - s.most; n > 0 {
		oldest = max(oldest, s.segments[n])
	}
	head, ok := headOf(s.text)
	if !ok {
		return nil
	}
	head.Controller, head.First = s.id, oldest
	payload, err := json.Marshal(head)
	if err != nil {
		return fmt.Errorf("encode the head of the log: %w", err)
	}
	signed, err := s.cfg.Signer.Sign(ctx, fabric.KindAudit, payload)
	if err != nil {
		return fmt.Errorf("sign the head of the log: %w", err)
	}
	value, err := json.Marshal(signed)
	if err != nil {
		return fmt.Errorf("encode the head of the log: %w", err)
	}
	if _, err := s.cfg.Consul().KV().Put(&consulapi.KVPair{Key: kvkey.AuditHead(s.id), Value: value}, (&consulapi.WriteOptions{}).WithContext(ctx)); err != nil {
		return fmt.Errorf("write the head of the log: %w", err)
	}
	s.signed, s.oldest = head.Number, oldest
	return nil
}

// headOf returns the last record of a text. The controller is not in it.
func headOf(text []byte) (head api.AuditHead, ok bool) {
	text = bytes.TrimSuffix(text, []byte("\n"))
	line := text[bytes.LastIndexByte(text, '\n')+1:]
	var r api.AuditRecord
	if json.Unmarshal(line, &r) != nil || r.Number == 0 {
		return head, false
	}
	return api.AuditHead{Number: r.Number, Hash: fabric.HashOf(line), Time: r.Time}, true
}

// maxSegmentText bounds what a segment may contain, since whoever writes Consul can write one.
const maxSegmentText = 64 << 20

func packSegment(text []byte) ([]byte, error) {
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	_, err := w.Write(text)
	if err == nil {
		err = w.Close()
	}
	if err != nil {
		return nil, fmt.Errorf("compress a segment of the audit log: %w", err)
	}
	return b.Bytes(), nil
}

func unpackSegment(value []byte) ([]byte, error) {
	r, err := gzip.NewReader(bytes.NewReader(value))
	if err != nil {
		return nil, err
	}
	text, err := io.ReadAll(io.LimitReader(r, maxSegmentText+1))
	if err == nil && len(text) > maxSegmentText {
		err = errors.New("it is too large")
	}
	return text, err
}

// auditLine is a record that Consul does not have yet, without the newline.
type auditLine struct {
	number uint64
	text   []byte
}

// maxShipment bounds how many bytes of records are written at once.
const maxShipment = 256 << 10

// unshipped returns the records after a number that wait, and whether there are more.
func (a *audit) unshipped(after uint64) (lines []auditLine, more bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	size := 0
	for _, l := range a.waiting {
		if l.number <= after {
			continue
		}
		if size += len(l.text); size > maxShipment && len(lines) > 0 {
			return lines, true
		}
		lines = append(lines, l)
	}
	return lines, false
}

// behind reports whether records wait on the disk only.
func (a *audit) behind() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.missed
}

// forget drops the records that Consul has.
func (a *audit) forget(upTo uint64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.waiting = slices.DeleteFunc(a.waiting, func(l auditLine) bool {
		if l.number <= upTo {
			a.waitingBytes -= len(l.text)
		}
		return l.number <= upTo
	})
}

// changed returns what was found to be wrong with the log on disk, for people.
func (a *audit) changed() string {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.wrong
}

// head returns the last record.
func (a *audit) head() api.AuditHead {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.last
}

// advance continues the log after a record that Consul has, if the disk lacks it.
func (a *audit) advance(head api.AuditHead) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if head.Number <= a.last.Number {
		return
	}
	a.wrong = fmt.Sprintf("the audit log in %s ends at record %d, but it had reached record %d: somebody removed its end, or set the disk back", a.dir, a.last.Number, head.Number)
	a.log.Error("the audit log on disk lacks its end", logkey.Count, head.Number-a.last.Number)
	a.last = head
}

// reread has the records on disk shipped that come after a number: a controller that was killed had
// not shipped its last ones.
func (a *audit) reread(after uint64) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	names, err := a.names()
	if err != nil {
		return fmt.Errorf("list the files of the audit log: %w", err)
	}
	have := map[uint64]bool{}
	for _, l := range a.waiting {
		have[l.number] = true
	}
	var lines []auditLine
	for _, name := range slices.Backward(names) { // the newest first
		over := false
		err := backward(filepath.Join(a.dir, name), func(line []byte) bool {
			var r api.AuditRecord
			if json.Unmarshal(line, &r) != nil || r.Number == 0 {
				return true // incomplete, or of an earlier version
			}
			if r.Number > after && !have[r.Number] {
				lines = append(lines, auditLine{r.Number, bytes.Clone(line)})
			}
			over = r.Number <= after+1
			return !over
		})
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("read the audit log: %w", err)
		}
		if over {
			break
		}
	}
	a.waiting = append(lines, a.waiting...)
	slices.SortStableFunc(a.waiting, func(x, y auditLine) int { return cmp.Compare(x.number, y.number) })
	a.waitingBytes, a.missed = 0, false
	for i, l := range a.waiting {
		if a.waitingBytes += len(l.text); a.waitingBytes > maxUnshipped && i > 0 {
			a.waitingBytes -= len(l.text)
			a.waiting, a.missed = a.waiting[:i], true
			break
		}
	}
	return nil
}

// names lists the files of the log, oldest first. The caller holds a.mu.
func (a *audit) names() ([]string, error) {
	times, err := a.rotated()
	if err != nil {
		return nil, err
	}
	var list []string
	for _, t := range times {
		list = append(list, filepath.Base(a.rotatedPath(t)))
	}
	return append(list, auditFile), nil
}
