// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package telemetry

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"golang.org/x/net/netutil"

	"github.com/sif-project/sif/internal/retry"
)

// UnixPrefix begins an address that is the path of a unix socket.
const UnixPrefix = "unix://"

const (
	// maxConns bounds the connections of readers, and readTime what each may take for a request or
	// for its answer: whoever reads metrics takes nothing that the daemon needs.
	maxConns = 16
	readTime = 10 * time.Second
	// listenAgain is the pause after an address could not be had.
	listenAgain = 5 * time.Second
)

// Serve answers GET /metrics at an address, host:port or UnixPrefix and a path, until ctx ends. It
// reports an address that cannot be had, and goes on trying.
func Serve(ctx context.Context, address string, g prometheus.Gatherer, report func(error)) error {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(g, promhttp.HandlerOpts{MaxRequestsInFlight: 4, Timeout: readTime}))
	for ctx.Err() == nil {
		l, err := listen(ctx, address)
		if err == nil {
			report(nil)
			err = serveOn(ctx, netutil.LimitListener(l, maxConns), mux)
		}
		if ctx.Err() == nil {
			report(err)
			retry.Sleep(ctx, listenAgain)
		}
	}
	return nil
}

func serveOn(ctx context.Context, l net.Listener, handler http.Handler) error {
	s := &http.Server{Handler: handler, ReadTimeout: readTime, WriteTimeout: 2 * readTime, IdleTimeout: time.Minute, MaxHeaderBytes: 16 << 10}
	stop := context.AfterFunc(ctx, func() { _ = s.Close() })
	defer stop()
	if err := s.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve metrics: %w", err)
	}
	return nil
}

// listen opens the address. Only root and its group read from a unix socket.
func listen(ctx context.Context, address string) (net.Listener, error) {
	var conf net.ListenConfig
	path, isUnix := strings.CutPrefix(address, UnixPrefix)
	if !isUnix {
		l, err := conf.Listen(ctx, "tcp", address)
		if err != nil {
			return nil, fmt.Errorf("listen for readers of metrics, set telemetry.listen to another address or to \"off\": %w", err)
		}
		return l, nil
	}
	if err := removeSocket(path); err != nil {
		return nil, err
	}
	l, err := conf.Listen(ctx, "unix", path)
	if err != nil {
		return nil, fmt.Errorf("listen for readers of metrics: %w", err)
	}
	if err := os.Chmod(path, 0o660); err != nil {
		return nil, errors.Join(fmt.Errorf("set the permissions of the socket for metrics: %w", err), l.Close())
	}
	return l, nil
}

// removeSocket removes the socket of a daemon before. Anything else stays.
func removeSocket(path string) error {
	info, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return fmt.Errorf("look at the socket for metrics: %w", err)
	case info.Mode().Type() != fs.ModeSocket:
		return fmt.Errorf("telemetry.listen: %s exists and is not a socket: remove it, or name another path", path)
	}
	if err := os.Remove(path); err != nil {
		return fmt.Errorf("remove the socket for metrics of a daemon before: %w", err)
	}
	return nil
}
