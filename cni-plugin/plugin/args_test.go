// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package plugin

import (
	"strings"
	"testing"

	"github.com/shoenig/test/must"
)

func TestParseArguments(t *testing.T) {
	for args, want := range map[string]arguments{
		"":                      {},
		"IgnoreUnknown=true":    {},
		"NOMAD_ALLOC_ID=a1":     {allocation: "a1"},
		";NOMAD_ALLOC_ID=a1;":   {allocation: "a1"},
		"x=;NOMAD_ALLOC_ID=a=b": {allocation: "a=b"},
		"IgnoreUnknown=true;NOMAD_REGION=global;NOMAD_ALLOC_ID=f5a4;NOMAD_JOB_ID=web": {allocation: "f5a4"},
		"XNOMAD_ALLOC_ID=other;nomad_alloc_id=other;sif_vm=x;XSIF_VM=true":            {},
		"SIF_VM=true":                        {vm: true},
		"SIF_VM=1;NOMAD_ALLOC_ID=a1":         {allocation: "a1", vm: true},
		"NOMAD_ALLOC_ID=a1;SIF_VM=false":     {allocation: "a1"},
		"IgnoreUnknown=1;SIF_VM=0;SIF_X=yes": {},
	} {
		got, err := parseArguments(args)
		must.NoError(t, err, must.Sprint(args))
		must.Eq(t, want, got, must.Sprint(args))
	}
	for _, args := range []string{
		"NOMAD_ALLOC_ID", "=x", "NOMAD_ALLOC_ID=", "NOMAD_ALLOC_ID=a;NOMAD_ALLOC_ID=b", "NOMAD_ALLOC_ID=a;NOMAD_ALLOC_ID=a", "a=b;c",
		"SIF_VM", "SIF_VM=", "SIF_VM=yes", "SIF_VM=TRUE", "SIF_VM= true", "SIF_VM=true;SIF_VM=true", "NOMAD_ALLOC_ID=a;SIF_VM=2",
	} {
		got, err := parseArguments(args)
		must.Error(t, err, must.Sprint(args))
		must.Eq(t, arguments{}, got)
	}
}

func FuzzParseArguments(f *testing.F) {
	f.Add("IgnoreUnknown=true;NOMAD_ALLOC_ID=f5a4;NOMAD_JOB_ID=web")
	f.Add("NOMAD_ALLOC_ID=a;NOMAD_ALLOC_ID=b;SIF_VM=true")
	f.Add(";;=;==;SIF_VM=0")
	f.Fuzz(func(t *testing.T, args string) {
		parsed, err := parseArguments(args)
		named, machines := 0, 0
		for pair := range strings.SplitSeq(args, ";") {
			if strings.HasPrefix(pair, argAllocation+"=") {
				named++
			}
			if pair == argVM+"=true" || pair == argVM+"=1" {
				machines++
			}
		}
		switch {
		case err != nil && parsed != arguments{}:
			t.Fatalf("both an error and %+v", parsed)
		case err == nil && (parsed.allocation != "") != (named == 1):
			t.Fatalf("%+v, but the allocation is named %d times", parsed, named)
		case err == nil && parsed.vm != (machines == 1):
			t.Fatalf("%+v, but %d arguments say that it is a virtual machine", parsed, machines)
		case strings.Contains(parsed.allocation, ";"):
			t.Fatalf("%+v contains more than one argument", parsed)
		}
	})
}
