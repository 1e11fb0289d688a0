// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package controller

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"sync/atomic"
	"time"

	consulapi "github.com/hashicorp/consul/api"
	"github.com/hashicorp/go-hclog"
	nomadapi "github.com/hashicorp/nomad/api"
	vaultapi "github.com/hashicorp/vault/api"
	"golang.org/x/sync/errgroup"

	"github.com/sif-project/sif/internal/clock"
	"github.com/sif-project/sif/internal/config"
	"github.com/sif-project/sif/internal/logkey"
	"github.com/sif-project/sif/internal/outage"
	"github.com/sif-project/sif/internal/retry"
	"github.com/sif-project/sif/internal/setup"
	"github.com/sif-project/sif/internal/supervisor"
	"github.com/sif-project/sif/internal/trust/identity"
	"github.com/sif-project/sif/internal/vaultclient"
	"github.com/sif-project/sif/internal/wellknown"
)

// startTimeout bounds how long Serve waits for Consul and Vault.
const startTimeout = 10 * time.Second

// Serve runs a controller with a configuration file until ctx ends. For each value from reload, it
// opens the audit log again, and unless the value is nil, it uses the servers and the log level of
// the new file. If it cannot reach Consul or Vault within 10 seconds, Serve fails and has changed
// nothing, unless an earlier process has left an identity. It tells sup, which may be nil, when it
// answers calls.
func Serve(ctx context.Context, file *config.Config, reload <-chan *config.Config, version string, sup *supervisor.Supervisor, log hclog.Logger) error {
	address, ips, err := addresses(file.Listen)
	if err != nil {
		return err
	}
	id := file.Identity()
	id.IPs = ips
	plain, err := file.ConsulClient(nil)
	if err != nil {
		return err
	}
	if err := reachable(ctx, plain, file, id); err != nil {
		// One that has an identity answers, and says who is away; it leads when it can.
		if kept, reading := identity.KeptKeys(file.DataDir); reading != nil || len(kept.Keys) == 0 {
			return err
		}
		log.Warn("starting with what is on disk", logkey.Error, err)
	}
	measured, err := outage.Open(filepath.Join(file.DataDir, "outage.json"), file.Outage(), clock.Now, log.Named("outage"))
	if err != nil {
		return err
	}
	id.Outage = measured.Began
	opening, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	source, err := identity.Open(opening, id, log.Named("identity"))
	if err != nil {
		return err
	}
	clients := clients{show: source.JWT}
	if err := clients.use(file); err != nil {
		return err
	}
	listener, err := (&net.ListenConfig{}).Listen(ctx, "tcp", file.Listen)
	if err != nil {
		return fmt.Errorf("listen for API calls: %w", err)
	}
	defer listener.Close()
	pool4, pool6 := file.Pools.Prefixes()
	c, err := New(Config{
		Fabric: file.Fabric, TrustDomain: file.TrustDomain, DataDir: file.DataDir, Address: address, Version: version,
		Pool4: pool4, Pool6: pool6, NodePrefix: file.Pools.NodePrefix,
		History: file.History, PolicyPrefix: file.PolicyPrefix,
		Audit:     Rotation{Bytes: file.Audit.RotateBytes, MaxFiles: file.Audit.RotateMaxFiles},
		Consul:    clients.consul.Load,
		Vault:     source.Vault,
		Identity:  source,
		Signer:    Transit{Vault: source.Vault, Mount: file.Vault.TransitMount, Key: file.Vault.TransitKey, Version: source.SigningVersion},
		Authority: PKI{Vault: source.Vault, Mount: file.Vault.PKIMount, Role: setup.RoleWorkload, TrustDomain: file.TrustDomain},
		SVIDs: newSVIDs(source.Vault, PKI{Vault: source.Vault, Mount: file.Vault.PKIMount, Role: setup.RoleApplication, TrustDomain: file.TrustDomain},
			file.Vault.TransitMount, wellknown.JWTKey(file.Vault.TransitKey)),
		Outage:        measured,
		AdmissionLife: file.Admissions(),
		Scheduler:     NewNomad(clients.nomad.Load),
		Supervisor:    sup,
		Log:           log,
	})
	if err != nil {
		return err
	}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return c.Run(ctx, listener) })
	g.Go(func() error {
		if err := source.Run(ctx); err != nil && ctx.Err() == nil {
			return err
		}
		return nil
	})
	g.Go(func() error {
		for {
			select {
			case <-ctx.Done():
				return nil
			case file := <-reload:
				if err := c.audit.reopen(); err != nil {
					log.Error("cannot open the audit log again, continuing in the old file", logkey.Error, err)
				}
				if file == nil {
					continue
				}
				if err := clients.use(file); err != nil {
					log.Error("cannot use the new configuration, keeping the old one", logkey.Error, err)
					continue
				}
				log.SetLevel(hclog.LevelFromString(file.LogLevel))
				log.Info("configuration reloaded: Consul, Nomad and log level")
			}
		}
	})
	return g.Wait()
}

// clients are the clients of the servers in the configuration. They are replaced when it is
// reloaded.
type clients struct {
	show   config.ShowJWT
	consul atomic.Pointer[consulapi.Client]
	nomad  atomic.Pointer[nomadapi.Client]
}

func (c *clients) use(file *config.Config) error {
	consul, err := file.ConsulClient(c.show)
	if err != nil {
		return err
	}
	nomad, err := file.NomadClient(c.show)
	if err != nil {
		return err
	}
	c.consul.Store(consul)
	c.nomad.Store(nomad)
	return nil
}

// reachable waits at most startTimeout until Consul has a leader and Vault is unsealed.
func reachable(ctx context.Context, consul *consulapi.Client, file *config.Config, id identity.Config) error {
	vault, err := vaultclient.New(id.VaultAddress, id.VaultCAFile)
	if err != nil {
		return err
	}
	vault.SetMaxRetries(0) // await retries
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		if err := await(ctx, func(ctx context.Context) error { return consulReady(ctx, consul) }); err != nil {
			return fmt.Errorf("cannot reach Consul at %s: %w; start it, or correct consul.address in the configuration or CONSUL_HTTP_ADDR", file.Consul.Address, err)
		}
		return nil
	})
	g.Go(func() error {
		if err := await(ctx, func(ctx context.Context) error { return vaultReady(ctx, vault) }); err != nil {
			return fmt.Errorf("cannot use Vault at %s: %w; start and unseal it, or correct vault.address in the configuration or VAULT_ADDR", id.VaultAddress, err)
		}
		return nil
	})
	return g.Wait()
}

func consulReady(ctx context.Context, consul *consulapi.Client) error {
	leader, err := consul.Status().LeaderWithQueryOptions((&consulapi.QueryOptions{}).WithContext(ctx))
	if err == nil && leader == "" {
		err = errors.New("it has no leader")
	}
	return err
}

func vaultReady(ctx context.Context, vault *vaultapi.Client) error {
	health, err := vault.Sys().HealthWithContext(ctx)
	switch {
	case err != nil:
		return err
	case !health.Initialized:
		return errors.New("it is not initialized")
	case health.Sealed:
		return errors.New("it is sealed")
	}
	return nil
}

// await calls try until it succeeds. If ctx ends first, it returns the last error of try.
func await(ctx context.Context, try func(context.Context) error) error {
	var last error
	for {
		attempt, cancel := context.WithTimeout(ctx, 3*time.Second)
		err := try(attempt)
		cancel()
		if err == nil {
			return nil
		}
		if last == nil || ctx.Err() == nil { // an error that ctx caused says less than the one before
			last = err
		}
		if !retry.Sleep(ctx, 250*time.Millisecond) {
			return last
		}
	}
}

// addresses returns the host:port at which clients reach a server that listens on listen, and the
// IP addresses for its certificate.
func addresses(listen string) (address string, ips []net.IP, err error) {
	host, port, err := net.SplitHostPort(listen)
	if err != nil {
		return "", nil, fmt.Errorf("listen address %q: %w", listen, err)
	}
	ip := net.ParseIP(host)
	if host != "" && ip == nil {
		found, err := net.LookupIP(host)
		if err != nil {
			return "", nil, fmt.Errorf("listen address %q: %w", listen, err)
		}
		return listen, found, nil
	}
	if ip != nil && !ip.IsUnspecified() {
		return listen, []net.IP{ip}, nil
	}
	local, err := net.InterfaceAddrs()
	if err != nil {
		return "", nil, fmt.Errorf("list the addresses of this machine: %w", err)
	}
	var outside string
	for _, a := range local {
		if n, ok := a.(*net.IPNet); ok && !n.IP.IsLinkLocalUnicast() {
			ips = append(ips, n.IP)
			if outside == "" && !n.IP.IsLoopback() {
				outside = n.IP.String()
			}
		}
	}
	return net.JoinHostPort(cmp.Or(outside, "127.0.0.1"), port), ips, nil
}
