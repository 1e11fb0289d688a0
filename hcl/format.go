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

// Format formats HCL in its canonical layout and keeps comments. It is idempotent. Source that does
// not parse is an error. The JSON form is an error too, because it has no canonical layout.
func Format(s Source) ([]byte, Diagnostics) {
	if strings.HasSuffix(s.Name, ".json") {
		return nil, Diagnostics{{Severity: Error, Summary: s.Name + " is JSON, which has no canonical layout", Detail: "Format it with a JSON tool such as jq."}}
	}
	if _, diags := hclsyntax.ParseConfig(s.Data, s.Name, hcl2.InitialPos); diags.HasErrors() {
		return nil, newDiagnostics(diags, s)
	}
	out := layout(s.Data)
	// If comments wrap expressions, one pass may not be enough.
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
