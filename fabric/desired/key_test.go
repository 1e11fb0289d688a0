// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package desired

import (
	"testing"

	"github.com/shoenig/test/must"

	"github.com/sif-project/sif/fabric"
)

func ref(s string) fabric.Ref {
	r, err := fabric.ParseRef(s)
	if err != nil {
		panic(err)
	}
	return r
}

// The texts are on disk beside the numbers of running nodes.
func TestKeyTexts(t *testing.T) {
	web := PartyOf(fabric.Identity{Service: ref("shop/web"), Roles: fabric.Roles{Originate: []fabric.Ref{ref("shop/sql")}, Respond: []fabric.Ref{ref("shop/www")}}})
	users := PartyOfExternals([]Holder{{External: ref("shop/world")}, {External: ref("shop/users")}, {External: ref("shop/world")}})
	nearby := PartyOfExternals([]Holder{{External: ref("shop/world")}, {External: ref("shop-eu/users")}}) // "-" comes before "/"
	for text, key := range map[string]Key{
		"external shop-eu/users shop/world":      PartyKey{nearby},
		"identity shop/web >shop/sql <shop/www":  PartyKey{web},
		"identity shop/db":                       PartyKey{PartyOf(fabric.Identity{Service: ref("shop/db")})},
		"external shop/users shop/world":         PartyKey{users},
		"contract shop/sql":                      ContractKey{ref("shop/sql")},
		"entry 16 4294967295 shop/sql tcp/1,5-9": EntryKey{16, 1<<32 - 1, ref("shop/sql"), fabric.TCP, "1,5-9"},
	} {
		must.Eq(t, text, key.String())
		back, err := ParseKey(text)
		must.NoError(t, err)
		must.Eq(t, key, back)
	}
	for _, text := range []string{
		"", "identity", "identity ", "external", "external ", "contract", "contract shop", "contract a/b c/d",
		"entry 1 2", "entry 1 2 3", "entry 1 2 a/b", "entry 1 2 a/b c", "entry -1 2 a/b tcp/1", "entry 1 4294967296 a/b tcp/1", "peer a/b",
	} {
		_, err := ParseKey(text)
		must.Error(t, err, must.Sprint(text))
	}
}

func TestPartyName(t *testing.T) {
	users := PartyOfExternals([]Holder{{External: ref("shop/world")}, {External: ref("shop/users")}})
	must.True(t, users.External())
	name, err := users.Name()
	must.NoError(t, err)
	must.Eq(t, ref("shop/users"), name)
	db := PartyOf(fabric.Identity{Service: ref("external/db")})
	must.False(t, db.External())
	name, err = db.Name()
	must.NoError(t, err)
	must.Eq(t, ref("external/db"), name)
}

func TestWayTexts(t *testing.T) {
	p := fabric.NodeID{Zone: "z1", Name: "p1"}
	for text, way := range map[string]Way{"endpoint": OwnInterface, "zone": ZoneLink, "z1/p1": Through(p)} {
		must.Eq(t, text, way.String())
		processor, is := way.Processor()
		must.Eq(t, text == "z1/p1", is)
		must.Eq(t, is, processor == p)
	}
}
