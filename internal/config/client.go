// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package config

import (
	consulapi "github.com/hashicorp/consul/api"
	nomadapi "github.com/hashicorp/nomad/api"

	"github.com/sif-project/sif/internal/identity"
)

// ConsulClient returns a client of the Consul agent that the file names.
func (c *Config) ConsulClient() (*consulapi.Client, error) { panic("todo") }

// NomadClient returns a client of the Nomad servers that the file names.
func (c *Config) NomadClient() (*nomadapi.Client, error) { panic("todo") }

// Identity says how this process obtains its identity.
func (c *Config) Identity() identity.Config { panic("todo") }
