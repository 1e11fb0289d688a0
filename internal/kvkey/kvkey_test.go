// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package kvkey

import (
	"testing"

	"github.com/shoenig/test/must"

	"github.com/sif-project/sif/fabric"
)

// The keys are a wire format: other versions and operators' backups use them.
func TestKeysAreWrittenAndRead(t *testing.T) {
	const hash = "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824"
	object := Object(fabric.HashOf([]byte("hello")))
	must.Eq(t, "sif/v1/obj/"+hash, object.String())
	parsedObject, err := ParseObject(object.String())
	must.NoError(t, err)
	must.Eq(t, object, parsedObject)

	w1 := fabric.NodeID{Zone: "aws1", Name: "w1"}
	must.Eq(t, "sif/v1/node/aws1/w1", Node(w1).String())
	parsedNode, err := ParseNode(Node(w1).String())
	must.NoError(t, err)
	must.Eq(t, Node(w1), parsedNode)
	must.Eq(t, "sif/v1/binding/aws1/w1", Binding(w1).String())

	must.Eq(t, "sif/v1/pool/17", Pool(17).String())
	parsedPool, err := ParsePool(Pool(17).String())
	must.NoError(t, err)
	must.Eq(t, 17, parsedPool)

	admission := Admission{w1, "8f2b5a4e-2f39-4c5f-9f0e-0a8c8f5d7a11"}
	must.Eq(t, "sif/v1/admission/aws1/w1/8f2b5a4e-2f39-4c5f-9f0e-0a8c8f5d7a11", admission.String())
	parsedAdmission, err := ParseAdmission(admission.String())
	must.NoError(t, err)
	must.Eq(t, admission, parsedAdmission)
}

func TestOtherKeysAreRefused(t *testing.T) {
	for _, key := range []string{
		"", "sif/v1/", Current, Objects, Nodes, Pools, Admissions,
		Objects + "2cf2", Nodes + "aws1", Nodes + "aws1/", Nodes + "aws1/w1/x", Pools + "x",
		Admissions + "aws1/w1", Admissions + "aws1/w1/", Admissions + "aws1/w1/a/b",
	} {
		_, err := ParseObject(key)
		must.Error(t, err, must.Sprint(key))
		_, err = ParseNode(key)
		must.Error(t, err, must.Sprint(key))
		_, err = ParsePool(key)
		must.Error(t, err, must.Sprint(key))
		_, err = ParseAdmission(key)
		must.Error(t, err, must.Sprint(key))
	}
}
