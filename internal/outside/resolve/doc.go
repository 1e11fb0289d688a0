// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

// Package resolve asks resolvers about names outside the fabric, for whoever is the exit of a flow:
// an engine, or the agent of a node that is its own exit. It follows chains of names within an
// answer and beyond it, takes from an answer only what belongs to the question, asks equal
// questions once at a time, and remembers answers while they hold.
//
// It knows DNS, and not who may ask what.
package resolve
