// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package testhost

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	consulapi "github.com/hashicorp/consul/api"
	nomadapi "github.com/hashicorp/nomad/api"
	vaultapi "github.com/hashicorp/vault/api"
	"golang.org/x/sys/unix"
)

// startTimeout is how long a server may take to answer.
const startTimeout = 60 * time.Second

// Server is a real server that ends with the test.
type Server struct {
	Address string // host:port of its HTTP API
	Token   string // Vault: the root token
	cmd     *exec.Cmd
	log     *bytes.Buffer
	exited  chan struct{}
}

// Pause stops the server's process, so that it does not answer.
func (s *Server) Pause() error { return s.cmd.Process.Signal(syscall.SIGSTOP) }

// Resume continues a paused server.
func (s *Server) Resume() error { return s.cmd.Process.Signal(syscall.SIGCONT) }

// Consul starts a Consul server in development mode. config is HCL that is added to its
// configuration, for instance an acl block.
func Consul(t testing.TB, config ...string) (*Server, *consulapi.Client) {
	t.Helper()
	return startConsul(t, []string{"-dev"}, config)
}

// ConsulOnDisk starts a Consul server with its data on disk, as in production, for benchmarks.
func ConsulOnDisk(t testing.TB, config ...string) (*Server, *consulapi.Client) {
	t.Helper()
	return startConsul(t, []string{"-server", "-bootstrap-expect=1", "-data-dir=" + t.TempDir()}, config)
}

func startConsul(t testing.TB, mode, config []string) (*Server, *consulapi.Client) {
	t.Helper()
	ports := freePorts(t, 4)
	dir := t.TempDir()
	args := slices.Concat([]string{"agent"}, mode, []string{"-bind=127.0.0.1", "-client=127.0.0.1", "-log-level=warn",
		fmt.Sprintf("-http-port=%d", ports[0]), fmt.Sprintf("-server-port=%d", ports[1]),
		fmt.Sprintf("-serf-lan-port=%d", ports[2]), fmt.Sprintf("-serf-wan-port=%d", ports[3]),
		"-dns-port=-1", "-grpc-port=-1", "-grpc-tls-port=-1"})
	for _, c := range append(config, "limits { http_max_conns_per_client = 2000 }") {
		file, err := os.CreateTemp(dir, "*.hcl")
		if err != nil {
			t.Fatal(err)
		}
		_, err = file.WriteString(c + "\n")
		if err := errors.Join(err, file.Close()); err != nil {
			t.Fatal(err)
		}
		args = append(args, "-config-file="+file.Name())
	}
	s := start(t, "consul", ports[0], nil, args...)
	client, err := consulapi.NewClient(&consulapi.Config{Address: s.Address})
	if err != nil {
		t.Fatal(err)
	}
	s.wait(t, "consul", func() error {
		leader, err := client.Status().Leader()
		if err == nil && leader == "" {
			err = errors.New("it has no leader")
		}
		return err
	})
	return s, client
}

// Vault starts an unsealed Vault server with in-memory storage. The client has the root token.
func Vault(t testing.TB) (*Server, *vaultapi.Client) {
	t.Helper()
	ports := freePorts(t, 2)
	const token = "root"
	s := start(t, "vault", ports[0], []string{"HOME=" + t.TempDir()},
		"server", "-dev", "-dev-no-store-token", "-dev-root-token-id="+token, "-log-level=warn",
		fmt.Sprintf("-dev-listen-address=127.0.0.1:%d", ports[0]))
	s.Token = token
	conf := vaultapi.DefaultConfig()
	conf.Address = "http://" + s.Address
	client, err := vaultapi.NewClient(conf)
	if err != nil {
		t.Fatal(err)
	}
	client.SetToken(token)
	s.wait(t, "vault", func() error {
		h, err := client.Sys().Health()
		if err == nil && (h.Sealed || !h.Initialized) {
			err = errors.New("it is sealed")
		}
		return err
	})
	return s, client
}

// Nomad starts a Nomad agent that is server and client and has the raw_exec driver. config is HCL
// that is added to its configuration.
func Nomad(t testing.TB, config ...string) (*Server, *nomadapi.Client) {
	t.Helper()
	RequireRoot(t)
	ports := freePorts(t, 3)
	dir := t.TempDir()
	t.Cleanup(func() { unmountSecrets(t, filepath.Join(dir, "data")) }) // after Nomad has ended, and before dir is removed
	base := fmt.Sprintf(`
bind_addr = "127.0.0.1"
ports {
  http = %d
  rpc  = %d
  serf = %d
}
client {
  options {
    "fingerprint.denylist" = "env_aws,env_gce,env_azure,env_digitalocean"
  }
}
plugin "raw_exec" {
  config {
    enabled = true
  }
}
consul {
  auto_advertise      = false
  server_auto_join    = false
  client_auto_join    = false
}
`, ports[0], ports[1], ports[2])
	args := []string{"agent", "-dev", "-log-level=WARN", "-data-dir=" + filepath.Join(dir, "data")}
	for i, c := range append([]string{base}, config...) {
		file := filepath.Join(dir, fmt.Sprintf("%d.hcl", i))
		if err := os.WriteFile(file, []byte(c), 0o600); err != nil {
			t.Fatal(err)
		}
		args = append(args, "-config="+file)
	}
	s := start(t, "nomad", ports[0], nil, args...)
	client, err := nomadapi.NewClient(&nomadapi.Config{Address: "http://" + s.Address})
	if err != nil {
		t.Fatal(err)
	}
	s.wait(t, "nomad", func() error {
		leader, err := client.Status().Leader()
		if err == nil && leader == "" {
			err = errors.New("it has no leader")
		}
		return err
	})
	return s, client
}

// unmountSecrets unmounts the secrets and private directories of allocations: Nomad leaves them
// mounted if it is stopped before it has destroyed the allocations.
func unmountSecrets(t testing.TB, dataDir string) {
	secrets, err := filepath.Glob(filepath.Join(dataDir, "alloc", "*", "*", "secrets"))
	private, errPrivate := filepath.Glob(filepath.Join(dataDir, "alloc", "*", "*", "private"))
	if err := errors.Join(err, errPrivate); err != nil {
		t.Errorf("find the secrets directories of allocations: %v", err)
	}
	for _, dir := range append(secrets, private...) {
		// EINVAL: it is not mounted.
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) {
			t.Errorf("unmount %s: %v", dir, err)
		}
	}
}

// RequireServer returns the path of consul, vault or nomad. It looks in the directory $SIF_SERVERS,
// in bin/servers of this repository, on PATH and in the cache of built servers.
func RequireServer(t testing.TB, name string) string {
	t.Helper()
	var places []string
	if dir := os.Getenv("SIF_SERVERS"); dir != "" {
		places = append(places, filepath.Join(dir, name))
	}
	if root, ok := repository(); ok {
		places = append(places, filepath.Join(root, "bin", "servers", name))
	}
	if path, err := exec.LookPath(name); err == nil {
		places = append(places, path)
	}
	// The name of a directory in which a server is being built begins with a dot.
	cached, _ := filepath.Glob("/var/cache/sif/servers/" + name + "-*/" + name)
	for _, path := range append(places, cached...) {
		if info, err := os.Stat(path); err == nil && info.Mode().IsRegular() && info.Mode()&0o111 != 0 {
			return path
		}
	}
	Unmet(t, "needs "+name+", which is not in $SIF_SERVERS, bin/servers or on PATH: run `make setup`")
	return ""
}

// repository returns the root of the repository that the test is in.
func repository() (string, bool) {
	dir, err := os.Getwd()
	if err != nil {
		return "", false
	}
	for ; dir != "/"; dir = filepath.Dir(dir) {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir, true
		}
	}
	return "", false
}

// start starts a server without the environment variables that would point it to other servers.
func start(t testing.TB, name string, port int, env []string, args ...string) *Server {
	t.Helper()
	s := &Server{Address: fmt.Sprintf("127.0.0.1:%d", port), log: &bytes.Buffer{}, exited: make(chan struct{})}
	s.cmd = exec.Command(RequireServer(t, name), args...)
	for _, e := range os.Environ() {
		switch key, _, _ := strings.Cut(e, "="); {
		case strings.HasPrefix(key, "CONSUL_"), strings.HasPrefix(key, "VAULT_"), strings.HasPrefix(key, "NOMAD_"), key == "AWS_CA_BUNDLE":
		default:
			s.cmd.Env = append(s.cmd.Env, e)
		}
	}
	s.cmd.Env = append(s.cmd.Env, env...)
	s.cmd.Stdout, s.cmd.Stderr = s.log, s.log
	// The kernel kills the server if the test is killed.
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	started := make(chan error)
	go func() {
		runtime.LockOSThread() // the signal is sent when the thread that forked ends, so this one stays
		defer runtime.UnlockOSThread()
		err := s.cmd.Start()
		started <- err
		if err == nil {
			_ = s.cmd.Wait() // it is ended by a signal
			close(s.exited)
		}
	}()
	if err := <-started; err != nil {
		t.Fatalf("start %s: %v", name, err)
	}
	t.Cleanup(func() {
		// Both fail if the server has ended.
		_ = s.Resume()
		_ = s.cmd.Process.Signal(syscall.SIGTERM)
		select {
		case <-s.exited:
		case <-time.After(10 * time.Second):
			_ = syscall.Kill(-s.cmd.Process.Pid, syscall.SIGKILL)
			<-s.exited
		}
	})
	return s
}

// wait waits until the server answers.
func (s *Server) wait(t testing.TB, name string, ready func() error) {
	t.Helper()
	deadline := time.Now().Add(startTimeout)
	for {
		err := ready()
		if err == nil {
			return
		}
		select {
		case <-s.exited:
			t.Fatalf("%s ended while it started: %s", name, s.log)
		default:
		}
		if time.Now().After(deadline) {
			_ = s.cmd.Process.Kill()
			<-s.exited
			t.Fatalf("%s did not answer within %s: %v: %s", name, startTimeout, err, s.log)
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// freePorts returns ports that are free for TCP and UDP when it returns, below the kernel's range
// of ephemeral ports.
func freePorts(t testing.TB, n int) []int {
	t.Helper()
	var ports []int
	for try := 0; len(ports) < n; try++ {
		if try > 1000 {
			t.Fatal("cannot find free ports")
		}
		port := 12000 + int(time.Now().UnixNano()/100)%18000
		tcp, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port))
		if err != nil {
			continue
		}
		defer tcp.Close()
		udp, err := net.ListenPacket("udp", fmt.Sprintf("127.0.0.1:%d", port))
		if err != nil {
			continue
		}
		defer udp.Close()
		ports = append(ports, port)
	}
	return ports
}
