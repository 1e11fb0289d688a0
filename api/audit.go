// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package api

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/sif-project/sif/fabric"
)

// AuditRecord is one record of the audit log of a controller: who asked for which change, and
// whether it was accepted.
type AuditRecord struct {
	Number   uint64      `json:"n"`             // in the log of the controller, from 1
	Previous fabric.Hash `json:"prev,omitzero"` // SHA-256 of the record before, as it is in the log

	Time     time.Time `json:"time"`
	Actor    string    `json:"actor"`              // of an operator's token, "zone/node", or "unknown"
	Remote   string    `json:"remote"`             // address:port of the caller
	Action   string    `json:"action"`             // for instance "graph.apply"
	Target   string    `json:"target,omitempty"`   // what it is about
	Message  string    `json:"message,omitempty"`  // the caller's reason
	Revision uint64    `json:"revision,omitempty"` // the sequence after the change
	Refused  string    `json:"refused,omitempty"`  // why it was refused; empty: it was accepted
	Code     string    `json:"code,omitempty"`     // of the refusal
	LeftOut  int       `json:"leftOut,omitempty"`  // refused calls that have no record
	Begun    bool      `json:"begun,omitempty"`    // it is about to be carried out; another record says how it ended

	// Controller is the ID of the controller whose log it is, and Address where that answers. Both
	// are not part of the log.
	Controller string `json:"controller,omitempty"`
	Address    string `json:"address,omitempty"`
}

// AuditHead says which record is the last one of a log.
type AuditHead struct {
	Controller string      `json:"controller"` // ID
	Number     uint64      `json:"n"`
	Hash       fabric.Hash `json:"hash"` // SHA-256 of the record
	Time       time.Time   `json:"time"`
	// First is the number of the first record that Consul has, where the head is signed. Zero: the
	// controller that signed it did not say.
	First uint64 `json:"first,omitempty"`
}

// AuditLog is the log of one controller as Consul has it.
type AuditLog struct {
	Controller string `json:"controller"` // ID
	Address    string `json:"address,omitempty"`
	First      uint64 `json:"first"` // the number of the oldest record that is kept
	// Signed is the newest head of the log that the fabric signed (an AuditHead).
	Signed fabric.Signed `json:"signed,omitzero"`
	// Noted is the head of the log when the controller last changed something, which it wrote
	// together with the change. Records up to it must be there.
	Noted AuditHead `json:"noted,omitzero"`
}

// AuditFilter selects records. Empty fields select all.
type AuditFilter struct {
	Since, Until          time.Time
	Actor, Action, Target string // parts of the texts
	Refused               bool   // only what was refused
	Begun                 bool   // also that something is about to be carried out
	Limit                 int    // the newest so many; 0: DefaultAuditLimit
}

// DefaultAuditLimit is how many records are listed, MaxAuditRecords how many a call returns at
// most.
const (
	DefaultAuditLimit = 100
	MaxAuditRecords   = 5000
)

// AuditPage is a part of the log of a controller, as it is: one record in each element.
type AuditPage struct {
	Records []string `json:"records"`
}

// Audit returns the newest records of all controllers that a filter selects, oldest first.
func (c *Client) Audit(ctx context.Context, f AuditFilter) ([]AuditRecord, error) {
	v := url.Values{}
	set := func(name, value string) {
		if value != "" {
			v.Set(name, value)
		}
	}
	for name, t := range map[string]time.Time{"since": f.Since, "until": f.Until} {
		if !t.IsZero() {
			set(name, t.UTC().Format(time.RFC3339Nano))
		}
	}
	set("actor", f.Actor)
	set("action", f.Action)
	set("target", f.Target)
	for name, on := range map[string]bool{"refused": f.Refused, "begun": f.Begun} {
		if on {
			set(name, "true")
		}
	}
	if f.Limit > 0 {
		set("limit", strconv.Itoa(f.Limit))
	}
	var reply []AuditRecord
	err := c.call(ctx, http.MethodGet, "/v1/audit?"+v.Encode(), nil, &reply)
	return reply, err
}

// AuditLogs returns the audit logs that there are.
func (c *Client) AuditLogs(ctx context.Context) ([]AuditLog, error) {
	var reply []AuditLog
	err := c.call(ctx, http.MethodGet, "/v1/audit/logs", nil, &reply)
	return reply, err
}

// AuditPage returns the records of a controller's log that come after a number.
func (c *Client) AuditPage(ctx context.Context, controller string, after uint64) (AuditPage, error) {
	var reply AuditPage
	err := c.call(ctx, http.MethodGet, "/v1/audit/logs/"+url.PathEscape(controller)+"?after="+strconv.FormatUint(after, 10), nil, &reply)
	return reply, err
}

// AuditChain verifies a log, record by record.
type AuditChain struct {
	Last  AuditHead // the record that was taken last
	began bool
}

// Take takes the next record, as it is in the log. It returns what is wrong with it: a record
// before it is missing or was changed.
func (a *AuditChain) Take(line string) error {
	var r AuditRecord
	if err := json.Unmarshal([]byte(line), &r); err != nil {
		return fmt.Errorf("after record %d: not a record: %w", a.Last.Number, err)
	}
	last, began := a.Last, a.began
	a.Last = AuditHead{Number: r.Number, Hash: fabric.HashOf([]byte(line)), Time: r.Time}
	a.began = true
	switch {
	case !began && r.Number == 1 && !r.Previous.IsZero():
		return errors.New("record 1 names a record before it")
	case began && r.Number > last.Number+1:
		return fmt.Errorf("records %d to %d are missing, between %s and %s", last.Number+1, r.Number-1, last.Time.Format(time.RFC3339), r.Time.Format(time.RFC3339))
	case began && r.Number != last.Number+1:
		return fmt.Errorf("record %d follows record %d", r.Number, last.Number)
	case began && r.Previous != last.Hash:
		return fmt.Errorf("record %d of %s, or the one before it, was changed: it names %.12s as the hash of record %d, which has %.12s",
			r.Number, r.Time.Format(time.RFC3339), r.Previous, last.Number, last.Hash)
	}
	return nil
}
