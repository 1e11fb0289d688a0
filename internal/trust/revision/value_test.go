// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package revision

import (
	"bytes"
	"compress/gzip"
	"context"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/shoenig/test/must"
	"pgregory.net/rapid"

	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/internal/kvkey"
)

func TestPackIsUndone(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		data := fabric.NewObject(rapid.SliceOfN(rapid.String(), 0, 2000).Draw(t, "object")).Data
		value, err := pack(data)
		must.NoError(t, err)
		got, err := unpack(value)
		must.NoError(t, err)
		must.Eq(t, string(data), string(got))
	})
}

func TestPackRefusesWhatConsulCannotTake(t *testing.T) {
	noise := make([]byte, 2*maxValue)
	rng := rand.New(rand.NewPCG(1, 1))
	for i := range noise {
		noise[i] = byte(rng.Uint32())
	}
	_, err := pack(noise)
	must.ErrorContains(t, err, "but a value in Consul has at most 524288")
	_, err = pack(make([]byte, maxObject+1))
	must.ErrorContains(t, err, "at most 67108864 are allowed")
}

func TestUnpackIsBounded(t *testing.T) {
	var bomb bytes.Buffer
	w := gzip.NewWriter(&bomb)
	for range maxObject/(1<<20) + 1 {
		w.Write(make([]byte, 1<<20))
	}
	must.NoError(t, w.Close())
	_, err := unpack(bomb.Bytes())
	must.ErrorIs(t, err, errTooLarge)
}

func FuzzUnpack(f *testing.F) {
	packed, err := pack(bytes.Repeat([]byte(`{"service":"d/s"}`), 1000))
	must.NoError(f, err)
	f.Add(packed)
	f.Add(packed[:len(packed)/2])
	f.Add([]byte(`{"service":"d/s"}`))
	f.Add([]byte{gzipMagic})
	f.Fuzz(func(t *testing.T, value []byte) {
		data, err := unpack(value)
		if err == nil && len(data) > maxObject {
			t.Fatalf("%d bytes", len(data))
		}
	})
}

// FuzzDocument has whatever may lie at a document's address read as one. What decodes has a
// canonical form that decodes to the same.
func FuzzDocument(f *testing.F) {
	for _, d := range fabric.Documents(graph(8080, proxy, svc, news)) {
		f.Add(fabric.NewObject(d).Data)
	}
	f.Add([]byte(`{"service":"d/s","originates":[{"contract":"d/c","rules":[{"protocol":"icmp","ports":["0-255"]}],"peers":[{"name":"d/x","prefixes":["192.0.2.0/24"]}],"expires":"2026-01-01T00:00:00Z","audit":true}]}`))
	f.Add([]byte(`{"service":"d/s","originates":[{"contract":"d/c","rules":null,"peers":[]}]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		o := fabric.NewObject(nil)
		var d fabric.Document
		if err := fabric.DecodeObject(data, o.Hash, &d); err == nil && string(data) != string(o.Data) {
			t.Fatal("content that does not hash to its address was taken")
		}
		if err := fabric.DecodeObject(data, fabric.HashOf(data), &d); err != nil {
			return
		}
		o = fabric.NewObject(d)
		var again fabric.Document
		if err := fabric.DecodeObject(o.Data, o.Hash, &again); err != nil {
			if !strings.Contains(string(o.Data), `"/"`) && !strings.Contains(string(o.Data), `"protocol 0"`) {
				t.Fatal(err) // what lacks a name or a protocol has no canonical form; all else has
			}
			return
		}
		must.Eq(t, string(o.Data), string(fabric.NewObject(again).Data))
	})
}

// A domain whose declaration and documents are larger than Consul's values is stored, found,
// repaired and followed like any other.
func TestObjectsAboveConsulsLimit(t *testing.T) {
	l := newLab(t)
	ctx := context.Background()
	d := &fabric.Domain{Name: "large", Services: []fabric.Service{{Name: "hub"}}}
	for i := range 3000 {
		s := fabric.Service{Name: fmt.Sprintf("s%d", i), Description: "what the owners say of it, at some length, so that the domain is large"}
		d.Services = append(d.Services, s)
		d.Contracts = append(d.Contracts, fabric.Contract{
			Name: fmt.Sprintf("c%d", i), Originators: []fabric.Ref{{Domain: "large", Name: s.Name}}, Responders: []fabric.Ref{{Domain: "large", Name: "hub"}},
			Rules: []fabric.Rule{{Protocol: fabric.TCP, Ports: []fabric.PortRange{{From: 80, To: 80}}}},
			Pos:   fabric.Position{File: "large.sif.hcl", Line: i, Column: 1},
		})
	}
	g := &fabric.Graph{Domains: map[string]*fabric.Domain{d.Name: d}}
	rev, _ := l.publish(g)
	largest := 0
	for _, o := range rev.Objects {
		largest = max(largest, len(o.Data))
		must.Less(t, maxValue, len(l.get(kvkey.Object(o.Hash).String()).Value))
	}
	must.Greater(t, maxValue, largest)

	f := l.follower(t.TempDir())
	must.True(t, f.consider(ctx, l.get(kvkey.Current)))
	hub := fabric.Ref{Domain: "large", Name: "hub"}
	doc, err := f.Document(ctx, hub)
	must.NoError(t, err)
	must.Eq(t, documentOf(g, hub), doc)

	docs, _ := objectsOf(t, rev)
	l.put(kvkey.Object(docs[hub]).String(), []byte{gzipMagic, 0x8b, 1})
	var v fabric.Document
	must.ErrorContains(t, ReadObject(ctx, l.consul, docs[hub], &v), "was altered")
	repaired, err := NewWriter(l.consul, Unfenced(l.consul)).Repair(ctx, rev.Objects)
	must.NoError(t, err)
	must.Eq(t, []fabric.Hash{docs[hub]}, repaired)
	must.NoError(t, ReadObject(ctx, l.consul, docs[hub], &v))
}
