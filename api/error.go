// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package api

import (
	"errors"
	"fmt"
	"strings"

	"github.com/sif-project/sif/fabric"
)

// The codes of errors. They are stable; messages are for people.
const (
	CodeInvalid         = "invalid-request"     // the request cannot be understood
	CodeForbidden       = "forbidden"           // the caller may not do this
	CodeNotFound        = "not-found"           // no such domain, node, endpoint or task
	CodeProblems        = "graph-has-problems"  // Details.Problems lists them
	CodeConflict        = "conflict"            // the graph is not at the sequence that the caller named
	CodeRevision        = "revision-refused"    // the revision in the store is not one to build upon
	CodeNotLeader       = "not-leader"          // Details.Leader is the address of the controller to ask
	CodeUnavailable     = "unavailable"         // Consul or Vault does not answer
	CodeNotRegistered   = "not-registered"      // the node has no record yet
	CodeNomad           = "nomad-unreachable"   // nothing can be admitted without the scheduler's word
	CodeNotPlaced       = "not-placed-here"     // the scheduler did not place the allocation on the caller
	CodeNoSelector      = "no-selector-matched" // Details.Tried lists selectors
	CodeAmbiguous       = "ambiguous"           // Details.Services lists the services that match
	CodeUnknownService  = "unknown-service"     // the graph has no such service
	CodeUnknownRole     = "unknown-role"        // the stanza names a contract that gives no such role
	CodeAddress         = "address-refused"     // an address is foreign, taken, or still resting
	CodeTimeout         = "timeout"             // a node did not answer in time
	CodeInternal        = "internal"            // a fault of the controller
	CodeNodeUnreachable = "node-unreachable"    // the node does not ask for tasks
)

// Error is a refusal by the controller.
type Error struct {
	Code    string  `json:"code"`
	Message string  `json:"message"`
	Status  int     `json:"status"` // of HTTP
	Details Details `json:"details,omitzero"`
}

// Details is what a program may want of an error beyond its code.
type Details struct {
	Problems []fabric.Problem `json:"problems,omitempty"`
	Tried    []string         `json:"tried,omitempty"`    // selectors, each with its service
	Services []fabric.Ref     `json:"services,omitempty"` // candidates
	Leader   string           `json:"leader,omitempty"`   // host:port
}

func (e *Error) Error() string {
	if len(e.Details.Problems) == 0 {
		return e.Message
	}
	var b strings.Builder
	b.WriteString(e.Message)
	for _, p := range e.Details.Problems {
		b.WriteString("\n  " + p.String())
	}
	return b.String()
}

// Errorf makes an Error with the status and code.
func Errorf(status int, code, format string, args ...any) *Error {
	return &Error{Code: code, Status: status, Message: fmt.Sprintf(format, args...)}
}

// IsCode reports whether err is, or wraps, a controller's Error of that code.
func IsCode(err error, code string) bool {
	var e *Error
	return errors.As(err, &e) && e.Code == code
}
