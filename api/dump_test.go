// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package api

import (
	"encoding/json"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"github.com/sif-project/sif/fabric"
)

// A task without a flow survives encoding.
func TestDumpTaskIsCarried(t *testing.T) {
	data, err := json.Marshal(Task{Node: fabric.NodeID{Zone: "z1", Name: "w1"}, Kind: TaskDump, Timeout: time.Second})
	must.NoError(t, err)
	var back Task
	must.NoError(t, json.Unmarshal(data, &back))
	must.Eq(t, Task{Node: fabric.NodeID{Zone: "z1", Name: "w1"}, Kind: TaskDump, Timeout: time.Second}, back)
}
