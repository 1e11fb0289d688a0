// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package setup

import (
	"cmp"
	"context"
	"fmt"
	"strings"

	"github.com/sif-project/sif/internal/join"
	"github.com/sif-project/sif/internal/wellknown"
)

// JobIdentity is the name of the identity block of the controller's job, and JobAudience its
// audience.
const (
	JobIdentity = "vault"
	JobAudience = "vault.io"
)

const jobSuffix = "controller-job"

// A controller that is a Nomad job logs in to Vault with the workload identity that Nomad signs for
// its task. It belongs to no machine, so its policy and its identity tokens name none.
func (v *vault) jobObjects() []object {
	mount := "auth/" + JobMount(v.settings)
	list := []object{v.jobMount(), v.jobConfig(mount)}
	for _, role := range []string{v.settings.Consul.TokenRole, v.settings.Nomad.TokenRole} {
		if role != "" {
			list = append(list, v.identityRole(JobTokenRole(role), role, v.jobClaims))
		}
	}
	policy := v.named(jobSuffix)
	return append(list,
		v.policy(policy, "the controller that is a Nomad job", v.jobPolicy),
		v.inMount(mount, "JWT role", "role/"+v.named(controllerSuffix), lived(fields{
			"role_type": "jwt", "bound_audiences": []string{JobAudience}, "bound_subject": jobSubject(v.settings),
			// The subject names the task. With a claim of less, jobs would share an entity.
			"user_claim": "/sub", "user_claim_json_pointer": true,
			"token_policies": []string{policy},
		})),
	)
}

// JobMount is the mount of the auth method for Nomad's workload identities.
func JobMount(s join.Settings) string {
	return s.Prefix + strings.TrimPrefix(wellknown.JWTMount, wellknown.Prefix)
}

// JobTokenRole is the role of identity tokens for the job, which Consul or Nomad accept like those
// of a role for machines.
func JobTokenRole(role string) string { return role + "-job" }

// checkJob returns an error unless a job is named as namespace/job/group/task.
func checkJob(name string) error {
	if name == "" {
		return nil
	}
	parts := strings.Split(name, "/")
	if len(parts) != 4 || strings.Contains(name, ":") {
		return fmt.Errorf("%q is not of the form namespace/job/group/task", name)
	}
	for _, p := range parts {
		if p == "" {
			return fmt.Errorf("%q is not of the form namespace/job/group/task", name)
		}
	}
	return nil
}

// jobSubject is the subject of the workload identity that Nomad signs for the job's task.
func jobSubject(s join.Settings) string {
	return cmp.Or(s.Nomad.Region, "global") + ":" + strings.ReplaceAll(s.ControllerJob, "/", ":") + ":" + JobIdentity
}

func (v *vault) jobMount() object {
	var accessor string
	return v.authMethod(JobMount(v.settings), "jwt", "log-in of its controller that is a Nomad job", "-prefix", &accessor)
}

func (v *vault) jobConfig(mount string) object {
	keys := strings.TrimSuffix(v.settings.Nomad.Address, "/") + "/.well-known/jwks.json"
	o := v.inMount(mount, "JWT configuration", "config", fields{
		"jwks_url": keys, "jwks_ca_pem": v.settings.Nomad.CA, "jwt_supported_algs": []string{"RS256", "EdDSA"},
	})
	write := o.write
	o.write = func(ctx context.Context, want fields, have *found) error {
		if err := write(ctx, want, have); err != nil {
			return fmt.Errorf("the servers of Vault must reach the keys of Nomad's workload identities at %s, and trust its certificate; "+
				"name another address with -nomad-address, or another CA with -nomad-ca: %w", keys, err)
		}
		return nil
	}
	return o
}

// jobPolicy is the controller's, with other identity tokens and without the address that a machine
// writes.
func (v *vault) jobPolicy() string {
	rules := v.readPolicy() + v.signPolicy()
	for _, role := range []string{v.settings.Consul.TokenRole, v.settings.Nomad.TokenRole} {
		if role != "" {
			rules += v.tokenPolicy(JobTokenRole(role))
		}
	}
	return rules
}

func (v *vault) jobClaims() string {
	return fmt.Sprintf(`{"sif": {%q: "", %q: "", %q: "true", %q: "false"} }`, metaZone, metaNode, metaController, metaMember)
}
