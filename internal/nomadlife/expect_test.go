// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package nomadlife

import (
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	nomadapi "github.com/hashicorp/nomad/api"
	"github.com/shoenig/test/must"

	"github.com/sif-project/sif/internal/testhost"
)

// answer returns what Nomad says about an allocation whose job is at a version.
func answer(id string, index, version uint64, desired string) *nomadapi.Allocation {
	g := group()
	job := &nomadapi.Job{Version: &version, TaskGroups: []*nomadapi.TaskGroup{g}}
	return &nomadapi.Allocation{
		ID: id, Namespace: "default", JobID: "job", Job: job, TaskGroup: *g.Name,
		ModifyIndex: index, DesiredStatus: desired, ClientStatus: nomadapi.AllocClientStatusPending,
	}
}

func TestExpect(t *testing.T) {
	const run, stop = nomadapi.AllocDesiredStatusRun, nomadapi.AllocDesiredStatusStop
	var told []string
	fresh := func() *Watcher {
		told = nil
		return New(Config{Changed: func(ids []string) { told = append(told, ids...) }, Log: hclog.NewNullLogger()})
	}

	// What was seen is known as soon as it is followed, and nobody is to be asked.
	w := fresh()
	w.Expect("a")
	must.SliceEmpty(t, w.unclear())
	w.Saw(answer("a", 7, 1, run))
	told = nil
	w.Follow([]string{"a"})
	must.Eq(t, Waiting, w.Of("a").State)
	must.Eq(t, []string{"a"}, told)
	must.SliceEmpty(t, w.unclear())
	w.Follow([]string{"a"})
	must.Eq(t, []string{"a"}, told)

	// A change between the answer and the time from which it is followed is not lost.
	w = fresh()
	w.Expect("a")
	w.Saw(answer("a", 7, 1, run))
	w.learn("a", w.followed["a"], view{index: 9, desired: stop, client: "running"})
	w.Follow([]string{"a"})
	must.Eq(t, Stopping, w.Of("a").State)

	// Nor is one before the answer, of which only the tasks are new.
	w = fresh()
	w.Expect("a")
	w.learn("a", w.followed["a"], view{index: 9, desired: stop, client: "running"})
	w.Saw(answer("a", 7, 1, run))
	w.Follow([]string{"a"})
	must.Eq(t, Stopping, w.Of("a").State)
	must.SliceEmpty(t, w.unclear())

	// An older answer does not bring back an older version of the job.
	w.Saw(answer("a", 12, 3, run))
	w.Saw(answer("a", 11, 2, run))
	must.Eq(t, 3, w.followed["a"].key.version)

	// Without an answer, it is asked about; unless it is expected, an answer is not kept.
	w = fresh()
	w.Expect("a")
	w.Saw(answer("b", 7, 1, run))
	w.Follow([]string{"a", "b"})
	must.SliceContainsAll(t, []string{"a", "b"}, w.unclear())
	must.Eq(t, Unknown, w.Of("b").State)

	// What is expected stays while others are followed, until its time is over.
	w = fresh()
	w.Expect("a")
	w.Follow([]string{"b"})
	must.MapContainsKey(t, w.followed, "a")
	w.followed["a"].until = time.Now()
	w.Follow([]string{"b"})
	must.MapNotContainsKey(t, w.followed, "a")

	// Expecting what is followed changes nothing.
	w.Expect("b")
	w.Follow(nil)
	must.MapEmpty(t, w.followed)

	// Whoever asks for many that do not come takes a bounded memory.
	for i := range mostExpected + 10 {
		w.Expect(strings.Repeat("x", i))
	}
	must.MapLen(t, mostExpected, w.followed)
}

// counter counts the questions about one allocation.
type counter struct {
	http.RoundTripper
	n atomic.Int64
}

func (c *counter) RoundTrip(r *http.Request) (*http.Response, error) {
	if strings.HasPrefix(r.URL.Path, "/v1/allocation/") {
		c.n.Add(1)
	}
	return c.RoundTripper.RoundTrip(r)
}

// Nomad is asked once about an allocation that was expected.
func TestNomadIsAskedOnce(t *testing.T) {
	testhost.RequireRoot(t)
	server, client := testhost.Nomad(t, "")
	count := &counter{RoundTripper: http.DefaultTransport}
	counted, err := nomadapi.NewClient(&nomadapi.Config{Address: "http://" + server.Address, HttpClient: &http.Client{Transport: count}})
	must.NoError(t, err)
	w := watch(t, func() *nomadapi.Client { return counted })
	first := run(t, client, jobOf("default", "first", sleeps))
	w.Follow([]string{first}) // so that the namespace is covered
	w.becomes(t, first, Ready)
	must.Eq(t, 1, count.n.Load())

	id := run(t, client, jobOf("default", "second", sleeps))
	w.Expect(id)
	a, _, err := counted.Allocations().Info(id, nil)
	must.NoError(t, err)
	w.Saw(a)
	w.Follow([]string{first, id})
	w.becomes(t, id, Ready)
	_, _, err = client.Jobs().Deregister("second", false, nil)
	must.NoError(t, err)
	w.becomes(t, id, Ended)
	must.Eq(t, 2, count.n.Load())
}
