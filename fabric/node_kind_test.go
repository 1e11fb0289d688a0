// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package fabric

import (
	"strings"
	"testing"

	"github.com/shoenig/test/must"
)

func TestNodeKind(t *testing.T) {
	for text, want := range map[string]NodeKind{
		"workload": KindWorkload, "processor": KindProcessor,
		"processor,workload": KindBoth, "workload,processor": KindBoth,
	} {
		k, err := NodeKindOf(strings.Split(text, ","))
		must.NoError(t, err)
		must.Eq(t, want, k)
		again, err := NodeKindOf(k.Units())
		must.NoError(t, err)
		must.Eq(t, k, again)
	}
	for _, text := range []string{"", ",", "x", "workload,", "workload,workload", "Workload", "controller", "workload, processor", "processor,workload,x"} {
		_, err := NodeKindOf(strings.Split(text, ","))
		must.Error(t, err, must.Sprint(text))
	}
	must.True(t, KindBoth.Has(KindWorkload) && KindBoth.Has(KindProcessor))
	must.True(t, KindWorkload.Has(KindWorkload) && !KindWorkload.Has(KindProcessor) && !KindWorkload.Has(KindBoth))
	must.False(t, NodeKind("").Has(KindWorkload))
}

func TestBoundary(t *testing.T) {
	must.True(t, Node{Kind: KindProcessor}.Boundary())
	for _, n := range []Node{{Kind: KindProcessor, NoSwitch: true}, {Kind: KindWorkload}, {Kind: KindBoth}, {Kind: KindBoth, NoSwitch: true}} {
		must.False(t, n.Boundary())
	}
}
