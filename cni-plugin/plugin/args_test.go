// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package plugin

import (
	"strings"
	"testing"

	"github.com/shoenig/test/must"
)

func TestAllocationID(t *testing.T) {
	for args, want := range map[string]string{
		"":                      "",
		"IgnoreUnknown=true":    "",
		"NOMAD_ALLOC_ID=a1":     "a1",
		";NOMAD_ALLOC_ID=a1;":   "a1",
		"x=;NOMAD_ALLOC_ID=a=b": "a=b",
		"IgnoreUnknown=true;NOMAD_REGION=global;NOMAD_ALLOC_ID=f5a4;NOMAD_JOB_ID=web": "f5a4",
		"XNOMAD_ALLOC_ID=other;nomad_alloc_id=other":                                  "",
	} {
		got, err := allocationID(args)
		must.NoError(t, err, must.Sprint(args))
		must.Eq(t, want, got, must.Sprint(args))
	}
	for _, args := range []string{"NOMAD_ALLOC_ID", "=x", "NOMAD_ALLOC_ID=", "NOMAD_ALLOC_ID=a;NOMAD_ALLOC_ID=b", "NOMAD_ALLOC_ID=a;NOMAD_ALLOC_ID=a", "a=b;c"} {
		got, err := allocationID(args)
		must.Error(t, err, must.Sprint(args))
		must.Eq(t, "", got)
	}
}

func FuzzAllocationID(f *testing.F) {
	f.Add("IgnoreUnknown=true;NOMAD_ALLOC_ID=f5a4;NOMAD_JOB_ID=web")
	f.Add("NOMAD_ALLOC_ID=a;NOMAD_ALLOC_ID=b")
	f.Add(";;=;==")
	f.Fuzz(func(t *testing.T, args string) {
		id, err := allocationID(args)
		named := 0
		for pair := range strings.SplitSeq(args, ";") {
			if strings.HasPrefix(pair, argAllocation+"=") {
				named++
			}
		}
		switch {
		case err != nil && id != "":
			t.Fatalf("both an error and the ID %q", id)
		case err == nil && (id != "") != (named == 1):
			t.Fatalf("ID %q, but the allocation is named %d times", id, named)
		case strings.Contains(id, ";"):
			t.Fatalf("ID %q contains more than one argument", id)
		}
	})
}
