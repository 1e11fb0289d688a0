// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package api

import (
	"bytes"
	"cmp"
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/sif-project/sif/internal/wellknown"
)

// The environment variables that DefaultConfig reads.
const (
	EnvAddress     = "SIF_HTTP_ADDR"     // https://host:port; several are separated by commas
	EnvToken       = "SIF_TOKEN"         // Consul ACL token
	EnvVaultToken  = "SIF_VAULT_TOKEN"   // Vault token, instead of a Consul ACL token
	EnvExpired     = "SIF_EXPIRED"       // for how long a controller's certificate is accepted beyond its end
	EnvCACert      = "SIF_CACERT"        // PEM file of the CA of the controller's certificate
	EnvClientCert  = "SIF_CLIENT_CERT"   // PEM file
	EnvClientKey   = "SIF_CLIENT_KEY"    // PEM file
	EnvTrustDomain = "SIF_TRUST_DOMAIN"  // trust domain of the controller's SPIFFE ID
	envConsul      = "CONSUL_HTTP_TOKEN" // used if no token for SIF is set
	envVault       = "VAULT_TOKEN"       // used if no other token is set
)

// DefaultAddress is where a controller is looked for when nothing else is said.
const DefaultAddress = "https://127.0.0.1:" + wellknown.ControllerPort

// TokenHeader carries an operator's Consul ACL token, as "Authorization: Bearer" does.
// VaultTokenHeader carries a Vault token. A call carries only one of them.
const (
	TokenHeader      = "X-Sif-Token"
	VaultTokenHeader = "X-Vault-Token"
)

// maxReply is the largest reply that a client reads, in bytes.
const maxReply = 256 << 20

// Config says where the controller is and who calls it.
type Config struct {
	// Address is https://host:port, or host:port. Several are separated by commas. The client asks
	// the controllers there, and those of which they tell it, until it finds the one that leads.
	Address    string
	Token      string // Consul ACL token of an operator
	VaultToken string // or Vault token; not both
	CACert     string // PEM file; empty: the roots of the system
	MoreCAs    []byte // PEM, besides those of CACert
	ClientCert string // PEM file
	ClientKey  string // PEM file

	// Expired is for how long a certificate of the controller is accepted beyond its end: while
	// Vault is away, it gets no other. At most MaxExpired.
	Expired time.Duration

	// TrustDomain is that of the controller's SPIFFE ID, spiffe://<trust domain>/controller.
	// Without it, a controller of any trust domain whose certificate the CA signed is accepted.
	TrustDomain string

	// TLS, when set, replaces the three files. Nodes set it to the configuration with their
	// certificate.
	TLS *tls.Config

	// Known are further addresses, as an earlier client learned them. Learned, when set, is called
	// with those that controllers tell, when they are others than before.
	Known   []string
	Learned func(addresses []string)

	// Patience is how long a call waits for a controller to lead. 0: DefaultPatience.
	Patience time.Duration
	// Alone has the client ask only the controller at Address, once, whether it leads or not.
	Alone bool

	// Clock, when set, is called with the controller's time of each answer, in whole seconds.
	Clock func(time.Time)
}

// DefaultConfig returns the configuration of the environment. A token for another program is used
// only if none is set for SIF, and a Vault token of another program only if there is no Consul
// token.
func DefaultConfig() Config {
	cfg := Config{
		Address:    os.Getenv(EnvAddress),
		Token:      os.Getenv(EnvToken),
		VaultToken: os.Getenv(EnvVaultToken),
		CACert:     os.Getenv(EnvCACert),
		ClientCert: os.Getenv(EnvClientCert),
		ClientKey:  os.Getenv(EnvClientKey),

		TrustDomain: os.Getenv(EnvTrustDomain),
	}
	cfg.Expired, _ = time.ParseDuration(os.Getenv(EnvExpired)) // what is none accepts nothing
	if cfg.Address == "" {
		cfg.Address = DefaultAddress
	}
	if cfg.Token == "" && cfg.VaultToken == "" {
		cfg.Token = os.Getenv(envConsul)
	}
	if cfg.Token == "" && cfg.VaultToken == "" {
		cfg.VaultToken = os.Getenv(envVault)
	}
	return cfg
}

// Client calls the controllers of a fabric. It finds the one that leads, and follows when another
// one does. It sends nothing to a server whose certificate is not that of a controller. It is safe
// for concurrent use.
type Client struct {
	at         *controllers
	patience   time.Duration
	alone      bool
	token      string
	vaultToken string
	http       *http.Client

	trustDomain string // may be empty
	clock       func(time.Time)
}

// NewClient returns a client. It does not open a connection.
func NewClient(cfg Config) (*Client, error) {
	at, err := newControllers(cfg)
	if err != nil {
		return nil, err
	}
	if cfg.Token != "" && cfg.VaultToken != "" {
		return nil, fmt.Errorf("both a Consul token and a Vault token are set for the controller: set %s or %s, not both", EnvToken, EnvVaultToken)
	}
	tlsConfig, expired := cfg.TLS, time.Duration(0)
	if tlsConfig == nil {
		if tlsConfig, err = tlsFromFiles(cfg); err != nil {
			return nil, err
		}
		expired = min(cfg.Expired, MaxExpired)
	}
	return &Client{at: at, patience: cmp.Or(cfg.Patience, DefaultPatience), alone: cfg.Alone, token: cfg.Token, vaultToken: cfg.VaultToken, trustDomain: cfg.TrustDomain, clock: cfg.Clock, http: &http.Client{
		Transport: newTransport(tlsConfig, cfg.TrustDomain, expired),
		// The controller never redirects, and a token must not go to another host.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}, nil
}

func tlsFromFiles(cfg Config) (*tls.Config, error) {
	c := &tls.Config{MinVersion: tls.VersionTLS13}
	if cfg.CACert != "" {
		pem, err := os.ReadFile(cfg.CACert)
		if err != nil {
			return nil, fmt.Errorf("read the CA of the controller: %w", err)
		}
		c.RootCAs = x509.NewCertPool()
		if !c.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("CA of the controller: %s contains no PEM certificate", cfg.CACert)
		}
		c.RootCAs.AppendCertsFromPEM(cfg.MoreCAs)
	}
	if cfg.ClientCert != "" || cfg.ClientKey != "" {
		cert, err := tls.LoadX509KeyPair(cfg.ClientCert, cfg.ClientKey)
		if err != nil {
			return nil, fmt.Errorf("read the client certificate %s and key %s: %w", cfg.ClientCert, cfg.ClientKey, err)
		}
		c.Certificates = []tls.Certificate{cert}
	}
	return c, nil
}

// Close closes idle connections.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// call sends body as JSON, unless it is nil, and decodes the answer into reply, unless it is nil.
// If the controller refuses the call, the error is an *Error.
func (c *Client) call(ctx context.Context, method, path string, body, reply any) error {
	_, err := c.do(ctx, method, path, body, reply)
	return err
}

// read is call for a GET. It returns the index of the answer, or 0 if it has none.
func (c *Client) read(ctx context.Context, path string, reply any) (uint64, error) {
	header, err := c.do(ctx, http.MethodGet, path, nil, reply)
	if err != nil {
		return 0, err
	}
	index, err := strconv.ParseUint(header.Get(IndexHeader), 10, 64)
	if err != nil {
		return 0, nil
	}
	return index, nil
}

// tries bounds how often a call is made that the controller refuses because of a limit.
const tries = 5

// sink reads an answer that comes over time. Its error is that of the call, and no other controller
// is asked.
type sink func(io.Reader) error

// sinkError is the error of a sink.
type sinkError struct{ error }

func (e sinkError) Unwrap() error { return e.error }

// do makes a call. reply may be a sink.
func (c *Client) do(ctx context.Context, method, path string, body, reply any) (http.Header, error) {
	var payload []byte
	if body != nil {
		var err error
		if payload, err = json.Marshal(body); err != nil {
			return nil, fmt.Errorf("encode the request: %w", err)
		}
	}
	ref, err := url.Parse(path)
	if err != nil {
		return nil, fmt.Errorf("path %q: %w", path, err)
	}
	id := ""
	if method != http.MethodGet {
		id = rand.Text()
	}
	into, _ := reply.(sink)
	began := time.Now()
	tried, answered := map[string]bool{}, false // in this round
	var errs []error
	for try := 1; ; {
		at := c.at.now()
		header, data, err := c.send(ctx, method, at, ref, payload, id, into)
		var refused *Error
		var broken sinkError
		switch {
		case errors.As(err, &broken):
			return nil, broken.error
		case err == nil:
			c.at.reached(at)
			if reply == nil || len(data) == 0 {
				return header, nil
			}
			if err := json.Unmarshal(data, reply); err != nil {
				return nil, fmt.Errorf("decode the answer of the controller at %s: %w", at.Host, err)
			}
			return header, nil
		case IsCode(err, CodeTooMany) && try < tries && pause(ctx, header):
			try++
			continue
		case c.alone:
			return nil, err
		case errors.As(err, &refused) && refused.Code != CodeNotLeader:
			c.at.reached(at)
			return nil, err
		case errors.As(err, &refused): // there is a leader, or there will be one
			answered = true
			c.at.reached(at)
			if tried[at.Host] = true; !tried[refused.Details.Leader] && c.at.leader(refused.Details.Leader) {
				continue
			}
		default:
			c.at.unreachable(at)
			tried[at.Host] = true
			errs = append(errs, err)
			if ctx.Err() != nil {
				c.at.next(at, tried) // for the next call
				return nil, err
			}
		}
		if c.at.next(at, tried) {
			continue
		}
		if !answered {
			return nil, refusedEverywhere(errs)
		}
		if time.Since(began) > c.patience || !sleep(ctx, leaderPause) {
			return nil, err
		}
		clear(tried)
		answered, errs = false, nil
	}
}

// sleep waits for d. It returns false, at once, if ctx ends before that.
func sleep(ctx context.Context, d time.Duration) bool {
	if end, ok := ctx.Deadline(); ok && time.Until(end) < d {
		return false
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}

// pause waits as long as an answer asks for. It returns false, at once, if ctx ends before that.
func pause(ctx context.Context, header http.Header) bool {
	seconds, err := strconv.ParseUint(header.Get("Retry-After"), 10, 16)
	if err != nil {
		return false
	}
	return sleep(ctx, time.Duration(seconds)*time.Second)
}

// RequestHeader carries the ID of a call that changes something. It is the same each time that a
// client makes the call because an answer was lost, so that a change of the graph is made once.
const RequestHeader = "X-Sif-Request"

// send makes a call once and returns the answer, unless into, which may be nil, reads it. The
// header is that of a refusal as well.
func (c *Client) send(ctx context.Context, method string, at, ref *url.URL, payload []byte, id string, into sink) (http.Header, []byte, error) {
	req, err := http.NewRequestWithContext(ctx, method, at.ResolveReference(ref).String(), bytes.NewReader(payload))
	if err != nil {
		return nil, nil, err
	}
	if payload != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	if id != "" {
		req.Header.Set(RequestHeader, id)
	}
	if c.token != "" {
		req.Header.Set(TokenHeader, c.token)
	}
	if c.vaultToken != "" {
		req.Header.Set(VaultTokenHeader, c.vaultToken)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, nil, c.explain(at, err)
	}
	defer resp.Body.Close()
	if at, err := http.ParseTime(resp.Header.Get("Date")); err == nil && c.clock != nil {
		c.clock(at)
	}
	if !c.alone {
		c.at.hear(resp.Header)
	}
	if into != nil && resp.StatusCode/100 == 2 {
		if err := into(resp.Body); err != nil {
			return nil, nil, sinkError{err}
		}
		return resp.Header, nil, nil
	}
	data, err := io.ReadAll(io.LimitReader(resp.Body, maxReply))
	if err != nil {
		return nil, nil, fmt.Errorf("read the answer of the controller at %s: %w", at.Host, err)
	}
	if resp.StatusCode/100 != 2 {
		return resp.Header, nil, refusal(at, resp, data)
	}
	return resp.Header, data, nil
}

func refusal(at *url.URL, resp *http.Response, data []byte) error {
	e := &Error{}
	if err := json.Unmarshal(data, e); err != nil || e.Code == "" {
		return fmt.Errorf("the controller at %s answered %s: %s", at.Host, resp.Status, firstLine(data))
	}
	e.Status = resp.StatusCode
	return e
}

// explain adds the remedy to a transport error.
func (c *Client) explain(at *url.URL, err error) error {
	var unknown x509.UnknownAuthorityError
	if errors.As(err, &unknown) {
		return fmt.Errorf("the certificate of the controller at %s is signed by an unknown authority; set %s to its CA file: %w", at.Host, EnvCACert, err)
	}
	var invalid x509.CertificateInvalidError
	if errors.As(err, &invalid) && invalid.Reason == x509.Expired && time.Now().After(invalid.Cert.NotAfter) {
		return fmt.Errorf("the certificate of the controller at %s ended at %s, and it has got no other, so Vault is probably away; set %s, such as %s=72h, to ask it nevertheless: %w",
			at.Host, invalid.Cert.NotAfter.UTC().Format(time.RFC3339), EnvExpired, EnvExpired, err)
	}
	// An impostor may have a certificate for another host.
	var host x509.HostnameError
	if errors.As(err, &host) && !isController(host.Certificate, c.trustDomain) {
		return c.stranger(at, &strangerError{who: owner(host.Certificate)})
	}
	var stranger *strangerError
	if errors.As(err, &stranger) {
		return c.stranger(at, stranger)
	}
	return fmt.Errorf("ask the controller at %s: %w", at.Host, err)
}

func (c *Client) stranger(at *url.URL, err *strangerError) error {
	remedy := "correct " + EnvAddress
	if c.trustDomain != "" {
		remedy += fmt.Sprintf(", or %s, which is %q", EnvTrustDomain, c.trustDomain)
	}
	return fmt.Errorf("ask the controller at %s: %w; no token was sent; %s; if that is right, somebody answers in the controller's place",
		at.Host, err, remedy)
}

func firstLine(b []byte) string {
	line, _, _ := strings.Cut(strings.TrimSpace(string(b)), "\n")
	if len(line) > 200 {
		line = line[:200]
	}
	return line
}
