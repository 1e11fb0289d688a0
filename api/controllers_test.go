// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package api

import (
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/shoenig/test/must"

	"github.com/sif-project/sif/fabric"
)

func TestAddressesOfControllers(t *testing.T) {
	for text, want := range map[string]string{
		"":                               "127.0.0.1:8440",
		"a:1":                            "a:1",
		"https://a:1":                    "a:1",
		"https://a:1, b:2,https://c:3":   "a:1 b:2 c:3",
		"https://[fd00::1]:1,10.0.0.1:2": "[fd00::1]:1 10.0.0.1:2",
	} {
		list, err := parseAddresses(text)
		must.NoError(t, err, must.Sprint(text))
		var hosts []string
		for _, u := range list {
			hosts = append(hosts, u.Host)
		}
		must.Eq(t, want, strings.Join(hosts, " "))
	}
	for _, text := range []string{"http://a:1", "a:1,,b:2", "https://a:1,https://", "https://a:1,ftp://b:2", "https://%zz"} {
		_, err := parseAddresses(text)
		must.ErrorContains(t, err, "address of the controller", must.Sprint(text))
	}
}

// A client goes round all controllers that it was told of, and takes no other form of address.
func TestControllersAreFound(t *testing.T) {
	var learned []string
	c, err := newControllers(Config{Address: "a:1", Known: []string{"b:2", "a:1", "bad", "x/y:3", "u@v:4"}, Learned: func(l []string) { learned = l }})
	must.NoError(t, err)
	round := func() string {
		t.Helper()
		tried, hosts := map[string]bool{}, []string{}
		for at := c.now(); ; at = c.now() {
			tried[at.Host] = true
			hosts = append(hosts, at.Host)
			if !c.next(at, tried) {
				return strings.Join(hosts, " ")
			}
		}
	}
	must.Eq(t, "a:1 b:2", round())
	must.Eq(t, "b:2 a:1", round()) // from the one that answered last
	header := http.Header{}
	header.Set(ControllersHeader, "c:3,b:2")
	c.hear(header)
	must.Eq(t, []string{"b:2", "c:3"}, learned)
	learned = nil
	c.hear(header)
	must.Nil(t, learned) // the same again
	must.Eq(t, "a:1 b:2 c:3", round())
	must.True(t, c.leader("b:2"))
	must.Eq(t, "b:2", c.now().Host)
	c.unreachable(c.now())
	must.False(t, c.leader("b:2"), must.Sprint("it could not be reached a moment ago"))
	c.reached(c.now())
	must.True(t, c.leader("b:2"))
	must.True(t, c.leader("d:4"), must.Sprint("a leader of which nobody has told yet"))
	for _, bad := range []string{"", "d", "d:4/x", "u@d:4"} {
		must.False(t, c.leader(bad), must.Sprint(bad))
	}
	var many []string
	for i := range 100 {
		many = append(many, fmt.Sprintf("h%d:1", i))
	}
	header.Set(ControllersHeader, strings.Join(many, ","))
	c.hear(header)
	must.LessEq(t, maxControllers, len(c.configured)+len(c.others))
}

func TestAuditChain(t *testing.T) {
	line := func(n uint64, previous fabric.Hash) string {
		if previous.IsZero() {
			return fmt.Sprintf(`{"n":%d,"action":"x"}`, n)
		}
		return fmt.Sprintf(`{"n":%d,"prev":"%s","action":"x"}`, n, previous)
	}
	first := line(1, fabric.Hash{})
	second := line(2, fabric.HashOf([]byte(first)))
	third := line(3, fabric.HashOf([]byte(second)))
	for name, tc := range map[string]struct {
		lines []string
		want  string
	}{
		"whole":             {[]string{first, second, third}, ""},
		"from the middle":   {[]string{second, third}, ""},
		"one is missing":    {[]string{first, third}, "records 2 to 2 are missing"},
		"one is changed":    {[]string{first, strings.Replace(second, "x", "y", 1), third}, "record 3 of"},
		"one is twice":      {[]string{first, first, second}, "record 1 follows record 1"},
		"one is no record":  {[]string{first, "?", second}, "not a record"},
		"the first is not":  {[]string{line(1, fabric.HashOf([]byte("x")))}, "names a record before it"},
		"in another order":  {[]string{second, first}, "record 1 follows record 2"},
		"all changed after": {[]string{first, line(2, fabric.HashOf([]byte("z"))), third}, "record 2 of"},
	} {
		var chain AuditChain
		var wrong []string
		for _, l := range tc.lines {
			if err := chain.Take(l); err != nil {
				wrong = append(wrong, err.Error())
			}
		}
		if tc.want == "" {
			must.SliceEmpty(t, wrong, must.Sprint(name))
		} else {
			must.StrContains(t, strings.Join(wrong, "\n"), tc.want, must.Sprint(name))
		}
	}
}
