// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

// Command guestapp is what the real guests of the agent's tests run. It knows TCP, not the fabric.
package main

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"os"
	"time"
)

// The services, by port.
var services = map[int]func(net.Conn){
	9001: func(c net.Conn) { _, _ = io.CopyBuffer(io.Discard, onlyReader{c}, make([]byte, 256<<10)) },
	9002: func(c net.Conn) { // sends until the other end has enough
		for b := make([]byte, 256<<10); ; {
			if _, err := c.Write(b); err != nil {
				return
			}
		}
	},
	9003: func(c net.Conn) { _, _ = io.Copy(onlyWriter{c}, onlyReader{c}) },
	9004: func(c net.Conn) { // calls an address, and says what was answered
		address, err := bufio.NewReader(c).ReadString('\n')
		if err == nil {
			err = call(address[:len(address)-1], c)
		}
		if err != nil {
			fmt.Fprintf(c, "error: %v\n", err)
		}
	},
	9005: func(c net.Conn) {
		name, err := os.Hostname()
		fmt.Fprintf(c, "%s %v\n", name, err)
	},
}

// onlyReader and onlyWriter keep package net from splicing.
type onlyReader struct{ io.Reader }
type onlyWriter struct{ io.Writer }

func call(address string, to io.Writer) error {
	c, err := net.DialTimeout("tcp", address, 5*time.Second)
	if err != nil {
		return err
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(5 * time.Second))
	fmt.Fprintln(c, "hello from the guest")
	answer, err := bufio.NewReader(c).ReadString('\n')
	fmt.Fprint(to, answer)
	return err
}

func main() {
	for port, serve := range services {
		l, err := net.Listen("tcp", fmt.Sprintf(":%d", port))
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				go func() { defer c.Close(); serve(c) }()
			}
		}()
	}
	fmt.Fprintln(os.Stderr, "guestapp: serving")
	select {}
}
