// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package doctor

import (
	"context"
	"fmt"
	"net"
	"path/filepath"

	"github.com/sif-project/sif/internal/join"
	"github.com/sif-project/sif/internal/node/host"
	"github.com/sif-project/sif/internal/wellknown"
)

// checkWorkloadAPI is the name of the checks of the Workload API.
const checkWorkloadAPI = "workload-api"

// workloadAPI looks whether applications can reach the Workload API.
func (p *patient) workloadAPI(ctx context.Context) []host.Finding {
	c := p.configs[join.Workload]
	if !p.joined || c == nil {
		return nil
	}
	path := filepath.Join(c.WorkloadAPI.Directory, wellknown.WorkloadAPISocket)
	f := host.Finding{Check: checkWorkloadAPI, Subject: "the Workload API", Result: host.Well, Detail: "is served at " + path}
	ctx, cancel := context.WithTimeout(ctx, askTime)
	defer cancel()
	conn, err := new(net.Dialer).DialContext(ctx, "unix", path)
	if err != nil {
		f.Result, f.Detail, f.Remedy = host.Warning, "cannot be reached: "+err.Error(), "systemctl start sif-agent; \"sif status\" says why an agent that runs cannot serve it"
		return []host.Finding{f}
	}
	conn.Close()
	return []host.Finding{f}
}

// judgeVolume looks whether Nomad's client offers the directory of the Workload API to its tasks.
// Only jobs that use it need that.
func judgeVolume(conf map[string]any, dir string) host.Finding {
	f := host.Finding{Check: checkWorkloadAPI, Subject: "Nomad's client", Result: host.Well}
	volumes, _ := conf["HostVolumes"].([]any)
	for _, v := range volumes {
		volume, _ := v.(map[string]any)
		if text(volume, "Name") != wellknown.WorkloadAPIVolume {
			continue
		}
		f.Detail = fmt.Sprintf("offers the host volume %q", wellknown.WorkloadAPIVolume)
		readOnly, _ := volume["ReadOnly"].(bool)
		switch at := text(volume, "Path"); {
		case filepath.Clean(at) != filepath.Clean(dir):
			f.Result, f.Detail = host.Wrong, fmt.Sprintf("offers the host volume %q at %q, and the agent serves the Workload API in %q", wellknown.WorkloadAPIVolume, at, dir)
			f.Remedy = fmt.Sprintf("client { host_volume %q { path = %q } } in Nomad's configuration", wellknown.WorkloadAPIVolume, dir)
		case !readOnly:
			f.Result, f.Detail = host.Warning, fmt.Sprintf("offers the host volume %q for writing: a task that is root can put another socket there", wellknown.WorkloadAPIVolume)
			f.Remedy = fmt.Sprintf("client { host_volume %q { read_only = true } } in Nomad's configuration", wellknown.WorkloadAPIVolume)
		}
		return f
	}
	f.Detail = fmt.Sprintf("offers no host volume %q, so that no job with workload_api is placed here", wellknown.WorkloadAPIVolume)
	return f
}
