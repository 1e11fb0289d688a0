// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

//go:build e2e

package e2e

import (
	"fmt"
	"path/filepath"
	"testing"
	"time"

	nomad "github.com/hashicorp/nomad/api"
	"github.com/shoenig/test/must"

	"github.com/sif-project/sif/e2e/lab"
)

// driverKinds are the task drivers. Each of them runs where the lab offers it.
var driverKinds = []kind{
	{name: "driver-exec", quick: true, run: testDriver(func(*kinds) string { return script("t", calls+serves) }, true)},
	{name: "driver-raw-exec", quick: true, run: testDriver(rawTask, true)},
	{name: "driver-docker", quick: true, run: testDriver(func(*kinds) string { return dockerTask() }, true)},
	{name: "driver-java", quick: true, run: testDriver(func(*kinds) string {
		return task("t", "java", fmt.Sprintf(`class = %q
        args  = ["%d"]
        jvm_options = ["-Xmx64m", "-XX:TieredStopAtLevel=1"]`, lab.JavaAnswer, servedPort))
	}, false)},
}

// rawTask is a task of raw_exec. It has the node's files, and so its resolver: no names of the
// fabric.
func rawTask(k *kinds) string {
	text := fmt.Sprintf("nc() { busybox nc \"$@\"; }\nnslookup() { echo %s; }\n", k.helper.v4) + calls +
		fmt.Sprintf("exec %s provider -listen=:%d\n", filepath.Join(k.Bin, "sif-demo"), servedPort)
	return task("t", "raw_exec", fmt.Sprintf(`command = "/bin/busybox"
        args    = ["sh", "-c", %q]`, text))
}

func dockerTask() string {
	return task("t", "docker", fmt.Sprintf(`image = "sif-demo:local"
        entrypoint = ["/bin/sh"]
        args       = ["-c", %q]`, calls+serves))
}

// testDriver runs a job with a task of a driver. calls says that the task makes calls itself;
// otherwise somebody calls it until it answers.
func testDriver(text func(*kinds) string, calls bool) func(*testing.T, *kinds, string) {
	return func(t *testing.T, k *kinds, name string) {
		began := k.submit(t, jobID(name), fmt.Sprintf(`datacenters = ["aws1"]
  %s
  group "g" {
    connectivity {}
    %s
    %s
  }`, at("aws1-w1"), small, text(k)))
		w := k.running(t, jobID(name), name, 1)[0]
		if calls {
			k.first(t, name, began, w, "t")
		}
		for _, c := range k.callers { // the task itself must answer
			eventually(t, 30*time.Second, func() error {
				conn, err := dial(c.netns, addressOf(w, servedPort), time.Second)
				if err == nil {
					conn.Close()
				}
				return err
			})
		}
		if !calls {
			k.took(name, time.Since(began))
		}
		k.connected(t, w)
		k.known(t, w)
		_, _, err := k.nomad.Jobs().Deregister(jobID(name), false, nil)
		must.NoError(t, err)
		k.ended(t, nomad.AllocClientStatusComplete, w)
	}
}
