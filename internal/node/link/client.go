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
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/sif-project/sif/internal/wellknown"
)

// Client configures the `sif link` that serves a run directory. It is safe for concurrent use.
type Client struct {
	runDir string
	http   http.Client

	mu sync.Mutex // one Apply at a time
	// declared has the endpoints that the last Apply asked for, by device: see uapiChange.
	declared map[string]map[Key]netip.AddrPort
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
	var errs []error
	var fit []Device
	wanted := make(map[string]bool, len(devices))
	ports := make(map[uint16]string, len(devices))
	for _, d := range devices {
		usable, err := d.fit()
		if err != nil {
			errs = append(errs, err)
		}
		other, taken := ports[d.ListenPort]
		switch {
		case wanted[d.Name]:
			errs = append(errs, fmt.Errorf("device %s is listed twice", d.Name))
		case taken:
			errs = append(errs, fmt.Errorf("devices %s and %s have the same listen port %d", other, d.Name, d.ListenPort))
		case usable.Name != "":
			fit = append(fit, usable)
			ports[d.ListenPort] = d.Name
		}
		wanted[d.Name] = true
	}

	c.mu.Lock()
	defer c.mu.Unlock()
	present, err := c.Status(ctx)
	if err != nil {
		return fmt.Errorf("apply links: %w", errors.Join(append(errs, err)...))
	}
	for _, d := range present {
		if !wanted[d.Name] {
			delete(c.declared, d.Name)
			if err := c.call(ctx, http.MethodDelete, "/v1/devices/"+url.PathEscape(d.Name), nil, nil); err != nil {
				errs = append(errs, fmt.Errorf("delete device %s: %w", d.Name, err))
			}
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
	change := uapiChange(state, d, c.declared[d.Name], time.Now())
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
	declared := make(map[Key]netip.AddrPort, len(d.Peers))
	for _, p := range d.Peers {
		declared[p.PublicKey] = p.Endpoint
	}
	c.declared[d.Name] = declared
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

// Status returns the devices that `sif link` runs, ordered by name.
func (c *Client) Status(ctx context.Context) ([]DeviceStatus, error) {
	var devices []DeviceStatus
	if err := c.call(ctx, http.MethodGet, "/v1/devices", nil, &devices); err != nil {
		return nil, fmt.Errorf("list the devices of sif link: %w", err)
	}
	return devices, nil
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
