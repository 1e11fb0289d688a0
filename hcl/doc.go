// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

// Package hcl reads and writes the languages of the fabric: it decodes service graphs, in HCL or
// its JSON form, into the model of package fabric, formats and encodes them, and extracts the
// connectivity stanza from Nomad job files.
//
// It knows syntax and source positions. What a graph means, and whether it may be applied, is
// decided by package fabric; this package repeats a check of fabric only where it can report a more
// precise position. It reads the files that it is given, and knows neither the controller nor
// Nomad's API.
//
// All blocks and arguments are defined in one table. The decoder's schemas, the JSON schema and the
// reference page are made from it.
package hcl

//go:generate go run ./generate
