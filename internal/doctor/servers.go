// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package doctor

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	consulapi "github.com/hashicorp/consul/api"
	nomadapi "github.com/hashicorp/nomad/api"

	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/internal/clock"
	"github.com/sif-project/sif/internal/config"
	"github.com/sif-project/sif/internal/join"
	"github.com/sif-project/sif/internal/kvkey"
	"github.com/sif-project/sif/internal/node/host"
	"github.com/sif-project/sif/internal/setup"
	"github.com/sif-project/sif/internal/trust/identity"
	"github.com/sif-project/sif/internal/wellknown"
)

// serverTimeout bounds how long a server may take for an answer.
const serverTimeout = 5 * time.Second

// server is a server that the machine needs.
type server struct {
	name    string
	url     string // of something that it answers to anybody
	remedy  string // if it cannot be reached
	roots   string // PEM file; the system's authorities if empty
	pair    [2]string
	noCheck bool // anybody's certificate is good enough: only the time is read
}

// servers looks at Vault, Consul, Nomad and the controller: whether they answer, whether the clocks
// agree, and whether the machine's credentials have the rights that they need.
func (p *patient) servers(ctx context.Context) []host.Finding {
	var findings []host.Finding
	c := p.any()
	if c == nil {
		return nil
	}
	if p.vault {
		findings = append(findings, p.lookAtVault(ctx, c)...)
	} else {
		findings = append(findings, skipped("vault", "Vault", "was not asked: its address is not known", "set VAULT_ADDR or -vault-addr"))
	}
	byLogin := func(c *config.Config) any {
		return struct {
			consul config.Consul
			role   string
		}{*c.Consul, c.Vault.RoleID}
	}
	for _, kinds := range p.sharing(byLogin) {
		findings = append(findings, p.lookAtConsul(ctx, kinds)...)
	}
	for _, kinds := range p.sharing(func(c *config.Config) any { return *c.Nomad }) {
		findings = append(findings, p.lookAtNomad(ctx, kinds)...)
	}
	for _, address := range c.Controller.All() {
		url := "https://" + strings.TrimPrefix(address, "https://")
		controller := server{
			name: "controller", url: url + "/v1/health", noCheck: true,
			remedy: "see \"systemctl status sif-controller\" there, and let firewalls between pass TCP port " + wellknown.ControllerPort,
		}
		found, _ := controller.ask(ctx)
		findings = append(findings, found...)
	}
	return findings
}

// sharing groups the kinds of which a part of the configuration is the same.
func (p *patient) sharing(part func(*config.Config) any) (groups [][]join.Kind) {
	for _, d := range daemons {
		c := p.configs[d.kind]
		if c == nil {
			continue
		}
		same := func(group []join.Kind) bool { return part(p.configs[group[0]]) == part(c) }
		if i := slices.IndexFunc(groups, same); i >= 0 {
			groups[i] = append(groups[i], d.kind)
		} else {
			groups = append(groups, []join.Kind{d.kind})
		}
	}
	return groups
}

// show logs in to Vault with the credential of a daemon, for the time of the question; nil if the
// machine has none.
func (p *patient) show(c *config.Config) config.ShowJWT {
	if !p.joined {
		return nil
	}
	return func(ctx context.Context, role string) (string, error) {
		client, err := identity.LogIn(ctx, c.Identity())
		if err != nil {
			return "", err
		}
		jwt, err := identity.JWT(ctx, client, role)
		return jwt, errors.Join(err, client.Auth().Token().RevokeSelfWithContext(ctx, ""))
	}
}

// holder names who has the credentials of kinds.
func (p *patient) holder(kinds []join.Kind) string {
	if !p.joined {
		return "the token"
	}
	var files []string
	for _, d := range daemons {
		if slices.Contains(kinds, d.kind) {
			files = append(files, d.file)
		}
	}
	return "the token of " + strings.Join(files, " and ")
}

func skipped(check, subject, detail, remedy string) host.Finding {
	return host.Finding{Check: check, Subject: subject, Result: host.Skipped, Detail: detail, Remedy: remedy}
}

// speaksTLS reports whether what listens at an http address answers that it speaks TLS.
func speaksTLS(ctx context.Context, address string) bool {
	ctx, cancel := context.WithTimeout(ctx, serverTimeout)
	defer cancel()
	resp, err := server{url: address}.get(ctx)
	if err != nil {
		return false
	}
	defer resp.Body.Close()
	text, _ := io.ReadAll(io.LimitReader(resp.Body, 1<<10))
	return resp.StatusCode == http.StatusBadRequest && strings.Contains(string(text), "HTTPS server")
}

// title is the name at the beginning of a sentence.
func (s server) title() string {
	if s.name == "controller" {
		return "the controller"
	}
	return strings.ToUpper(s.name[:1]) + s.name[1:]
}

// ask reports whether the server answers, and by how much the clocks differ.
func (s server) ask(ctx context.Context) (findings []host.Finding, reached bool) {
	ctx, cancel := context.WithTimeout(ctx, serverTimeout)
	defer cancel()
	f := host.Finding{Check: s.name, Subject: s.title(), Result: host.Well}
	asked := time.Now()
	resp, err := s.get(ctx)
	answered := time.Now()
	if err != nil {
		f.Result, f.Detail, f.Remedy = host.Wrong, fmt.Sprintf("cannot be reached: %v", err), s.remedy
		return []host.Finding{f}, false
	}
	defer resp.Body.Close()
	_, _ = io.Copy(io.Discard, io.LimitReader(resp.Body, 1<<20)) // the answer itself does not matter
	at := resp.Request.URL
	f.Detail = fmt.Sprintf("answers at %s://%s", at.Scheme, at.Host)
	if s.name == "vault" {
		f = judgeHealth(f, resp.StatusCode)
	}
	findings = append(findings, f)
	if date, err := http.ParseTime(resp.Header.Get("Date")); err == nil {
		findings = append(findings, judgeClock(s.title(), asked, answered, date))
	}
	return findings, true
}

// judgeHealth reads the status of Vault's /v1/sys/health.
func judgeHealth(f host.Finding, status int) host.Finding {
	switch status {
	case http.StatusNotImplemented:
		f.Result, f.Detail, f.Remedy = host.Wrong, "is not initialised", "vault operator init"
	case http.StatusServiceUnavailable:
		f.Result, f.Detail, f.Remedy = host.Wrong, "is sealed", "vault operator unseal"
	}
	return f
}

// judgeClock compares the machine's clock with the time of an answer, which is in whole seconds.
func judgeClock(who string, asked, answered, date time.Time) host.Finding {
	f := host.Finding{Check: "clock", Subject: "the machine's clock", Result: host.Well}
	ahead := asked.Sub(date.Add(time.Second)) // at least
	behind := date.Sub(answered)
	switch {
	case ahead > clock.MaxSkew:
		f.Result, f.Detail = host.Wrong, fmt.Sprintf("is about %s ahead of that of %s", ahead.Round(time.Second), who)
	case behind > clock.MaxSkew:
		f.Result, f.Detail = host.Wrong, fmt.Sprintf("is about %s behind that of %s", behind.Round(time.Second), who)
	default:
		f.Detail = fmt.Sprintf("agrees with that of %s within %s", who, max(ahead, behind, 0)+time.Second)
		return f
	}
	f.Remedy = "timedatectl set-ntp true, here and there"
	return f
}

func (s server) get(ctx context.Context) (*http.Response, error) {
	conf := &tls.Config{InsecureSkipVerify: s.noCheck} //nolint:gosec // see noCheck
	if s.roots != "" {
		text, err := os.ReadFile(s.roots)
		if err != nil {
			return nil, err
		}
		conf.RootCAs = x509.NewCertPool()
		if !conf.RootCAs.AppendCertsFromPEM(text) {
			return nil, fmt.Errorf("%s contains no certificate", s.roots)
		}
	}
	if s.pair[0] != "" {
		pair, err := tls.LoadX509KeyPair(s.pair[0], s.pair[1])
		if err != nil {
			return nil, err
		}
		conf.Certificates = []tls.Certificate{pair}
	}
	transport := &http.Transport{TLSClientConfig: conf, DisableKeepAlives: true, Proxy: http.ProxyFromEnvironment}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, s.url, nil)
	if err != nil {
		return nil, err
	}
	return (&http.Client{Transport: transport}).Do(request)
}

// right is something that a credential must permit.
type right struct {
	what string
	try  func() error
}

// rights tries each right, and says which ones are missing.
func rights(s server, of, remedy string, list []right) []host.Finding {
	var missing []string
	for _, r := range list {
		if err := r.try(); err != nil {
			missing = append(missing, fmt.Sprintf("%s (%v)", r.what, err))
		}
	}
	f := host.Finding{Check: s.name, Subject: s.title(), Result: host.Well, Detail: "grants " + of + " what it needs"}
	if len(missing) > 0 {
		f.Result, f.Detail, f.Remedy = host.Wrong, fmt.Sprintf("refuses %s: %s", of, strings.Join(missing, "; ")), remedy
	}
	return []host.Finding{f}
}

// lookAtVault logs in with the credential of the machine, if it has one, for as long as the
// question takes.
func (p *patient) lookAtVault(ctx context.Context, c *config.Config) []host.Finding {
	s := server{name: "vault", url: c.Identity().VaultAddress + "/v1/sys/health?standbyok=true&perfstandbyok=true", roots: c.Vault.CAFile,
		remedy: "see whether the address and the CA are right (VAULT_ADDR, VAULT_CACERT, or block \"vault\"), and let firewalls between pass it"}
	findings, reached := s.ask(ctx)
	if !reached || !p.joined {
		return findings
	}
	const again = "let the machine join again, with a new token of \"sif node create\""
	var list []right
	for _, d := range daemons {
		conf := p.configs[d.kind]
		if conf == nil {
			continue
		}
		client, err := identity.LogIn(ctx, conf.Identity())
		if err != nil {
			f := host.Finding{Check: s.name, Subject: s.title(), Result: host.Wrong, Detail: fmt.Sprintf("refuses the credential of %s: %v", d.file, err), Remedy: again}
			findings = append(findings, f)
			continue
		}
		for path, capability := range needed(d.kind, conf) {
			list = append(list, right{capability + " " + path, func() error {
				have, err := client.Sys().CapabilitiesSelfWithContext(ctx, path)
				if err == nil && !slices.Contains(have, capability) && !slices.Contains(have, "root") {
					err = fmt.Errorf("the policy has %s", strings.Join(have, ", "))
				}
				return err
			}})
		}
		slices.SortFunc(list, func(a, b right) int { return strings.Compare(a.what, b.what) })
		findings = append(findings, rights(s, "the credential of "+d.file, "sif setup, then "+again, list)...)
		list = nil
		if err := client.Auth().Token().RevokeSelfWithContext(ctx, ""); err != nil {
			findings = append(findings, host.Finding{Check: s.name, Subject: s.title(), Result: host.Warning, Detail: fmt.Sprintf("did not revoke the token of this question, which expires: %v", err)})
		}
	}
	return findings
}

// needed returns the capabilities, by path, that a daemon needs in Vault.
func needed(k join.Kind, c *config.Config) map[string]string {
	v := c.Vault
	m := map[string]string{
		v.TransitMount + "/keys/" + v.TransitKey:                   "read",
		v.PKIMount + "/issuers":                                    "list",
		v.TransitMount + "/keys/" + wellknown.JWTKey(v.TransitKey): "read",
		v.PKIMount + "/sign/" + v.PKIRole:                          "update",
	}
	for _, role := range []string{c.Consul.TokenRole, c.Nomad.TokenRole} {
		if role != "" {
			m["identity/oidc/token/"+role] = "read"
		}
	}
	if k == join.Controller {
		m[v.TransitMount+"/sign/"+v.TransitKey] = "update"
		m[v.TransitMount+"/sign/"+wellknown.JWTKey(v.TransitKey)] = "update"
		m[v.PKIMount+"/sign/"+setup.RoleWorkload] = "update"
		m[v.PKIMount+"/sign/"+setup.RoleApplication] = "update"
	}
	return m
}

// lookAtConsul asks the Consul agent that the daemons of kinds use.
func (p *patient) lookAtConsul(ctx context.Context, kinds []join.Kind) []host.Finding {
	c := p.configs[kinds[0]]
	s := server{name: "consul", roots: c.Consul.CAFile, pair: [2]string{c.Consul.CertFile, c.Consul.KeyFile},
		remedy: "start a Consul client agent on this machine, or name another one by CONSUL_HTTP_ADDR or block \"consul\""}
	client, err := c.ConsulClient(p.show(c))
	plain, perr := c.ConsulClient(nil)
	if err = errors.Join(err, perr); err != nil {
		return []host.Finding{{Check: s.name, Subject: s.title(), Result: host.Wrong, Detail: "cannot be asked: " + err.Error(), Remedy: s.remedy}}
	}
	query := (&consulapi.QueryOptions{}).WithContext(ctx)
	if !p.joined {
		query.Token = os.Getenv(consulapi.HTTPTokenEnvName)
	}
	var findings []host.Finding
	if !strings.HasPrefix(c.Consul.Address, "unix://") {
		s.url = strings.TrimSuffix(config.WithScheme(c.Consul.Address, c.Consul.CAFile), "/") + "/v1/status/leader"
		found, reached := s.ask(ctx)
		findings = append(findings, found...)
		if !reached {
			return findings
		}
	}
	if leader, err := plain.Status().LeaderWithQueryOptions(query); err != nil || leader == "" {
		return append(findings, host.Finding{Check: s.name, Subject: s.title(), Result: host.Wrong, Detail: "has no leader", Remedy: "see \"consul members\" and \"consul operator raft list-peers\""})
	}
	defer p.logOut(ctx, client, c)
	token, _, err := client.ACL().TokenReadSelf(query)
	switch {
	case err != nil && strings.Contains(err.Error(), "ACL support disabled"):
		return append(findings, host.Finding{Check: s.name, Subject: s.title(), Result: host.Warning,
			Detail: "has no ACLs: whoever reaches it can write the fabric's keys, which are signed, and delete them", Remedy: "enable ACLs with default_policy = \"deny\", then sif setup"})
	case err != nil && !p.joined:
		return append(findings, skipped(s.name, s.title(), "was not asked for rights: there is no token", ""))
	case err != nil:
		return append(findings, host.Finding{Check: s.name, Subject: s.title(), Result: host.Wrong, Detail: fmt.Sprintf("refuses %s: %v", p.holder(kinds), err),
			Remedy: "sif setup, then let the machine join again"})
	case !p.joined: // an administrator's
		return append(findings, host.Finding{Check: s.name, Subject: s.title(), Result: host.Well, Detail: fmt.Sprintf("accepts the token %q", token.Description)})
	}
	list := []right{
		{"read key " + kvkey.Current, func() error { _, _, err := client.KV().Get(kvkey.Current, query); return err }},
		{"list services", func() error { _, _, err := client.Catalog().Services(query); return err }},
		{"read its agent", func() error { _, err := client.Agent().Self(); return err }},
	}
	if slices.Contains(kinds, join.Controller) {
		list = append(list, right{"read ACL policies", func() error { _, _, err := client.ACL().PolicyList(query); return err }})
	}
	return append(findings, rights(s, p.holder(kinds), "sif setup", list)...)
}

// logOut ends the token of Consul that a client got for a question. One that stays ends by itself.
func (p *patient) logOut(ctx context.Context, client *consulapi.Client, c *config.Config) {
	if p.joined && c.Consul.AuthMethod != "" {
		_, _ = client.ACL().Logout((&consulapi.WriteOptions{}).WithContext(ctx))
	}
}

// Where the agent of a Nomad client listens.
const (
	localNomad    = "http://127.0.0.1:4646"
	localNomadTLS = "https://127.0.0.1:4646"
)

// lookAtNomad asks Nomad's servers on the controller, and the local agent on a workload node.
func (p *patient) lookAtNomad(ctx context.Context, kinds []join.Kind) []host.Finding {
	controller, workload := slices.Contains(kinds, join.Controller), slices.Contains(kinds, join.Workload)
	if !controller && !workload {
		return nil
	}
	conf := *p.configs[kinds[0]]
	nomad := *conf.Nomad
	if conf.Nomad = &nomad; nomad.Address == "" {
		nomad.Address = localNomad
		if speaksTLS(ctx, nomad.Address) {
			nomad.Address = localNomadTLS
		}
	}
	s := server{name: "nomad", url: strings.TrimSuffix(config.WithScheme(nomad.Address, nomad.CAFile), "/") + "/v1/status/leader", roots: nomad.CAFile,
		remedy:  "start Nomad, or name another address by NOMAD_ADDR or block \"nomad\", and its authority by NOMAD_CACERT",
		noCheck: !p.joined && nomad.CAFile == ""} // the authority comes with the join token
	client, err := conf.NomadClient(p.show(&conf))
	if err != nil {
		return []host.Finding{{Check: s.name, Subject: s.title(), Result: host.Wrong, Detail: "cannot be asked: " + err.Error(), Remedy: s.remedy}}
	}
	if token := os.Getenv("NOMAD_TOKEN"); token != "" && (!p.joined || nomad.AuthMethod == "") {
		client.SetSecretID(token)
	}
	findings, reached := s.ask(ctx)
	if !reached {
		return findings
	}
	if _, _, err := client.ACLPolicies().List(nil); err != nil && strings.Contains(err.Error(), "ACL support disabled") {
		findings = append(findings, host.Finding{Check: s.name, Subject: s.title(), Result: host.Warning,
			Detail: "has no ACLs: whoever reaches it can run a job that has the identity of any service", Remedy: "acl { enabled = true } in Nomad's configuration, then sif setup"})
	}
	if controller && (p.joined || os.Getenv("NOMAD_TOKEN") != "") {
		query := (&nomadapi.QueryOptions{Namespace: nomadapi.AllNamespacesNamespace, PerPage: 1}).WithContext(ctx)
		findings = append(findings, rights(s, p.holder(kinds), "sif setup", []right{
			{"list jobs", func() error { _, _, err := client.Jobs().List(query); return err }},
			{"list nodes", func() error { _, _, err := client.Nodes().List(query); return err }},
		})...)
	}
	if workload {
		findings = append(findings, p.nomadAgent(s, client, p.configs[join.Workload])...)
	}
	return findings
}

// nomadAgent compares the configuration of the local Nomad client with the agent's.
func (p *patient) nomadAgent(s server, client *nomadapi.Client, c *config.Config) []host.Finding {
	self, err := client.Agent().Self()
	if err != nil {
		return []host.Finding{skipped(s.name, s.title(), fmt.Sprintf("does not show its agent's configuration: %v", err),
			"set NOMAD_TOKEN to a token whose policy has agent { policy = \"read\" }")}
	}
	conf, _ := self.Config["Client"].(map[string]any)
	findings := []host.Finding{judgeNomad(conf, c.CNI.PluginDir, c.CNI.ConfigDir)}
	findings = append(findings, judgeNomadPorts(conf, p.ports())...)
	findings = append(findings, judgeVolume(conf, c.WorkloadAPI.Directory))
	if p.joined {
		findings = append(findings, nomadNetwork(client, self))
	}
	return findings
}

func text(m map[string]any, key string) string { s, _ := m[key].(string); return s }

func judgeNomad(conf map[string]any, pluginDir, configDir string) host.Finding {
	f := host.Finding{Check: "nomad", Subject: "Nomad's client", Result: host.Well, Detail: fmt.Sprintf("looks for CNI where the agent installs it: %s and %s", pluginDir, configDir)}
	enabled, _ := conf["Enabled"].(bool)
	paths := filepath.SplitList(text(conf, "CNIPath"))
	clean := func(list []string) (out []string) {
		for _, s := range list {
			out = append(out, filepath.Clean(s))
		}
		return out
	}
	switch {
	case !enabled:
		f.Result, f.Detail, f.Remedy = host.Wrong, "is not enabled on this machine, so it can run no workloads", "client { enabled = true } in Nomad's configuration, then systemctl restart nomad"
	case !slices.Contains(clean(paths), filepath.Clean(pluginDir)):
		f.Result, f.Detail = host.Wrong, fmt.Sprintf("looks for CNI plugins in %q, and the agent installs its own in %q", text(conf, "CNIPath"), pluginDir)
		f.Remedy = fmt.Sprintf("cni { plugin_dir = %q } in agent.hcl, or client { cni_path = %q } in Nomad's configuration", paths[0], text(conf, "CNIPath")+":"+pluginDir)
	case filepath.Clean(text(conf, "CNIConfigDir")) != filepath.Clean(configDir):
		f.Result, f.Detail = host.Wrong, fmt.Sprintf("looks for CNI networks in %q, and the agent writes its own to %q", text(conf, "CNIConfigDir"), configDir)
		f.Remedy = fmt.Sprintf("cni { config_dir = %q } in agent.hcl", text(conf, "CNIConfigDir"))
	}
	return f
}

// judgeNomadPorts looks whether Nomad gives away ports that the daemons listen on.
func judgeNomadPorts(conf map[string]any, ours []host.Port) []host.Finding {
	number := func(key string) int {
		n, _ := conf[key].(float64)
		return int(n)
	}
	least, most := number("MinDynamicPort"), number("MaxDynamicPort")
	reserved, _ := conf["Reserved"].(map[string]any)
	var wanted []int
	for _, p := range ours {
		wanted = append(wanted, int(p.At.Port()))
	}
	for p := wellknown.FirstLinkPort; p <= wellknown.LastLinkPort; p++ {
		wanted = append(wanted, p)
	}
	var given []string
	for _, n := range wanted {
		if n >= least && n <= most && !portListed(text(reserved, "ReservedPorts"), n) && !slices.Contains(given, strconv.Itoa(n)) {
			given = append(given, strconv.Itoa(n))
		}
	}
	f := host.Finding{Check: "nomad", Subject: "Nomad's dynamic ports", Result: host.Well, Detail: fmt.Sprintf("%d-%d are none of the fabric's", least, most)}
	if len(given) == 0 {
		return []host.Finding{f}
	}
	f.Result, f.Detail = host.Wrong, fmt.Sprintf("%d-%d contain ports of the fabric: %s", least, most, strings.Join(given, ", "))
	f.Remedy = fmt.Sprintf("client { reserved { reserved_ports = %q } } in Nomad's configuration", strings.Join(given, ","))
	return []host.Finding{f}
}

// portListed reports whether a port is in a list such as "22,8500-8600".
func portListed(list string, n int) bool {
	for part := range strings.SplitSeq(list, ",") {
		if r, err := fabric.ParsePortRange(strings.TrimSpace(part)); err == nil && int(r.From) <= n && n <= int(r.To) {
			return true
		}
	}
	return false
}

// nomadNetwork looks whether Nomad's servers know that the node has the fabric's network.
func nomadNetwork(client *nomadapi.Client, self *nomadapi.AgentSelf) host.Finding {
	f := host.Finding{Check: "nomad", Subject: "Nomad's node", Result: host.Well, Detail: "has the network cni/" + wellknown.CNINetwork}
	id := self.Stats["client"]["node_id"]
	node, _, err := client.Nodes().Info(id, nil)
	if err != nil {
		return skipped(f.Check, f.Subject, fmt.Sprintf("%s was not read: %v", id, err), "set NOMAD_TOKEN to a token whose policy has node { policy = \"read\" }")
	}
	if node.NodeResources != nil {
		for _, n := range node.NodeResources.Networks {
			if n.Mode == "cni/"+wellknown.CNINetwork {
				return f
			}
		}
	}
	f.Result, f.Detail, f.Remedy = host.Wrong, "does not have the network cni/"+wellknown.CNINetwork+", so no workload of the fabric starts there", "start sif-agent, then: systemctl reload nomad"
	return f
}

// hostOf returns the host of an address such as https://vault:8200 or vault:8200.
func hostOf(address string) string {
	if !strings.Contains(address, "://") {
		address = "https://" + address
	}
	u, err := url.Parse(address)
	if err != nil {
		return ""
	}
	return u.Hostname()
}
