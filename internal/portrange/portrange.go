// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

// Package portrange splits a range of ports into blocks, because neither a BPF hash map nor an
// OpenFlow table can match a range. It knows numbers only, so that both data paths may use it.
package portrange

import "math/bits"

// Block is the ports whose first Length bits, of 16, are those of First.
type Block struct {
	First  uint16
	Length uint8
}

// Mask returns the bits that all ports of the block have in common.
func (b Block) Mask() uint16 { return ^uint16(0) << (16 - b.Length) }

// Last returns the last port of the block.
func (b Block) Last() uint16 { return b.First | ^b.Mask() }

// Split returns the fewest blocks that together are the ports from first to last, both included, in
// order.
func Split(first, last uint16) []Block {
	var blocks []Block
	for at, end := uint32(first), uint32(last); at <= end; {
		size := min(bits.TrailingZeros32(at|1<<16), bits.Len32(end-at+1)-1)
		blocks = append(blocks, Block{First: uint16(at), Length: uint8(16 - size)})
		at += 1 << size
	}
	return blocks
}
