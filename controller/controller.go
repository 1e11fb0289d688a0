// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package controller

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync/atomic"
	"time"

	consulapi "github.com/hashicorp/consul/api"
	"github.com/hashicorp/go-hclog"
	vaultapi "github.com/hashicorp/vault/api"
	"golang.org/x/sync/errgroup"

	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/internal/clock"
	"github.com/sif-project/sif/internal/dirlock"
	"github.com/sif-project/sif/internal/logkey"
	"github.com/sif-project/sif/internal/outage"
	"github.com/sif-project/sif/internal/retry"
	"github.com/sif-project/sif/internal/supervisor"
	"github.com/sif-project/sif/internal/trust/identity"
	"github.com/sif-project/sif/internal/trust/revocation"
)

// AdmissionLife is how long an admission is valid unless it is renewed.
const AdmissionLife = 24 * time.Hour

// Signer signs statements with the fabric's key.
type Signer interface {
	Sign(ctx context.Context, kind fabric.Kind, payload []byte) (fabric.Signed, error)
}

// Authority issues certificates (DER, leaf first) with the SPIFFE ID of a service, for the key of a
// signing request (DER).
type Authority interface {
	SignWorkload(ctx context.Context, csr []byte, service fabric.Ref) ([][]byte, error)
	// RevokeCertificate puts a certificate on the authority's own list: by the certificate (DER),
	// if it is there, else by its serial number.
	RevokeCertificate(ctx context.Context, serial string, der []byte) error
}

// Identity contains the controller's certificate, and the keys and roots that it trusts.
type Identity interface {
	Keys() fabric.KeySet
	Signing() int // the version of the fabric's key that signs; 0: not known
	Roots() *x509.CertPool
	ServerTLS(clientAuth tls.ClientAuthType) *tls.Config
	ClientTLS(server identity.Subject) *tls.Config
	Peer(state tls.ConnectionState) (identity.Subject, *x509.Certificate, error)
	Certificate() *tls.Certificate
	Authorities() []string
	Expiry() time.Time
	// Retry has what failed for want of Vault tried again at once.
	Retry()
	Degraded() []string
}

// Config configures a Controller.
type Config struct {
	Fabric        string
	TrustDomain   string
	DataDir       string // must survive reboots
	Address       string // host:port at which clients reach this controller
	Version       string
	Pool4, Pool6  netip.Prefix
	NodePrefix    int           // bits of the IPv4 pools of workload nodes; zero: fabric.DefaultNodePrefix
	AdmissionLife time.Duration // zero: AdmissionLife
	PolicyPrefix  string        // of the names of policies that give rights; empty: wellknown.Prefix
	History       int           // how many revisions the history keeps; zero: DefaultHistory
	Audit         Rotation      // of the audit log

	Consul    func() *consulapi.Client // called for each use, because tokens are reloaded
	Vault     func() *vaultapi.Client  // for questions about operators' tokens, with these tokens
	Identity  Identity
	Signer    Signer
	Authority Authority
	SVIDs     SVIDs
	Scheduler Scheduler
	Outage    *outage.Outage // nil: none is measured
	Log       hclog.Logger

	Supervisor *supervisor.Supervisor // may be nil

	fence *fence // of all writes; set by New
}

// Controller is one controller process.
type Controller struct {
	cfg       Config
	log       hclog.Logger
	lock      *os.File // on the data directory
	audit     *audit
	shipper   *shipper
	disk      *disk
	policy    *policy
	nodes     *registry
	bound     *bindings
	table     *table
	reports   *reports
	agreement *agreement
	tasks     *taskBoard
	metrics   *metrics
	limits    *limits
	admitter  *admitter
	removal   *removal
	resigner  *resigner
	tokens    *tokens
	sessions  sessions
	lives     *lives
	standby   *standby
	peers     *peers
	away      atomic.Pointer[string]          // who does not answer, for people
	since     atomic.Int64                    // when it began to lead or to stand by, as UnixNano
	term      atomic.Pointer[context.Context] // ends when this controller does not lead any more; nil while it does not
	answering atomic.Int64                    // calls that only the leader answers and that are not answered yet
}

// New returns a controller. It makes no network calls.
func New(cfg Config) (*Controller, error) {
	cfg.fence = &fence{}
	if cfg.AdmissionLife == 0 {
		cfg.AdmissionLife = AdmissionLife
	}
	if cfg.NodePrefix == 0 {
		cfg.NodePrefix = fabric.DefaultNodePrefix
	}
	if err := checkPools(cfg.Pool4, cfg.Pool6, cfg.NodePrefix); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(cfg.DataDir, 0o700); err != nil {
		return nil, fmt.Errorf("create the data directory: %w", err)
	}
	// Two controllers with one data directory would replace each other's stored revision.
	lock, err := dirlock.Take(cfg.DataDir, "lock")
	if errors.Is(err, dirlock.ErrLocked) {
		return nil, fmt.Errorf("data directory %s is in use by another controller; stop it, or configure another data_dir", cfg.DataDir)
	}
	if err != nil {
		return nil, err
	}
	c := &Controller{cfg: cfg, log: cfg.Log, lock: lock}
	c.since.Store(time.Now().UnixNano())
	if c.audit, err = openAudit(cfg.DataDir, cfg.Audit, cfg.Log.Named("audit")); err != nil {
		lock.Close()
		return nil, err
	}
	removed, err := revocation.New(cfg.Consul, filepath.Join(cfg.DataDir, "revocation"), cfg.Fabric, cfg.Identity.Keys, cfg.Log.Named("revocation"))
	if err != nil {
		lock.Close()
		c.audit.Close()
		return nil, err
	}
	c.disk = &disk{dir: cfg.DataDir}
	c.policy = newPolicy(cfg)
	c.nodes = newRegistry(cfg, removed.List)
	c.bound = newBindings(cfg, removed.List)
	c.table = newTable(cfg, c.nodes.get)
	c.reports = newReports()
	c.tasks = newTaskBoard()
	c.agreement = newAgreement(own{c})
	c.metrics = newMetrics(c)
	c.limits = newLimits(c.metrics.refused)
	c.lives = newLives(cfg, c.table)
	c.tokens = &tokens{began: time.Now(), until: map[string]time.Time{}}
	c.admitter = &admitter{cfg: cfg, policy: c.policy, nodes: c.nodes, table: c.table, bound: c.bound, tokens: c.tokens}
	c.removal = newRemoval(c, removed)
	c.resigner = &resigner{c: c}
	c.standby = &standby{c: c}
	if c.peers, err = newPeers(c); err != nil {
		lock.Close()
		c.audit.Close()
		return nil, err
	}
	c.shipper = newShipper(cfg, c.peers.id, c.audit)
	cfg.fence.note = c.shipper.note
	return c, nil
}

// handOver is how long a leader that stops waits for the calls that only it can answer. What it
// does not write before it gives up the lock, it does not write at all, and its caller asks the
// next leader.
const handOver = time.Second

// Run serves the API on l and campaigns for leadership until ctx ends. Then it gives up leadership
// at once, so that another controller leads while it answers the last calls, and returns nil.
func (c *Controller) Run(ctx context.Context, l net.Listener) error {
	defer c.lock.Close()
	defer c.audit.Close()
	// Calls in progress may continue after ctx ends, for as long as Shutdown waits. Long polls end
	// with ctx.
	server := &http.Server{
		Handler:           c.handler(ctx),
		TLSConfig:         c.cfg.Identity.ServerTLS(tls.VerifyClientCertIfGiven),
		ReadHeaderTimeout: 10 * time.Second,
		IdleTimeout:       3 * time.Minute,
		MaxHeaderBytes:    maxHeader,
		HTTP2:             &http.HTTP2Config{MaxConcurrentStreams: maxStreams},
		ConnState:         c.sessions.track,
		ErrorLog:          c.log.Named("http").StandardLogger(&hclog.StandardLoggerOptions{ForceLevel: hclog.Debug}),
	}
	c.log.Info("controller listening", logkey.Address, l.Addr().String())
	c.cfg.Supervisor.Ready()
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return c.removal.list.Run(ctx) })
	g.Go(func() error {
		if err := server.ServeTLS(c.limits.listener(l), "", ""); !errors.Is(err, http.ErrServerClosed) {
			return fmt.Errorf("serve the API: %w", err)
		}
		return nil
	})
	g.Go(func() error { return c.closeRevoked(ctx) })
	g.Go(func() error { return c.removal.follow(ctx, c.leads) })
	g.Go(func() error { return c.audit.summarise(ctx) })
	g.Go(func() error { return c.keepAlive(ctx) })
	g.Go(func() error { return c.keepMeasuring(ctx) })
	g.Go(func() error { return c.policy.follow(ctx) })
	g.Go(func() error { return c.policy.keepAgain(ctx) })
	g.Go(func() error { return c.standby.run(ctx) })
	g.Go(func() error { return c.peers.run(ctx) })
	g.Go(func() error { return c.shipper.run(ctx) })
	g.Go(func() error { return c.resigner.watch(ctx) })
	g.Go(func() error {
		campaign, stop := context.WithCancel(context.WithoutCancel(ctx))
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			newElection(c.cfg, c.disk, c.lead).run(campaign)
		}()
		<-ctx.Done()
		c.term.Store(nil) // what comes now is not begun
		for deadline := time.Now().Add(handOver); c.answering.Load() > 0 && time.Now().Before(deadline); {
			time.Sleep(10 * time.Millisecond)
		}
		stop()
		<-ended
		grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
		defer cancel()
		if err := server.Shutdown(grace); err != nil {
			server.Close()
		}
		return nil
	})
	return g.Wait()
}

// leads reports whether this controller has the lock and the state of the leader.
func (c *Controller) leads() bool { return c.term.Load() != nil }

// lead loads the state and accepts calls until ctx ends, which it does with the leadership.
func (c *Controller) lead(ctx context.Context) error {
	defer c.standby.suspend()()
	if err := c.policy.load(ctx); err != nil {
		return err
	}
	if err := c.nodes.load(ctx); err != nil {
		return err
	}
	if err := c.bound.load(ctx); err != nil {
		return err
	}
	if err := c.table.load(ctx); err != nil {
		return err
	}
	if err := c.removal.reconcile(ctx); err != nil {
		return err
	}
	g, ctx := errgroup.WithContext(ctx)
	c.since.Store(time.Now().UnixNano())
	c.term.Store(&ctx)
	defer func() {
		c.term.Store(nil)
		c.since.Store(time.Now().UnixNano())
	}()
	if err := c.audit.write(auditEntry{Actor: actorSelf, Remote: c.cfg.Address, Action: actionLead, Target: c.peers.id, Revision: c.policy.pointer().Sequence}); err != nil {
		c.disk.failed(err)
	}
	c.log.Info("controller became the leader", logkey.Revision, c.policy.pointer().Sequence)
	g.Go(func() error { return c.agreement.run(ctx) })
	g.Go(func() error { return c.policy.collectLoop(ctx) })
	g.Go(func() error { return c.table.sweep(ctx) })
	g.Go(func() error { return c.removal.keep(ctx) })
	g.Go(func() error { return c.bound.keep(ctx) })
	g.Go(func() error { return c.lives.run(ctx) })
	g.Go(func() error { return c.resigner.run(ctx) })
	return g.Wait()
}

// aliveInterval is how often the supervisor hears of the controller.
const aliveInterval = 5 * time.Second

// keepAlive tells the supervisor how the controller is. It asks every part: one that stands still
// with its lock held ends that.
func (c *Controller) keepAlive(ctx context.Context) error {
	for {
		self := c.self()
		doing := "standing by"
		if self.Leader {
			doing = fmt.Sprintf("leading, revision %d", c.policy.pointer().Sequence)
		}
		c.cfg.Supervisor.Alive(doing, self.Degraded)
		if !retry.Sleep(ctx, aliveInterval) {
			return nil
		}
	}
}

// degraded returns what is wrong with the controller, for people.
func (c *Controller) degraded() []string {
	list := slices.Concat(clock.Degraded(), c.cfg.Identity.Degraded())
	if err := c.disk.trouble(); err != nil {
		list = append(list, fmt.Sprintf("%v: nothing can be changed until there is room, or another controller leads", err))
	}
	list = append(list, c.standby.degraded()...)
	list = append(list, c.shipper.degraded()...)
	list = append(list, c.policy.degraded()...)
	list = append(list, c.nodes.degraded()...)
	list = append(list, c.bound.degraded()...)
	list = append(list, c.table.degraded()...)
	list = append(list, c.removal.degraded()...)
	list = append(list, c.resigner.degraded()...)
	list = append(list, c.lives.degraded()...)
	// A controller that lost its data directory cannot see that the pointer in Consul was rolled
	// back, but nodes can. It is only reported, because a node could lie.
	known := c.policy.pointer().Sequence
	if node, has := c.reports.ahead(known); has > 0 {
		list = append(list, fmt.Sprintf("node %s reports that it enforces sequence %d, but the newest that this controller knows is %d: if the pointer in Consul was rolled back, restore it before you apply a change, because nodes refuse older sequences", node, has, known))
	}
	return list
}
