// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

// Package hcl is the languages of the fabric: it decodes service graphs from
// HCL and its JSON form into package fabric's model, formats and encodes them,
// and takes the connectivity stanza out of Nomad job files.
//
// It knows syntax and places. What a graph means, and whether it may be
// applied, is fabric's to say; this package repeats fabric's checks only where
// it can name a better place. It reads files when told their paths, and knows
// neither the controller nor Nomad's API.
//
// What blocks and arguments there are stands in one table, from which the
// decoder's schemas, the JSON schema and the reference page are made.
package hcl

//go:generate go run generate.go
