// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package openflow

import (
	"bufio"
	"context"
	"encoding/binary"
	"fmt"
)

// FragmentMode says how a bridge matches fragments of IP packets. A bridge that is new, or whose
// switch was started again, has mode 0, in which no fragment has ports.
type FragmentMode uint16

// FragmentsByFirst matches the first fragment by its ports; later ones have none
// (OFPC_FRAG_NX_MATCH of <openflow/nicira-ext.h>).
const FragmentsByFirst FragmentMode = 3

const fragmentBits = 3 // OFPC_FRAG_MASK

// Fragments returns the bridge's mode.
func (c *Conn) Fragments(ctx context.Context) (mode FragmentMode, err error) {
	flags, _, err := c.config(ctx)
	return FragmentMode(flags & fragmentBits), err
}

// SetFragments sets the bridge's mode.
func (c *Conn) SetFragments(ctx context.Context, mode FragmentMode) error {
	flags, missLength, err := c.config(ctx)
	if err != nil {
		return err
	}
	err = c.exchange(ctx, 2, func(w *bufio.Writer, first uint32) error {
		b := beginMessage(nil, typeSetConfig, first)
		b = binary.BigEndian.AppendUint16(b, flags&^fragmentBits|uint16(mode))
		b = binary.BigEndian.AppendUint16(b, missLength)
		b, err := endMessage(b, 0)
		if err != nil {
			return err
		}
		if _, err := w.Write(b); err != nil {
			return err
		}
		_, err = w.Write(bare(typeBarrierReq, first+1))
		return err
	}, func(m message, _ uint32) (bool, error) {
		if m.kind == typeBarrierRep {
			return true, nil
		}
		return false, refusal(m)
	})
	if err != nil {
		return fmt.Errorf("set how fragments are matched: %w", err)
	}
	return nil
}

// config returns the bridge's configuration.
func (c *Conn) config(ctx context.Context) (flags, missLength uint16, err error) {
	err = c.exchange(ctx, 1, func(w *bufio.Writer, xid uint32) error {
		_, err := w.Write(bare(typeGetConfigReq, xid))
		return err
	}, func(m message, _ uint32) (bool, error) {
		if m.kind != typeGetConfigRep || len(m.body) < 4 {
			return true, refusal(m)
		}
		flags, missLength = binary.BigEndian.Uint16(m.body), binary.BigEndian.Uint16(m.body[2:])
		return true, nil
	})
	if err != nil {
		return 0, 0, fmt.Errorf("read how fragments are matched: %w", err)
	}
	return flags, missLength, nil
}
