// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package command

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	vaultapi "github.com/hashicorp/vault/api"
	"github.com/posener/complete"

	"github.com/sif-project/sif/api"
	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/internal/setup"
	"github.com/sif-project/sif/internal/trust/identity"
	"github.com/sif-project/sif/internal/trust/signature"
)

// The environment that says where the fabric's public keys are.
const (
	envKeys       = "SIF_KEYS"
	envTransitKey = "SIF_TRANSIT_KEY"
)

const defaultTransitKey = setup.DefaultTransitMount + "/" + setup.DefaultTransitKey

// vaultWait bounds the reading of keys from Vault.
const vaultWait = 10 * time.Second

// anchor says where public keys of the fabric are, other than at the
// controller.
type anchor struct {
	keysFile   string
	transitKey string // mount/name
}

// signatureOptions is the help of the flags of anchor.
const signatureOptions = `
Signature Options:

  The controller's word is not taken for the signature of the revision: it is
  checked with the fabric's public keys from elsewhere, if these are given.

  -keys=<path>
    File of the public keys, as every daemon keeps them in
    <data_dir>/identity/fabric-keys.json. Overrides SIF_KEYS.

  -transit-key=<mount>/<name>
    The key in Vault, whose public versions are read if there is no -keys and
    VAULT_ADDR is set, with the usual VAULT_ environment. The token, of
    VAULT_TOKEN or vault login, must be allowed to read <mount>/keys/<name>.
    Overrides SIF_TRANSIT_KEY. Default: ` + defaultTransitKey + `
`

func (a *anchor) flags(flags *flag.FlagSet) {
	flags.StringVar(&a.keysFile, "keys", os.Getenv(envKeys), "")
	flags.StringVar(&a.transitKey, "transit-key", cmp.Or(os.Getenv(envTransitKey), defaultTransitKey), "")
}

// signaturePredictions completes the flags of anchor.
func signaturePredictions(more complete.Flags) complete.Flags {
	more["-keys"], more["-transit-key"] = complete.PredictFiles("*.json"), complete.PredictAnything
	return more
}

// errVault says that Vault was to give the keys and did not.
var errVault = errors.New("read the fabric's public keys from Vault")

// read returns the public keys; nil if none are given.
func (a *anchor) read(ctx context.Context) (*signature.Anchor, error) {
	address := os.Getenv(vaultapi.EnvVaultAddress)
	switch {
	case a.keysFile != "":
		keys, err := identity.ReadKeys(a.keysFile)
		if err != nil {
			return nil, err
		}
		return &signature.Anchor{Keys: keys, Source: a.keysFile}, nil
	case address == "":
		return nil, nil
	}
	keys, err := a.fromVault(ctx)
	if err != nil {
		return nil, fmt.Errorf("%w at %s: %w; correct the VAULT_ environment, give -keys, or unset VAULT_ADDR to leave the signature unchecked", errVault, address, err)
	}
	return &signature.Anchor{Keys: keys, Source: fmt.Sprintf("%s of %s", a.transitKey, address)}, nil
}

func (a *anchor) fromVault(ctx context.Context) (fabric.KeySet, error) {
	at := strings.LastIndexByte(a.transitKey, '/')
	if at < 1 || at == len(a.transitKey)-1 {
		return fabric.KeySet{}, fmt.Errorf("-transit-key %q is not of the form <mount>/<name>", a.transitKey)
	}
	conf := vaultapi.DefaultConfig()
	if conf.Error != nil {
		return fabric.KeySet{}, conf.Error
	}
	client, err := vaultapi.NewClient(conf)
	if err != nil {
		return fabric.KeySet{}, err
	}
	if client.Token() == "" {
		token, err := vaultLogin()
		if err != nil {
			return fabric.KeySet{}, err
		}
		client.SetToken(token)
	}
	ctx, cancel := context.WithTimeout(ctx, vaultWait)
	defer cancel()
	return identity.VaultKeys(ctx, client, a.transitKey[:at], a.transitKey[at+1:])
}

// vaultLogin returns the token that `vault login` left, if it did.
func vaultLogin() (string, error) {
	home, err := os.UserHomeDir()
	if err != nil {
		return "", nil
	}
	token, err := os.ReadFile(filepath.Join(home, ".vault-token"))
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	return strings.TrimSpace(string(token)), err
}

// check checks the signature of a pointer for a command that is about
// something else: a Vault that does not answer leaves it unchecked.
func (a *anchor) check(ctx context.Context, signed fabric.Signed, pointer fabric.Pointer) (signature.Finding, error) {
	keys, err := a.read(ctx)
	if errors.Is(err, errVault) {
		return signature.Finding{State: signature.Unchecked, Why: err.Error()}, nil
	}
	if err != nil {
		return signature.Finding{}, err
	}
	return signature.Check(keys, signed, pointer), nil
}

// checkHistory checks a history, too.
func (a *anchor) checkHistory(ctx context.Context, h api.History) (signature.Finding, error) {
	f, err := a.check(ctx, h.Signed, h.Pointer)
	if err == nil && f.State == signature.Verified {
		f = f.Refuse(signature.History(h.Pointer, h.Changes))
	}
	return f, err
}

// checkGraph checks a graph, too: that in force, or that of a revision, which is
// signed as an entry of the history. A part of a graph cannot be checked.
func (a *anchor) checkGraph(ctx context.Context, client *api.Client, reply api.GraphReply) (signature.Finding, error) {
	if reply.Change == nil {
		f, err := a.check(ctx, reply.Signed, reply.Pointer)
		if err == nil && f.State == signature.Verified && !reply.Partial {
			f = f.Refuse(signature.Graph(reply.Pointer, reply.Graph))
		}
		return f, err
	}
	history, err := client.History(ctx)
	if err != nil {
		return signature.Finding{}, err
	}
	f, err := a.checkHistory(ctx, history)
	if err != nil || f.State != signature.Verified {
		return f, err
	}
	for _, c := range history.Changes {
		if c.Sequence == reply.Change.Sequence {
			if !reply.Partial {
				f = f.Refuse(signature.Past(c, reply.Graph))
			}
			return f, nil
		}
	}
	return f.Refuse(fmt.Errorf("the history has no revision %d", reply.Change.Sequence)), nil
}

// tellSignature says what is known of the signature of a revision, on standard
// error: it is no part of the result.
func (m *Meta) tellSignature(f signature.Finding, sequence uint64) {
	switch f.State {
	case signature.Verified:
		m.UI.Warn(fmt.Sprintf("The signature of revision %d verifies with the public keys of %s.", sequence, f.Source))
	case signature.Unchecked:
		why := f.Why
		if why == signature.NoKeys {
			why += "; set VAULT_ADDR, or give -keys"
		}
		m.UI.Warn(fmt.Sprintf("Warning: the signature of revision %d was not checked: %s.", sequence, why))
	case signature.Refused:
		m.UI.Error(fmt.Sprintf("The signature of revision %d is refused: %s.", sequence, f.Why))
	}
}
