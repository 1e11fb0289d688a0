// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package command

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/posener/complete"

	"github.com/sif-project/sif/api"
	"github.com/sif-project/sif/internal/join"
	"github.com/sif-project/sif/internal/join/redeem"
	"github.com/sif-project/sif/internal/machine"
	"github.com/sif-project/sif/internal/retry"
)

const tokenVariable = "SIF_JOIN_TOKEN"

// NodeJoinCommand is sif node join.
type NodeJoinCommand struct {
	Meta
	layout  machine.Layout
	said    machine.Said
	resume  bool
	noStart bool
	timeout time.Duration

	reloadNomad bool
	nomadUnit   string

	steps []joinStep
}

// joinStep is something that was done, for -json.
type joinStep struct {
	Step   string `json:"step"`
	Detail string `json:"detail"`
}

// joinReply is the result of a join, for -json.
type joinReply struct {
	Node   string     `json:"node"`
	Fabric string     `json:"fabric"`
	Kinds  []string   `json:"kinds"`
	Steps  []joinStep `json:"steps"`
	Next   []string   `json:"next"` // commands, for people
}

// Synopsis implements cli.Command.
func (c *NodeJoinCommand) Synopsis() string { return "Let this machine join the fabric" }

func (c *NodeJoinCommand) usage() string {
	return `
Usage: sif node join [options] TOKEN
       sif node join -resume [options]

  Lets this machine join the fabric. TOKEN is what sif node create printed; it
  can be used once. "-" reads it from standard input, and without an argument it
  is taken from SIF_JOIN_TOKEN: arguments can be seen in the list of processes.

  The command trusts only the Vault whose certificate the token names. It gets
  the machine's credential there, finds the underlay address and the agents of
  Consul and Nomad, writes the configuration, enables and starts the daemons,
  and waits until the machine is in the fabric. It says what it does and what
  comes next.

  If it is interrupted, or something is missing, run it again with -resume: the
  credential is stored, and no token is needed. A machine that belongs to a
  fabric already does not use up the token.

  With -reload-nomad the command also has the Nomad client of a workload node
  see the network, and has jobs that wait for it evaluated again. NOMAD_TOKEN
  must permit to read the node and to submit these jobs.
`
}

func (c *NodeJoinCommand) options() []*flag.FlagSet {
	c.layout, c.said, c.resume, c.noStart, c.reloadNomad, c.steps = machine.DefaultLayout(), machine.Said{}, false, false, false, nil
	o := newOptions("Join Options")
	c.jsonOption(o, "Print what was done in JSON.")
	o.BoolVar(&c.resume, "resume", false, "Go on with a join that did not end, or start again what it made. No token is needed.")
	o.BoolVar(&c.noStart, "no-start", false, "Write the files only. Nothing is enabled or started.")
	o.DurationVar(&c.timeout, "timeout", 2*time.Minute, "How `long` to wait until the machine is in the fabric, and until Nomad has the network. Default: 2m")
	o.StringVar(&c.said.UnderlayAddress, "underlay-address", "", "The `address` of this machine for its links. Default: by which it reaches the controller")
	o.StringVar(&c.said.UnderlayInterface, "underlay-interface", "", "The `interface` of this machine for its links. Default: by which it reaches the controller")
	o.StringVar(&c.said.ConsulAddress, "consul-address", "",
		"The `address` of this machine's Consul agent. Default: CONSUL_HTTP_ADDR if that is this machine, else https://127.0.0.1:8501 or http://127.0.0.1:8500")
	o.StringVar(&c.said.Nomad.Address, "nomad-address", "", "The `address` of this machine's Nomad agent. Default: NOMAD_ADDR if that is this machine, else port 4646 of 127.0.0.1")
	o.StringVar(&c.said.Nomad.Node, "nomad-node", "", "The `ID` of this machine's Nomad node, if the agent does not tell it.")
	o.StringVar(&c.said.Nomad.CNIPath, "cni-plugin-dir", "", "The `path` in which Nomad looks for CNI plugins (cni_path). Default: what the Nomad agent says")
	o.StringVar(&c.said.Nomad.CNIConfigDir, "cni-config-dir", "", "The `path` in which Nomad looks for CNI networks (cni_config_dir). Default: what the Nomad agent says")
	o.BoolVar(&c.reloadNomad, "reload-nomad", false, "Reload the Nomad agent, wait until its node has the network, and have blocked jobs evaluated.")
	o.StringVar(&c.nomadUnit, "nomad-unit", "nomad.service", "The `unit` of the Nomad agent, for -reload-nomad. Default: nomad.service")
	return []*flag.FlagSet{o, layoutOptions(&c.layout)}
}

// layoutOptions are the options that say where a machine has what.
func layoutOptions(l *machine.Layout) *flag.FlagSet {
	d := machine.DefaultLayout()
	o := newOptions("Directory Options")
	o.StringVar(&l.ConfigDir, "config-dir", d.ConfigDir, "The `path` of the configuration and the credential. Default: "+d.ConfigDir)
	o.StringVar(&l.DataDir, "data-dir", d.DataDir, "The `path` of what the daemons keep. Default: "+d.DataDir)
	o.StringVar(&l.RunDir, "run-dir", d.RunDir, "The `path` of the daemons' sockets. Default: "+d.RunDir)
	o.StringVar(&l.BPFDir, "bpf-dir", d.BPFDir, "The `path` of the BPF filesystem. Default: "+d.BPFDir)
	return o
}

func (c *NodeJoinCommand) arguments() arguments {
	return arguments{min: 0, max: 1, words: "one argument: the join token, or -", predict: complete.PredictNothing}
}

func (c *NodeJoinCommand) run(ctx context.Context, args []string) error {
	token, err := c.token(ctx, args)
	if err != nil {
		return err
	}
	for _, dir := range []*string{&c.layout.ConfigDir, &c.layout.DataDir, &c.layout.RunDir, &c.layout.BPFDir} {
		if *dir, err = filepath.Abs(*dir); err != nil {
			return fmt.Errorf("joining: %w", err)
		}
	}
	if err := c.layout.Check(); err != nil {
		return fmt.Errorf("joining: %w", err)
	}
	if !c.noStart {
		if os.Geteuid() != 0 {
			return errors.New("joining: this needs root: run it with sudo, or use -no-start with a -config-dir of your own")
		}
		if err := machine.Installed(ctx, machine.AllUnits()); err != nil {
			return fmt.Errorf("joining: %w", err)
		}
	}
	j, err := c.credential(ctx, token)
	if err != nil {
		return fmt.Errorf("joining: %w", err)
	}
	reply, err := c.complete(ctx, j)
	if err != nil {
		return fmt.Errorf("joining: %w\nThe credential of node %s is stored. When that is mended, go on with: sif node join -resume", err, j.Grant.Node)
	}
	return c.output(reply, func() string { return "\nNext:\n    " + strings.Join(reply.Next, "\n    ") })
}

// token returns the join token, or nil with -resume.
func (c *NodeJoinCommand) token(ctx context.Context, args []string) (*join.Token, error) {
	text := os.Getenv(tokenVariable)
	if len(args) > 0 {
		text = args[0]
	}
	if c.resume {
		if len(args) > 0 {
			return nil, usagef("-resume takes no token: the machine has its credential already.")
		}
		return nil, nil
	}
	if text == "" {
		return nil, usagef("This command takes %s, or the token in %s.", c.arguments().words, tokenVariable)
	}
	if text == "-" {
		src, err := readSource(ctx, "-")
		if err != nil {
			return nil, fmt.Errorf("reading the join token: %w", err)
		}
		text = string(src.Data)
	}
	t, err := join.ParseToken(text)
	if err != nil {
		return nil, fmt.Errorf("reading the join token: %w", err)
	}
	return &t, nil
}

// done shows and remembers a step.
func (c *NodeJoinCommand) done(step, format string, args ...any) {
	s := joinStep{step, fmt.Sprintf(format, args...)}
	c.steps = append(c.steps, s)
	if !c.json {
		c.UI.Output(fmt.Sprintf("%-14s %s", s.Step, s.Detail))
	}
}

func digestOf(t join.Token) string {
	sum := sha256.Sum256([]byte(t.String()))
	return hex.EncodeToString(sum[:])
}

// credential returns how the machine joins, with its credential stored: the one that it has, or the
// one that the token gives.
func (c *NodeJoinCommand) credential(ctx context.Context, token *join.Token) (machine.Joined, error) {
	j, found, err := c.layout.Joined()
	if err != nil {
		return j, err
	}
	if !found && token == nil {
		return j, fmt.Errorf("there is nothing to resume: %s has no join that began; use a token of sif node create", c.layout.ConfigDir)
	}
	if found {
		who := fmt.Sprintf("node %s of fabric %s", j.Grant.Node, j.Grant.Settings.Fabric)
		switch works := c.works(ctx, j); {
		case works == nil && (token == nil || digestOf(*token) == j.Token):
			c.done("Credential", "this machine is %s; going on with its credential", who)
			j.Said = c.said.Or(j.Said)
			return j, c.layout.KeepState(j)
		case works == nil:
			return j, fmt.Errorf("this machine is %s already, so the token was not used: go on with sif node join -resume, or end its membership with sif node leave first", who)
		case token == nil || digestOf(*token) == j.Token || !errors.Is(works, redeem.ErrRefused):
			return j, fmt.Errorf("this machine is %s: %w; if its credential was ended, make a new token with sif node create -again, and use that", who, works)
		}
	}
	g, err := c.redeem(ctx, *token)
	if err != nil {
		return j, err
	}
	if found && (g.Node != j.Grant.Node || g.Settings.Fabric != j.Grant.Settings.Fabric) {
		return j, fmt.Errorf("the token is of node %s of fabric %s, but this machine is node %s of fabric %s: end that with sif node leave, and make another token, because this one is used up",
			g.Node, g.Settings.Fabric, j.Grant.Node, j.Grant.Settings.Fabric)
	}
	made := j.Made
	if !found {
		made = c.layout.Absent()
	}
	next := machine.Joined{Grant: g, Layout: c.layout, Made: made, Said: c.said.Or(j.Said), Token: digestOf(*token), Time: time.Now().UTC().Truncate(time.Second)}
	if err := c.layout.Keep(next); err != nil {
		return j, fmt.Errorf("%w; the token is used up: make another one with sif node create -again", err)
	}
	c.done("Credential", "this machine is %s of fabric %s; its credential is in %s", g.Node, g.Settings.Fabric, c.layout.SecretIDFile())
	return next, nil
}

// works reports why Vault does not accept the credential of the machine.
func (c *NodeJoinCommand) works(ctx context.Context, j machine.Joined) error {
	s, err := redeem.Login(ctx, j.Grant)
	if err != nil {
		return err
	}
	return s.End(ctx)
}

// skewWarning is from how far on a difference of the clocks is shown.
const skewWarning = 5 * time.Second

// redeem uses the token up, after all that can be checked before.
func (c *NodeJoinCommand) redeem(ctx context.Context, token join.Token) (join.Grant, error) {
	v, err := redeem.Connect(ctx, token)
	if err != nil {
		return join.Grant{}, err
	}
	how := "by its certificate"
	if token.Digest == "" {
		how = "by nothing: it has no TLS"
	}
	c.done("Vault", "%s has proved itself %s", token.Vault, how)
	if v.Skew.Abs() > skewWarning {
		c.UI.Warn(fmt.Sprintf("The clock of this machine differs from Vault's by %s.", v.Skew.Abs().Round(time.Second)))
	}
	if _, err := machine.FindUnderlay(ctx, []string{token.Vault}, c.said.UnderlayAddress, c.said.UnderlayInterface); err != nil {
		return join.Grant{}, err
	}
	g, err := v.Unwrap(ctx)
	if errors.Is(err, redeem.ErrUsed) {
		err = fmt.Errorf("%w. If you did not use it, somebody else may have: make a new one with sif node create -again, which ends what the old one gave, and look into the audit logs", err)
	}
	return g, err
}

// complete does what follows the credential. It can be repeated.
func (c *NodeJoinCommand) complete(ctx context.Context, j machine.Joined) (joinReply, error) {
	g := j.Grant
	reply := joinReply{Node: g.Node.String(), Fabric: g.Settings.Fabric}
	for _, k := range g.Kinds {
		reply.Kinds = append(reply.Kinds, string(k))
	}
	f, err := c.find(ctx, &j)
	if err != nil {
		return reply, err
	}
	if err := machine.Write(j, f); err != nil {
		return reply, err
	}
	for _, d := range machine.Daemons(g) {
		c.done("Configuration", "%s", j.Layout.ConfigFile(d))
	}
	if err := c.layout.KeepState(j); err != nil {
		return reply, err
	}
	if c.noStart {
		reply.Next = append(reply.Next, machine.Commands(j)...)
	} else if err := c.start(ctx, j, f); err != nil {
		return reply, err
	}
	j.Done = true
	if err := c.layout.KeepState(j); err != nil {
		return reply, err
	}
	if g.Is(join.Workload) {
		next, err := c.nomad(ctx, f.Nomad)
		if err != nil {
			return reply, err
		}
		reply.Next = append(reply.Next, next...)
	}
	reply.Steps = c.steps
	reply.Next = append(reply.Next, fmt.Sprintf("SIF_HTTP_ADDR=https://%s SIF_CACERT=%s sif node status %s", strings.Join(machine.ControllersOf(g, f), ",https://"), j.Layout.FabricCAFile(), g.Node))
	return reply, nil
}

// find finds what the configuration needs.
func (c *NodeJoinCommand) find(ctx context.Context, j *machine.Joined) (machine.Found, error) {
	f := machine.Found{Switch: machine.HasSwitch()}
	g := j.Grant
	session, err := redeem.Login(ctx, g)
	if err != nil {
		return f, err
	}
	defer func() { _ = session.End(context.WithoutCancel(ctx)) }() // it ends by itself
	if f.FabricCA, err = session.FabricCA(ctx); err != nil {
		return f, err
	}
	peers := append(append([]string{}, g.Controllers...), g.Settings.Vault.Address)
	if f.Underlay, err = machine.FindUnderlay(ctx, peers, j.Said.UnderlayAddress, j.Said.UnderlayInterface); err != nil {
		return f, err
	}
	c.done("Underlay", "%s on %s, MTU %d; MTU of the links %d", f.Underlay.Address, f.Underlay.Interface, f.Underlay.MTU, f.Underlay.LinkMTU())
	if f.Consul, err = machine.FindConsul(ctx, j.Said.ConsulAddress, g.Settings.Consul.CA); err != nil {
		return f, err
	}
	c.done("Consul", "%s", f.Consul.Address)
	if g.Is(join.Workload) {
		if f.Nomad, err = machine.FindNomad(ctx, j.Said.Nomad, g.Settings.Nomad.CA, g.NomadNode); err != nil {
			return f, err
		}
		j.Nomad = f.Nomad
		for _, dir := range j.Layout.Absent(f.Nomad.CNIPath, f.Nomad.CNIConfigDir) {
			if !slices.Contains(j.Made, dir) {
				j.Made = append(j.Made, dir)
			}
		}
		c.done("Nomad", "%s, node %s; CNI plugins in %s, networks in %s",
			cmp.Or(f.Nomad.Address, "not running yet"), cmp.Or(f.Nomad.ID, "not known yet"), f.Nomad.CNIPath, f.Nomad.CNIConfigDir)
	}
	switch {
	case !g.Is(join.Processor):
	case g.Is(join.Workload):
		c.done("Switch", "none, as this machine also runs workloads: its engine only carries requests, which is all that one zone needs")
	case f.Switch:
		c.done("Switch", "Open vSwitch is installed: the engine uses it at the zone's boundary")
	default:
		c.done("Switch", "none: the engine only carries requests, which is all that one zone needs")
	}
	if g.Is(join.Controller) {
		if err := session.Announce(ctx, f.ControllerAddress()); err != nil {
			return f, err
		}
		c.done("Controller", "its address %s is in Vault, for the tokens of other machines", f.ControllerAddress())
	}
	return f, nil
}

// start starts the daemons, and waits until the machine is in the fabric.
func (c *NodeJoinCommand) start(ctx context.Context, j machine.Joined, f machine.Found) error {
	ctx, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	for _, u := range machine.Units(j.Grant) {
		begun := time.Now()
		if err := machine.Start(ctx, u); err != nil {
			return err
		}
		if err := c.wait(ctx, j, f, u, begun); err != nil {
			return err
		}
		c.done("Started", "%s", u)
	}
	return nil
}

// wait waits until a unit has done what its daemon is for.
func (c *NodeJoinCommand) wait(ctx context.Context, j machine.Joined, f machine.Found, unit string, begun time.Time) error {
	var last error
	for {
		switch unit {
		case "sif-controller.service":
			last = answers(ctx, j, f)
		default:
			last = machine.Ready(j, unit, begun)
		}
		if last == nil {
			return nil
		}
		if !retry.Sleep(ctx, time.Second) {
			journal := machine.Journal(context.WithoutCancel(ctx), unit)
			return fmt.Errorf("%s is %s after %s: %w; see journalctl -u %s\n%s", unit, machine.State(context.WithoutCancel(ctx), unit), brief(time.Since(begun)), last, unit, journal)
		}
	}
}

// answers asks the controller of this machine whether it works. Another one may lead.
func answers(ctx context.Context, j machine.Joined, f machine.Found) error {
	client, err := api.NewClient(api.Config{Address: "https://" + f.ControllerAddress(), CACert: j.Layout.FabricCAFile(), TrustDomain: j.Grant.Settings.TrustDomain, Alone: true})
	if err != nil {
		return err
	}
	defer client.Close()
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	if _, err := client.Standby(ctx); err != nil {
		return fmt.Errorf("ask the controller: %w", err)
	}
	return nil
}

// nomad lets workloads start, or returns the commands that do.
func (c *NodeJoinCommand) nomad(ctx context.Context, a machine.NomadAgent) ([]string, error) {
	if !c.reloadNomad {
		return []string{
			fmt.Sprintf("systemctl reload %s      # Nomad reads its networks when it starts and when it is reloaded", strings.TrimSuffix(c.nomadUnit, ".service")),
			"nomad job eval <job>        # for each job that waits for the network",
		}, nil
	}
	if a.Address == "" {
		return nil, errors.New("-reload-nomad: no Nomad agent was found on this machine; start it, it then finds the network")
	}
	did, err := a.ReloadNomad(ctx, c.nomadUnit)
	if err != nil {
		return nil, err
	}
	c.done("Nomad", "%s", did)
	client, err := a.Client(a.Address)
	if err != nil {
		return nil, err
	}
	defer client.Close()
	if a.ID == "" {
		return nil, errors.New("the Nomad agent does not tell its node ID, so whether it has the network is not known: set NOMAD_TOKEN to one with agent:read, or say -nomad-node")
	}
	waiting, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	if err := machine.WaitForNetwork(waiting, client, a.ID, true); err != nil {
		return nil, fmt.Errorf("wait until Nomad has the network: %w", err)
	}
	c.done("Nomad", "node %s has the network %s", a.ID, machine.NetworkMode)
	jobs, err := machine.EvaluateBlocked(ctx, client)
	for _, name := range jobs {
		c.done("Nomad", "job %s is evaluated again", name)
	}
	return nil, err
}
