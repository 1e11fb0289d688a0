// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package hcl

import (
	"bytes"
	"strings"

	hcl2 "github.com/hashicorp/hcl/v2"
	"github.com/hashicorp/hcl/v2/hclsyntax"
	"github.com/hashicorp/hcl/v2/hclwrite"
)

// Format brings HCL into its canonical layout. Comments stay. Formatting what
// is formatted changes nothing. Source that does not parse is an error, and so
// is the JSON form, which has no layout of ours.
func Format(s Source) ([]byte, Diagnostics) {
	if strings.HasSuffix(s.Name, ".json") {
		return nil, Diagnostics{{Severity: Error, Summary: s.Name + " is JSON, which has no canonical layout", Detail: "Format it with a JSON tool such as jq."}}
	}
	if _, diags := hclsyntax.ParseConfig(s.Data, s.Name, hcl2.InitialPos); diags.HasErrors() {
		return nil, newDiagnostics(diags, s)
	}
	out := layout(s.Data)
	// One pass can leave work for the next where comments wrap expressions.
	for range 4 {
		next := layout(out)
		if bytes.Equal(next, out) {
			break
		}
		out = next
	}
	return out, nil
}

func layout(src []byte) []byte {
	out := bytes.TrimSpace(hclwrite.Format(src))
	if len(out) == 0 {
		return nil
	}
	return append(bytes.Clone(out), '\n')
}
