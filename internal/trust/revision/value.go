// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package revision

import (
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
)

// Objects are JSON. In Consul, larger ones are compressed with gzip, whose first byte cannot begin
// JSON. The hash of an object is that of its uncompressed bytes, so that only this package knows
// about compression.
const (
	compressFrom = 4 << 10
	// maxValue is Consul's limit for a value.
	maxValue = 512 << 10
	// maxObject bounds the size of a decompressed object, because a small value that was altered
	// can decompress to a large one.
	maxObject = 64 << 20

	gzipMagic = 0x1f
)

// pack returns the value in which an object is stored.
func pack(data []byte) ([]byte, error) {
	if len(data) < compressFrom {
		return data, nil
	}
	if len(data) > maxObject {
		return nil, fmt.Errorf("the object has %d bytes, at most %d are allowed: divide the domain into several", len(data), maxObject)
	}
	var b bytes.Buffer
	w, err := gzip.NewWriterLevel(&b, gzip.BestSpeed)
	if err != nil {
		return nil, err
	}
	if _, err := w.Write(data); err != nil {
		return nil, err
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	if b.Len() > maxValue {
		return nil, fmt.Errorf("the object has %d bytes, %d compressed, but a value in Consul has at most %d: divide the domain into several", len(data), b.Len(), maxValue)
	}
	return b.Bytes(), nil
}

var errTooLarge = errors.New("decompresses to more bytes than are allowed")

// unpack is the inverse of pack. Its input is not trusted.
func unpack(value []byte) ([]byte, error) {
	if len(value) == 0 || value[0] != gzipMagic {
		return value, nil
	}
	r, err := gzip.NewReader(bytes.NewReader(value))
	if err != nil {
		return nil, err
	}
	data, err := io.ReadAll(io.LimitReader(r, maxObject+1))
	if err != nil {
		return nil, err
	}
	if len(data) > maxObject {
		return nil, errTooLarge
	}
	return data, nil
}
