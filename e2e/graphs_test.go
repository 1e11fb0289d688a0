// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

//go:build e2e

package e2e

import (
	"fmt"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/shoenig/test/must"
)

// Ports that testPorts adds to contracts. No service of the application listens there.
const (
	newsPort    = 9101 // tcp and udp
	weatherPort = 9103 // tcp
)

// getaway returns the application's graph as it is in the repository.
func (f *fabricUnderTest) getaway(t *testing.T) string {
	t.Helper()
	return f.file(t, "jobs/getaway/getaway.sif.hcl")
}

// testPorts adds ports for the tests' own listeners to getaway's graph: to the contracts from the
// service to the news gateway and to the weather gateway.
func (f *fabricUnderTest) testPorts(t *testing.T) string {
	t.Helper()
	text := f.getaway(t)
	for old, added := range map[string]string{
		"ports    = [9001]\n    }": fmt.Sprintf("ports    = [9001, %d]\n    }\n    rule {\n      protocol = \"udp\"\n      ports    = [%d]\n    }", newsPort, newsPort),
		"ports    = [9003]\n    }": fmt.Sprintf("ports    = [9003, %d]\n    }", weatherPort),
	} {
		must.StrContains(t, text, old)
		text = strings.Replace(text, old, added, 1)
	}
	return text
}

// withTestPorts puts the graph of testPorts in force until the test ends.
func (f *fabricUnderTest) withTestPorts(t *testing.T) {
	t.Helper()
	t.Cleanup(func() {
		f.apply(t, f.getaway(t))
		f.allWell(t, 30*time.Second)
	})
	f.apply(t, f.testPorts(t))
	f.allWell(t, 30*time.Second)
}

// withoutContract removes a contract from a graph.
func withoutContract(t *testing.T, text, name string) string {
	t.Helper()
	block := regexp.MustCompile(`(?ms)^  contract "` + regexp.QuoteMeta(name) + `" \{$.*?^  \}$\n`)
	must.RegexMatch(t, block, text)
	return block.ReplaceAllString(text, "")
}
