// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package hcl

import (
	"slices"

	hcl2 "github.com/hashicorp/hcl/v2"
)

// kind is the kind of value that an argument takes.
type kind string

const (
	kindString     kind = "string"
	kindBool       kind = "true or false"
	kindStrings    kind = "list of strings"
	kindLabels     kind = "map of strings"
	kindPorts      kind = "list of ports"
	kindTypes      kind = "list of ICMP types"
	kindNumber     kind = "whole number"
	kindTime       kind = "time"
	kindType       kind = "type"
	kindExpression kind = "expression"
)

// argument defines an argument of a block. The decoder, the JSON schema and the reference page use
// it.
type argument struct {
	name     string
	kind     kind
	required bool
	values   []string // allowed strings; nil: any
	bounds   [2]int   // of a kindNumber, both included
	implied  string   // the default, in words
	doc      string
}

// definition defines a block type, or one form of it that is told apart by its label.
type definition struct {
	name    string // type of the block
	label   string // name of the label; empty: no label
	is      string // the only label that the definition applies to; empty: any
	id      string // name in the JSON schema; empty: name and is
	title   string // section title in the reference; empty: name
	doc     string
	example string
	args    []argument
	free    string // description of arguments with any name; empty: only args are allowed
	blocks  []*definition
	once    bool // at most one in its parent

	schema *hcl2.BodySchema
}

// define returns d with its schema for the HCL library.
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
		// The library knows only one schema for all labels of a block type.
		if !slices.ContainsFunc(d.schema.Blocks, func(h hcl2.BlockHeaderSchema) bool { return h.Type == b.name }) {
			d.schema.Blocks = append(d.schema.Blocks, header)
		}
	}
	if d.title == "" {
		d.title = d.name
	}
	return &d
}
