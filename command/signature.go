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

	"github.com/sif-project/sif/api"
	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/internal/trust/identity"
	"github.com/sif-project/sif/internal/trust/signature"
	"github.com/sif-project/sif/internal/vaultclient"
	"github.com/sif-project/sif/internal/wellknown"
)

// Environment variables that say where the fabric's public keys are.
const (
	envKeys       = "SIF_KEYS"
	envTransitKey = "SIF_TRANSIT_KEY"
)

const defaultTransitKey = wellknown.TransitMount + "/" + wellknown.TransitKey

// vaultTimeout limits how long reading keys from Vault may take.
const vaultTimeout = 10 * time.Second

// anchor says where the public keys of the fabric are. They never come from the controller, whose
// signatures they verify.
type anchor struct {
	keysFile   string
	transitKey string // mount/name
}

// options returns the options of a command that verifies signatures.
func (a *anchor) options() *flag.FlagSet {
	o := newOptions("Signature Options")
	o.StringVar(&a.keysFile, "keys", os.Getenv(envKeys),
		"The `path` to a file of the fabric's public keys, with which the signature of the revision is verified. The daemons keep such a "+
			"file in <data_dir>/identity/fabric-keys.json. Overrides "+envKeys+".")
	o.StringVar(&a.transitKey, "transit-key", cmp.Or(os.Getenv(envTransitKey), defaultTransitKey),
		"The Vault transit key, as `mount/name`, whose public versions are read if -keys is not given and VAULT_ADDR is set. Vault's own "+
			"environment variables apply. The token, from VAULT_TOKEN or vault login, must have read access to <mount>/keys/<name>. "+
			"Overrides "+envTransitKey+". Default: "+defaultTransitKey)
	return o
}

// errVault is the error of keys that cannot be read from Vault.
var errVault = errors.New("read the fabric's public keys from Vault")

// read returns the public keys, or nil if none are given.
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
		return nil, fmt.Errorf("%w at %s: %w; correct the VAULT_ environment variables, use -keys, or unset VAULT_ADDR to leave the signature unchecked", errVault, address, err)
	}
	return &signature.Anchor{Keys: keys, Source: fmt.Sprintf("%s of %s", a.transitKey, address)}, nil
}

func (a *anchor) fromVault(ctx context.Context) (fabric.KeySet, error) {
	at := strings.LastIndexByte(a.transitKey, '/')
	if at < 1 || at == len(a.transitKey)-1 {
		return fabric.KeySet{}, fmt.Errorf("-transit-key %q must have the form <mount>/<name>", a.transitKey)
	}
	client, err := vaultclient.FromEnvironment()
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
	ctx, cancel := context.WithTimeout(ctx, vaultTimeout)
	defer cancel()
	return identity.VaultKeys(ctx, client, a.transitKey[:at], a.transitKey[at+1:])
}

// vaultLogin returns the token that vault login stored, or "" if there is none.
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

// check checks the signature of a pointer for a command with another purpose than verification: if
// Vault does not answer, the signature stays unchecked.
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

// checkHistory checks the signature of a history and its chain of hashes.
func (a *anchor) checkHistory(ctx context.Context, h api.History) (signature.Finding, error) {
	f, err := a.check(ctx, h.Signed, h.Pointer)
	if err == nil && f.State == signature.Verified {
		f = f.Refuse(signature.History(h.Pointer, h.Changes))
	}
	return f, err
}

// checkGraph checks the signature of a graph: of the graph in force by its pointer, of an old
// revision by its entry in the history. Of a graph that the token may read only in part, the
// content cannot be checked.
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

// requireTrusted reports a refused signature, and returns an error then. err is the error of the
// check itself.
func (m *Meta) requireTrusted(f signature.Finding, err error, sequence uint64) error {
	if err != nil {
		return fmt.Errorf("checking the signature: %w", err)
	}
	if f.State == signature.Refused {
		m.tellSignature(f, sequence)
		return errReported
	}
	return nil
}

// outputSigned is output for a result whose signature was checked. v contains the finding; for
// people, it follows the result.
func (m *Meta) outputSigned(f signature.Finding, sequence uint64, v any, text func() string) error {
	err := m.output(v, text)
	if !m.json {
		m.tellSignature(f, sequence)
	}
	return err
}

// tellSignature shows the state of the signature of a revision on standard error, because it is not
// part of the result.
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
