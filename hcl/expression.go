// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package hcl

import (
	"cmp"
	"fmt"
	"regexp"
	"slices"
	"strings"

	"github.com/agext/levenshtein"
	hcl2 "github.com/hashicorp/hcl/v2"
	"github.com/zclconf/go-cty/cty"
)

// evalContext is what expressions may refer to: nothing yet, so they are
// literals and the operators on them.
func evalContext() *hcl2.EvalContext { return nil }

// text is a string with its place.
type text struct {
	value string
	rng   hcl2.Range
}

// stringAttr returns the string that an attribute is set to, if it is set.
func (d *decoder) stringAttr(content *hcl2.BodyContent, name string) (text, bool) {
	attr := content.Attributes[name]
	if attr == nil {
		return text{}, false
	}
	return d.stringExpr(attr.Expr, "argument "+fmt.Sprintf("%q", name))
}

// nameAttr is stringAttr for a name that must not be empty.
func (d *decoder) nameAttr(content *hcl2.BodyContent, name string) string {
	t, ok := d.stringAttr(content, name)
	if ok && t.value == "" {
		d.report(errorAt(t.rng, "Give it a value or leave it out.", "argument %q is empty", name))
	}
	return t.value
}

func (d *decoder) stringExpr(expr hcl2.Expression, what string) (text, bool) {
	v, ok := d.value(expr)
	if !ok {
		return text{}, false
	}
	return d.stringValue(v, expr.Range(), what)
}

func (d *decoder) stringValue(v cty.Value, rng hcl2.Range, what string) (text, bool) {
	if v.IsNull() || v.Type() != cty.String {
		d.report(errorAt(rng, "Write a string in quotes.", "%s must be a string, not %s", what, kindOf(v)))
		return text{}, false
	}
	return text{value: v.AsString(), rng: rng}, true
}

// value evaluates an expression to a known value.
func (d *decoder) value(expr hcl2.Expression) (cty.Value, bool) {
	v, diags := expr.Value(evalContext())
	for _, diag := range diags {
		switch diag.Summary {
		case "Variables not allowed", "Function calls not allowed":
			diag.Detail = d.why + " " + diag.Detail
		}
	}
	d.report(diags...)
	return v, !diags.HasErrors() && v.IsWhollyKnown()
}

// element is a member of a list with its own place.
type element struct {
	value cty.Value
	rng   hcl2.Range
}

// list returns the members of a list that an attribute is set to. A single
// value in place of a list is an error that says how to write it.
func (d *decoder) list(attr *hcl2.Attribute) []element {
	if exprs, diags := hcl2.ExprList(attr.Expr); !diags.HasErrors() {
		var list []element
		for _, e := range exprs {
			if v, ok := d.value(e); ok {
				list = append(list, element{value: v, rng: e.Range()})
			}
		}
		return list
	}
	// Not a list literal: an expression whose members have no places.
	v, ok := d.value(attr.Expr)
	if !ok {
		return nil
	}
	if v.IsNull() || !(v.Type().IsTupleType() || v.Type().IsListType() || v.Type().IsSetType()) {
		d.report(errorAt(attr.Expr.Range(), fmt.Sprintf("Write it in brackets: %s = [...].", attr.Name),
			"argument %q must be a list, not %s", attr.Name, kindOf(v)))
		return nil
	}
	var list []element
	for it := v.ElementIterator(); it.Next(); {
		_, member := it.Element()
		list = append(list, element{value: member, rng: attr.Expr.Range()})
	}
	return list
}

// stringList returns the strings of a list attribute. Empty strings and
// repetitions are errors.
func (d *decoder) stringList(content *hcl2.BodyContent, name string) []text {
	attr := content.Attributes[name]
	if attr == nil {
		return nil
	}
	var list []text
	seen := map[string]hcl2.Range{}
	for _, e := range d.list(attr) {
		t, ok := d.stringValue(e.value, e.rng, fmt.Sprintf("an element of %q", name))
		if !ok {
			continue
		}
		if t.value == "" {
			d.report(errorAt(t.rng, "Give it a value or leave it out.", "an element of %q is empty", name))
			continue
		}
		if first, dup := seen[t.value]; dup {
			d.report(errorAt(t.rng, "Remove one of the two.", "%q is already listed at %s", t.value, position(first)))
			continue
		}
		seen[t.value] = t.rng
		list = append(list, t)
	}
	return list
}

// firstQuoted finds the name that a diagnostic of the HCL library is about.
var firstQuoted = regexp.MustCompile(`"[^"]*"`)

// content decodes a body by its schema. What the schema lacks is an error that
// proposes the nearest name, or else lists what is expected.
func (d *decoder) content(body hcl2.Body, schema *hcl2.BodySchema, where string) *hcl2.BodyContent {
	content, diags := body.Content(schema)
	for _, diag := range diags {
		name := firstQuoted.FindString(diag.Detail)
		kind := ""
		switch diag.Summary {
		case "Unsupported argument":
			kind = "argument"
		case "Unsupported block type":
			kind = "block"
		case "Extraneous JSON object property":
			kind = "property"
		case "Missing required argument":
			diag.Summary = fmt.Sprintf("missing argument %s", name)
			diag.Detail = fmt.Sprintf("Set it in %s.", where)
		}
		if kind != "" {
			diag.Summary = fmt.Sprintf("unknown %s %s", kind, name)
			if _, suggestion, ok := strings.Cut(diag.Detail, "Did you mean"); ok {
				diag.Detail = "Did you mean" + suggestion
			} else {
				diag.Detail = expected(schema, where)
			}
		}
	}
	d.report(diags...)
	return content
}

func expected(schema *hcl2.BodySchema, where string) string {
	var names []string
	for _, a := range schema.Attributes {
		names = append(names, a.Name)
	}
	for _, b := range schema.Blocks {
		names = append(names, b.Type+" block")
	}
	return fmt.Sprintf("Expected in %s: %s.", where, strings.Join(names, ", "))
}

// kindOf says for people what a value is.
func kindOf(v cty.Value) string {
	switch {
	case v.IsNull():
		return "null"
	case v.Type() == cty.String, v.Type() == cty.Number:
		return "a " + v.Type().FriendlyName()
	case v.Type() == cty.Bool:
		return "true or false"
	case v.Type().IsTupleType(), v.Type().IsListType(), v.Type().IsSetType():
		return "a list"
	default:
		return "an object"
	}
}

// didYouMean proposes the nearest of names, or nothing.
func didYouMean(name string, names []string) string {
	distance := func(s string) int { return levenshtein.Distance(name, s, nil) }
	near := slices.DeleteFunc(slices.Clone(names), func(s string) bool { return distance(s) > max(1, min(3, len(s)/2)) })
	if len(near) == 0 {
		return ""
	}
	best := slices.MinFunc(near, func(a, b string) int { return cmp.Or(distance(a)-distance(b), cmp.Compare(a, b)) })
	return fmt.Sprintf("Did you mean %q?", best)
}
