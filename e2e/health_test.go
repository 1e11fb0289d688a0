// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

//go:build e2e

package e2e

import (
	"fmt"
	"io"
	"net/url"
	"strings"
	"testing"
	"time"

	consul "github.com/hashicorp/consul/api"
	"github.com/shoenig/test/must"

	"github.com/sif-project/sif/e2e/lab"
)

// TestHealthChecksAndDeployments checks what Nomad and Consul report about the demo services: a
// node's checks reach its endpoints, so that deployments succeed.
func TestHealthChecksAndDeployments(t *testing.T) {
	jobs, _, err := world.nomad.Jobs().List(nil)
	must.NoError(t, err)
	running := 0
	for _, j := range jobs {
		if j.Status != "running" {
			continue
		}
		running++
		world.deployed(t, j.ID)
	}
	must.GreaterEq(t, 8, running, must.Sprint("both applications have eight jobs"))

	for service, instances := range map[string]int{
		"getaway-web": 1, "getaway-svc": 1, "news-gw": 2, "places-gw": 2, "weather-gw": 2,
		"voting-web": 1, "voting-svc": 1, "result-svc": 1, "voting-worker": 1, "voting-db": 1, "result-db": 1,
	} {
		eventually(t, 30*time.Second, func() error {
			entries, _, err := world.consul.Health().Service(service, "", false, nil)
			if err != nil {
				return err
			}
			passing := 0
			for _, e := range entries {
				checked := false
				for _, c := range e.Checks {
					checked = checked || c.ServiceID == e.Service.ID && c.Type == "http"
				}
				if checked && e.Checks.AggregatedStatus() == consul.HealthPassing {
					passing++
				}
			}
			if passing != instances || len(entries) != instances {
				return fmt.Errorf("service %s: %d of %d instances pass their HTTP checks, expected %d", service, passing, len(entries), instances)
			}
			return nil
		})
	}
}

// TestStatusIsHealthy checks that `sif status` finds no problem.
func TestStatusIsHealthy(t *testing.T) {
	world.allWell(t, 30*time.Second)
	r := world.sif(t, "status")
	must.Zero(t, r.code, must.Sprint(r.stdout, r.stderr))
	for _, n := range world.Topology.Nodes(lab.Processor, lab.Workload) {
		must.StrContains(t, r.stdout, n.Name)
	}
}

// TestPageShowsAllBackends opens getaway's page from outside the fabric, at the job's published
// port.
func TestPageShowsAllBackends(t *testing.T) {
	p := world.page(t, nil)
	nodes := map[string]bool{}
	for _, n := range world.Topology.Nodes(lab.Workload) {
		nodes[n.Name] = true
	}
	providers := map[string]string{"news-gw": "news.example.com", "places-gw": "places.example.com", "weather-gw": "weather.example.net"}
	for service, part := range p.parts() {
		must.True(t, nodes[part.From.Node], must.Sprintf("%s answered from %q", service, part.From.Node))
		// The data comes from outside, where the gateway is seen at the address of its exit.
		must.Eq(t, providers[service], part.Origin.Provider)
		w := workload{node: part.From.Node, zone: part.From.Zone}
		version := 4
		if part.Origin.Seen.Is6() {
			version = 6
		}
		must.Eq(t, world.exitOf(t, w, service == "weather-gw", version), part.Origin.Seen)
	}
	response, err := client(world.NetNS("client")).Get(world.url(t, "getaway-web"))
	must.NoError(t, err)
	defer response.Body.Close()
	html, err := io.ReadAll(response.Body)
	must.NoError(t, err)
	must.Eq(t, 200, response.StatusCode)
	for _, part := range p.parts() {
		must.StrContains(t, string(html), part.From.Node)
		must.StrContains(t, string(html), fmt.Sprintf("data of <strong>%s</strong>, which saw <strong>%s</strong>", part.Origin.Provider, part.Origin.Seen))
	}
}

// votingResult is the content of voting's result page.
type votingResult struct {
	Options []struct {
		ID     string `json:"id"`
		Voters int    `json:"voters"`
	} `json:"options"`
	Voters int `json:"voters"`
}

// TestVoteIsCounted casts a vote from outside the fabric and finds it in the result, which involves
// six contracts and both clouds.
func TestVoteIsCounted(t *testing.T) {
	base := strings.TrimSuffix(world.url(t, "voting-web"), "/")
	outside := world.NetNS("client")
	seaside := func() (int, error) {
		reply, err := ask[votingResult](outside, base+"/result", nil)
		if err != nil {
			return 0, err
		}
		for _, o := range reply.Data.Options {
			if o.ID == "sea" {
				return o.Voters, nil
			}
		}
		return 0, fmt.Errorf("an option is missing in the result: %+v", reply.Data)
	}
	var before int
	eventually(t, 15*time.Second, func() (err error) {
		before, err = seaside()
		return err
	})
	vote := url.Values{"choice": {"sea"}, "voter": {fmt.Sprintf("e2e-%d", time.Now().UnixNano())}}
	_, err := ask[any](outside, base+"/vote", vote)
	must.NoError(t, err)
	eventually(t, 15*time.Second, func() error {
		now, err := seaside()
		if err == nil && now != before+1 {
			err = fmt.Errorf("%d voters chose the sea, expected %d", now, before+1)
		}
		return err
	})
}
