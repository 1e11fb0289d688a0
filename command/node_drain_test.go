// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package command

import (
	"errors"
	"testing"
	"time"

	"github.com/hashicorp/cli"
	nomadapi "github.com/hashicorp/nomad/api"
	"github.com/shoenig/test/must"

	"github.com/sif-project/sif/api"
	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/internal/testhost"
)

// A real Nomad node is drained, and takes allocations again.
func TestNodeDrain(t *testing.T) {
	testhost.RequireRoot(t)
	_, nomad := testhost.Nomad(t)
	id, count := "sleeper", 1
	var node string
	running := func() error {
		allocs, _, err := nomad.Jobs().Allocations(id, false, nil)
		if err != nil {
			return err
		}
		for _, a := range allocs {
			if a.ClientStatus == nomadapi.AllocClientStatusRunning && a.DesiredStatus == nomadapi.AllocDesiredStatusRun {
				node = a.NodeID
				return nil
			}
		}
		return errors.New("no allocation runs")
	}
	job := nomadapi.NewServiceJob(id, id, "global", 50).AddDatacenter("*")
	task := nomadapi.NewTask("sleep", "raw_exec").SetConfig("command", "/bin/sleep").SetConfig("args", []string{"600"})
	task.KillTimeout = new(time.Duration)
	job.AddTaskGroup(nomadapi.NewTaskGroup("g", count).AddTask(task))
	_, _, err := nomad.Jobs().Register(job, nil)
	must.NoError(t, err)
	eventually(t, running)

	c := &NodeDrainCommand{enable: true, deadline: time.Minute}
	c.init(cli.NewMockUi(), "node drain")
	c.enable, c.deadline = true, time.Minute
	must.NoError(t, c.drain(t.Context(), nomad, node))
	must.Error(t, running())
	c.enable, c.disable = false, true
	must.NoError(t, c.drain(t.Context(), nomad, node))
	eventually(t, running)
}

func TestNomadNodeOf(t *testing.T) {
	list := api.NodeList{Nodes: []api.NodeInfo{
		{Node: fabric.Node{Zone: "aws1", Name: "w1"}, NomadNode: "nomad-1"}, {Node: fabric.Node{Zone: "aws1", Name: "w2"}},
	}}
	got, err := nomadNodeOf(list, fabric.NodeID{Zone: "aws1", Name: "w1"})
	must.NoError(t, err)
	must.Eq(t, "nomad-1", got)
	_, err = nomadNodeOf(list, fabric.NodeID{Zone: "aws1", Name: "w2"})
	must.ErrorContains(t, err, "run `sif node bind aws1/w2`")
	_, err = nomadNodeOf(list, fabric.NodeID{Zone: "aws1", Name: "w3"})
	must.ErrorContains(t, err, "there is no node")
}
