// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package openflow

import (
	"encoding/binary"
	"fmt"
)

// version is the wire number of OpenFlow 1.4.
const version = 5

// Message types, section 7.1.1 of the specification.
const (
	typeHello         = 0
	typeError         = 1
	typeEchoRequest   = 2
	typeEchoReply     = 3
	typeGetConfigReq  = 7
	typeGetConfigRep  = 8
	typeSetConfig     = 9
	typeFlowMod       = 14
	typeMultipartReq  = 18
	typeMultipartRep  = 19
	typeBarrierReq    = 20
	typeBarrierRep    = 21
	typeMeterMod      = 29
	typeBundleControl = 33
	typeBundleAdd     = 34
)

const (
	headerLen = 8
	anyPort   = 0xffffffff // OFPP_ANY, and OFPG_ANY for groups
	anyTable  = 0xff       // OFPTT_ALL
	noBuffer  = 0xffffffff
)

// message is one OpenFlow message without its header.
type message struct {
	kind uint8
	xid  uint32
	body []byte
}

// beginMessage appends a header. endMessage sets its length.
func beginMessage(b []byte, kind uint8, xid uint32) []byte {
	b = append(b, version, kind, 0, 0)
	return binary.BigEndian.AppendUint32(b, xid)
}

func endMessage(b []byte, start int) ([]byte, error) {
	n := len(b) - start
	if n > 0xffff {
		return nil, fmt.Errorf("message of %d bytes exceeds the limit of OpenFlow", n)
	}
	binary.BigEndian.PutUint16(b[start+2:], uint16(n))
	return b, nil
}

// pad appends zeroes until the length from start is a multiple of 8.
func pad(b []byte, start int) []byte {
	for (len(b)-start)%8 != 0 {
		b = append(b, 0)
	}
	return b
}

// roundUp8 rounds n up to a multiple of 8.
func roundUp8(n int) int { return (n + 7) &^ 7 }
