// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package netspace

import (
	"bytes"
	"fmt"
	"os"
	"regexp"
	"strconv"
)

// ofProcess matches a path to a namespace that leads through a process, and captures its PID.
var ofProcess = regexp.MustCompile(`^/proc/([0-9]+)/`)

// ProcessOf returns the process through which a path leads to a namespace, or 0.
func ProcessOf(path string) int {
	if m := ofProcess.FindStringSubmatch(path); m != nil {
		pid, err := strconv.Atoi(m[1])
		if err == nil {
			return pid
		}
	}
	return 0
}

// Started returns when a process began, in ticks since the boot, or "" if it has ended. It tells
// the process from a later one with its PID.
func Started(pid int) string {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return ""
	}
	// The name is in parentheses and may contain anything. See proc_pid_stat(5).
	fields := bytes.Fields(text[bytes.LastIndexByte(text, ')')+1:])
	if len(fields) < 20 || fields[0][0] == 'Z' || fields[0][0] == 'X' {
		return ""
	}
	return string(fields[19])
}

// Boot returns what is different after each boot of the machine, or "".
func Boot() string {
	text, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return ""
	}
	return string(bytes.TrimSpace(text))
}
