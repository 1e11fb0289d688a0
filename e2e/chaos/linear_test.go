// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package chaos

import (
	"math"
	"testing"

	"github.com/anishathalye/porcupine"
	"github.com/shoenig/test/must"
)

func TestRegisterFindsAnswersThatNoOrderExplains(t *testing.T) {
	call := func(from, to int64, in input, out output) porcupine.Operation {
		return porcupine.Operation{Input: in, Output: out, Call: from, Return: to}
	}
	apply := func(from, to int64, edition int, sequence uint64) porcupine.Operation {
		return call(from, to, input{kind: kindApply, content: content{mask: edition, edition: edition}}, output{sequence: sequence})
	}
	read := func(from, to int64, edition, other int, sequence uint64) porcupine.Operation {
		return call(from, to, input{kind: kindRead}, output{sequence: sequence, content: content{edition, edition, other}})
	}
	first := content{mask: 1, edition: 1}
	lost := call(0, math.MaxInt64, input{kind: kindApply, content: content{mask: 9, edition: 9}}, output{unknown: true})
	for name, c := range map[string]struct {
		calls []porcupine.Operation
		ok    bool
	}{
		"in order":                     {[]porcupine.Operation{apply(0, 1, 2, 2), read(2, 3, 2, 0, 2), apply(4, 5, 3, 3)}, true},
		"at the same time":             {[]porcupine.Operation{apply(0, 5, 3, 3), apply(1, 4, 2, 2), read(6, 7, 3, 0, 3)}, true},
		"two have one sequence":        {[]porcupine.Operation{apply(0, 5, 3, 2), apply(1, 4, 2, 2)}, false},
		"an old read":                  {[]porcupine.Operation{apply(0, 1, 2, 2), read(2, 3, 1, 0, 1)}, false},
		"a change is lost":             {[]porcupine.Operation{apply(0, 1, 2, 2), apply(2, 3, 3, 2)}, false},
		"a change is made twice":       {[]porcupine.Operation{apply(0, 1, 2, 2), apply(2, 3, 3, 4)}, false},
		"no answer, not done":          {[]porcupine.Operation{lost, apply(1, 2, 2, 2), read(3, 4, 2, 0, 2)}, true},
		"no answer, done later":        {[]porcupine.Operation{lost, apply(1, 2, 2, 2), read(3, 4, 9, 0, 3)}, true},
		"another author":               {[]porcupine.Operation{call(0, 1, input{kind: kindOther, content: content{other: 4}}, output{sequence: 2}), read(2, 3, 1, 4, 2)}, true},
		"rolled back":                  {[]porcupine.Operation{apply(0, 1, 2, 2), call(2, 3, input{kind: kindRollback, content: first}, output{sequence: 3}), read(4, 5, 1, 0, 3)}, true},
		"rolled back to what is there": {[]porcupine.Operation{call(2, 3, input{kind: kindRollback, content: first}, output{sequence: 1})}, true},
	} {
		t.Run(name, func(t *testing.T) {
			r := &register{calls: c.calls}
			n, err := r.check(state{1, first}, "")
			must.Eq(t, c.ok, err == nil, must.Sprint(err))
			must.Eq(t, len(c.calls), n)
		})
	}
}
