// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package controller

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/shoenig/test/must"

	"github.com/sif-project/sif/api"
	"github.com/sif-project/sif/internal/config"
	"github.com/sif-project/sif/internal/kvkey"
)

func TestServe(t *testing.T) {
	w := newWorld(t)
	w.reset(t)
	dir := t.TempDir()
	secret := filepath.Join(dir, "secret-id")
	must.NoError(t, os.WriteFile(secret, []byte(w.vault.Controller.SecretID), 0o600))
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	must.NoError(t, err)
	listen := listener.Addr().String()
	listener.Close()
	load := func(consulAddress, method, vaultAddress, level string) *config.Config {
		path := filepath.Join(dir, "controller.hcl")
		must.NoError(t, os.WriteFile(path, fmt.Appendf(nil, `
fabric       = %q
trust_domain = %q
data_dir     = %q
listen       = %q
log_level    = %q
history      = 2
audit {
  rotate_bytes     = 1
  rotate_max_files = 2
}
consul {
  address     = %q
  auth_method = %q
  token_role  = "sif-consul"
}
vault {
  address        = %q
  role_id        = %q
  secret_id_file = %q
}`, testFabric, trustDomain, filepath.Join(dir, "data"), listen, level, consulAddress, method, vaultAddress, w.vault.Controller.RoleID, secret), 0o600))
		file, err := config.Load(path, config.RoleController)
		must.NoError(t, err)
		return file
	}
	const nowhere = "127.0.0.1:1"

	t.Run("unreachable", func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		err := Serve(ctx, load(nowhere, "sif", w.vaultAddress, "info"), nil, "test", nil, hclog.NewNullLogger())
		must.ErrorContains(t, err, "cannot reach Consul at 127.0.0.1:1: ")
		must.ErrorContains(t, err, "connection refused; start it, or correct consul.address in the configuration or CONSUL_HTTP_ADDR")
		err = Serve(t.Context(), load(w.consulAddress, "sif", "http://"+nowhere, "info"), nil, "test", nil, hclog.NewNullLogger())
		must.ErrorContains(t, err, "cannot use Vault at http://127.0.0.1:1: ")
		must.ErrorContains(t, err, "correct vault.address in the configuration or VAULT_ADDR")
		_, err = os.Stat(filepath.Join(dir, "data"))
		must.ErrorIs(t, err, os.ErrNotExist)
		keys, _, err := w.consul.KV().Keys("sif/", "", nil)
		must.NoError(t, err)
		must.SliceEmpty(t, keys)
	})

	t.Run("serves, reloads, stops", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		reload := make(chan *config.Config)
		ended := make(chan error, 1)
		log := hclog.New(&hclog.LoggerOptions{Level: hclog.Info, Output: t.Output()})
		// Without a log-in that Consul accepts, the controller answers but cannot lead ...
		go func() {
			ended <- Serve(ctx, load(w.consulAddress, "no-such-method", w.vaultAddress, "info"), reload, "test", nil, log)
		}()
		client := w.client(t, listen, w.tokens.Operator)
		eventually(t, func() error {
			if _, err := client.Health(ctx); err == nil || !strings.Contains(err.Error(), "503") {
				return fmt.Errorf("health: %v", err)
			}
			return nil
		})
		// ... until it reloads the right one.
		reload <- load(w.consulAddress, "sif", w.vaultAddress, "debug")
		eventually(t, func() error {
			_, err := client.Health(ctx)
			return err
		})
		must.Eq(t, hclog.Debug, log.GetLevel())
		_, err := client.Apply(ctx, api.GraphRequest{Domains: domains(testDomain("app"))})
		must.NoError(t, err)

		// The rest of the configuration is in use too.
		for i := range 4 {
			_, err := client.Apply(ctx, api.GraphRequest{Domains: domains(ported("app", uint16(80+i)))})
			must.NoError(t, err)
		}
		history, err := client.History(ctx)
		must.NoError(t, err)
		must.Len(t, 2, history.Changes)
		must.Len(t, 3, auditFiles(t, filepath.Join(dir, "data")))

		// Even after a configuration that cannot be read, the audit log is opened again.
		path := filepath.Join(dir, "data", auditFile)
		must.NoError(t, os.Rename(path, path+".1"))
		reload <- nil
		eventually(t, func() error {
			_, err := os.Stat(path)
			return err
		})
		cancel()
		select {
		case err := <-ended:
			must.NoError(t, err)
		case <-time.After(10 * time.Second):
			t.Fatal("the controller does not stop")
		}
		kv, _, err := w.consul.KV().Get(kvkey.Leader, nil)
		must.NoError(t, err)
		must.Eq(t, "", kv.Session)
	})
}
