// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package openflow

import (
	"encoding/binary"
	"fmt"
)

// Error is a refusal by the switch.
type Error struct {
	Type, Code uint16
	// Request is the refused change, if known.
	Request string
}

var errorTypes = map[uint16]string{
	0: "hello failed", 1: "bad request", 2: "bad action", 3: "bad instruction", 4: "bad match",
	5: "flow mod failed", 9: "switch config failed", 10: "role request failed", 12: "meter mod failed", 13: "table features failed",
	17: "bundle failed", 0xffff: "experimenter error",
}

// errorCodes names the errors of flow mods, dumps and bundles by type and code.
var errorCodes = map[[2]uint16]string{
	{0, 0}: "incompatible version", {0, 1}: "permission denied",
	{1, 0}: "version not supported", {1, 1}: "type not supported", {1, 2}: "multipart type not supported",
	{1, 3}: "experimenter not supported", {1, 5}: "permission denied", {1, 6}: "wrong length",
	{1, 8}: "buffer unknown", {1, 9}: "bad table", {1, 10}: "is a slave", {1, 11}: "bad port",
	{2, 0}: "unknown action type", {2, 1}: "wrong length", {2, 4}: "bad output port", {2, 5}: "bad argument",
	{2, 7}: "too many actions", {2, 10}: "inconsistent with the match: a prerequisite is missing",
	{2, 13}: "bad set-field type", {2, 14}: "bad set-field length", {2, 15}: "bad set-field argument",
	{3, 0}: "unknown instruction", {3, 1}: "unsupported instruction", {3, 2}: "bad table", {3, 7}: "wrong length",
	{4, 0}: "bad type", {4, 1}: "wrong length", {4, 5}: "bad wildcards", {4, 6}: "bad field",
	{4, 7}: "bad value", {4, 8}: "bad mask", {4, 9}: "prerequisite missing", {4, 10}: "duplicate field",
	{5, 0}: "unknown", {5, 1}: "table full", {5, 2}: "bad table", {5, 3}: "overlap", {5, 4}: "permission denied",
	{5, 5}: "bad timeout", {5, 6}: "bad command", {5, 7}: "bad flags",
	{12, 0}: "unknown", {12, 1}: "meter exists", {12, 2}: "invalid meter", {12, 3}: "unknown meter", {12, 4}: "bad command",
	{12, 5}: "bad flags", {12, 6}: "bad rate", {12, 7}: "bad burst", {12, 8}: "bad band", {12, 9}: "bad band value",
	{12, 10}: "out of meters", {12, 11}: "out of bands",
	{17, 0}: "unknown", {17, 1}: "permission denied", {17, 2}: "bad id", {17, 3}: "bundle exists",
	{17, 4}: "bundle closed", {17, 5}: "out of bundles", {17, 6}: "bad type", {17, 7}: "bad flags",
	{17, 8}: "bad message length", {17, 9}: "bad message xid", {17, 10}: "message unsupported",
	{17, 11}: "messages conflict", {17, 12}: "too many messages", {17, 13}: "a message failed",
	{17, 14}: "timeout",
}

func (e *Error) Error() string {
	kind, ok := errorTypes[e.Type]
	if !ok {
		kind = fmt.Sprintf("error type %d", e.Type)
	}
	code, ok := errorCodes[[2]uint16{e.Type, e.Code}]
	if !ok {
		code = fmt.Sprintf("code %d", e.Code)
	}
	s := "switch refused: " + kind + ": " + code
	if e.Request != "" {
		s += ": " + e.Request
	}
	return s
}

// parseError reads the body of an OFPT_ERROR.
func parseError(b []byte) (*Error, error) {
	if len(b) < 4 {
		return nil, fmt.Errorf("error message is cut off at %d bytes", len(b))
	}
	return &Error{Type: binary.BigEndian.Uint16(b), Code: binary.BigEndian.Uint16(b[2:])}, nil
}
