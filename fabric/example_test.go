// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package fabric_test

import (
	"fmt"
	"time"

	"github.com/sif-project/sif/fabric"
)

// shop returns a graph of one domain: web may open flows to api on TCP port 8080.
func shop() *fabric.Graph {
	return &fabric.Graph{Domains: map[string]*fabric.Domain{"shop": {
		Name: "shop",
		Services: []fabric.Service{
			{Name: "web", Selectors: []fabric.Selector{{Kind: fabric.SelectNomad, Namespace: "default", Job: "shop", Group: "web"}}},
			{Name: "api", Selectors: []fabric.Selector{{Kind: fabric.SelectNomad, Namespace: "default", Job: "shop", Group: "api"}}},
		},
		Contracts: []fabric.Contract{{
			Name:        "storefront",
			Originators: []fabric.Ref{{Domain: "shop", Name: "web"}},
			Responders:  []fabric.Ref{{Domain: "shop", Name: "api"}},
			Rules:       []fabric.Rule{{Protocol: fabric.TCP, Ports: []fabric.PortRange{{From: 8080, To: 8080}}}},
		}},
	}}}
}

// identities returns the identities of endpoints that requested all roles of their service, and the
// documents that say what these may reach.
func identities(g *fabric.Graph) (map[string]fabric.Identity, map[string]fabric.Document) {
	ids, docs := map[string]fabric.Identity{}, map[string]fabric.Document{}
	for _, d := range fabric.Documents(g) {
		ids[d.Service.Name] = fabric.Identity{Service: d.Service, Roles: d.Roles()}
		docs[d.Service.Name] = d.At(time.Now())
	}
	return ids, docs
}

func ExampleGraph_Check() {
	g := shop()
	fmt.Println(len(g.Check(time.Now())), "problems")

	g.Domains["shop"].Contracts[0].Responders[0].Name = "apj"
	for _, p := range g.Check(time.Now()) {
		fmt.Println(p)
	}
	// Output:
	// 0 problems
	// contract "storefront" names an unknown service "apj" among its responders; did you mean "api"?
}

func ExampleGraph_Select() {
	services, _ := shop().Select(fabric.Workload{Namespace: "default", Job: "shop", Group: "api"})
	fmt.Println(services)
	// Output: [shop/api]
}

func ExampleAllow() {
	ids, docs := identities(shop())
	contract, allowed := fabric.Allow(ids["web"], docs["web"], ids["api"], fabric.TCP, 8080)
	fmt.Println("web to api on 8080:", allowed, contract)

	_, allowed = fabric.Allow(ids["web"], docs["web"], ids["api"], fabric.TCP, 22)
	fmt.Println("web to api on 22:", allowed)

	// A responder never opens a flow.
	_, allowed = fabric.Allow(ids["api"], docs["api"], ids["web"], fabric.TCP, 8080)
	fmt.Println("api to web on 8080:", allowed)

	// The graph allows it, but this instance did not request the role.
	_, allowed = fabric.Allow(fabric.Identity{Service: ids["web"].Service}, docs["web"], ids["api"], fabric.TCP, 8080)
	fmt.Println("web without roles:", allowed)
	// Output:
	// web to api on 8080: true shop/storefront
	// web to api on 22: false
	// api to web on 8080: false
	// web without roles: false
}

func ExampleDecide() {
	g := shop()
	g.Domains["shop"].Mode = fabric.ModeAudit
	ids, docs := identities(g)
	for _, port := range []uint16{8080, 22} {
		v := fabric.Decide(ids["web"], docs["web"], ids["api"], fabric.TCP, port)
		fmt.Printf("%d: allowed %t, audit %t, contract %s\n", port, v.Allowed, v.Audit, v.Contract)
	}
	// Output:
	// 8080: allowed true, audit false, contract shop/storefront
	// 22: allowed true, audit true, contract shop/sif-audit
}

func ExampleCompare() {
	before, after := shop(), shop()
	after.Domains["shop"].Contracts[0].Rules[0].Ports[0].To = 8081
	for _, c := range fabric.Compare(before, after, time.Now()).Reach {
		fmt.Printf("%s to %s: %v was %q and is %q\n", c.From, c.To, c.Rules, c.Was, c.Is)
	}
	// Output: shop/web to shop/api: [tcp/8081] was "" and is "allowed"
}

func ExampleCompile() {
	revision := fabric.Compile(shop())
	objects := map[fabric.Hash][]byte{}
	for _, o := range revision.Objects {
		objects[o.Hash] = o.Data
	}

	// From the signed root a node finds and verifies the document of each service that it hosts.
	service := fabric.Ref{Domain: "shop", Name: "web"}
	var root fabric.Root
	var shard fabric.Shard
	var doc fabric.Document
	for _, step := range []struct {
		hash func() fabric.Hash
		into any
	}{
		{func() fabric.Hash { return revision.Root }, &root},
		{func() fabric.Hash { return root.Shards[fabric.ShardOf(service)] }, &shard},
		{func() fabric.Hash { return shard[service.String()] }, &doc},
	} {
		if err := fabric.DecodeObject(objects[step.hash()], step.hash(), step.into); err != nil {
			fmt.Println(err)
			return
		}
	}
	edge := doc.Originates[0]
	fmt.Println(doc.Service, "originates", edge.Contract, "to", edge.Peers[0].Name, "on", edge.Rules)
	// Output: shop/web originates shop/storefront to shop/api on [tcp/8080]
}

func ExampleCompiled_Next() {
	var none *fabric.Compiled
	first, objects, _ := none.Next(shop())
	fmt.Println("objects of the first revision:", len(objects))

	g := shop()
	g.Domains["shop"].Services = append(g.Domains["shop"].Services, fabric.Service{Name: "db"})
	_, _, touched := first.Next(g)
	fmt.Println("touched by the second:", touched)
	// Output:
	// objects of the first revision: 7
	// touched by the second: [shop/db]
}
