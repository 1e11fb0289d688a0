// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package fabric

import (
	"strings"
	"testing"

	"github.com/shoenig/test/must"
	"pgregory.net/rapid"
)

func TestNameFault(t *testing.T) {
	long := strings.Repeat("a", 63) + "."
	for name, want := range map[string]struct{ fault, remedy string }{
		"api.example.com":                         {},
		"*.cdn.example.com":                       {},
		"*.example.com":                           {},
		"_sip._tcp.example.com":                   {},
		"xn--bcher-kva.example":                   {},
		"3com.com":                                {},
		long + long + long + "example.com":        {},
		"":                                        {"is empty", "api.example.com"},
		"https://api.example.com":                 {"has a scheme", `write "api.example.com"`},
		"https://u:p@api.example.com:443/v1?x":    {"has a scheme", `"api.example.com"`},
		"postgres://db.example.com:5432/x":        {"has a scheme", `write "db.example.com"; ports stand in the rules of contracts`},
		"api.example.com:443":                     {"has a port", `write "api.example.com"; ports stand in the rules of contracts`},
		"api.example.com/v1":                      {"has a path", `write "api.example.com"`},
		"me@api.example.com":                      {"has a user", `write "api.example.com"`},
		"API.example.com":                         {"has upper-case letters", `write "api.example.com"`},
		"api.example.com.":                        {"ends with a dot", `write "api.example.com"`},
		"bücher.example":                          {"is not in ASCII", `write "xn--bcher-kva.example"`},
		"*.BÜCHER.example":                        {"is not in ASCII", `write "*.xn--bcher-kva.example"`},
		"ex ample.com":                            {"contains ' '", "api.example.com"},
		"api..example.com":                        {"has an empty label", "api.example.com"},
		".example.com":                            {"has an empty label", "api.example.com"},
		"-api.example.com":                        {`the label "-api"`, "api.example.com"},
		"api-.example.com":                        {`the label "api-"`, "api.example.com"},
		strings.Repeat("a", 64) + ".example.com":  {"a label of 64 characters; the most is 63", "api.example.com"},
		long + long + long + "a" + long + "e.com": {"has 2", "correct the name"},
		"*":                        {"names everything", `"*.example.com"`},
		"*.com":                    {`names everything in "com"`, "at least two labels"},
		"api.*.example.com":        {`has "*" elsewhere`, "all labels before a name"},
		"api*.example.com":         {`has "*" elsewhere`, "all labels before a name"},
		"*api.example.com":         {`has "*" elsewhere`, "all labels before a name"},
		"*.*.example.com":          {`has "*" elsewhere`, "all labels before a name"},
		"*.":                       {"ends with a dot", "api.example.com"},
		"192.0.2.1":                {"is an address", "list it among prefixes"},
		"192.0.2.0/24":             {"is an address", "list it among prefixes"},
		"192.0.2.1:80":             {"is an address", "list it among prefixes"},
		"2001:db8::1":              {"is an address", "list it among prefixes"},
		"[2001:db8::1]":            {"is an address", "list it among prefixes"},
		"192.0.2":                  {"ends with a number", "among prefixes"},
		"*.2.0.192":                {"ends with a number", "among prefixes"},
		"db":                       {"is a single label", "the full name"},
		"localhost":                {"is the host itself", "node block"},
		"x.localhost":              {"is the host itself", "node block"},
		"web.shop.sif":             {"is a name of the fabric", "domain/service"},
		"*.shop.sif":               {"is a name of the fabric", "domain/service"},
		"1.2.0.192.in-addr.arpa":   {"is a name of addresses", "among prefixes"},
		"8.b.d.0.1.0.0.2.ip6.arpa": {"is a name of addresses", "among prefixes"},
		strings.Repeat("a.", 127) + "example.com.x": {"has 267 characters", "correct the name"},
	} {
		fault, remedy := NameFault(name)
		if want.fault == "" {
			must.Eq(t, "", fault, must.Sprint(name))
			must.Eq(t, "", remedy)
			continue
		}
		must.StrContains(t, fault, want.fault, must.Sprint(name))
		must.StrContains(t, remedy, want.remedy, must.Sprint(name))
	}
	for _, pattern := range []string{"*", "*.com", "*.example.com", "api.example.com"} {
		fault, _ := GrantedNameFault(pattern)
		must.Eq(t, "", fault)
	}
	for _, pattern := range []string{"**", "*.", "a.*", "com", "*.sif"} {
		fault, remedy := GrantedNameFault(pattern)
		must.NotEq(t, "", fault, must.Sprint(pattern))
		must.NotEq(t, "", remedy)
	}
}

func TestMatchName(t *testing.T) {
	for _, c := range []struct {
		pattern, name string
		want          bool
	}{
		{"api.example.com", "api.example.com", true},
		{"api.example.com", "x.api.example.com", false},
		{"*.example.com", "api.example.com", true},
		{"*.example.com", "a.b.example.com", true},
		{"*.example.com", "example.com", false},
		{"*.example.com", ".example.com", false},
		{"*.example.com", "badexample.com", false},
		{"*.example.com", "example.com.evil.org", false},
	} {
		must.Eq(t, c.want, MatchName(c.pattern, c.name), must.Sprintf("%+v", c))
	}
}

var (
	drawPlainName = rapid.Map(rapid.SliceOfN(rapid.SampledFrom([]string{"a", "b", "com"}), 1, 4), func(labels []string) string { return strings.Join(labels, ".") })
	drawNames     = rapid.Custom(func(t *rapid.T) string {
		return rapid.SampledFrom([]string{"", "", "*."}).Draw(t, "star") + drawPlainName.Draw(t, "name")
	})
)

// A binding that grants a name grants whatever that name stands for.
func TestGrantedNamesCoverWhatNamesMatch(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		b := &Binding{Domain: "d", Outside: []OutsideGrants{{Names: rapid.SliceOfN(drawNames, 1, 3).Draw(t, "granted")}}}
		pattern, name := drawNames.Draw(t, "pattern"), drawPlainName.Draw(t, "name")
		if b.admitsName(pattern) && MatchName(pattern, name) && !b.admitsName(name) {
			t.Fatalf("%v grants %q, which stands for %q, but not that", b.Outside[0].Names, pattern, name)
		}
	})
}

func FuzzNameFault(f *testing.F) {
	for _, seed := range []string{"api.example.com", "*.cdn.example.com", "https://u@x.example.com:80/a", "bücher.example.", "*", "1.2", "a..b", "x.sif"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, name string) {
		fault, remedy := NameFault(name)
		if fault != "" {
			must.NotEq(t, "", remedy)
			return
		}
		must.Eq(t, strings.ToLower(name), name)
		must.False(t, strings.HasSuffix(name, "."))
		must.True(t, len(name) <= maxDNSName)
		must.False(t, strings.Contains(strings.TrimPrefix(name, "*."), "*"))
		fault, _ = GrantedNameFault(name)
		must.Eq(t, "", fault)
		must.True(t, MatchName(name, strings.Replace(name, "*", "x", 1)))
	})
}
