// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package doctor

import (
	"context"
	"fmt"
	"time"

	"github.com/sif-project/sif/internal/join"
	"github.com/sif-project/sif/internal/node/cnicall"
	"github.com/sif-project/sif/internal/node/host"
)

// askTime bounds how long the agent may take to answer.
const askTime = 3 * time.Second

// attached looks at what is attached on the machine from outside Nomad. Only the agent knows; one
// that does not run is found by other checks.
func (p *patient) attached(ctx context.Context) []host.Finding {
	c := p.configs[join.Workload]
	if !p.joined || c == nil || c.CNI == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, askTime)
	defer cancel()
	list, err := cnicall.List(ctx, c.CNI.Socket)
	if err != nil {
		return nil
	}
	var findings []host.Finding
	for _, a := range list {
		findings = append(findings, judgeAttached(a))
	}
	return findings
}

func judgeAttached(a cnicall.Attached) host.Finding {
	f := host.Finding{Check: "attached", Subject: a.Name, Result: host.Well, Detail: fmt.Sprintf("is endpoint %s of %s", a.Endpoint, a.FabricService)}
	if a.Waits != "" {
		f.Result, f.Detail = host.Warning, "has no endpoint: "+a.Waits
		f.Remedy = fmt.Sprintf("register Consul service %q with the Consul agent of this machine, or: sif detach %s", a.ConsulService, a.Name)
	}
	return f
}
