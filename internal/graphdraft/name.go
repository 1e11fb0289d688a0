// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package graphdraft

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"

	"github.com/sif-project/sif/fabric"
)

// Separators stand between the parts of a wanted name, after a namespace or domain and otherwise.
// Nothing that Nomad allows contains them, so different parts never make the same wanted name.
const (
	separator     = "\x00"
	afterBoundary = "\x01"
)

// joined writes a wanted name with dashes as separators.
var joined = strings.NewReplacer(separator, "-", afterBoundary, "-")

// digits is the number of hexadecimal digits that tell names apart which would become the same.
const digits = 6

// names returns for each wanted name one that the fabric allows, each another. One that needs no
// change but for its separators stays, if only one is like it; all others end with a digest of
// what was wanted, so that they do not depend on what else there is.
func names(wanted []string, taken ...string) map[string]string {
	list := slices.Clone(wanted)
	slices.Sort(list)
	list = slices.Compact(list)
	plain := map[string]int{}
	for _, w := range list {
		plain[joined.Replace(w)]++
	}
	used := map[string]bool{}
	for _, t := range taken {
		used[t] = true
	}
	assigned := map[string]string{}
	for _, w := range list {
		if p := joined.Replace(w); fabric.CheckName(p) == nil && plain[p] == 1 && !used[p] {
			assigned[w], used[p] = p, true
		}
	}
	for _, w := range list {
		for n := 0; assigned[w] == ""; n++ {
			if name := digested(w, n); !used[name] {
				assigned[w], used[name] = name, true
			}
		}
	}
	return assigned
}

// digested makes an allowed name of a wanted one; n counts the attempts.
func digested(wanted string, n int) string {
	sum := sha256.Sum256(fmt.Append(nil, n, wanted))
	suffix := "-" + hex.EncodeToString(sum[:])[:digits]
	letters := strings.Map(func(r rune) rune {
		switch {
		case r >= 'a' && r <= 'z' || r >= '0' && r <= '9':
			return r
		case r >= 'A' && r <= 'Z':
			return r - 'A' + 'a'
		}
		return '-'
	}, wanted)
	parts := strings.FieldsFunc(letters, func(r rune) bool { return r == '-' })
	head := strings.Join(parts, "-")
	head = strings.TrimRight(head[:min(len(head), fabric.MaxNameLength-len(suffix))], "-")
	return strings.TrimLeft(head+suffix, "-")
}
