// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package schedule

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/shoenig/test/must"
	"pgregory.net/rapid"
)

func someFabric() *rapid.Generator[Fabric] {
	return rapid.Custom(func(t *rapid.T) Fabric {
		var f Fabric
		nodes := rapid.IntRange(2, 9).Draw(t, "nodes")
		for i := range nodes {
			name := fmt.Sprintf("n%d", i)
			for j := range rapid.IntRange(1, 5).Draw(t, "daemons") {
				f.Daemons = append(f.Daemons, Daemon{name, []string{"consul", "agent", "link", "nomad", "engine"}[j]})
			}
			f.Disks = append(f.Disks, name)
			for j := range i {
				f.Pairs = append(f.Pairs, [2]string{fmt.Sprintf("n%d", j), name})
			}
		}
		f.Leader = rapid.Bool().Draw(t, "leader")
		return f
	})
}

func TestASeedIsASchedule(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		f := someFabric().Draw(t, "fabric")
		seed := rapid.Uint64().Draw(t, "seed")
		length := time.Duration(rapid.IntRange(5, 600).Draw(t, "seconds")) * time.Second
		list := Generate(seed, length, f)
		must.Eq(t, list, Generate(seed, length, f))

		var text strings.Builder
		must.NoError(t, Write(&text, list))
		again, err := Read(strings.NewReader("# a comment\n\n" + text.String()))
		must.NoError(t, err)
		must.Eq(t, list, again)
		must.NoError(t, f.Check(again))
	})
}

func TestEveryFaultEndsAndTwoNeverConcernOneNode(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		f := someFabric().Draw(t, "fabric")
		length := 10 * time.Minute
		list := Generate(rapid.Uint64().Draw(t, "seed"), length, f)
		must.Positive(t, len(list))
		named := map[Daemon]int{}
		for i, a := range list {
			must.LessEq(t, length, a.End())
			must.GreaterEq(t, first, a.At)
			if a.Kind == Restart {
				must.Zero(t, a.For)
			} else {
				must.GreaterEq(t, shortest, a.For)
				must.LessEq(t, longest, a.For)
			}
			if a.Daemon != "" {
				named[Daemon{a.Node, a.Daemon}]++
			}
			atOnce := 0
			for _, b := range list[:i] {
				must.LessEq(t, a.At, b.At)
				if b.End() <= a.At {
					continue
				}
				atOnce++
				must.False(t, a.touches(b), must.Sprintf("%s while %s", a, b))
			}
			must.LessEq(t, 1, atOnce, must.Sprint(a))
		}
		most, least := 0, len(list)
		for _, d := range f.Daemons {
			most, least = max(most, named[d]), min(least, named[d])
		}
		must.LessEq(t, 1, most-least)
	})
}

func TestReadNamesTheLineThatIsWrong(t *testing.T) {
	for text, says := range map[string]string{
		"1s 2s":                          "line 1 of the schedule",
		"1s 2s kill a/b\n1s 2s melt a":   `line 2 of the schedule: unknown kind of fault "melt"`,
		"1s 2s kill a":                   "expected node/daemon",
		"1s 2s cut a":                    "cut needs 2 words, not 1",
		"1s 2s loss a b 120%":            "expected a share of 1% to 100%",
		"1s soon cut a b":                "invalid duration",
		"-1s 2s cut a b":                 "a time is negative",
		"1s 2s leader of the opposition": "leader needs 0 words",
	} {
		_, err := Read(strings.NewReader(text))
		must.ErrorContains(t, err, says)
	}
}

func TestCheckNamesTheFaultThatCannotHappen(t *testing.T) {
	f := Fabric{Daemons: []Daemon{{"a", "agent"}}, Pairs: [][2]string{{"a", "b"}}, Disks: []string{"a"}}
	for text, can := range map[string]bool{
		"1s 2s stop a/agent":  true,
		"1s 2s stop a/engine": false,
		"1s 2s kill c/agent":  false,
		"1s 2s cut b a":       true,
		"1s 2s loss a c 5%":   false,
		"1s 2s fill a":        true,
		"1s 2s slow b":        false,
		"1s 2s leader":        false,
	} {
		list, err := Read(strings.NewReader(text))
		must.NoError(t, err)
		err = f.Check(list)
		must.Eq(t, can, err == nil, must.Sprint(text))
		if !can {
			must.ErrorContains(t, err, fmt.Sprintf("fault %q cannot happen", list[0]))
		}
	}
}
