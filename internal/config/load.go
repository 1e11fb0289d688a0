// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package config

// Role is a daemon that reads a configuration file.
type Role string

// The daemons.
const (
	RoleController Role = "controller"
	RoleEngine     Role = "engine"
	RoleAgent      Role = "agent"
	RoleLink       Role = "link"
)

// Load reads the file at path, fills what it leaves empty from the
// environment and the defaults, and checks it. Errors carry file, line and
// column.
func Load(path string) (*Config, error) { panic("todo") }

// Require reports what the daemon needs and the file does not give.
func (c *Config) Require(r Role) error { panic("todo") }
