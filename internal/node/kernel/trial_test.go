// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package kernel

import (
	"errors"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"github.com/sif-project/sif/internal/testhost"
)

func TestTryLeavesNothing(t *testing.T) {
	testhost.RequireRoot(t)
	before, err := os.Readlink("/proc/thread-self/ns/net")
	must.NoError(t, err)
	var during string
	must.NoError(t, Try(func() error {
		during, err = os.Readlink("/proc/thread-self/ns/net")
		return err
	}))
	must.NotEq(t, before, during)
	must.EqError(t, Try(func() error { return errors.New("no") }), "no")
	// The kernel removes it when the thread has ended, a moment later.
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		spaces, err := exec.Command("lsns", "-t", "net", "-n", "-o", "NS").Output()
		must.NoError(t, err)
		if !strings.Contains(string(spaces), strings.Trim(strings.TrimPrefix(during, "net:"), "[]")) {
			break
		}
		must.True(t, time.Now().Before(deadline), must.Sprint("the namespace of the trial stays"))
	}
}
