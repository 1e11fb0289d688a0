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
	"sync/atomic"
	"syscall"
	"time"

	consulapi "github.com/hashicorp/consul/api"
	"github.com/hashicorp/go-hclog"
	vaultapi "github.com/hashicorp/vault/api"
	"golang.org/x/sync/errgroup"

	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/internal/logkey"
)

// AdmissionLife is how long an admission is in force unless renewed.
const AdmissionLife = 24 * time.Hour

// Signer signs statements with the fabric's key.
type Signer interface {
	Sign(ctx context.Context, kind fabric.Kind, payload []byte) (fabric.Signed, error)
}

// Authority issues certificates (DER, leaf first) for the SPIFFE IDs of
// services, to the keys of signing requests (DER).
type Authority interface {
	SignWorkload(ctx context.Context, csr []byte, service fabric.Ref) ([][]byte, error)
}

// Identity is who the controller is, and whom it trusts.
type Identity interface {
	Keys() fabric.KeySet
	Roots() *x509.CertPool
	ServerTLS(clientAuth tls.ClientAuthType) *tls.Config
	Expiry() time.Time
	Degraded() []string
}

// Config is what a Controller works with.
type Config struct {
	Fabric        string
	TrustDomain   string
	DataDir       string // must be on a disk that survives reboots
	Address       string // host:port under which others reach this controller
	Version       string
	Pool4, Pool6  netip.Prefix
	AdmissionLife time.Duration // zero: AdmissionLife
	History       int           // how many revisions are kept; zero: DefaultHistory
	Audit         Rotation      // of the audit log

	Consul    func() *consulapi.Client // asked anew for each use: tokens are reloaded
	Vault     func() *vaultapi.Client  // to ask about operators' tokens, with these tokens
	Identity  Identity
	Signer    Signer
	Authority Authority
	Scheduler Scheduler
	Log       hclog.Logger
}

// Controller is one controller process.
type Controller struct {
	cfg      Config
	log      hclog.Logger
	lock     *os.File // on the data directory
	audit    *audit
	policy   *policy
	nodes    *registry
	table    *table
	reports  *reports
	tasks    *taskBoard
	metrics  *metrics
	admitter *admitter
	leading  atomic.Bool
}

// New prepares a controller. It contacts nothing.
func New(cfg Config) (*Controller, error) {
	if cfg.AdmissionLife == 0 {
		cfg.AdmissionLife = AdmissionLife
	}
	if err := checkPools(cfg.Pool4, cfg.Pool6); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(cfg.DataDir, 0o700); err != nil {
		return nil, fmt.Errorf("make the data directory: %w", err)
	}
	lock, err := lockDir(cfg.DataDir)
	if err != nil {
		return nil, err
	}
	c := &Controller{cfg: cfg, log: cfg.Log, lock: lock}
	if c.audit, err = openAudit(cfg.DataDir, cfg.Audit, cfg.Log.Named("audit")); err != nil {
		lock.Close()
		return nil, err
	}
	c.policy = newPolicy(cfg)
	c.nodes = newRegistry(cfg)
	c.table = newTable(cfg)
	c.reports = newReports()
	c.tasks = newTaskBoard()
	c.metrics = newMetrics(c)
	c.admitter = &admitter{cfg: cfg, policy: c.policy, nodes: c.nodes, table: c.table}
	return c, nil
}

// lockDir keeps two controllers from sharing one memory of what was signed.
func lockDir(dir string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock the data directory: %w", err)
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		f.Close()
		return nil, fmt.Errorf("data directory %s is in use by another controller", dir)
	}
	return f, nil
}

// Run serves on l and campaigns for leadership until ctx ends; then it lets
// calls under way finish, gives up leadership and returns nil.
func (c *Controller) Run(ctx context.Context, l net.Listener) error {
	defer c.lock.Close()
	defer c.audit.Close()
	// Handlers outlive ctx by the time that Shutdown grants them; long polls
	// end with ctx itself.
	server := &http.Server{
		Handler:           c.handler(ctx),
		TLSConfig:         c.cfg.Identity.ServerTLS(tls.VerifyClientCertIfGiven),
		ReadHeaderTimeout: 10 * time.Second,
		IdleTimeout:       3 * time.Minute,
		ErrorLog:          c.log.Named("http").StandardLogger(&hclog.StandardLoggerOptions{ForceLevel: hclog.Debug}),
	}
	c.log.Info("controller listens", logkey.Address, l.Addr().String())
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		if err := server.ServeTLS(l, "", ""); !errors.Is(err, http.ErrServerClosed) {
			return fmt.Errorf("serve the API: %w", err)
		}
		return nil
	})
	g.Go(func() error {
		// Leadership is given up only after the last change is answered.
		campaign, stop := context.WithCancel(context.WithoutCancel(ctx))
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			newElection(c.cfg, c.lead).run(campaign)
		}()
		<-ctx.Done()
		grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
		defer cancel()
		if err := server.Shutdown(grace); err != nil {
			server.Close()
		}
		stop()
		<-ended
		return nil
	})
	return g.Wait()
}

// lead loads the state and serves changes until ctx ends with the leadership.
func (c *Controller) lead(ctx context.Context) error {
	if err := c.policy.load(ctx); err != nil {
		return err
	}
	if err := c.nodes.load(ctx); err != nil {
		return err
	}
	if err := c.table.load(ctx); err != nil {
		return err
	}
	c.leading.Store(true)
	defer c.leading.Store(false)
	c.log.Info("controller leads", logkey.Revision, c.policy.pointer().Sequence)
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return c.policy.watch(ctx) })
	g.Go(func() error { return c.policy.collecting(ctx) })
	g.Go(func() error { return c.table.sweep(ctx) })
	return g.Wait()
}

// degraded returns everything that is wrong with the controller, for people.
func (c *Controller) degraded() []string {
	list := c.cfg.Identity.Degraded()
	list = append(list, c.policy.degraded()...)
	list = append(list, c.nodes.degraded()...)
	list = append(list, c.table.degraded()...)
	// A controller that lost its memory cannot know that the pointer was
	// rolled back, but nodes do. It is only said, since a node may lie.
	held := c.policy.pointer().Sequence
	if node, has := c.reports.ahead(held); has > 0 {
		list = append(list, fmt.Sprintf("node %s says that it enforces sequence %d, but the newest known here is %d: if the pointer in Consul was rolled back, nodes will refuse what is applied now; restore it first", node, has, held))
	}
	return list
}
