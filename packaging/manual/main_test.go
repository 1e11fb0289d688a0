// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package main

import (
	"regexp"
	"strings"
	"testing"

	"github.com/shoenig/test/must"
)

func TestPages(t *testing.T) {
	all := pages("2026-11-28")
	macro := regexp.MustCompile(`^\.(TH|SH|TP|PP|BR|I|RS|RE|nf|fi)\b`)
	for name, page := range all {
		text := string(page)
		must.StrHasPrefix(t, ".TH ", text, must.Sprint(name))
		must.Eq(t, strings.Count(text, "\n.nf\n"), strings.Count(text, "\n.fi\n"), must.Sprint(name))
		for _, l := range strings.Split(text, "\n") {
			if strings.HasPrefix(l, "'") || strings.HasPrefix(l, ".") && !macro.MatchString(l) {
				t.Errorf("%s: %q is no macro", name, l)
			}
		}
	}
	must.StrContains(t, string(all["sif.1"]), ".BR sif-graph-apply (1)\nApply a service graph or a plan\n")
	must.StrContains(t, string(all["sif-version.1"]), ".SH OPTIONS\n.TP\n\\fB\\-json\\fR\nPrint the version in JSON.\n")
	must.StrContains(t, string(all["sif-agent.1"]), "\\fB\\-config\\fR=\\fIpath\\fR\n")
	must.StrContains(t, string(all["sif-job.1"]), "\n.nf\n    $ sif job validate web.nomad.hcl\n")
}

func TestText(t *testing.T) {
	for text, want := range map[string]string{
		"one":                          "one\n",
		"  one\n  two\n\n  three":      "one\ntwo\n.PP\nthree\n",
		"  say:\n\n      $ x\n\n  end": "say:\n.PP\n.RS 4\n.nf\n    $ x\n.fi\n.RE\n.PP\nend\n",
		"  a:\n    b\n\n    c\n  d":    "a:\n.RS 4\n.nf\n  b\n\n  c\n.fi\n.RE\nd\n",
		"  .sif is a name\n  'x' -y":   "\\&.sif is a name\n\\&'x' \\-y\n",
		`  back\slash`:                 "back\\eslash\n",
	} {
		var b roff
		b.text(text)
		must.Eq(t, want, b.String())
	}
}
