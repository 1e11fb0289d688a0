// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package command

import (
	"context"
	"encoding/json"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/cli"
	vaultapi "github.com/hashicorp/vault/api"
	"github.com/shoenig/test/must"

	"github.com/sif-project/sif/api"
	"github.com/sif-project/sif/controller"
	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/internal/setup"
	"github.com/sif-project/sif/internal/setup/setuptest"
	"github.com/sif-project/sif/internal/testhost"
	"github.com/sif-project/sif/internal/trust/identity"
	"github.com/sif-project/sif/internal/wellknown"
)

// withoutVault clears the environment variables that name Vault and keys.
func withoutVault(t *testing.T) {
	for _, name := range []string{"VAULT_ADDR", "VAULT_TOKEN", "VAULT_NAMESPACE", "VAULT_CACERT", envKeys, envTransitKey} {
		t.Setenv(name, "")
	}
	t.Setenv("HOME", t.TempDir())
}

// signedFabric is what a controller serves of a fabric with two revisions, signed by a real Vault.
type signedFabric struct {
	vault    *vaultapi.Client
	address  string
	token    string // may only read the public keys
	keysFile string

	status  api.Status
	graphs  []*fabric.Graph // of revisions 1 and 2
	pointer fabric.Pointer
	signed  fabric.Signed
	changes []fabric.Change // the newest first
}

func newSignedFabric(t *testing.T) *signedFabric {
	t.Helper()
	ctx := t.Context()
	server, vault := testhost.Vault(t)
	setuptest.Vault(t, vault, setuptest.Settings("lab", "sif.test"))
	token, err := vault.Auth().Token().CreateWithContext(ctx, &vaultapi.TokenCreateRequest{Policies: []string{setup.VerifyPolicy}, NoDefaultPolicy: true})
	must.NoError(t, err)
	f := &signedFabric{vault: vault, address: "http://" + server.Address, token: token.Auth.ClientToken, keysFile: filepath.Join(t.TempDir(), "keys.json")}
	var second *fabric.Graph
	f.status, second = healthyFabric()
	first := &fabric.Graph{Domains: map[string]*fabric.Domain{"shop": {Name: "shop", Services: []fabric.Service{{Name: "web"}}}}}
	f.status.Nodes = nil // other tests are about what nodes enforce
	for i, g := range []*fabric.Graph{first, second} {
		f.graphs = append(f.graphs, g)
		c := fabric.Change{Sequence: uint64(i + 1), Root: fabric.Compile(g).Root, Time: time.Unix(int64(i), 0).UTC(), Author: "anna", Previous: f.pointer.Change}
		f.changes = append([]fabric.Change{c}, f.changes...)
		f.pointer = fabric.Pointer{Fabric: "lab", Sequence: c.Sequence, Root: c.Root, Previous: f.pointer.Root, Time: c.Time, Change: fabric.NewObject(c).Hash}
	}
	f.sign(t)
	f.writeKeys(t)
	return f
}

// sign signs the pointer with the latest version of the key.
func (f *signedFabric) sign(t *testing.T) {
	t.Helper()
	payload, err := json.Marshal(f.pointer)
	must.NoError(t, err)
	latest := func(context.Context, int) (int, error) { return 0, nil } // Vault takes 0 for the latest
	transit := controller.Transit{Vault: func() *vaultapi.Client { return f.vault }, Mount: wellknown.TransitMount, Key: wellknown.TransitKey, Version: latest}
	f.signed, err = transit.Sign(t.Context(), fabric.KindPointer, payload)
	must.NoError(t, err)
}

// writeKeys writes the file of public keys as the daemons do.
func (f *signedFabric) writeKeys(t *testing.T) {
	t.Helper()
	keys, err := identity.VaultKeys(t.Context(), f.vault, wellknown.TransitMount, wellknown.TransitKey)
	must.NoError(t, err)
	data, err := json.Marshal(keys)
	must.NoError(t, err)
	must.NoError(t, os.WriteFile(f.keysFile, data, 0o600))
}

// serve serves the fabric like a controller, and returns the options that name it.
func (f signedFabric) serve(t *testing.T) []string {
	mux := http.NewServeMux()
	reply := func(w http.ResponseWriter, v any) { json.NewEncoder(w).Encode(v) }
	f.status.Pointer = f.pointer
	mux.HandleFunc("GET /v1/status", func(w http.ResponseWriter, _ *http.Request) { reply(w, f.status) })
	mux.HandleFunc("GET /v1/history", func(w http.ResponseWriter, _ *http.Request) {
		reply(w, api.History{Pointer: f.pointer, Signed: f.signed, Changes: f.changes})
	})
	mux.HandleFunc("GET /v1/graph", func(w http.ResponseWriter, r *http.Request) {
		g := api.GraphReply{Pointer: f.pointer, Signed: f.signed, Graph: f.graphs[1]}
		if r.URL.Query().Get("revision") == "1" {
			g.Graph, g.Change = f.graphs[0], &f.changes[len(f.changes)-1]
		}
		reply(w, g)
	})
	mux.HandleFunc("GET /v1/explain", func(w http.ResponseWriter, _ *http.Request) {
		reply(w, api.Explanation{Pointer: f.pointer, Signed: f.signed, Allowed: true, Agree: true, Protocol: fabric.TCP})
	})
	return serveTLS(t, mux)
}

func (f signedFabric) run(t *testing.T, args ...string) (stdout, stderr string, code int) {
	ui := cli.NewMockUi()
	command := args[0]
	if command == "show" || command == "history" {
		command = "graph " + command
	}
	code = run(ui, command, append(f.serve(t), args[1:]...)...)
	return ui.OutputWriter.String(), ui.ErrorWriter.String(), code
}

// Each command that shows signed data says whether the signature verifies, with keys that do not
// come from the controller.
func TestSignatures(t *testing.T) {
	withoutVault(t)
	f := newSignedFabric(t)
	commands := [][]string{{"verify"}, {"show"}, {"show", "1"}, {"history"}, {"explain", "shop/web", "shop/db", "5432"}}
	with := func(command []string, flags ...string) []string {
		return append(append([]string{command[0]}, flags...), command[1:]...)
	}
	t.Run("no keys", func(t *testing.T) {
		for _, c := range commands {
			_, stderr, code := f.run(t, c...)
			must.Eq(t, 0, code, must.Sprint(c, stderr))
			must.StrContains(t, stderr, "Warning: the signature of revision 2 was not checked: no public keys of the fabric were given; set VAULT_ADDR, or give -keys.")
			stdout, _, code := f.run(t, with(c, "-json")...)
			must.Eq(t, 0, code)
			must.StrContains(t, stdout, `"signature": "unchecked"`)
		}
	})
	verified := func(t *testing.T, source string, flags ...string) {
		t.Helper()
		for _, c := range commands {
			_, stderr, code := f.run(t, with(c, flags...)...)
			must.Eq(t, 0, code, must.Sprint(c, stderr))
			must.StrContains(t, stderr, "The signature of revision 2 verifies with the public keys of "+source+".")
			stdout, _, code := f.run(t, with(c, append(flags, "-json")...)...)
			must.Eq(t, 0, code)
			must.StrContains(t, stdout, `"signature": "verified"`)
		}
	}
	t.Run("a file", func(t *testing.T) { verified(t, f.keysFile, "-keys="+f.keysFile) })
	t.Run("a file by environment", func(t *testing.T) {
		t.Setenv(envKeys, f.keysFile)
		t.Setenv("VAULT_ADDR", "http://127.0.0.1:1") // not asked
		verified(t, f.keysFile)
	})
	t.Run("Vault", func(t *testing.T) {
		t.Setenv("VAULT_ADDR", f.address)
		t.Setenv("VAULT_TOKEN", f.token)
		verified(t, "sif-transit/sif of "+f.address)
		verified(t, "sif-transit/sif of "+f.address, "-transit-key=sif-transit/sif")
	})
	t.Run("Vault, logged in", func(t *testing.T) {
		t.Setenv("VAULT_ADDR", f.address)
		must.NoError(t, os.WriteFile(filepath.Join(os.Getenv("HOME"), ".vault-token"), []byte(f.token+"\n"), 0o600))
		verified(t, "sif-transit/sif of "+f.address)
		must.NoError(t, os.Remove(filepath.Join(os.Getenv("HOME"), ".vault-token")))
	})
	t.Run("Vault does not give the keys", func(t *testing.T) {
		for name, set := range map[string]func(){
			"permission denied":  func() { t.Setenv("VAULT_ADDR", f.address) },
			"connection refused": func() { t.Setenv("VAULT_ADDR", "http://127.0.0.1:1") },
			"the key does not exist": func() {
				t.Setenv("VAULT_ADDR", f.address)
				t.Setenv("VAULT_TOKEN", "root")
				t.Setenv(envTransitKey, "sif-transit/no")
			},
			"must have the form <mount>/<name>": func() { t.Setenv("VAULT_ADDR", f.address); t.Setenv(envTransitKey, "sif") },
		} {
			t.Setenv("VAULT_MAX_RETRIES", "0")
			t.Setenv("VAULT_TOKEN", "")
			t.Setenv(envTransitKey, "")
			set()
			for _, c := range commands {
				_, stderr, code := f.run(t, c...)
				if c[0] == "verify" { // which was asked to look, and cannot
					must.Eq(t, 1, code, must.Sprint(name))
				} else {
					must.Eq(t, 0, code, must.Sprint(name))
					must.StrContains(t, stderr, "Warning: the signature of revision 2 was not checked: ")
				}
				must.StrContains(t, stderr, name)
				must.StrContains(t, stderr, "unset VAULT_ADDR")
			}
		}
	})
	t.Run("a bad file", func(t *testing.T) {
		for _, c := range commands {
			_, stderr, code := f.run(t, with(c, "-keys="+f.keysFile+".no")...)
			must.Eq(t, 1, code)
			must.StrContains(t, stderr, "no such file")
		}
	})

	// Data that the fabric did not sign is not shown.
	refused := func(t *testing.T, forged *signedFabric, want string, commands ...string) {
		t.Helper()
		for _, c := range commands {
			stdout, stderr, code := forged.run(t, with(strings.Fields(c), "-keys="+f.keysFile)...)
			if c == "verify" {
				must.Eq(t, 2, code)
				first, _, _ := strings.Cut(stdout, "\n")
				must.StrHasPrefix(t, "controller: broken signature of the revision: ", first)
				must.StrContains(t, first, want)
				continue
			}
			must.StrContains(t, stderr, "The signature of revision 2 is refused: ", must.Sprint(c, stdout))
			must.StrContains(t, stderr, want)
			must.Eq(t, 1, code)
			must.Eq(t, "", stdout)
		}
	}
	t.Run("no signature", func(t *testing.T) {
		forged := *f
		forged.signed = fabric.Signed{}
		refused(t, &forged, "the controller returned no signed pointer", "verify", "show", "show 1", "history", "explain a/b a/c 80")
	})
	t.Run("another pointer than was signed", func(t *testing.T) {
		forged := *f
		forged.pointer.Root[0]++
		refused(t, &forged, "revision 2 with root", "verify", "show", "show 1", "history", "explain a/b a/c 80")
	})
	t.Run("another graph", func(t *testing.T) {
		forged := *f
		forged.graphs = []*fabric.Graph{f.graphs[0], f.graphs[0]}
		refused(t, &forged, "the graph compiles to root", "show")
		stdout, _, code := forged.run(t, "verify", "-keys="+f.keysFile)
		must.Eq(t, 2, code)
		must.StrHasPrefix(t, "controller: altered graph: the graph compiles to root", stdout)
		forged.graphs = []*fabric.Graph{f.graphs[1], f.graphs[1]}
		refused(t, &forged, "but revision 1 has root", "show 1")
	})
	t.Run("another past", func(t *testing.T) {
		forged := *f
		forged.changes = append([]fabric.Change(nil), f.changes...)
		forged.changes[1].Author = "eve"
		refused(t, &forged, "the entry of revision 1 in the history is not the one", "show 1", "history")
	})
	t.Run("a key that has ended", func(t *testing.T) {
		ctx := t.Context()
		key := wellknown.TransitMount + "/keys/" + wellknown.TransitKey
		_, err := f.vault.Logical().WriteWithContext(ctx, key+"/rotate", nil)
		must.NoError(t, err)
		f.writeKeys(t)
		verified(t, f.keysFile, "-keys="+f.keysFile) // old versions stay valid after a rotation
		_, err = f.vault.Logical().WriteWithContext(ctx, key+"/config", map[string]any{"min_decryption_version": 2, "min_encryption_version": 2})
		must.NoError(t, err)
		f.writeKeys(t)
		refused(t, f, "the lowest accepted is 2", "verify", "show", "show 1", "history", "explain a/b a/c 80")
		f.sign(t)
		verified(t, f.keysFile, "-keys="+f.keysFile)
	})
}
