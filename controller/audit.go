// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package controller

import (
	"encoding/json"
	"fmt"
	"os"
	"sync"
	"time"
)

// auditEntry is one line of the audit log: who asked for which change, and
// what came of it.
type auditEntry struct {
	Time     time.Time `json:"time"`
	Actor    string    `json:"actor"`  // an operator's token accessor, or zone/node
	Action   string    `json:"action"` // for instance "graph.apply"
	Target   string    `json:"target,omitempty"`
	Message  string    `json:"message,omitempty"` // the caller's reason
	Revision uint64    `json:"revision,omitempty"`
	Refused  string    `json:"refused,omitempty"` // why; empty: accepted
	Code     string    `json:"code,omitempty"`
}

// audit appends entries to a file, one JSON object a line.
type audit struct {
	mu   sync.Mutex
	file *os.File
}

func openAudit(path string) (*audit, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open the audit log: %w", err)
	}
	return &audit{file: f}, nil
}

func (a *audit) write(e auditEntry) error {
	e.Time = time.Now().UTC()
	line, err := json.Marshal(e)
	if err != nil {
		return fmt.Errorf("encode an audit entry: %w", err)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if _, err := a.file.Write(append(line, '\n')); err != nil {
		return fmt.Errorf("write the audit log: %w", err)
	}
	return nil
}

func (a *audit) Close() error { return a.file.Close() }
