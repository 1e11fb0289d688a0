// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

// Package nomadjob reads what a Nomad job says about the instances of a group: what in it leaves
// the group's network, what selectors match, and to which ports health checks connect.
//
// The controller asks it about an allocation, and the command line about a job that is not
// registered yet, so that what the command line passes is admitted. It knows the model of Nomad's
// API and Nomad's variables. It asks nobody, and does not know the graph.
package nomadjob
