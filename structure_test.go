// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package main

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/shoenig/test/must"
)

const module = "github.com/sif-project/sif"

// layers lists which of our packages a package may import. Dependencies point one way: from command
// to the daemons, to the packages that they share, to the model. The first pattern that matches
// applies. Test files may import any package.
var layers = []struct {
	pkg, may, why string
}{
	{`^fabric$`, `^$`, "the model is pure: it imports nothing of ours"},
	{`^internal/wellknown$`, `^$`, "packages that do not import one another share these values"},
	{`^fabric/flow$`, `^fabric$`, "what is recorded of flows, and how it is selected, follows from the model's names alone"},
	{`^fabric/desired/desiredtest$`, `^fabric(/desired)?$`, "it makes fabrics for tests from the model alone"},
	{`^fabric/desired$`, `^fabric$`, "what must be enforced is computed from the model alone"},
	{`^bpf(/.*)?$`, `^(bpf(/.*)?|internal/(portrange|connlimit|leftover))$`, "the data path knows packets, maps and ports, but neither Consul nor the model"},
	{`^engine/ovs/ovstest$`, `^(engine/ovs|internal/testhost)$`, "it starts a switch for tests and checks their requirements"},
	{`^engine/exit$`, `^(engine/port|internal/(wellknown|leftover|node/(kernel|host|ruleset)))$`, "the exit knows interfaces and addresses, not policy"},
	{`^engine/(openflow|ovs|port)(/.*)?$`, `^(engine/(openflow|ovs|port)(/.*)?|internal/(portrange|connlimit|wellknown|leftover|node/kernel))$`, "the switch's pipeline knows numbers, not the model"},
	{`^hcl/generate$`, `^hcl$`, "it writes the reference and the schema of the graph language"},
	{`^internal/metric/generate$`, `^internal/metric$`, "it writes the reference of the metrics"},
	{`^hcl$`, `^(fabric|internal/wellknown)$`, "the languages know the model, and the name of the fabric's network in jobs"},
	{`^api$`, `^(fabric(/flow)?|internal/wellknown)$`, "users import the client, so it must have few dependencies"},
	{`^internal/node/firewall$`, `^(fabric|internal/(wellknown|leftover|node/ruleset))$`, "it uses the model's protocols, not its policy"},
	{`^internal/(nomadlife|testhost|leftover|clock|portrange|connlimit|logkey|atomicfile|keylock|limit|coalesce|fanout|retry|consulwatch|statefile|dirlock|servertoken|servercalls|metric|vaultclient|version|supervisor|node/number|node/link|node/kernel|node/ruleset)$`, `^internal/(node/kernel|leftover|clock|logkey|metric|servercalls|atomicfile|coalesce|dirlock|retry|statefile|supervisor|wellknown)$`, "it knows nothing of the fabric"},
	{`^internal/nomadjob$`, `^(fabric|internal/wellknown)$`, "what a job says does not depend on who asks"},
	{`^internal/node/cnicall$`, `^fabric$`, "the plugin has few dependencies"},
	{`^internal/trust/.*`, `^(fabric|internal/trust/.*|internal/[a-z]+)$`, "verification of signed state does not depend on its users"},
	{`^internal/outside/resolve(/.*)?$`, `^internal/(wellknown|outside/resolve)$`, "it asks about names, whoever asks for them"},
	{`^internal/outside/.*`, `^(fabric|internal/(outside/.*|[a-z]+))$`, "outside names do not depend on a data path, nor on who resolves them"},
	{`^internal/doctor$`, `^(bpf|engine/(exit|ovs)|fabric|internal/.*)$`, "it looks at what each kind of machine needs, data paths included, by the packages that use it"},
	{`^internal/node/.*`, `^(api|fabric(/desired|/flow)?|internal/(trust|node)/.*|internal/[a-z]+)$`, "packages that nodes share do not know a data path"},
	{`^internal/inspect/.*`, `^(api|fabric(/desired)?|internal/(trust|inspect)/.*|internal/[a-z]+)$`, "inspection does not take part in enforcement"},
	{`^internal/.*`, `^(api|fabric|internal/.*)$`, "packages that daemons share do not know a daemon"},
	{`^controller$`, `^(api|fabric(/flow)?|hcl|internal/.*)$`, "daemons do not know one another"},
	{`^engine$`, `^(api|fabric(/desired)?|hcl|engine/.*|internal/.*)$`, "daemons do not know one another"},
	{`^agent(/.*)?$`, `^(api|fabric(/desired|/flow)?|hcl|bpf|agent/.*|internal/.*)$`, "daemons do not know one another"},
	{`^cni-plugin(/.*)?$`, `^(fabric|internal/(node/cnicall|version)|cni-plugin/.*)$`, "the plugin only forwards calls to the agent"},
	{`^command$`, `^(api|fabric(/flow)?|hcl|controller|engine|agent|internal/.*)$`, "the command line only starts daemons and calls the API"},
	{`^$`, `^command$`, "main only calls command"},
	{`^packaging/manual$`, `^(command|internal/version)$`, "the manual says what the commands say"},
	{`^jobs(/.*)?$`, `^$`, "the demo applications do not know the fabric"},
	{`^e2e(/.*)?$`, `^(api|fabric(/flow)?|hcl|bpf|engine/ovs|e2e/.*|internal/.*)$`, "end-to-end tests use the fabric from outside"},
}

// forbidden matches the packages of servers, which the product must not import because of their
// licence and their dependencies. Only their api modules are permitted.
var forbidden = regexp.MustCompile(`^github\.com/hashicorp/(consul|nomad|vault)(/|$)`)

var permitted = regexp.MustCompile(`^github\.com/hashicorp/(consul|nomad|vault)/api(/|$)`)

type goPackage struct {
	ImportPath, Dir, Doc string
	Imports              []string
}

func listPackages(t *testing.T) []goPackage {
	t.Helper()
	cmd := exec.Command("go", "list", "-json=ImportPath,Dir,Doc,Imports", "-tags", "e2e", "./...")
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	must.NoError(t, err)
	var list []goPackage
	for d := json.NewDecoder(strings.NewReader(string(out))); d.More(); {
		var p goPackage
		must.NoError(t, d.Decode(&p))
		list = append(list, p)
	}
	return list
}

func TestDependenciesPointOneWay(t *testing.T) {
	for _, p := range listPackages(t) {
		name := strings.TrimPrefix(strings.TrimPrefix(p.ImportPath, module), "/")
		i := slices.IndexFunc(layers, func(l struct{ pkg, may, why string }) bool { return regexp.MustCompile(l.pkg).MatchString(name) })
		if i < 0 {
			t.Errorf("package %q is not in the structure: add it to the table of this test and to docs/architecture.md", name)
			continue
		}
		may := regexp.MustCompile(layers[i].may)
		for _, imported := range p.Imports {
			ours, isOurs := strings.CutPrefix(imported, module+"/")
			if isOurs && !may.MatchString(ours) {
				t.Errorf("%s must not import %s: %s", name, ours, layers[i].why)
			}
			if forbidden.MatchString(imported) && !permitted.MatchString(imported) {
				t.Errorf("%s must not import %s: the product may use only the api modules of servers", name, imported)
			}
		}
	}
}

func TestEveryPackageSaysWhatItKnows(t *testing.T) {
	for _, p := range listPackages(t) {
		if p.Doc == "" && len(p.Imports) > 0 {
			t.Errorf("%s has no package comment: write what it knows and what it must not know", p.ImportPath)
		}
	}
}

func TestEveryFileCarriesTheLicence(t *testing.T) {
	err := filepath.WalkDir(".", func(path string, d os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && (d.Name() == ".git" || d.Name() == "bin") {
			return filepath.SkipDir
		}
		generated := strings.HasSuffix(path, "_bpfel.go") || strings.HasSuffix(path, "_bpfeb.go")
		if ext := filepath.Ext(path); generated || !slices.Contains([]string{".go", ".c", ".h", ".sh"}, ext) {
			return nil
		}
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		head, _, _ := strings.Cut(string(text), "\n\n")
		if !strings.Contains(head, "SPDX-License-Identifier:") {
			t.Errorf("%s has no SPDX licence identifier in its first lines", path)
		}
		return nil
	})
	must.NoError(t, err)
}
