// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package setup

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/hashicorp/vault/api"

	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/internal/join"
	"github.com/sif-project/sif/internal/trust/identity"
	"github.com/sif-project/sif/internal/wellknown"
)

// Machine is a machine that is to join.
type Machine struct {
	ID        fabric.NodeID
	Kinds     []join.Kind
	NomadNode string   // ID of the Nomad node that it must be; may be empty
	BoundTo   []string // prefixes from which alone it may log in to Vault; any if empty
	Again     bool     // it exists already: its old secret IDs end
	// NodePrefix is how many bits its IPv4 pool gets when it joins; 0: as many as the fabric gives.
	NodePrefix int
}

// ErrExists is the error of a node that was created before.
var ErrExists = errors.New("the node exists already")

// Check returns an error if no machine can be so.
func (m Machine) Check() error {
	if err := fabric.CheckName(m.ID.Zone); err != nil {
		return fmt.Errorf("the zone: %w", err)
	}
	if err := fabric.CheckName(m.ID.Name); err != nil {
		return fmt.Errorf("the node: %w", err)
	}
	if len(m.Kinds) == 0 {
		return errors.New("a node needs a kind: controller, processor or workload, or several of them")
	}
	for _, k := range m.Kinds {
		if k != join.Controller && k != join.Processor && k != join.Workload {
			return fmt.Errorf("%q is not a kind of node: they are controller, processor and workload", k)
		}
	}
	for _, b := range m.BoundTo {
		if _, err := netip.ParsePrefix(b); err != nil {
			return fmt.Errorf("%q is not a prefix such as 10.0.0.11/32", b)
		}
	}
	if m.NodePrefix != 0 {
		if err := fabric.CheckNodePrefix(m.NodePrefix); err != nil {
			return fmt.Errorf("the pool: %w", err)
		}
		if !m.is(join.Workload) {
			return errors.New("the pool: only a node for workloads gets one of its own size")
		}
	}
	return nil
}

func (m Machine) is(k join.Kind) bool { return slices.Contains(m.Kinds, k) }

// units are the organizational units of its certificates as a node; none for a controller alone.
func (m Machine) units() (units []string) {
	for _, k := range []join.Kind{join.Processor, join.Workload} {
		if m.is(k) {
			units = append(units, string(k))
		}
	}
	return units
}

// CreateNode makes what a machine needs in Vault, and returns what it must be given. The client's
// token is an operator's. It can be run again after an interruption, with Again.
func CreateNode(ctx context.Context, client *api.Client, s join.Settings, m Machine) (join.Grant, error) {
	if err := m.Check(); err != nil {
		return join.Grant{}, err
	}
	v := &vault{client: client, settings: s}
	g, err := v.createNode(ctx, m)
	if err != nil {
		return g, fmt.Errorf("create node %s: %w", m.ID, err)
	}
	return g, nil
}

func (v *vault) createNode(ctx context.Context, m Machine) (join.Grant, error) {
	s := v.settings
	role, pkiRole := v.appRole(m.ID), v.pkiRole(m.ID)
	g := join.Grant{Settings: s, Node: m.ID, Kinds: m.Kinds, NomadNode: m.NomadNode}
	have, err := v.read(ctx, role)
	if err != nil {
		return g, err
	}
	if have != nil && !m.Again {
		return g, fmt.Errorf("%w: give -again for a new token, which ends the old credential of the machine, or remove it with \"sif node remove\"", ErrExists)
	}
	if units := m.units(); len(units) > 0 {
		r := v.role("", v.spiffeID(m.ID.SPIFFE()))
		if m.NodePrefix != 0 {
			units = append(units, identity.PoolUnit(m.NodePrefix))
		}
		r["ou"] = units
		if _, err := v.put(ctx, pkiRole, r); err != nil {
			return g, err
		}
	} else if have != nil { // it was another kind
		if err := v.drop(ctx, pkiRole); err != nil {
			return g, err
		}
	}
	var policies []string
	if m.is(join.Controller) {
		policies = append(policies, v.controllerPolicyName())
	}
	if len(m.units()) > 0 {
		policies = append(policies, v.nodePolicyName())
	}
	// Policies as one text: the operator's policy lists the texts that are allowed.
	if _, err := v.put(ctx, role, lived(fields{
		"token_policies": strings.Join(policies, ","), "token_bound_cidrs": m.BoundTo, "secret_id_bound_cidrs": m.BoundTo,
	})); err != nil {
		return g, err
	}
	if have != nil {
		if err := v.endSecrets(ctx, role); err != nil {
			return g, err
		}
	}
	id, err := v.read(ctx, role+"/role-id")
	if err != nil {
		return g, err
	}
	g.RoleID, _ = id["role_id"].(string)
	meta, err := json.Marshal(map[string]string{
		metaZone: m.ID.Zone, metaNode: m.ID.Name, metaController: fmt.Sprint(m.is(join.Controller)), metaMember: fmt.Sprint(len(m.units()) > 0),
	})
	if err != nil {
		return g, err
	}
	secret, err := v.put(ctx, role+"/secret-id", map[string]any{"metadata": string(meta)})
	if err != nil {
		return g, err
	}
	if g.SecretID = text(secret, "secret_id"); g.RoleID == "" || g.SecretID == "" {
		return g, fmt.Errorf("no role ID or secret ID came from Vault for %s", role)
	}
	g.Controllers, err = v.controllers(ctx)
	return g, err
}

// endSecrets ends all secret IDs of an AppRole.
func (v *vault) endSecrets(ctx context.Context, role string) error {
	accessors, err := v.list(ctx, role+"/secret-id")
	if err != nil {
		return err
	}
	for _, a := range accessors {
		if _, err := v.put(ctx, role+"/secret-id-accessor/destroy", map[string]any{"secret_id_accessor": a}); err != nil {
			return err
		}
	}
	return nil
}

// controllers returns the addresses that controllers have written.
func (v *vault) controllers(ctx context.Context) ([]string, error) {
	base := v.settings.Vault.ControllersPath()
	names, err := v.list(ctx, base)
	if err != nil {
		return nil, err
	}
	var list []string
	for _, n := range names {
		data, err := v.read(ctx, base+"/"+n)
		if err != nil {
			return nil, err
		}
		if a, _ := data["address"].(string); a != "" {
			list = append(list, a)
		}
	}
	return list, nil
}

func (v *vault) appRole(id fabric.NodeID) string {
	return "auth/" + v.settings.Vault.AppRoleMount + "/role/" + v.settings.Prefix + "-" + wellknown.NodeRole(id.Zone, id.Name)
}

func (v *vault) pkiRole(id fabric.NodeID) string {
	return v.settings.Vault.PKIMount + "/roles/" + wellknown.NodeRole(id.Zone, id.Name)
}

// Wrap has Vault wrap a grant, and returns the token that unwraps it, once, within ttl.
func Wrap(ctx context.Context, client *api.Client, g join.Grant, ttl time.Duration) (join.Token, error) {
	t := join.Token{Vault: g.Settings.Vault.Address, Namespace: g.Settings.Vault.Namespace}
	var err error
	if t.Digest, err = digest(ctx, t.Vault, g.Settings.Vault.CA); err != nil {
		return t, err
	}
	var data map[string]any
	body, err := json.Marshal(g)
	if err == nil {
		err = json.Unmarshal(body, &data)
	}
	var wrapper *api.Client
	if err == nil {
		wrapper, err = client.CloneWithHeaders()
	}
	if err != nil {
		return t, fmt.Errorf("wrap the grant: %w", err)
	}
	wrapper.SetToken(client.Token())
	wrapper.SetWrappingLookupFunc(func(string, string) string { return fmt.Sprintf("%.0fs", ttl.Seconds()) })
	secret, err := wrapper.Logical().WriteWithContext(ctx, "sys/wrapping/wrap", data)
	if err != nil {
		return t, fmt.Errorf("wrap the grant: %w", (&vault{client: client}).explain(ctx, err, "sys/wrapping/wrap", "update"))
	}
	if secret == nil || secret.WrapInfo == nil {
		return t, errors.New("wrap the grant: Vault returned no wrapping token")
	}
	t.Wrapping = secret.WrapInfo.Token
	return t, nil
}

// digest returns the SHA-256 of the last certificate in the chain that Vault sends, in hexadecimal,
// after that chain was verified; "" without TLS.
func digest(ctx context.Context, address, ca string) (string, error) {
	u, err := url.Parse(address)
	if err != nil {
		return "", fmt.Errorf("the address of Vault: %w", err)
	}
	if u.Scheme != "https" {
		return "", nil
	}
	config := &tls.Config{MinVersion: tls.VersionTLS12}
	if ca != "" {
		config.RootCAs = x509.NewCertPool()
		config.RootCAs.AppendCertsFromPEM([]byte(ca))
	}
	host := u.Host
	if u.Port() == "" {
		host += ":443"
	}
	conn, err := (&tls.Dialer{Config: config}).DialContext(ctx, "tcp", host)
	if err != nil {
		return "", fmt.Errorf("connect to Vault at %s, as the machine will: %w; name another address with \"sif setup -vault-address\"", address, err)
	}
	defer conn.Close()
	chain := conn.(*tls.Conn).ConnectionState().PeerCertificates
	sum := sha256.Sum256(chain[len(chain)-1].Raw)
	return hex.EncodeToString(sum[:]), nil
}

// RemoveNode deletes what CreateNode made: the machine gets no new certificate and cannot log in
// any more. It succeeds if there is nothing.
func RemoveNode(ctx context.Context, client *api.Client, s join.Settings, id fabric.NodeID) error {
	v := &vault{client: client, settings: s}
	// The PKI role first: a token that the machine still has gets no certificate any more.
	for _, path := range NodePaths(s, id) {
		if err := v.drop(ctx, path); err != nil {
			return fmt.Errorf("delete node %s from Vault: %w", id, err)
		}
	}
	return nil
}

// NodePaths are the paths in Vault of what CreateNode makes, and of what a controller writes.
func NodePaths(s join.Settings, id fabric.NodeID) []string {
	v := &vault{settings: s}
	return []string{v.pkiRole(id), v.appRole(id), s.Vault.ControllerPath(id)}
}
