// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package api

import (
	"errors"
	"fmt"
	"strings"

	"github.com/sif-project/sif/fabric"
)

// Codes of errors. They are stable; messages are not.
const (
	CodeInvalid         = "invalid-request"      // the request is malformed
	CodeForbidden       = "forbidden"            // the caller is not allowed to do this
	CodeNotFound        = "not-found"            // no such domain, node, endpoint or task
	CodeProblems        = "graph-has-problems"   // Details.Problems lists them
	CodeConflict        = "conflict"             // the graph does not have the sequence or root that the caller expects
	CodeRevision        = "revision-refused"     // the revision in Consul fails verification, so no change can be based on it
	CodeNotLeader       = "not-leader"           // Details.Leader is the address of the controller to call
	CodeTooMany         = "too-many-calls"       // a limit of the caller is reached; the header Retry-After says when to try again
	CodeUnavailable     = "unavailable"          // Consul or Vault does not answer
	CodeNotRegistered   = "not-registered"       // the node has not registered yet
	CodeRemoved         = "node-removed"         // the calling node was removed from the fabric
	CodeNomad           = "nomad-unreachable"    // Nomad does not answer, so nothing can be admitted
	CodeNotPlaced       = "not-placed-here"      // Nomad did not place the allocation on the calling node
	CodeUnregistered    = "not-in-consul"        // Consul does not have the service of an attached workload on the node's Consul agent
	CodeElsewhere       = "registered-elsewhere" // the Consul agent that an attached workload names is not the calling node's
	CodeTaken           = "endpoint-taken"       // the ID of an attached workload is that of another endpoint or allocation
	CodeJob             = "job-refused"          // something in the job stands against connecting it
	CodeNoSelector      = "no-selector-matched"  // Details.Tried lists selectors
	CodeAmbiguous       = "ambiguous"            // Details.Services lists the services that match
	CodeBeyond          = "beyond-binding"       // bindings do not let the domain have the workload, or publish its ports
	CodeUnknownService  = "unknown-service"      // the graph has no such service
	CodeUnknownRole     = "unknown-role"         // the stanza requests a role that the contract does not give the service
	CodeAddress         = "address-refused"      // an address is not in a pool of the node, in use, or not free again yet
	CodeRevoked         = "revoked"              // the endpoint, its service or the caller's certificate is revoked
	CodeTimeout         = "timeout"              // a node did not answer in time
	CodeInternal        = "internal"             // an error of the controller itself
	CodeNodeUnreachable = "node-unreachable"     // the node does not poll for tasks
)

// Error is the reply of a controller that refuses a call.
type Error struct {
	Code    string  `json:"code"`
	Message string  `json:"message"`
	Status  int     `json:"status"` // HTTP status code
	Details Details `json:"details,omitzero"`
}

// Details are the parts of an error that a program may need besides its code.
type Details struct {
	Problems []fabric.Problem `json:"problems,omitempty"`
	Tried    []string         `json:"tried,omitempty"`    // the selectors that were tried, with their services
	Services []fabric.Ref     `json:"services,omitempty"` // the services that match
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

// Errorf returns an Error with an HTTP status and a code.
func Errorf(status int, code, format string, args ...any) *Error {
	return &Error{Code: code, Status: status, Message: fmt.Sprintf(format, args...)}
}

// IsCode reports whether err is or wraps an *Error with a code.
func IsCode(err error, code string) bool {
	var e *Error
	return errors.As(err, &e) && e.Code == code
}
