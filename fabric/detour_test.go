// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package fabric

import (
	"testing"

	"github.com/shoenig/test/must"
)

func TestSharesKey(t *testing.T) {
	said := func(key, detour string) Link {
		l := Link{PublicKey: []byte(key)}
		if detour != "" {
			l.Detour = &Detour{PublicKey: []byte(detour)}
		}
		return l
	}
	own := said("a", "b")
	for _, c := range []struct {
		other Link
		want  bool
	}{
		{said("c", "d"), false}, {said("c", ""), false}, {said("", ""), false},
		{said("a", ""), true}, {said("b", ""), true}, {said("c", "a"), true}, {said("c", "b"), true},
	} {
		must.Eq(t, c.want, own.SharesKey(c.other), must.Sprint(c.other))
		must.Eq(t, c.want, c.other.SharesKey(own), must.Sprint(c.other))
	}
	must.False(t, said("", "").SharesKey(said("", "")))
}
