// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package hcl

import (
	"slices"

	hcl2 "github.com/hashicorp/hcl/v2"
)

// kind is what an argument takes.
type kind string

const (
	kindString     kind = "string"
	kindBool       kind = "true or false"
	kindStrings    kind = "list of strings"
	kindLabels     kind = "map of strings"
	kindPorts      kind = "list of ports"
	kindTypes      kind = "list of ICMP types"
	kindTime       kind = "time"
	kindType       kind = "type"
	kindExpression kind = "expression"
)

// argument defines an argument of a block. The decoder, the JSON schema and
// the reference page are made from it.
type argument struct {
	name     string
	kind     kind
	required bool
	values   []string // what a string may be, if not anything
	implied  string   // what holds if it is not set
	doc      string
}

// definition defines a type of block likewise.
type definition struct {
	name    string // type of the block
	label   string // what its label is; empty: it has none
	is      string // the one label that this definition is about; empty: any
	title   string // of its section in the reference; empty: name
	doc     string
	example string
	args    []argument
	free    string // what arguments of any name are; empty: only args
	blocks  []*definition
	once    bool // at most one in its parent

	schema *hcl2.BodySchema
}

// define completes a definition by what the HCL library needs of it.
func define(d definition) *definition {
	d.schema = &hcl2.BodySchema{}
	for _, a := range d.args {
		d.schema.Attributes = append(d.schema.Attributes, hcl2.AttributeSchema{Name: a.name, Required: a.required})
	}
	for _, b := range d.blocks {
		header := hcl2.BlockHeaderSchema{Type: b.name}
		if b.label != "" {
			header.LabelNames = []string{b.label}
		}
		// Definitions of one type, for different labels, are one to the library.
		if !slices.ContainsFunc(d.schema.Blocks, func(h hcl2.BlockHeaderSchema) bool { return h.Type == b.name }) {
			d.schema.Blocks = append(d.schema.Blocks, header)
		}
	}
	if d.title == "" {
		d.title = d.name
	}
	return &d
}
