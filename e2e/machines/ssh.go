// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package machines

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/containernetworking/plugins/pkg/ns"
)

// Command returns a command that runs in the machine as root. Its arguments are not seen by a
// shell. Connections share one TCP connection, because a handshake takes seconds under emulation.
func (m *Machine) Command(ctx context.Context, args ...string) *exec.Cmd {
	quoted := make([]string, len(args))
	for i, a := range args {
		quoted[i] = quote(a)
	}
	return m.world.Command(ctx, slices.Concat([]string{"ssh"}, m.options(), []string{"root@" + m.Address.String(), "--"}, quoted)...)
}

func (m *Machine) options() []string {
	return []string{
		"-F", "none", "-i", m.world.path("id"), "-o", "UserKnownHostsFile=" + m.world.path("known_hosts"), "-o", "BatchMode=yes",
		"-o", "IdentitiesOnly=yes", "-o", "LogLevel=ERROR", "-o", "ConnectTimeout=60", "-o", "ServerAliveInterval=15", "-o", "ServerAliveCountMax=8",
		"-o", "ControlMaster=auto", "-o", "ControlPersist=yes", "-o", "ControlPath=" + m.path("ssh"),
	}
}

// quote makes a word of the POSIX shell, which sshd uses.
func quote(word string) string {
	return "'" + strings.ReplaceAll(word, "'", `'\''`) + "'"
}

// hangUp ends the shared connection, which a machine that went down does not end.
func (m *Machine) hangUp(ctx context.Context) {
	// Without a connection it fails, which is as well.
	_ = m.world.Command(ctx, slices.Concat([]string{"ssh"}, m.options(), []string{"-O", "exit", "root@" + m.Address.String()})...).Run()
}

// Output runs a command in the machine and returns its output, without the last line's end.
func (m *Machine) Output(ctx context.Context, args ...string) (string, error) {
	cmd := m.Command(ctx, args...)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	text := strings.TrimRight(string(out), "\n")
	if err != nil {
		return text, fmt.Errorf("%s on %s: %w: %s", strings.Join(args, " "), m.Name, err, strings.TrimSpace(stderr.String()+"\n"+text))
	}
	return text, nil
}

// Shell runs a script of the POSIX shell in the machine and returns its output. The script ends at
// the first command that fails.
func (m *Machine) Shell(ctx context.Context, script string) (string, error) {
	return m.Output(ctx, "sh", "-euc", script)
}

// Copy copies files into the machine. It uses plain HTTP, because encryption is slow under
// emulation: SSH carries a megabyte a second.
func (m *Machine) Copy(ctx context.Context, files ...File) error {
	zone, err := m.world.zone(m.Zone)
	if err != nil {
		return err
	}
	namespace, err := ns.GetNS(filepath.Join(netnsDir, m.world.Namespace()))
	if err != nil {
		return err
	}
	defer namespace.Close()
	var listener net.Listener
	err = namespace.Do(func(ns.NetNS) error {
		listener, err = net.Listen("tcp4", net.JoinHostPort(zone.Gateway().String(), "0"))
		return err
	})
	if err != nil {
		return fmt.Errorf("listen for %s: %w", m.Name, err)
	}
	sent := errors.New("the machine did not fetch them")
	path := "/" + rand.Text()
	server := &http.Server{ReadHeaderTimeout: time.Minute, Handler: http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if r.URL.Path != path {
			http.NotFound(rw, r)
			return
		}
		if sent = writeTar(rw, files); sent != nil {
			panic(http.ErrAbortHandler) // so that the machine sees a failure
		}
	})}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = server.Serve(listener)
	}()
	_, err = m.Output(ctx, "sh", "-c", "set -e; f=$(mktemp /tmp/copy.XXXXXX); trap 'rm -f $f' EXIT; curl -fsS --retry 2 -o $f "+quote("http://"+listener.Addr().String()+path)+"; tar --extract --no-same-owner --file=$f --directory=/")
	_ = server.Close()
	<-done
	if err != nil {
		return fmt.Errorf("copy files to %s: %w", m.Name, errors.Join(sent, err))
	}
	return nil
}

// Fetch copies a file out of the machine.
func (m *Machine) Fetch(ctx context.Context, from, to string) error {
	f, err := os.Create(to)
	if err != nil {
		return err
	}
	cmd := m.Command(ctx, "cat", from)
	cmd.Stdout = f
	var stderr strings.Builder
	cmd.Stderr = &stderr
	if err := errors.Join(cmd.Run(), f.Close()); err != nil {
		return fmt.Errorf("fetch %s from %s: %w: %s", from, m.Name, err, stderr.String())
	}
	return nil
}

// Run runs a command in the machine with the given input and outputs.
func (m *Machine) Run(ctx context.Context, stdin io.Reader, stdout, stderr io.Writer, args ...string) error {
	cmd := m.Command(ctx, args...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = stdin, stdout, stderr
	return cmd.Run()
}
