// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package setup_test

import (
	"encoding/json"
	"testing"
	"time"

	vaultapi "github.com/hashicorp/vault/api"
	"github.com/shoenig/test/must"

	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/internal/join"
	"github.com/sif-project/sif/internal/setup"
	"github.com/sif-project/sif/internal/setup/setuptest"
	"github.com/sif-project/sif/internal/testhost"
)

// An operator's token of Vault makes, renews and removes nodes, and gives no rights beyond the
// fabric.
func TestOperatorMakesNodes(t *testing.T) {
	server, root := testhost.Vault(t)
	ctx := t.Context()
	settings := setuptest.Settings("test", trustDomain)
	settings.Vault.Address = "http://" + server.Address
	setuptest.Vault(t, root, settings)
	token, err := root.Auth().Token().Create(&vaultapi.TokenCreateRequest{Policies: []string{setup.OperatorPolicy}})
	must.NoError(t, err)
	operator, err := root.Clone()
	must.NoError(t, err)
	operator.SetToken(token.Auth.ClientToken)

	stored, err := setup.Stored(ctx, operator, "sif-settings")
	must.NoError(t, err)
	must.Eq(t, settings, stored)
	id := fabric.NodeID{Zone: "aws1", Name: "w1"}
	machine := setup.Machine{ID: id, Kinds: []join.Kind{join.Workload}}
	first, err := setup.CreateNode(ctx, operator, settings, machine)
	must.NoError(t, err)
	login(t, root, first)

	// A join token gives the grant once.
	wrapped, err := setup.Wrap(ctx, operator, first, time.Minute)
	must.NoError(t, err)
	parsed, err := join.ParseToken(wrapped.String())
	must.NoError(t, err)
	must.Eq(t, wrapped, parsed)
	must.Eq(t, "", parsed.Digest) // without TLS
	nobody, err := root.Clone()
	must.NoError(t, err)
	secret, err := nobody.Logical().Unwrap(parsed.Wrapping)
	must.NoError(t, err)
	var got join.Grant
	data, err := json.Marshal(secret.Data)
	must.NoError(t, err)
	must.NoError(t, json.Unmarshal(data, &got))
	must.Eq(t, first, got)
	_, err = nobody.Logical().Unwrap(parsed.Wrapping)
	must.ErrorContains(t, err, "wrapping token is not valid or does not exist")

	// A name that is taken, and a new credential, which ends the old one; of another kind as well.
	_, err = setup.CreateNode(ctx, operator, settings, machine)
	must.ErrorIs(t, err, setup.ErrExists)
	machine.Again, machine.Kinds = true, []join.Kind{join.Controller, join.Processor, join.Workload}
	_, err = setup.CreateNode(ctx, operator, settings, machine)
	must.NoError(t, err)
	_, err = root.Logical().Write("auth/sif-approle/login", map[string]any{"role_id": first.RoleID, "secret_id": first.SecretID})
	must.ErrorContains(t, err, "invalid role or secret ID")
	role, err := root.Logical().Read("sif-pki/roles/node-aws1--w1")
	must.NoError(t, err)
	must.Eq(t, []any{"processor", "workload"}, role.Data["ou"].([]any))
	machine.NodePrefix = 20
	second, err := setup.CreateNode(ctx, operator, settings, machine)
	must.NoError(t, err)
	role, err = root.Logical().Read("sif-pki/roles/node-aws1--w1")
	must.NoError(t, err)
	must.Eq(t, []any{"processor", "workload", "pool-20"}, role.Data["ou"].([]any))
	client := login(t, root, second)
	_, err = client.Logical().Write("sif-transit/sign/sif", map[string]any{"input": "AAAA"})
	must.NoError(t, err)

	// A controller writes its address, and no other one's; later nodes are told.
	_, err = client.Logical().Write(settings.Vault.ControllerPath(id), map[string]any{"address": "10.0.0.1:8440"})
	must.NoError(t, err)
	_, err = client.Logical().Write(settings.Vault.ControllerPath(fabric.NodeID{Zone: "aws1", Name: "w2"}), map[string]any{"address": "x"})
	must.ErrorContains(t, err, "permission denied")
	other, err := setup.CreateNode(ctx, operator, settings, setup.Machine{
		ID: fabric.NodeID{Zone: "aws1", Name: "w2"}, Kinds: []join.Kind{join.Workload}, BoundTo: []string{"192.0.2.1/32"},
	})
	must.NoError(t, err)
	must.Eq(t, []string{"10.0.0.1:8440"}, other.Controllers)
	_, err = root.Logical().Write("auth/sif-approle/login", map[string]any{"role_id": other.RoleID, "secret_id": other.SecretID})
	must.ErrorContains(t, err, "unauthorized by CIDR restrictions")

	// What an operator must not do.
	must.NoError(t, root.Sys().PutPolicy("powerful", `path "*" { capabilities = ["sudo"] }`))
	must.NoError(t, root.Sys().EnableAuthWithOptions("approle", &vaultapi.EnableAuthOptions{Type: "approle"}))
	_, err = root.Logical().Write("auth/approle/role/theirs", map[string]any{"token_policies": "powerful"})
	must.NoError(t, err)
	for path, data := range map[string]map[string]any{
		"auth/sif-approle/role/sif-node-aws1--x":          {"token_policies": "powerful"},
		"auth/sif-approle/role/sif-node-aws1--y":          {"token_policies": "sif-node,powerful"},
		"auth/sif-approle/role/sif-node-aws1--z":          {"token_policies": []string{"sif-node", "powerful"}},
		"auth/sif-approle/role/sif-node-aws1--v":          {"policies": "powerful"},
		"auth/sif-approle/role/sif-node-aws1--w/policies": {"policies": "powerful"},
		"auth/approle/role/theirs/secret-id":              {},
		"auth/approle/role/mine":                          {"token_policies": "sif-node"},
		"sys/policies/acl/sif-node":                       {"policy": `path "*" { capabilities = ["sudo"] }`},
		"identity/entity/name/x":                          {"policies": "powerful"},
		"identity/entity-alias":                           {"name": "x", "canonical_id": "y", "mount_accessor": "z"},
		"sif-transit/sign/sif":                            {"input": "AAAA"},
		"sif-pki/root/generate/internal":                  {"common_name": "x"},
		"sif-pki/roles/controller":                        {"allowed_uri_sans": "*"},
		"sif-pki/sign/controller":                         {"csr": "x"},
		"sif-settings/fabric":                             {"fabric": "x"},
	} {
		_, err := operator.Logical().Write(path, data)
		must.ErrorContains(t, err, "permission denied", must.Sprint(path, data))
	}

	// Removed, it is gone, also when it was removed before; the name is free.
	for range 2 {
		must.NoError(t, setup.RemoveNode(ctx, operator, settings, id))
	}
	_, err = root.Logical().Write("auth/sif-approle/login", map[string]any{"role_id": second.RoleID, "secret_id": second.SecretID})
	must.ErrorContains(t, err, "invalid role or secret ID")
	_, err = client.Logical().Write("sif-pki/sign/node-aws1--w1", map[string]any{"csr": request(t, nil, "spiffe://"+trustDomain+id.SPIFFE())})
	must.ErrorContains(t, err, "unknown role")
	machine.Again, machine.Kinds = false, []join.Kind{join.Workload}
	again, err := setup.CreateNode(ctx, operator, settings, machine)
	must.NoError(t, err)
	must.SliceEmpty(t, again.Controllers)
}

func TestMachineCheck(t *testing.T) {
	id := fabric.NodeID{Zone: "aws1", Name: "w1"}
	for want, m := range map[string]setup.Machine{
		"the zone: name must not be empty": {ID: fabric.NodeID{Name: "w1"}, Kinds: []join.Kind{join.Workload}},
		"the node: name \"a--b\"":          {ID: fabric.NodeID{Zone: "aws1", Name: "a--b"}, Kinds: []join.Kind{join.Workload}},
		"a node needs a kind":              {ID: id},
		"\"server\" is not a kind of node": {ID: id, Kinds: []join.Kind{"server"}},
		"\"10.0.0.1\" is not a prefix":     {ID: id, Kinds: []join.Kind{join.Workload}, BoundTo: []string{"10.0.0.1"}},
	} {
		must.ErrorContains(t, m.Check(), want)
	}
}
