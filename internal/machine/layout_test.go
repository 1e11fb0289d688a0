// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package machine

import (
	"testing"

	"github.com/shoenig/test/must"
)

// Leaving empties directories, so none can be one in which others have something.
func TestLayoutIsOfTheFabricAlone(t *testing.T) {
	must.NoError(t, DefaultLayout().Check())
	must.NoError(t, Layout{"/tmp/x/etc", "/tmp/x/var", "/tmp/x/run", "/tmp/x/bpf"}.Check())
	for _, dir := range []string{"/", "/var", "/run", "/srv", "/var/lib", "/var/lib/", "/var/./lib", "/sys/fs/bpf", "/home/somebody", "/usr/share", "/etc/nomad.d"} {
		l := DefaultLayout()
		l.DataDir = dir
		must.ErrorContains(t, l.Check(), "-data-dir=", must.Sprint(dir))
		must.ErrorContains(t, l.Check(), "a directory of others", must.Sprint(dir))
	}
	l := DefaultLayout()
	l.ConfigDir = "/etc/sif-blue"
	must.NoError(t, l.Check())
	l.ConfigDir = l.DataDir + "/etc"
	must.ErrorContains(t, l.Check(), "each needs a directory of its own")
	l.ConfigDir = l.DataDir
	must.ErrorContains(t, l.Check(), "each needs a directory of its own")
}
