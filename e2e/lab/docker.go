// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"
)

// pauseImage runs the container that keeps an allocation's network namespace.
const pauseImage = "sif-pause:local"

// DockerSocket is the socket of the node's own Docker engine.
func (l *Lab) DockerSocket(node string) string { return l.runDir(node, "docker.sock") }

// startDocker starts a node's Docker engine and imports the images.
func (l *Lab) startDocker(ctx context.Context, node *Node) error {
	config := l.varDir(node.Name, "docker.json")
	if err := mkdirs(l.varDir(node.Name), l.runDir(node.Name)); err != nil {
		return err
	}
	// The engine has its own file, so that it does not read the machine's /etc/docker/daemon.json
	// or write a key next to it.
	text := fmt.Sprintf("{%q: %q}\n", "deprecated-key-path", l.varDir(node.Name, "docker-key.json"))
	if err := os.WriteFile(config, []byte(text), 0o644); err != nil {
		return fmt.Errorf("write Docker's configuration: %w", err)
	}
	p := &Process{
		Node: node.Name, Name: "dockerd",
		Args: []string{
			"dockerd", "--config-file=" + config,
			"--data-root=" + l.varDir(node.Name, "docker"), "--exec-root=" + l.runDir(node.Name, "docker"),
			"--host=unix://" + l.DockerSocket(node.Name), "--pidfile=" + l.runDir(node.Name, "docker.pid"),
			"--cgroup-parent=/" + cgroupParent(l.Name, node.Name),
			// Only the fabric gives containers a network.
			"--bridge=none", "--iptables=false", "--ip6tables=false", "--ip-forward=false", "--ip-masq=false", "--userland-proxy=false",
		},
	}
	client := &http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", l.DockerSocket(node.Name))
		},
	}}
	defer client.CloseIdleConnections()
	if err := l.launch(ctx, p, 60*time.Second, func(ctx context.Context) error {
		return dockerCall(ctx, client, http.MethodGet, "/_ping", nil)
	}); err != nil {
		return err
	}
	if err := l.importImage(ctx, client, pauseImage, `ENTRYPOINT ["/bin/busybox","sleep","2147483647"]`); err != nil {
		return err
	}
	return l.importImage(ctx, client, DemoImage, `ENV PATH=/bin`)
}

// importImage makes an image from the tasks' root filesystem and one instruction of a Dockerfile.
func (l *Lab) importImage(ctx context.Context, client *http.Client, name, instruction string) error {
	repo, tag, _ := strings.Cut(name, ":")
	query := url.Values{"fromSrc": {"-"}, "repo": {repo}, "tag": {tag}, "changes": {instruction}}
	r, w := io.Pipe()
	go func() { w.CloseWithError(tarball(l.varDir("rootfs"), w)) }()
	if err := dockerCall(ctx, client, http.MethodPost, "/images/create?"+query.Encode(), r); err != nil {
		return fmt.Errorf("import image %s: %w", name, err)
	}
	return nil
}

func dockerCall(ctx context.Context, client *http.Client, method, path string, body io.Reader) error {
	request, err := http.NewRequestWithContext(ctx, method, "http://docker"+path, body)
	if err != nil {
		return err
	}
	response, err := client.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		text, _ := io.ReadAll(io.LimitReader(response.Body, 1000))
		return fmt.Errorf("%s: %s", response.Status, text)
	}
	if method == http.MethodGet {
		return nil
	}
	// Docker reports failures in the stream, after the status.
	for d := json.NewDecoder(response.Body); ; {
		var message struct{ Error string }
		switch err := d.Decode(&message); {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return err
		case message.Error != "":
			return errors.New(message.Error)
		}
	}
}
