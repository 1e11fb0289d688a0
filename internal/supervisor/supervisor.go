// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

// Package supervisor tells the supervisor of this process, systemd, when the process is ready, that
// it is alive, and what it does. Without one it does nothing. It does not know what the process
// does: the daemon's main loops say it.
package supervisor

import (
	"fmt"
	"strings"

	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/hashicorp/go-hclog"

	"github.com/sif-project/sif/internal/logkey"
)

// Supervisor is the supervisor of this process. Its methods are safe for concurrent use, and do
// nothing for a nil Supervisor.
type Supervisor struct{ log hclog.Logger }

// New returns the supervisor that the environment names.
func New(log hclog.Logger) *Supervisor { return &Supervisor{log: log} }

// Ready says that the process does what others wait for. Units that are ordered after it start now.
func (s *Supervisor) Ready() { s.notify(daemon.SdNotifyReady) }

// Alive says that a main loop of the process went around, what the process does, and what is wrong,
// in sentences. A process of which the supervisor hears nothing for longer than its watchdog allows
// is restarted: call it in the loop whose standstill must not last, after its work.
func (s *Supervisor) Alive(doing string, degraded []string) {
	if len(degraded) > 0 {
		doing += fmt.Sprintf("; degraded (%d): %s", len(degraded), degraded[0])
	}
	s.notify(daemon.SdNotifyWatchdog, "STATUS="+strings.ReplaceAll(doing, "\n", " "))
}

// Reload runs reload and says when that begins and ends.
func (s *Supervisor) Reload(reload func()) {
	s.notify(daemon.SdNotifyReloading, strings.TrimSpace(daemon.SdNotifyMonotonicUsec()))
	reload()
	s.Ready()
}

// Stopping says that the process is about to end.
func (s *Supervisor) Stopping() { s.notify(daemon.SdNotifyStopping, "STATUS=stopping") }

func (s *Supervisor) notify(lines ...string) {
	if s == nil {
		return
	}
	if _, err := daemon.SdNotify(false, strings.Join(lines, "\n")); err != nil {
		s.log.Debug("cannot notify the supervisor", logkey.Error, err)
	}
}
