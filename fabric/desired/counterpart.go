// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package desired

import "github.com/sif-project/sif/fabric"

// Documents are those of the services that matter to a node, as they hold now: see
// fabric.DocumentsAt. A service without a document has no rights.
type Documents = map[fabric.Ref]fabric.Document

// CounterpartOf returns a function that reports whether a contract lets an identity open flows to
// any of the given identities, or answer flows of theirs. The function remembers its answers,
// because endpoints are many and identities few; it is not safe for concurrent use.
func CounterpartOf(of []fabric.Identity, docs Documents) func(fabric.Identity) bool {
	known := map[Party]bool{}
	return func(other fabric.Identity) bool {
		p := PartyOf(other)
		is, asked := known[p]
		if asked {
			return is
		}
		for _, id := range of {
			doc := docs[id.Service]
			if len(fabric.Grants(id, doc, other)) > 0 || len(fabric.GrantsTo(id, doc, other)) > 0 {
				is = true
				break
			}
		}
		known[p] = is
		return is
	}
}
