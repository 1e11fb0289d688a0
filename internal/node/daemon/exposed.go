// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package daemon

import (
	"errors"
	"fmt"
	"os"

	"github.com/sif-project/sif/internal/config"
	"github.com/sif-project/sif/internal/node/firewall"
	"github.com/sif-project/sif/internal/node/listener"
)

// exposed returns the ports that the node offers to its workloads, and refuses those on which a
// daemon of the fabric listens: the configuration knows their usual ports only.
func exposed(list []config.Exposure) (open []firewall.Exposed, refused []string, err error) {
	if len(list) == 0 {
		return nil, nil, nil
	}
	all, err := listener.All()
	if err != nil {
		return nil, nil, fmt.Errorf("look for daemons of the fabric behind ports that are exposed: %w", err)
	}
	var behind []listener.Socket
	for _, e := range list {
		for _, s := range all {
			if s.Receives(e.Protocol, e.To) {
				behind = append(behind, s)
			}
		}
	}
	owners := listener.Owners(behind)
	for _, e := range list {
		x := firewall.Exposed{Protocol: e.Protocol, Port: e.Port, To: e.To}
		ours := false
		for _, s := range behind {
			ours = ours || s.Receives(e.Protocol, e.To) && sameProgram(owners[s].PID)
		}
		if ours {
			refused = append(refused, fmt.Sprintf("the configuration exposes %s, where a daemon of the fabric listens, so it is not exposed: remove that block \"expose\"", x))
			continue
		}
		open = append(open, x)
	}
	return open, refused, nil
}

// sameProgram reports whether a process runs the file that this one does.
func sameProgram(pid int) bool {
	own, err := os.Stat("/proc/self/exe")
	other, otherErr := os.Stat(fmt.Sprintf("/proc/%d/exe", pid))
	return errors.Join(err, otherErr) == nil && os.SameFile(own, other)
}
