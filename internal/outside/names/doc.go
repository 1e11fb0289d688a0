// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

// Package names is the table of names outside the fabric that are in force: which addresses
// resolvers have given a name that a service asked for. An address stays while its answer holds or
// a connection to it lives, and not beyond. The table is bounded for each asker, and says so when
// it is full. It is kept in a file, so that a restarted daemon goes on with it.
//
// The package knows names, addresses and times. It does not know DNS, contracts or a data path.
package names
