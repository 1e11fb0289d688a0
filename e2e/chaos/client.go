// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package chaos

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/sif-project/sif/api"
	"github.com/sif-project/sif/e2e/lab"
)

// controllers calls the API of the controllers as the operator, from outside the fabric. It shows
// who answered, which the fabric's own client does not.
type controllers struct {
	addresses []string // host:port
	token     string
	http      *http.Client
	leader    atomic.Int64 // index of the one that led last
}

func newControllers(l *lab.Lab) (*controllers, error) {
	pem, err := os.ReadFile(l.FabricCA())
	if err != nil {
		return nil, fmt.Errorf("read the fabric's CA: %w", err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(pem)
	return &controllers{
		addresses: l.Controllers(), token: l.Secrets.ConsulOperator,
		http: &http.Client{Transport: &http.Transport{
			DialContext: l.Dial("client"), TLSClientConfig: &tls.Config{RootCAs: pool},
			// One that stands still must not hold up the next call.
			DisableKeepAlives: true,
		}},
	}, nil
}

// ask makes one call to one controller. The error is an *api.Error if that refused.
func (c *controllers) ask(ctx context.Context, at int, method, path, id string, body, reply any) error {
	_, err := c.send(ctx, at, method, path, id, body, reply)
	return err
}

// send is ask, and returns how old the answer says that it can be.
func (c *controllers) send(ctx context.Context, at int, method, path, id string, body, reply any) (age time.Duration, err error) {
	var payload []byte
	if body != nil {
		if payload, err = json.Marshal(body); err != nil {
			return 0, fmt.Errorf("encode the request: %w", err)
		}
	}
	req, err := http.NewRequestWithContext(ctx, method, "https://"+c.addresses[at]+path, bytes.NewReader(payload))
	if err != nil {
		return 0, err
	}
	req.Header.Set(api.TokenHeader, c.token)
	if id != "" {
		req.Header.Set(api.RequestHeader, id)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		return 0, err
	}
	if resp.StatusCode/100 != 2 {
		refused := &api.Error{Status: resp.StatusCode, Message: string(text)}
		if json.Unmarshal(text, refused) == nil {
			refused.Status = resp.StatusCode
		}
		return 0, refused
	}
	if seconds, err := strconv.ParseFloat(resp.Header.Get(api.AgeHeader), 64); err == nil {
		age = time.Duration(seconds * float64(time.Second))
	}
	if reply == nil {
		return age, nil
	}
	return age, json.Unmarshal(text, reply)
}

// A call waits this long for one controller, and for one of them to answer.
const (
	attempt  = 8 * time.Second
	patience = 45 * time.Second
)

// call makes a call to the controller that leads. It asks one after the other until one does not
// say that it does not lead, always with the same ID, so that a change is made once. refused
// reports whether the answer was a refusal: then nothing was changed.
func (c *controllers) call(ctx context.Context, method, path string, body, reply any) (refused bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	id := ""
	if method != http.MethodGet {
		id = rand.Text()
	}
	certain := true // that nothing was changed so far
	for try := 0; ; try++ {
		at := int(c.leader.Load()+int64(try)) % len(c.addresses)
		once, done := context.WithTimeout(ctx, attempt)
		err = c.ask(once, at, method, path, id, body, reply)
		done()
		var answer *api.Error
		if !errors.As(err, &answer) {
			if err == nil {
				c.leader.Store(int64(at))
				return false, nil
			}
			certain = false
		} else if answer.Code != api.CodeNotLeader {
			if answer.Status/100 == 4 && answer.Status != http.StatusTooManyRequests {
				c.leader.Store(int64(at))
				return certain, err
			}
			certain = certain && answer.Status == http.StatusTooManyRequests
		}
		select {
		case <-ctx.Done():
			return certain, fmt.Errorf("no controller leads: %w", err)
		case <-time.After(200 * time.Millisecond):
		}
	}
}
