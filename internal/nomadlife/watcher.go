// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package nomadlife

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
	nomadapi "github.com/hashicorp/nomad/api"
	"golang.org/x/sync/errgroup"

	"github.com/sif-project/sif/internal/logkey"
	"github.com/sif-project/sif/internal/retry"
)

const (
	// answerTime limits a question to Nomad.
	answerTime = 15 * time.Second
	// silence is how long the event stream may be silent. Nomad sends a sign of life every 30 s.
	silence = 75 * time.Second
	// relist is how often the allocations are listed although the stream is whole: Nomad does not
	// say when a stream began later than it was asked to.
	relist = 5 * time.Minute
	// listWait is how long a list waits for a change where there is no event stream, and listPause
	// is the least time between two.
	listWait, listPause = time.Minute, 200 * time.Millisecond
	// again is how often Nomad is asked about allocations of which it has not said enough.
	again = 2 * time.Second
	// expectTime is how long an allocation is expected, and mostExpected how many are.
	expectTime, mostExpected = time.Minute, 1024
	// atOnce bounds the questions about single allocations that are under way.
	atOnce = 8
	// retryFirst and retryMost bound the pauses after failures; see retry.Backoff.
	retryFirst, retryMost = 100 * time.Millisecond, 5 * time.Second
)

// Config configures a Watcher.
type Config struct {
	Client func() *nomadapi.Client // called for each use, because tokens are renewed
	// Changed is called after the life of allocations changed, or a canary was promoted. It must
	// not block.
	Changed func(ids []string)
	Log     hclog.Logger
}

// Watcher follows allocations. It is safe for concurrent use.
type Watcher struct {
	Config
	news  chan struct{} // there are allocations to ask about
	check chan struct{} // there are checks to read

	mu       sync.Mutex
	followed map[string]*followed // by the allocation's ID; those that are expected too
	expected int                  // how many of them, at most
	shapes   map[shapeKey]*shape
	covered  map[string]bool    // namespaces of which a stream has the events
	restart  context.CancelFunc // ends the stream, to begin one with more namespaces
	trouble  error
}

// followed is an allocation.
type followed struct {
	known  bool // view is set
	view   view
	key    shapeKey
	shape  *shape // nil: not known yet
	checks checks
	life   Life
	canary bool
	until  time.Time // zero: it is followed; else it is expected until then
}

// New returns a watcher that follows nothing. Run asks Nomad.
func New(c Config) *Watcher {
	return &Watcher{
		Config: c, news: make(chan struct{}, 1), check: make(chan struct{}, 1),
		followed: map[string]*followed{}, shapes: map[shapeKey]*shape{}, covered: map[string]bool{},
	}
}

func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

func newFollowed() *followed {
	return &followed{life: Life{Unknown, "is not known yet: Nomad was not asked"}}
}

// Expect notices changes of an allocation that will probably be followed within a minute. Whoever
// asks Nomad about it meanwhile can pass on the answer to Saw, and Nomad is not asked once more.
func (w *Watcher) Expect(id string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if f := w.followed[id]; f != nil && f.until.IsZero() {
		return
	} else if f == nil {
		if w.expected >= mostExpected {
			return // it is asked about when it is followed
		}
		w.expected++
		w.followed[id] = newFollowed()
	}
	w.followed[id].until = time.Now().Add(expectTime)
}

// Saw takes Nomad's answer about an allocation that is expected or followed. Others are ignored.
// The answer must be to a question that was asked after Expect.
func (w *Watcher) Saw(a *nomadapi.Allocation) {
	if group := a.GetTaskGroup(); a.Job != nil && a.Job.Version != nil && group != nil {
		w.take(a, group)
	}
}

// Follow sets the allocations to follow. It does not block.
func (w *Watcher) Follow(ids []string) {
	w.tell(w.follows(ids))
}

// follows returns those that are new, and of which enough is known already.
func (w *Watcher) follows(ids []string) (known []string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	wanted := make(map[string]bool, len(ids))
	for _, id := range ids {
		wanted[id] = true
		f := w.followed[id]
		if f == nil {
			f = newFollowed()
			w.followed[id] = f
		} else if f.until.IsZero() {
			continue
		}
		f.until = time.Time{}
		if f.known && f.shape != nil {
			known = append(known, id)
		} else {
			signal(w.news)
		}
	}
	w.expected = 0
	now := time.Now()
	maps.DeleteFunc(w.followed, func(id string, f *followed) bool {
		if !wanted[id] && now.Before(f.until) {
			w.expected++
			return false
		}
		return !wanted[id]
	})
	used := map[shapeKey]bool{}
	for _, f := range w.followed {
		used[f.key] = true
	}
	maps.DeleteFunc(w.shapes, func(k shapeKey, _ *shape) bool { return !used[k] })
	return known
}

// Of returns the life of an allocation that is followed.
func (w *Watcher) Of(id string) Life {
	w.mu.Lock()
	defer w.mu.Unlock()
	if f := w.followed[id]; f != nil {
		return f.life
	}
	return Life{Unknown, "is not followed"}
}

// Canary reports whether an allocation that is followed is a canary of a deployment that was not
// promoted yet, as far as its life is known.
func (w *Watcher) Canary(id string) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	f := w.followed[id]
	return f != nil && f.canary
}

// Trouble returns why Nomad cannot be followed, or nil. What was known before then stays.
func (w *Watcher) Trouble() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.trouble
}

// Run follows Nomad until ctx ends.
func (w *Watcher) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return w.askSingly(ctx) })
	g.Go(func() error { return w.readChecks(ctx) })
	g.Go(func() error {
		pauses := retry.Backoff(retryFirst, retryMost)
		for ctx.Err() == nil {
			began := time.Now()
			err := w.follow(ctx)
			if ctx.Err() != nil {
				return nil
			}
			w.mu.Lock()
			fresh := err != nil && w.trouble == nil
			w.trouble = err
			w.mu.Unlock()
			if fresh {
				w.Log.Warn("cannot follow Nomad's allocations; what is known of them stays", logkey.Error, err)
			}
			if err == nil || time.Since(began) > retryMost {
				pauses.Reset()
			}
			if err != nil {
				retry.Sleep(ctx, pauses.NextBackOff())
			}
		}
		return nil
	})
	return g.Wait()
}

// follow lists the allocations and then takes their changes from Nomad's event stream, until it
// ends or it is time to list again. Where Nomad has no event stream, it waits for other lists.
func (w *Watcher) follow(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	w.mu.Lock()
	w.restart = cancel
	for _, f := range w.followed {
		w.covered[f.key.namespace] = true
	}
	w.mu.Unlock()
	index, err := w.list(ctx, 0)
	if err != nil {
		return err
	}
	w.well()
	end := time.Now().Add(relist)
	err = w.stream(ctx, index, end)
	switch {
	case ctx.Err() != nil: // to begin again, with more namespaces
		return nil
	case isNoBroker(err):
		for ctx.Err() == nil && time.Now().Before(end) {
			if index, err = w.list(ctx, index); err != nil {
				break
			}
			w.well()
			retry.Sleep(ctx, listPause)
		}
		if ctx.Err() != nil {
			return nil
		}
	}
	return err
}

func (w *Watcher) well() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.trouble = nil
}

// isNoBroker reports whether Nomad's servers run without the source of the event stream.
func isNoBroker(err error) bool {
	return err != nil && strings.Contains(err.Error(), "EventBroker not configured")
}

// list reads all allocations, after a change since index unless that is 0.
func (w *Watcher) list(ctx context.Context, index uint64) (uint64, error) {
	wait := answerTime
	q := &nomadapi.QueryOptions{Namespace: nomadapi.AllNamespacesNamespace, Params: map[string]string{"task_states": "true"}}
	if index > 0 {
		q.WaitIndex, q.WaitTime = index, listWait
		wait += listWait + listWait/16
	}
	ctx, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	stubs, meta, err := w.Client().Allocations().List(q.WithContext(ctx))
	if err != nil {
		return 0, fmt.Errorf("list Nomad's allocations: %w", err)
	}
	var changed []string
	w.mu.Lock()
	for _, s := range stubs {
		f := w.followed[s.ID]
		if f == nil {
			continue
		}
		f.key = shapeKey{s.Namespace, s.JobID, s.JobVersion, s.TaskGroup}
		f.shape = w.shapes[f.key]
		// A list does not say that a node is being drained. Nomad never takes that back.
		v := view{index: s.ModifyIndex, desired: s.DesiredStatus, client: s.ClientStatus, migrate: f.view.migrate, canary: isCanary(s.DeploymentStatus), tasks: tasksOf(s.TaskStates)}
		if w.learn(s.ID, f, v) {
			changed = append(changed, s.ID)
		}
		if f.shape == nil {
			signal(w.news)
		}
	}
	w.mu.Unlock()
	w.tell(changed)
	if meta.LastIndex < index { // Nomad was restored from a snapshot
		return 1, nil
	}
	return max(meta.LastIndex, 1), nil
}

// learn takes a newer view of an allocation, and reports whether its life changed. The caller holds
// w.mu.
func (w *Watcher) learn(id string, f *followed, v view) (changed bool) {
	if f.known && v.index < f.view.index {
		return false
	}
	f.known, f.view = true, v
	return w.judge(id, f)
}

// judge works out the life of an allocation, and reports whether it changed, or whether it is a
// canary. The caller holds w.mu.
func (w *Watcher) judge(id string, f *followed) (changed bool) {
	life := assess(f.view, f.shape)
	if life.State != Ready {
		f.checks = checks{} // results are of tasks that ran
	} else if f.shape.checks > 0 {
		if life = f.checks.judge(f.shape.checks); f.checks.next.IsZero() {
			signal(w.check)
		}
	}
	before, promoted := f.life, f.canary != f.view.canary
	f.life, f.canary = life, f.view.canary
	if before != life {
		w.Log.Debug("allocation", logkey.Endpoint, id, logkey.Life, strings.TrimSpace(string(life.State)+" "+life.Why))
	}
	return before != life || promoted
}

func (w *Watcher) tell(changed []string) {
	if len(changed) > 0 {
		w.Changed(changed)
	}
}

// frame is a line of the event stream. An empty one is a sign of life.
type frame struct {
	Index  uint64
	Events []struct {
		Payload struct{ Allocation *nomadapi.Allocation }
	}
}

// stream takes the changes after index from Nomad's event stream, until it is cut, it is silent for
// too long, or the time is over.
func (w *Watcher) stream(ctx context.Context, index uint64, end time.Time) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	quiet := time.AfterFunc(silence, func() { cancel(errors.New("it was silent for too long")) })
	defer quiet.Stop()
	q := &nomadapi.QueryOptions{Namespace: nomadapi.AllNamespacesNamespace, Params: map[string]string{
		"topic": string(nomadapi.TopicAllocation), "index": strconv.FormatUint(index, 10),
	}}
	body, err := w.Client().Raw().Response("/v1/event/stream", q.WithContext(ctx))
	if err != nil {
		return fmt.Errorf("read Nomad's event stream: %w", errors.Join(err, context.Cause(ctx)))
	}
	defer body.Close()
	for d := json.NewDecoder(body); time.Now().Before(end); {
		var f frame
		if err := d.Decode(&f); err != nil {
			if errors.Is(err, io.EOF) {
				err = errors.New("it was ended by Nomad")
			}
			return fmt.Errorf("read Nomad's event stream: %w", errors.Join(err, context.Cause(ctx)))
		}
		quiet.Reset(silence)
		var changed []string
		w.mu.Lock()
		for _, e := range f.Events {
			a := e.Payload.Allocation
			if a == nil || w.followed[a.ID] == nil {
				continue
			}
			if w.learn(a.ID, w.followed[a.ID], viewOf(a)) {
				changed = append(changed, a.ID)
			}
		}
		w.mu.Unlock()
		w.tell(changed)
	}
	return nil
}

func viewOf(a *nomadapi.Allocation) view {
	return view{
		index: a.ModifyIndex, desired: a.DesiredStatus, client: a.ClientStatus,
		migrate: a.DesiredTransition.ShouldMigrate(), canary: isCanary(a.DeploymentStatus), tasks: tasksOf(a.TaskStates),
	}
}

func isCanary(s *nomadapi.AllocDeploymentStatus) bool { return s != nil && s.Canary }

// askSingly asks Nomad about allocations of which it has not said enough: new ones, and one of each
// version of a group whose tasks are not known.
func (w *Watcher) askSingly(ctx context.Context) error {
	tick := time.NewTicker(again)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-w.news:
		case <-tick.C:
		}
		var g errgroup.Group
		g.SetLimit(atOnce)
		for _, id := range w.unclear() {
			g.Go(func() error { return w.ask(ctx, id) })
		}
		if err := g.Wait(); err != nil && ctx.Err() == nil {
			w.Log.Debug("cannot ask Nomad about allocations, retrying", logkey.Error, err)
		}
	}
}

// unclear returns the allocations to ask about.
func (w *Watcher) unclear() (ids []string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	asked := map[shapeKey]bool{}
	for id, f := range w.followed {
		if !f.until.IsZero() || f.known && (f.shape != nil || asked[f.key]) {
			continue
		}
		if f.known {
			asked[f.key] = true
		}
		ids = append(ids, id)
	}
	return ids
}

// ask asks Nomad about one allocation and its job.
func (w *Watcher) ask(ctx context.Context, id string) error {
	ctx, cancel := context.WithTimeout(ctx, answerTime)
	defer cancel()
	a, _, err := w.Client().Allocations().Info(id, (&nomadapi.QueryOptions{}).WithContext(ctx))
	if isNotFound(err) || err == nil && a.ID != id {
		w.mu.Lock()
		f, changed := w.followed[id], false
		if f != nil && !f.known {
			life := Life{Unknown, "is not known to Nomad"}
			changed, f.life = f.life != life, life
		}
		w.mu.Unlock()
		if changed {
			w.tell([]string{id})
		}
		return nil
	}
	if err != nil {
		return fmt.Errorf("ask Nomad for allocation %s: %w", id, err)
	}
	group := a.GetTaskGroup()
	if a.Job == nil || a.Job.Version == nil || group == nil {
		return fmt.Errorf("ask Nomad for allocation %s: the answer does not contain its job", id)
	}
	w.take(a, group)
	return nil
}

// take takes an answer about one allocation, which contains its job.
func (w *Watcher) take(a *nomadapi.Allocation, group *nomadapi.TaskGroup) {
	var changed []string
	w.mu.Lock()
	defer func() { w.tell(changed) }()
	defer w.mu.Unlock()
	f := w.followed[a.ID]
	if f == nil || f.known && f.shape != nil && a.ModifyIndex < f.view.index {
		return
	}
	f.key = shapeKey{a.Namespace, a.JobID, *a.Job.Version, a.TaskGroup}
	f.shape = shapeOf(a.Job, group)
	w.shapes[f.key] = f.shape
	if w.learn(a.ID, f, viewOf(a)) || w.judge(a.ID, f) {
		changed = append(changed, a.ID)
	}
	for other, o := range w.followed {
		if o.shape == nil && o.known && o.key == f.key {
			if o.shape = f.shape; w.judge(other, o) {
				changed = append(changed, other)
			}
		}
	}
	// A stream has the events of the namespaces that existed when it began.
	if !w.covered[a.Namespace] && w.restart != nil {
		w.covered[a.Namespace] = true
		w.restart()
	}
}

func isNotFound(err error) bool {
	var resp nomadapi.UnexpectedResponseError
	return errors.As(err, &resp) && resp.StatusCode() == http.StatusNotFound
}
