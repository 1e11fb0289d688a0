// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package controller

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	consulapi "github.com/hashicorp/consul/api"
	"github.com/hashicorp/go-hclog"

	"github.com/sif-project/sif/api"
	"github.com/sif-project/sif/internal/atomicfile"
	"github.com/sif-project/sif/internal/kvkey"
	"github.com/sif-project/sif/internal/logkey"
	"github.com/sif-project/sif/internal/retry"
	"github.com/sif-project/sif/internal/trust/identity"
)

const (
	// peersInterval is how often a controller asks the others how they are.
	peersInterval = time.Second
	// peerTimeout bounds how long one may take to answer.
	peerTimeout = 5 * time.Second
	// viewInterval is how often a controller that stands by asks the leader what the nodes report.
	viewInterval = 2 * time.Second
	// refusals is how many attempts to connect to the leader its machine must refuse, one after the
	// other, before its lock is taken away. evictionPause is the least time between two such.
	refusals      = 2
	evictionPause = 5 * time.Minute
	// A controller that was stopped is forgotten after stoppedStays, one that is away after
	// awayStays.
	stoppedStays = time.Hour
	awayStays    = 72 * time.Hour
	// maxPeers bounds how many others are asked. Whoever writes Consul can invent some.
	maxPeers = 15
)

// controllerRecord is the value of a kvkey.Controller: where a controller answers. It is not
// signed: nobody is told of an address at which no controller has answered.
type controllerRecord struct {
	Address string    `json:"address"`
	Version string    `json:"version"`
	Stopped time.Time `json:"stopped,omitzero"` // when it was stopped by its operator
}

// peer is another controller.
type peer struct {
	record controllerRecord
	client *api.Client
	status api.ControllerStatus // as it last said
	seen   time.Time            // when it last answered; zero: never
	why    string               // why it does not answer; empty: it does
	since  time.Time            // since when it does not
	busy   bool                 // a question is not answered yet

	refused int // attempts to connect that its machine refused since the last answer
}

// peers knows the other controllers of the fabric: by the records in Consul, and by asking them.
type peers struct {
	c    *Controller
	id   string // of this controller: it stays the same as long as its data directory
	log  hclog.Logger
	ask  func(address string) (*api.Client, error)
	mu   sync.Mutex
	by   map[string]*peer // by ID
	view time.Time        // when the leader last said what the nodes report
	took time.Time        // when this controller last took a lock away
}

func newPeers(c *Controller) (*peers, error) {
	id, err := ownID(filepath.Join(c.cfg.DataDir, "id"))
	if err != nil {
		return nil, err
	}
	conf := c.cfg.Identity.ClientTLS(identity.Subject{Controller: true})
	return &peers{c: c, id: id, log: c.cfg.Log.Named("peers"), by: map[string]*peer{}, ask: func(address string) (*api.Client, error) {
		return api.NewClient(api.Config{Address: address, TLS: conf, Alone: true})
	}}, nil
}

// ownID returns the ID of the controller with a data directory. It is made once.
func ownID(file string) (string, error) {
	if text, err := os.ReadFile(file); err == nil {
		if id := strings.TrimSpace(string(text)); kvkey.CheckController(id) == nil {
			return id, nil
		}
	}
	b := make([]byte, 8)
	rand.Read(b) // never returns an error
	id := hex.EncodeToString(b)
	if err := atomicfile.Write(file, []byte(id+"\n"), 0o600); err != nil {
		return "", fmt.Errorf("store the ID of the controller: %w", err)
	}
	return id, nil
}

// run announces this controller and asks the others until ctx ends.
func (p *peers) run(ctx context.Context) error {
	var asking sync.WaitGroup
	defer asking.Wait()
	defer p.farewell()
	viewed := time.Time{}
	for ctx.Err() == nil {
		if err := p.look(ctx); err != nil && ctx.Err() == nil {
			p.log.Warn("cannot read the list of controllers, retrying", logkey.Error, err)
		}
		p.mu.Lock()
		for _, other := range p.by {
			if !other.busy {
				other.busy = true
				asking.Go(func() { p.question(ctx, other) })
			}
		}
		p.mu.Unlock()
		if leader := p.leader(); leader != nil && !p.c.leads() && !time.Now().Before(viewed) {
			began := time.Now()
			p.follow(ctx, leader)
			viewed = time.Now().Add(max(viewInterval, 10*time.Since(began)))
		}
		retry.Sleep(ctx, peersInterval)
	}
	return nil
}

// look announces this controller if its record is not there, and reads those of the others.
func (p *peers) look(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, peerTimeout)
	defer cancel()
	list, _, err := p.c.cfg.Consul().KV().List(kvkey.Controllers, (&consulapi.QueryOptions{}).WithContext(ctx))
	if err != nil {
		return err
	}
	found := map[string]controllerRecord{}
	for _, kv := range list {
		id, err := kvkey.ParseController(kv.Key)
		var r controllerRecord
		if err == nil && json.Unmarshal(kv.Value, &r) == nil && r.Address != "" {
			found[string(id)] = r
		}
	}
	if own := (controllerRecord{Address: p.c.cfg.Address, Version: p.c.cfg.Version}); found[p.id] != own {
		if err := p.announce(ctx, own); err != nil {
			return err
		}
	}
	delete(found, p.id)
	p.mu.Lock()
	defer p.mu.Unlock()
	for id, old := range p.by {
		if r, there := found[id]; !there || r.Address != old.record.Address {
			old.client.Close()
			delete(p.by, id)
		}
	}
	for _, id := range slices.Sorted(maps.Keys(found)) {
		if known := p.by[id]; known != nil {
			known.record = found[id]
			continue
		}
		if len(p.by) >= maxPeers {
			break
		}
		client, err := p.ask(found[id].Address)
		if err != nil {
			p.log.Warn("record of a controller not used", logkey.Key, kvkey.Controllers+id, logkey.Error, err)
			continue
		}
		p.by[id] = &peer{record: found[id], client: client, since: time.Now()}
	}
	return nil
}

// announce writes the record of this controller. Nobody else writes it, so that it is not fenced.
func (p *peers) announce(ctx context.Context, r controllerRecord) error {
	value, err := json.Marshal(r)
	if err != nil {
		return fmt.Errorf("encode the record of this controller: %w", err)
	}
	_, err = p.c.cfg.Consul().KV().Put(&consulapi.KVPair{Key: kvkey.Controller(p.id).String(), Value: value}, (&consulapi.WriteOptions{}).WithContext(ctx))
	return err
}

// farewell tells the others that this controller was stopped.
func (p *peers) farewell() {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	_ = p.announce(ctx, controllerRecord{Address: p.c.cfg.Address, Version: p.c.cfg.Version, Stopped: time.Now().UTC()}) // else it is away
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, other := range p.by {
		other.client.Close()
	}
}

// question asks one other controller how it is.
func (p *peers) question(ctx context.Context, other *peer) {
	asked, cancel := context.WithTimeout(ctx, peerTimeout)
	defer cancel()
	status, err := other.client.Controller(asked)
	now := time.Now()
	p.mu.Lock()
	other.busy = false
	switch {
	case ctx.Err() != nil:
		p.mu.Unlock()
		return
	case err == nil:
		other.status, other.seen, other.why, other.refused = status, now, "", 0
	default:
		if other.why == "" {
			other.since = now
		}
		other.why = err.Error()
		if errors.Is(err, syscall.ECONNREFUSED) {
			other.refused++
		}
	}
	dead := other.refused >= refusals && now.Sub(p.took) > evictionPause
	record, since := other.record, other.since
	p.mu.Unlock()
	if dead {
		p.evict(ctx, record.Address)
	}
	if err != nil {
		p.forget(ctx, other, record, since)
	}
}

// evict takes the lock from a leader whose machine says that nothing listens at its address any
// more: its process has ended. Otherwise its session would expire, which takes up to 20 s. Were it
// wrong, the fence would keep that leader from writing.
func (p *peers) evict(ctx context.Context, address string) {
	kv, _, err := p.c.cfg.Consul().KV().Get(kvkey.Leader, (&consulapi.QueryOptions{RequireConsistent: true}).WithContext(ctx))
	if err != nil || kv == nil || kv.Session == "" || p.c.leads() {
		return
	}
	var r leaderRecord
	if json.Unmarshal(kv.Value, &r) != nil || r.Address != address {
		return
	}
	p.mu.Lock()
	p.took = time.Now()
	p.mu.Unlock()
	if _, err := p.c.cfg.Consul().Session().Destroy(kv.Session, (&consulapi.WriteOptions{}).WithContext(ctx)); err != nil {
		p.log.Warn("cannot end the session of a leader that does not run any more", logkey.Address, address, logkey.Error, err)
		return
	}
	p.log.Warn("the leader does not run any more: its session is ended", logkey.Address, address)
}

// forget deletes the record of a controller that has been away for too long, if this one leads.
func (p *peers) forget(ctx context.Context, other *peer, r controllerRecord, since time.Time) {
	gone := time.Since(since) > awayStays || !r.Stopped.IsZero() && time.Since(r.Stopped) > stoppedStays && time.Since(since) > peerTimeout
	if !gone || !p.c.leads() {
		return
	}
	p.mu.Lock()
	var key string
	for id, o := range p.by {
		if o == other {
			key = kvkey.Controller(id).String()
		}
	}
	p.mu.Unlock()
	if key == "" {
		return
	}
	if err := p.c.cfg.fence.removeAny(ctx, p.c.cfg.Consul(), key); err != nil {
		p.log.Warn("cannot forget a controller that is away, retrying", logkey.Address, r.Address, logkey.Error, err)
		return
	}
	p.log.Info("controller forgotten", logkey.Address, r.Address)
}

// leader returns the client of the leader, or nil.
func (p *peers) leader() *api.Client {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, other := range p.by {
		if other.why == "" && other.status.Leader {
			return other.client
		}
	}
	return nil
}

// follow takes over what the nodes have reported to the leader.
func (p *peers) follow(ctx context.Context, leader *api.Client) {
	ctx, cancel := context.WithTimeout(ctx, 2*peerTimeout)
	defer cancel()
	began := time.Now()
	view, err := leader.ControllerView(ctx)
	if err != nil {
		if ctx.Err() == nil && !api.IsCode(err, api.CodeNotLeader) {
			p.log.Debug("cannot read the reports of the nodes from the leader", logkey.Error, err)
		}
		return
	}
	p.c.standby.mu.Lock()
	defer p.c.standby.mu.Unlock()
	if p.c.standby.suspended { // the nodes report to this one now
		return
	}
	p.c.reports.replace(view.Nodes)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.view = began
}

// viewed returns when the leader was last asked what the nodes report; zero: never.
func (p *peers) viewed() time.Time {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.view
}

// addresses returns the addresses of the controllers that answer, this one first.
func (p *peers) addresses() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	list := []string{}
	for _, other := range p.by {
		if other.why == "" && !other.seen.IsZero() {
			list = append(list, other.record.Address)
		}
	}
	slices.Sort(list)
	return slices.Insert(list, 0, p.c.cfg.Address)
}

// addressOf returns where a controller answers, or "".
func (p *peers) addressOf(id string) string {
	p.mu.Lock()
	defer p.mu.Unlock()
	if id == p.id {
		return p.c.cfg.Address
	}
	if other := p.by[id]; other != nil {
		return other.record.Address
	}
	return ""
}

// states returns how the other controllers are, ordered by address.
func (p *peers) states() []api.ControllerStatus {
	p.mu.Lock()
	defer p.mu.Unlock()
	var list []api.ControllerStatus
	for _, other := range p.by {
		s := other.status
		s.Address = other.record.Address
		if s.Version == "" {
			s.Version = other.record.Version
		}
		switch {
		case other.why == "" && other.seen.IsZero():
			continue // it was not asked yet
		case other.why != "" && !other.record.Stopped.IsZero():
			s.Leader, s.Degraded, s.Away, s.Since = false, nil, "it was stopped", other.record.Stopped
		case other.why != "":
			s.Leader, s.Degraded, s.Away, s.Since = false, nil, other.why, other.since.UTC()
		}
		list = append(list, s)
	}
	slices.SortFunc(list, func(a, b api.ControllerStatus) int { return strings.Compare(a.Address, b.Address) })
	return list
}
