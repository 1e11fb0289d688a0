// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package agent

import (
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/shoenig/test/must"
)

// requirements returns the sentences of a specification in which something is required or
// recommended, with the headings above them.
func requirements(spec string) (list [][2]string) {
	required := regexp.MustCompile(`(?i)\b(must|shall|required|should|recommended)\b`)
	link := regexp.MustCompile(`\[([^\]]*)\][(\[][^)\]]*[)\]]`)
	item := regexp.MustCompile(`^\s*([-*]|\d\.)\s`)
	ends := regexp.MustCompile(`[.:](\*\*)?\s+([A-Z*` + "`" + `(])`)
	section, code := "", false
	var paragraph []string
	flush := func() {
		text := link.ReplaceAllString(strings.Join(paragraph, " "), "$1")
		paragraph = nil
		for text != "" {
			sentence, rest := text, ""
			for _, m := range ends.FindAllStringSubmatchIndex(text, -1) {
				if !strings.HasSuffix(text[:m[0]+1], "e.g.") {
					sentence, rest = text[:m[4]], text[m[4]:]
					break
				}
			}
			text = rest
			if sentence = strings.Trim(strings.TrimSpace(sentence), "-* "); required.MatchString(sentence) {
				list = append(list, [2]string{section, strings.ReplaceAll(sentence, "|", "/")})
			}
		}
	}
	for line := range strings.Lines(spec) {
		line = strings.TrimRight(line, "\n")
		switch {
		case strings.HasPrefix(line, "```"):
			code = !code
		case code:
		case strings.HasPrefix(line, "#"):
			flush()
			section = strings.ReplaceAll(strings.Trim(line, "# :"), "`", "")
		case strings.TrimSpace(line) == "":
			flush()
		default:
			if item.MatchString(line) {
				flush()
			}
			paragraph = append(paragraph, strings.TrimSpace(line))
		}
	}
	flush()
	return list
}

// TestConformance goes through all that the CNI specification requires or recommends: the table in
// docs/cni.md has a row for each sentence of it, in order, and says whose business it is, or names
// the case here that shows it.
func TestConformance(t *testing.T) {
	out, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "github.com/containernetworking/cni").Output()
	must.NoError(t, err)
	spec, err := os.ReadFile(filepath.Join(strings.TrimSpace(string(out)), "SPEC.md"))
	must.NoError(t, err)
	must.StrContains(t, string(spec), "This is CNI **spec** version **1.1.0**")
	page, err := os.ReadFile(conformancePage)
	must.NoError(t, err)
	var rows [][]string
	inTable := false
	for line := range strings.Lines(string(page)) {
		if line == "## Conformance\n" {
			inTable = true
		}
		if cells := strings.Split(strings.TrimSpace(line), " | "); inTable && len(cells) == 3 {
			rows = append(rows, []string{strings.TrimPrefix(cells[0], "| "), cells[1], strings.TrimSuffix(cells[2], " |")})
		}
	}
	cases := conformance()
	rows = slices.DeleteFunc(rows, func(r []string) bool { return r[0] == "Section" })
	want := requirements(string(spec))
	for i, w := range want {
		if i >= len(rows) || rows[i][0] != w[0] || rows[i][1] != w[1] {
			t.Fatalf("row %d of the table in %s must begin with\n| %s | %s |", i+1, conformancePage, w[0], w[1])
		}
	}
	must.Eq(t, len(want), len(rows))
	shown := map[string]bool{}
	for _, r := range rows {
		if name, is := strings.CutPrefix(r[2], "test: "); is {
			for name := range strings.SplitSeq(name, ", ") {
				must.MapContainsKey(t, cases, name)
				shown[name] = true
			}
			continue
		}
		must.SliceContains(t, []string{"the runtime's", "no delegation", "a definition", "an example"}, r[2])
	}
	h := newCNIHost(t)
	for _, name := range slices.Sorted(maps.Keys(cases)) {
		must.True(t, shown[name], must.Sprintf("no row names the case %q", name))
		t.Run(name, func(t *testing.T) { cases[name](t, h) })
		left := h.left()
		must.MapLen(t, 0, left, must.Sprintf("after %q: %v", name, left))
	}
}

// conformance returns the cases of the table.
func conformance() map[string]func(*testing.T, *cniHost) {
	return map[string]func(*testing.T, *cniHost){
		"attach":              showAttach,
		"attach again":        showAttachAgain,
		"chain":               showChain,
		"name taken":          showNameTaken,
		"network names":       showNetworkNames,
		"container IDs":       showContainerIDs,
		"interface names":     showInterfaceNames,
		"variables":           showVariables,
		"versions":            showVersions,
		"unknown fields":      showUnknownFields,
		"well-known keys":     showWellKnownKeys,
		"inlined plugins":     showInlinedPlugins,
		"disableCheck":        showDisableCheck,
		"disableGC":           showDisableGC,
		"errors":              showErrors,
		"detach":              showDetach,
		"detach what is gone": showDetachGone,
		"check":               showCheck,
		"check after others":  showCheckAfterOthers,
		"status":              showStatus,
		"collect":             showCollect,
		"concurrency":         showConcurrency,
		"cnitool":             showCNITool,
	}
}
