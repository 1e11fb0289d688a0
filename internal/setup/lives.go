// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package setup

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"

	"github.com/sif-project/sif/internal/wellknown"
)

// lifeFields are the fields of a PKI role that follow from the life of certificates.
var lifeFields = []string{"ttl", "max_ttl", "not_before_duration"}

// nodeRoles are the PKI roles of the nodes, which `sif node create` makes. Those that exist follow
// a life of certificates that was changed since; their other fields are the node's own.
func (v *vault) nodeRoles() object {
	mount := v.settings.Vault.PKIMount
	want := fields{}
	for _, field := range lifeFields {
		want[field] = v.role("", "")[field]
	}
	return object{
		server: Vault, kind: "PKI roles", name: mount + "/roles/" + wellknown.NodeRolePrefix + "*", option: "-pki-mount",
		want: fixed(want),
		read: func(ctx context.Context) (*found, error) {
			if !v.mine[mount] {
				return nil, nil
			}
			f := &found{owner: v.settings.Fabric, fields: want}
			roles, err := v.nodeRolesThatDiffer(ctx, want)
			for _, data := range roles { // the first one stands for all
				f.fields = data
				break
			}
			return f, err
		},
		write: func(ctx context.Context, want fields, _ *found) error {
			roles, err := v.nodeRolesThatDiffer(ctx, want)
			if err != nil {
				return err
			}
			for path := range roles {
				if _, err := v.client.Logical().JSONMergePatch(ctx, path, want); err != nil {
					return v.explain(ctx, err, path, "patch")
				}
			}
			return nil
		},
	}
}

// nodeRolesThatDiffer returns the fields of the nodes' roles whose certificates live for another
// time, by their paths.
func (v *vault) nodeRolesThatDiffer(ctx context.Context, want fields) (map[string]fields, error) {
	path := v.settings.Vault.PKIMount + "/roles"
	names, err := v.list(ctx, path)
	if err != nil {
		return nil, err
	}
	differ := map[string]fields{}
	for _, name := range names {
		if !strings.HasPrefix(name, wellknown.NodeRolePrefix) {
			continue
		}
		data, err := v.read(ctx, path+"/"+name)
		if err != nil {
			return nil, err
		}
		for _, field := range lifeFields {
			if number, _ := data[field].(json.Number); data != nil && number.String() != fmt.Sprint(want[field]) {
				differ[path+"/"+name] = data
			}
		}
	}
	return differ, nil
}
