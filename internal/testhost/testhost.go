// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

// Package testhost checks that the machine has what a test needs, and starts the servers for it. If
// something is missing, the test is skipped with the reason; with CI=true it fails, because a
// skipped test proves nothing. Only tests may import it.
package testhost

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"strings"
	"testing"
)

// RequireRoot skips the test unless it runs as root.
func RequireRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		Unmet(t, "needs root: it creates network namespaces and loads eBPF programs")
	}
}

// RequireProgram returns the path of a program on PATH, or skips the test.
func RequireProgram(t testing.TB, name string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		Unmet(t, "needs "+name+" on PATH: run `make setup`")
	}
	return path
}

// Unmet skips the test because the machine lacks something. With CI=true it fails the test.
func Unmet(t testing.TB, why string) {
	t.Helper()
	if os.Getenv("CI") == "true" {
		t.Fatal(why)
	}
	t.Skip(why)
}

// UnmetHere skips the test because this machine's kernel lacks something that the virtual machines
// of e2e/machines have. There, with SIF_TEST_MACHINE=1, it fails the test.
func UnmetHere(t testing.TB, why string) {
	t.Helper()
	if os.Getenv("SIF_TEST_MACHINE") != "" {
		t.Fatal(why)
	}
	release, err := os.ReadFile("/proc/sys/kernel/osrelease")
	if err != nil {
		t.Fatal(err)
	}
	t.Skipf("%s (Linux %s); the virtual machines run this test", why, strings.TrimSpace(string(release)))
}

// Zoned returns a network address with the zone of its IPv6 address, such as "eth0" in
// "[fe80::1%eth0]:80", as the index that the interface has in this thread's network namespace.
// Package net remembers which index a name has for a minute, whatever the namespace.
func Zoned(address string) string {
	before, rest, has := strings.Cut(address, "%")
	name, after, closed := strings.Cut(rest, "]")
	if !has || !closed {
		return address
	}
	i, err := net.InterfaceByName(name)
	if err != nil {
		return address // the caller's own error says so
	}
	return fmt.Sprintf("%s%%%d]%s", before, i.Index, after)
}
