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

// Objects are JSON. As values in Consul, those above compressFrom are
// compressed with gzip, whose first byte begins no JSON. An object's hash is
// over the plain bytes, so that how it is stored is nobody's concern but this
// package's.
const (
	compressFrom = 4 << 10
	// maxValue is Consul's limit for one value.
	maxValue = 512 << 10
	// maxObject is the largest object that a reader unpacks: what is stored can
	// be altered, and a small value can unpack to a large one.
	maxObject = 64 << 20

	gzipMagic = 0x1f
)

// pack returns an object as it is stored.
func pack(data []byte) ([]byte, error) {
	if len(data) < compressFrom {
		return data, nil
	}
	if len(data) > maxObject {
		return nil, fmt.Errorf("an object of %d bytes is too large; at most %d are allowed: spread the domain over several", len(data), maxObject)
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
		return nil, fmt.Errorf("an object of %d bytes, %d compressed, exceeds the %d that Consul takes as one value: spread the domain over several", len(data), b.Len(), maxValue)
	}
	return b.Bytes(), nil
}

var errTooLarge = errors.New("unpacks to more than an object may have")

// unpack is the opposite of pack. Its input is not trusted.
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
