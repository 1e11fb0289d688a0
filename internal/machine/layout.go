// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package machine

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/sif-project/sif/internal/atomicfile"
	"github.com/sif-project/sif/internal/join"
	"github.com/sif-project/sif/internal/statefile"
	"github.com/sif-project/sif/internal/wellknown"
)

// DefaultConfigDir is where the configuration of a machine is.
const DefaultConfigDir = "/etc/sif"

// Layout says in which directories a machine has what. They are absolute.
type Layout struct {
	ConfigDir string `json:"config_dir"`
	DataDir   string `json:"data_dir"`
	RunDir    string `json:"run_dir"`
	BPFDir    string `json:"bpf_dir"`
}

// DefaultLayout is the one that the packages have.
func DefaultLayout() Layout {
	return Layout{ConfigDir: DefaultConfigDir, DataDir: wellknown.DataDir, RunDir: wellknown.RunDir, BPFDir: "/sys/fs/bpf/sif"}
}

// shared are directories in which others have what leaving would take away.
var shared = []string{"/etc/*", "/run/user", "/run/systemd", "/sys/*", "/sys/fs/*", "/usr/*", "/usr/local/*", "/var/cache", "/var/lib", "/var/log", "/var/opt", "/var/run", "/var/spool", "/var/tmp", "/home/*"}

// Check returns an error that names a directory that cannot be the fabric's alone: leaving takes
// away all that is in it.
func (l Layout) Check() error {
	all := map[string]string{"config-dir": l.ConfigDir, "data-dir": l.DataDir, "run-dir": l.RunDir, "bpf-dir": l.BPFDir}
	for _, name := range slices.Sorted(maps.Keys(all)) {
		dir := filepath.Clean(all[name])
		others := filepath.Dir(dir) == "/" // as / itself
		for _, pattern := range shared {
			match, err := filepath.Match(pattern, dir)
			others = others || match || err != nil
		}
		if others && dir != filepath.Clean(l.ConfigDir) { // of that, only known files go
			return fmt.Errorf("-%s=%s is a directory of others, and must be the fabric's alone: name one in it, such as %s", name, dir, filepath.Join(dir, "sif"))
		}
		for _, other := range slices.Sorted(maps.Keys(all)) {
			if other != name && (filepath.Clean(all[other])+"/" == dir+"/" || strings.HasPrefix(filepath.Clean(all[other]), dir+"/")) {
				return fmt.Errorf("-%s=%s is in -%s=%s, and each needs a directory of its own", other, all[other], name, dir)
			}
		}
	}
	return nil
}

// Names of files in the configuration directory.
const (
	joinedName   = "join.json" // how the machine joined; it contains no secret
	secretIDName = "vault-secret-id"
	fabricCAName = "fabric-ca.pem"
	vaultCAName  = "vault-ca.pem"
	consulCAName = "consul-ca.pem"
	nomadCAName  = "nomad-ca.pem"
)

// SecretIDFile is the path of the only secret.
func (l Layout) SecretIDFile() string { return filepath.Join(l.ConfigDir, secretIDName) }

// ConfigFile is the path of a daemon's configuration.
func (l Layout) ConfigFile(daemon string) string { return filepath.Join(l.ConfigDir, daemon+".hcl") }

// FabricCAFile is the path of the certificate of the fabric's authority.
func (l Layout) FabricCAFile() string { return filepath.Join(l.ConfigDir, fabricCAName) }

// Joined is how a machine joined: all that is needed to go on after an interruption, and to leave.
type Joined struct {
	Grant  join.Grant `json:"grant"` // without the secret ID
	Layout Layout     `json:"layout"`
	Token  string     `json:"token"` // SHA-256 of the join token, to know it again
	Time   time.Time  `json:"time"`
	Made   []string   `json:"made,omitempty"` // directories that did not exist before
	Said   Said       `json:"said"`
	Nomad  NomadAgent `json:"nomad,omitzero"`
	Done   bool       `json:"done"` // the machine was in the fabric
}

// Said is what the operator said of the machine, instead of letting it be found. All may be empty.
type Said struct {
	UnderlayAddress   string     `json:"underlay_address,omitempty"`
	UnderlayInterface string     `json:"underlay_interface,omitempty"`
	ConsulAddress     string     `json:"consul_address,omitempty"`
	Nomad             NomadAgent `json:"nomad,omitzero"`
}

// Or completes what was said with what was said before.
func (s Said) Or(before Said) Said {
	s.UnderlayAddress = cmp.Or(s.UnderlayAddress, before.UnderlayAddress)
	s.UnderlayInterface = cmp.Or(s.UnderlayInterface, before.UnderlayInterface)
	s.ConsulAddress = cmp.Or(s.ConsulAddress, before.ConsulAddress)
	s.Nomad.Address = cmp.Or(s.Nomad.Address, before.Nomad.Address)
	s.Nomad.Node = cmp.Or(s.Nomad.Node, before.Nomad.Node)
	s.Nomad.CNIPath = cmp.Or(s.Nomad.CNIPath, before.Nomad.CNIPath)
	s.Nomad.CNIConfigDir = cmp.Or(s.Nomad.CNIConfigDir, before.Nomad.CNIConfigDir)
	return s
}

func (l Layout) joinedFile() statefile.File[Joined] {
	return statefile.File[Joined]{Path: filepath.Join(l.ConfigDir, joinedName), What: "how this machine joined"}
}

// Joined returns how the machine joined, with its credential, and whether it did.
func (l Layout) Joined() (Joined, bool, error) {
	j, found, err := l.joinedFile().Read()
	if err != nil || !found {
		return j, false, err
	}
	secret, err := os.ReadFile(l.SecretIDFile())
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return j, true, fmt.Errorf("read the credential of this machine: %w", err)
	}
	j.Grant.SecretID = string(trimmed(secret))
	return j, true, nil
}

// Keep stores how the machine joined. The secret comes first: what is not in join.json is not
// believed.
func (l Layout) Keep(j Joined) error {
	if err := os.MkdirAll(l.ConfigDir, 0o750); err != nil {
		return fmt.Errorf("create the directory of the configuration: %w", err)
	}
	if err := l.write(secretIDName, []byte(j.Grant.SecretID+"\n"), 0o600, ownerOf(j.Grant)); err != nil {
		return err
	}
	return l.KeepState(j)
}

// KeepState is Keep without the secret.
func (l Layout) KeepState(j Joined) error {
	j.Grant.SecretID = ""
	return l.joinedFile().Write(j)
}

// owner is the user and the group of a file; -1 is whoever writes it.
type owner struct{ uid, gid int }

// serviceUser is the user of the controller, which the packages create.
var serviceUser = "sif"

// ownerOf returns whom the secret belongs to. The controller does not run as root; the other
// daemons do, and read any file.
func ownerOf(g join.Grant) owner {
	if !g.Is(join.Controller) || os.Geteuid() != 0 {
		return owner{-1, -1}
	}
	u, err := user.Lookup(serviceUser)
	if err != nil {
		return owner{-1, -1}
	}
	uid, err := strconv.Atoi(u.Uid)
	gid, err2 := strconv.Atoi(u.Gid)
	if err != nil || err2 != nil {
		return owner{-1, -1}
	}
	return owner{uid, gid}
}

func (l Layout) write(name string, data []byte, perm os.FileMode, o owner) error {
	path := filepath.Join(l.ConfigDir, name)
	if err := atomicfile.Write(path, data, perm); err != nil {
		return err
	}
	if err := os.Chown(path, o.uid, o.gid); o.gid >= 0 && err != nil {
		return fmt.Errorf("give %s to its user: %w", path, err)
	}
	return nil
}

// Files are the paths of all files that joining makes.
func (l Layout) Files() []string {
	var list []string
	for _, name := range []string{"controller.hcl", "engine.hcl", "agent.hcl", fabricCAName, vaultCAName, consulCAName, nomadCAName, secretIDName, joinedName} {
		list = append(list, filepath.Join(l.ConfigDir, name))
	}
	return list
}

func trimmed(b []byte) []byte {
	for len(b) > 0 && (b[len(b)-1] == '\n' || b[len(b)-1] == ' ') {
		b = b[:len(b)-1]
	}
	return b
}
