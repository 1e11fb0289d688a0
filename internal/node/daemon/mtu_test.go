// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package daemon

import (
	"testing"

	"github.com/shoenig/test/must"
)

func TestMTU(t *testing.T) {
	for _, c := range []struct{ link, port, workload int }{
		{1420, 1378, 1376}, // of 1424 bytes, the size of datagrams before, 46 and headers are 65546
		{1440, 1410, 1408},
		{8920, 8894, 8892},
		{1280, 1254, 1252},
	} {
		must.Eq(t, c.port, SwitchMTU(c.link), must.Sprintf("link %d", c.link))
		must.Eq(t, c.workload, WorkloadMTU(c.port))
	}
	must.Eq(t, -26, SwitchMTU(0)) // of a device that is not described yet
	for link := 1280; link <= 9000; link++ {
		got := SwitchMTU(link)
		must.LessEq(t, link-26, got)
		must.GreaterEq(t, link-26-100, got, must.Sprintf("link %d", link))
	}
}
