// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package link

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/sif-project/sif/internal/dirlock"
	"github.com/sif-project/sif/internal/wellknown"
)

// Client configures the `sif link` that serves a run directory. It is safe for concurrent use.
type Client struct {
	runDir string
	http   http.Client

	mu sync.Mutex // one Apply at a time
	// declared has the endpoints that the last Apply asked for, by device: see difference.
	declared map[string]map[Key]netip.AddrPort
	former   *Kernel // its devices give way
}

// NewClient returns a client. It connects for each call.
func NewClient(runDir string) *Client {
	c := &Client{runDir: runDir, declared: make(map[string]map[Key]netip.AddrPort)}
	c.http.Timeout = 10 * time.Second
	c.http.Transport = &http.Transport{
		DisableKeepAlives: true, // a restarted server has a new socket
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return c.dial(ctx, wellknown.LinkSocket)
		},
	}
	return c
}

// Replace makes the next Apply delete the kernel's devices of an owner, which those of `sif link`
// take the place of.
func (c *Client) Replace(former *Kernel) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.former = former
}

// ApplyError says what could not be applied.
type ApplyError struct {
	error
	// PortTaken has the names of the devices whose UDP port another process has.
	PortTaken []string
}

func (e *ApplyError) Unwrap() error { return e.error }

// Apply makes `sif link` run exactly these devices. It deletes the others, but not interfaces that
// `sif link` did not create. Sessions with peers that did not change continue. A device or peer
// that cannot be configured is left out and named in the error, an *ApplyError; everything else is
// applied. A device that is left out stays as it is.
func (c *Client) Apply(ctx context.Context, devices []Device) error {
	fit, wanted, errs := fitting(devices)
	c.mu.Lock()
	defer c.mu.Unlock()
	present, err := c.Status(ctx)
	if err != nil {
		return fmt.Errorf("apply links: %w", errors.Join(append(errs, err)...))
	}
	if c.former != nil {
		err := c.former.Remove()
		if errs = append(errs, err); err == nil {
			c.former = nil
		}
	}
	for _, d := range present {
		if !wanted[d.Name] {
			delete(c.declared, d.Name)
			errs = append(errs, c.delete(ctx, d.Name))
		}
	}
	var failed ApplyError
	for _, d := range fit {
		err := c.applyDevice(ctx, d)
		if err != nil {
			errs = append(errs, fmt.Errorf("apply device %s: %w", d.Name, err))
		}
		if errors.Is(err, errPortTaken) {
			failed.PortTaken = append(failed.PortTaken, d.Name)
		}
	}
	if failed.error = errors.Join(errs...); failed.error != nil {
		return &failed
	}
	return nil
}

// errPortTaken says that another process has the UDP port of a device.
var errPortTaken = errors.New("another process has the UDP port")

func (c *Client) applyDevice(ctx context.Context, d Device) error {
	// What the device cannot have of its configuration from before, such as a port or a route, does
	// not keep it from the new one.
	before := c.call(ctx, http.MethodPut, "/v1/devices/"+url.PathEscape(d.Name), d.Interface, nil)
	conn, err := c.dial(ctx, d.Name+".sock")
	if err != nil {
		return cmp.Or(before, err)
	}
	defer conn.Close()
	reader := bufio.NewReader(conn)
	text, err := operate(conn, reader, "get=1\n\n")
	if err != nil {
		return cmp.Or(before, fmt.Errorf("read the configuration: %w", err))
	}
	state, err := parseUAPI(text)
	if err != nil {
		return err
	}
	change := difference(state, d, c.declared[d.Name], time.Now()).uapi()
	if change == "" && before != nil {
		return before
	}
	if change != "" {
		if _, err := operate(conn, reader, "set=1\n"+change+"\n"); err != nil {
			if errors.Is(err, syscall.EADDRINUSE) {
				return fmt.Errorf("%w %d: %w", errPortTaken, d.ListenPort, err)
			}
			return fmt.Errorf("change the configuration: %w", c.explain(ctx, d.Name, err))
		}
	}
	c.declared[d.Name] = d.endpoints()
	return nil
}

// explain adds the server's error text to UAPI's error number.
func (c *Client) explain(ctx context.Context, name string, err error) error {
	devices, statusErr := c.Status(ctx)
	if statusErr != nil {
		return errors.Join(err, statusErr)
	}
	for _, d := range devices {
		if d.Name == name && d.Error != "" {
			return fmt.Errorf("%w: %s", err, d.Error)
		}
	}
	return err
}

// delete deletes a device. That it does not exist is not an error.
func (c *Client) delete(ctx context.Context, name string) error {
	if err := c.call(ctx, http.MethodDelete, "/v1/devices/"+url.PathEscape(name), nil, nil); err != nil {
		return fmt.Errorf("delete device %s: %w", name, err)
	}
	return nil
}

// Status returns the devices that `sif link` runs, ordered by name.
func (c *Client) Status(ctx context.Context) ([]DeviceStatus, error) {
	var devices []DeviceStatus
	if err := c.call(ctx, http.MethodGet, "/v1/devices", nil, &devices); err != nil {
		return nil, fmt.Errorf("list the devices of sif link: %w", err)
	}
	return devices, nil
}

// forget removes what `sif link` saved in its data directory, and the interfaces that it left,
// unless it runs.
func (c *Client) forget(dataDir string) error {
	saved := filepath.Join(dataDir, stateFile)
	if _, err := os.Stat(saved); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err := os.MkdirAll(c.runDir, 0o700); err != nil {
		return fmt.Errorf("create the directory: %w", err)
	}
	lock, err := dirlock.Lock(c.runDir, lockFile)
	if errors.Is(err, dirlock.ErrLocked) {
		return nil // it has just been started
	}
	if err != nil {
		return err
	}
	defer lock.Close()
	if _, err := removeStrays(dataDir, func(string, int) bool { return false }); err != nil {
		return err
	}
	if err := os.Remove(saved); err != nil {
		return fmt.Errorf("remove the saved devices of sif link: %w", err)
	}
	return nil
}

func (c *Client) call(ctx context.Context, method, path string, in, out any) error {
	var body io.Reader
	if in != nil {
		text, err := json.Marshal(in)
		if err != nil {
			return err
		}
		body = bytes.NewReader(text)
	}
	request, err := http.NewRequestWithContext(ctx, method, "http://link"+path, body)
	if err != nil {
		return err
	}
	response, err := c.http.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	if response.StatusCode >= 300 {
		text, _ := io.ReadAll(io.LimitReader(response.Body, 1<<16))
		if response.StatusCode == http.StatusConflict {
			return fmt.Errorf("%w: %s", errPortTaken, strings.TrimSpace(string(text)))
		}
		return errors.New(strings.TrimSpace(string(text)))
	}
	if out == nil {
		return nil
	}
	if err := json.NewDecoder(response.Body).Decode(out); err != nil {
		return fmt.Errorf("decode the answer of sif link: %w", err)
	}
	return nil
}

func (c *Client) dial(ctx context.Context, socket string) (net.Conn, error) {
	conn, err := new(net.Dialer).DialContext(ctx, "unix", filepath.Join(c.runDir, socket))
	if err != nil {
		return nil, fmt.Errorf("connect to sif link: %w", err)
	}
	deadline := time.Now().Add(10 * time.Second)
	if d, ok := ctx.Deadline(); ok && d.Before(deadline) {
		deadline = d
	}
	if err := conn.SetDeadline(deadline); err != nil {
		conn.Close()
		return nil, fmt.Errorf("connect to sif link: %w", err)
	}
	return conn, nil
}

// operate sends a UAPI operation and returns the answer without its errno line, which becomes the
// error.
func operate(conn net.Conn, reader *bufio.Reader, operation string) (string, error) {
	if _, err := io.WriteString(conn, operation); err != nil {
		return "", err
	}
	text, err := readOperation(reader)
	if err != nil {
		return "", err
	}
	i := strings.LastIndex(text, "errno=")
	if i < 0 {
		return "", errors.New("UAPI answer without errno")
	}
	number, err := strconv.ParseInt(strings.TrimSpace(text[i+len("errno="):]), 10, 32)
	if err != nil {
		return "", fmt.Errorf("UAPI errno: %w", err)
	}
	if number != 0 {
		return "", fmt.Errorf("UAPI errno %d: %w", number, syscall.Errno(max(number, -number)))
	}
	return text[:i], nil
}
