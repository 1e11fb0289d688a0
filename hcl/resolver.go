// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package hcl

import (
	"bytes"
	"fmt"

	hcl2 "github.com/hashicorp/hcl/v2"
	"github.com/hashicorp/hcl/v2/hclsyntax"
	"github.com/zclconf/go-cty/cty"

	"github.com/sif-project/sif/internal/wellknown"
)

// resolver puts the node's resolver in front of the servers in the dns blocks of a network. A dns
// block replaces the resolver that the fabric gives its workloads, also one without servers.
func (x *extractor) resolver(network *hclsyntax.Block) {
	ours := fmt.Sprintf("%q", wellknown.LinkLocal4)
	for _, b := range network.Body.Blocks {
		switch {
		case b.Type == "dynamic" && len(b.Labels) == 1 && b.Labels[0] == "dns":
			x.report(errorAt(b.DefRange(), "Write a static dns block.", "a group with a connectivity block cannot have a dynamic dns block"))
		case b.Type != "dns":
		case b.Body.Attributes["servers"] == nil:
			indent := indentAt(x.job.source.Data, b.TypeRange.Start.Byte)
			x.insertInto(b.OpenBraceRange, b.CloseBraceRange, indented("\n  servers = ["+ours+"]", indent), "")
		default:
			x.putFirst(ours, b.Body.Attributes["servers"].Expr)
		}
	}
}

// putFirst makes our resolver the first of the servers. It must see them all: a server that is
// known later could be ours, or none.
func (x *extractor) putFirst(ours string, servers hclsyntax.Expression) {
	refuse := func(r hcl2.Range) {
		x.report(errorAt(r, fmt.Sprintf("Write the addresses of the servers, %s first; or remove the dns block.", ours),
			"the dns servers of a group with a connectivity block must be literals"))
	}
	list, literal := servers.(*hclsyntax.TupleConsExpr)
	if !literal {
		refuse(servers.Range())
		return
	}
	for i, e := range list.Exprs {
		v, diags := e.Value(nil)
		if diags.HasErrors() || v.IsNull() || !v.IsWhollyKnown() || v.Type() != cty.String {
			refuse(e.Range())
			return
		}
		if i == 0 && v.AsString() == wellknown.LinkLocal4.String() {
			return
		}
	}
	src, at := x.job.source.Data, list.OpenRange.End.Byte
	switch {
	case len(list.Exprs) == 0:
	case bytes.ContainsRune(src[at:list.Exprs[0].Range().Start.Byte], '\n'):
		ours = "\n" + indentAt(src, list.Exprs[0].Range().Start.Byte) + ours + ","
	default:
		ours += ", "
	}
	x.edit(at, at, ours)
}
