// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package link

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"syscall"
	"time"

	wgdevice "golang.zx2c4.com/wireguard/device"

	"github.com/sif-project/sif/internal/logkey"
)

// maxConfiguration is the maximum size of a UAPI "set" operation in bytes, enough for some 50,000
// peers.
const maxConfiguration = 16 << 20

// handler serves:
//
//	GET    /v1/devices         returns all devices with their peers' statistics
//	PUT    /v1/devices/{name}  creates the device or changes it in place; the body is an Interface
//	DELETE /v1/devices/{name}  deletes the device; that it does not exist is not an error
//
// Errors are one line of plain text. The status is 409 if another process has the device's UDP
// port.
func (s *Server) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/devices", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		if err := json.NewEncoder(w).Encode(s.status()); err != nil {
			s.logger.Debug("cannot send the list of devices", logkey.Error, err)
		}
	})
	mux.HandleFunc("PUT /v1/devices/{name}", func(w http.ResponseWriter, r *http.Request) {
		var want Interface
		decoder := json.NewDecoder(http.MaxBytesReader(w, r.Body, 1<<16))
		decoder.DisallowUnknownFields()
		if err := decoder.Decode(&want); err != nil {
			http.Error(w, "decode interface: "+err.Error(), http.StatusBadRequest)
			return
		}
		name := r.PathValue("name")
		if err := errors.Join(validateName(name), want.validate()); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		answer(w, s.putDevice(name, want))
	})
	mux.HandleFunc("DELETE /v1/devices/{name}", func(w http.ResponseWriter, r *http.Request) {
		answer(w, s.deleteDevice(r.PathValue("name")))
	})
	return mux
}

func answer(w http.ResponseWriter, err error) {
	if err != nil {
		status := http.StatusInternalServerError
		if errors.Is(err, syscall.EADDRINUSE) {
			status = http.StatusConflict
		}
		http.Error(w, err.Error(), status)
		return
	}
	w.WriteHeader(http.StatusNoContent)
}

// serveUAPI serves a device's UAPI socket until the socket is closed.
func (s *Server) serveUAPI(name string, listener net.Listener) {
	for {
		conn, err := listener.Accept()
		if err != nil {
			return // the device was removed
		}
		go s.serveUAPIConn(name, conn)
	}
}

// serveUAPIConn is wireguard-go's IpcHandle with two differences: it reads an operation completely
// before it starts it, so that a slow writer does not block others, and it answers a "set" only
// after the configuration is saved and the routes are set.
func (s *Server) serveUAPIConn(name string, conn net.Conn) {
	defer conn.Close()
	reader := bufio.NewReader(conn)
	for {
		operation, err := reader.ReadString('\n')
		if err != nil {
			return
		}
		conn.SetReadDeadline(time.Now().Add(10 * time.Second))
		lines, err := readOperation(reader)
		if err != nil {
			s.logger.Warn("cannot read a UAPI operation", logkey.Interface, name, logkey.Error, err)
			return
		}
		conn.SetReadDeadline(time.Time{})
		var out string
		switch operation {
		case "set=1\n":
			if err = s.configure(name, lines); err != nil {
				s.logger.Error("UAPI set failed", logkey.Interface, name, logkey.Error, err)
			}
		case "get=1\n":
			out, err = s.configuration(name)
		default:
			return
		}
		if _, err := fmt.Fprintf(conn, "%serrno=%d\n\n", out, errno(err)); err != nil {
			return
		}
	}
}

// configuration returns the answer to a UAPI "get" operation.
func (s *Server) configuration(name string) (string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	m, known := s.devices[name]
	if !known || m.running == nil {
		return "", syscall.ENODEV
	}
	return m.running.wireguard.IpcGet()
}

// readOperation reads lines up to the empty line that ends an operation.
func readOperation(r *bufio.Reader) (string, error) {
	var b strings.Builder
	for {
		line, err := r.ReadSlice('\n') // no UAPI line exceeds the buffer's 4 KiB
		if err != nil {
			if err == io.EOF {
				err = io.ErrUnexpectedEOF
			}
			return "", err
		}
		if len(line) == 1 {
			return b.String(), nil
		}
		if b.Len()+len(line) > maxConfiguration {
			return "", fmt.Errorf("the operation exceeds %d bytes", maxConfiguration)
		}
		b.Write(line)
	}
}

// errno returns the number by which UAPI reports an error. The error's text is only in the log.
func errno(err error) int64 {
	var ipcError *wgdevice.IPCError
	var number syscall.Errno
	switch {
	case err == nil:
		return 0
	case errors.As(err, &ipcError):
		return ipcError.ErrorCode()
	case errors.As(err, &number):
		return -int64(number)
	default:
		return -int64(syscall.EIO)
	}
}
