// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package kernel

import (
	"errors"
	"fmt"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// Try runs f in a new network namespace, which ends with it. The namespace has the interface "lo"
// alone, which is down.
func Try(f func() error) error {
	done := make(chan error)
	go func() { done <- try(f) }()
	return <-done
}

func try(f func() error) error {
	const message = "make a network namespace for a trial: %w"
	// The thread returns to its own namespace. To let it end does not do: the main thread of a
	// process goes on, and a namespace stays as long as a thread is in it.
	runtime.LockOSThread()
	own, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		return fmt.Errorf(message, err)
	}
	defer own.Close()
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf(message, err)
	}
	err = f()
	if back := unix.Setns(int(own.Fd()), unix.CLONE_NEWNET); back != nil {
		return errors.Join(err, fmt.Errorf("return from the network namespace of a trial: %w", back)) // locked: nobody else gets the thread
	}
	runtime.UnlockOSThread()
	return err
}
