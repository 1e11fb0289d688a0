// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package bpf

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
	"github.com/shoenig/test/must"

	"github.com/sif-project/sif/internal/testhost"
)

func enumOf(t *testing.T, spec *ebpf.CollectionSpec, name string) []btf.EnumValue {
	t.Helper()
	var enum *btf.Enum
	must.NoError(t, spec.Types.TypeByName(name, &enum))
	return enum.Values
}

// constantName converts "no-endpoint" to "REASON_NO_ENDPOINT".
func constantName(prefix, name string) string {
	return prefix + strings.ToUpper(strings.ReplaceAll(name, "-", "_"))
}

// TestGeneratedIsFresh compiles the programs again and compares the result with the committed
// files.
func TestGeneratedIsFresh(t *testing.T) {
	testhost.RequireProgram(t, "clang")
	testhost.RequireProgram(t, "llvm-strip")
	version, err := exec.Command("clang", "--version").Output()
	must.NoError(t, err)
	if !strings.Contains(string(version), "clang version 14.") {
		testhost.Unmet(t, "needs clang 14, which the checked-in object is made with; here is "+strings.SplitN(string(version), "\n", 2)[0])
	}
	dir := t.TempDir()
	for _, pattern := range []string{"*.c", "headers/*.h", "doc.go"} {
		files, err := filepath.Glob(pattern)
		must.NoError(t, err)
		for _, file := range files {
			text, err := os.ReadFile(file)
			must.NoError(t, err)
			must.NoError(t, os.MkdirAll(filepath.Dir(filepath.Join(dir, file)), 0o755))
			must.NoError(t, os.WriteFile(filepath.Join(dir, file), text, 0o644))
		}
	}
	doc, err := os.ReadFile("doc.go")
	must.NoError(t, err)
	tool, err := exec.Command("go", "tool", "-n", "bpf2go").Output()
	must.NoError(t, err)
	_, lines, found := strings.Cut(string(doc), "//go:generate ")
	must.True(t, found)
	for line := range strings.SplitSeq(lines, "//go:generate ") {
		cmd := exec.Command(strings.TrimSpace(string(tool)), strings.Fields(line)[3:]...)
		cmd.Dir = dir
		cmd.Env = append(os.Environ(), "GOPACKAGE=bpf")
		out, err := cmd.CombinedOutput()
		must.NoError(t, err, must.Sprint(string(out)))
	}
	for _, file := range []string{"endpoint_bpfel.go", "endpoint_bpfel.o", "guest_bpfel.go", "guest_bpfel.o"} {
		want, err := os.ReadFile(filepath.Join(dir, file))
		must.NoError(t, err)
		got, err := os.ReadFile(file)
		must.NoError(t, err)
		if !bytes.Equal(got, want) {
			t.Errorf("%s is stale: run `go generate ./bpf/`", file)
		}
	}
}
