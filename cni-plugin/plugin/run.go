// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package plugin

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"github.com/containernetworking/cni/pkg/types"
	"github.com/containernetworking/cni/pkg/utils"
	"github.com/containernetworking/cni/pkg/version"
)

// maxStdin bounds the network configuration, in bytes. A list of valid attachments is the longest
// part of it.
const maxStdin = 8 << 20

// Versions are the versions of the CNI specification that the plugin supports.
var Versions = []string{"0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"}

// call is one execution of the plugin.
type call struct {
	containerID, netns, ifName, args string
	config                           config
	out, log                         io.Writer
}

// command is an operation of CNI.
type command struct {
	attachment bool   // it concerns an attachment, so the variables that name one are required
	namespace  bool   // so is the one that names the namespace
	since      string // the version of the specification that has it first
	do         func(call) error
}

var commands = map[string]command{
	"ADD":    {attachment: true, namespace: true, since: "0.1.0", do: add},
	"DEL":    {attachment: true, since: "0.1.0", do: del},
	"CHECK":  {attachment: true, namespace: true, since: "0.4.0", do: check},
	"GC":     {since: "1.1.0", do: collect},
	"STATUS": {since: "1.1.0", do: status},
}

// Main runs the plugin once and returns its exit code. The result, or the error that the runtime
// expects, goes to stdout, and errors also to stderr, for people. about is written to stderr if
// nobody asks for a command.
//
// It is not package skel of CNI's library: that lacks the version of errors, the names of variables
// in their messages, the caller's version in the answer to VERSION, and a bound on what it reads.
func Main(getenv func(string) string, stdin io.Reader, stdout, stderr io.Writer, about string) (code int) {
	name := getenv("CNI_COMMAND")
	if name == "" {
		fmt.Fprintln(stderr, about)
		fmt.Fprintln(stderr, "CNI protocol versions supported:", strings.Join(Versions, ", "))
		return 0
	}
	answered := version.Current() // the version of an error
	defer func() {
		if r := recover(); r != nil {
			code = fail(stdout, stderr, answered, types.NewError(types.ErrInternal, fmt.Sprintf("the plugin failed: %v", r), "report this as a defect of sif-cni"))
		}
	}()
	data, err := io.ReadAll(io.LimitReader(stdin, maxStdin+1))
	switch {
	case err != nil:
		return fail(stdout, stderr, answered, types.NewError(types.ErrIOFailure, "read the network configuration from stdin: "+err.Error(), ""))
	case len(data) > maxStdin:
		return fail(stdout, stderr, answered, types.NewError(types.ErrInvalidNetworkConfig, fmt.Sprintf("the network configuration has more than %d bytes", maxStdin), ""))
	}
	if supported := versionOf(data); supported != "" {
		answered = supported
	}
	err = run(name, getenv, data, stdout, stderr)
	if err != nil {
		return fail(stdout, stderr, answered, err)
	}
	return 0
}

func run(name string, getenv func(string) string, data []byte, stdout, stderr io.Writer) error {
	if name == "VERSION" {
		return showVersions(data, stdout)
	}
	c, known := commands[name]
	if !known {
		return types.NewError(types.ErrInvalidEnvironmentVariables, fmt.Sprintf("CNI_COMMAND is %q: it must be ADD, DEL, CHECK, GC, STATUS or VERSION", name), "")
	}
	one := call{containerID: getenv("CNI_CONTAINERID"), netns: getenv("CNI_NETNS"), ifName: getenv("CNI_IFNAME"), args: getenv("CNI_ARGS"), out: stdout, log: stderr}
	if err := one.checkVariables(c); err != nil {
		return err
	}
	if err := checkVersion(data, name, c); err != nil {
		return err
	}
	var err error
	if one.config, err = load(data); err != nil {
		return err
	}
	return c.do(one)
}

// checkVariables refuses variables that the specification does not allow. Others may be missing.
func (c call) checkVariables(of command) error {
	if !of.attachment {
		return nil
	}
	var missing []string
	for _, v := range []struct {
		name, value string
		required    bool
		check       func(string) *types.Error
	}{
		{"CNI_CONTAINERID", c.containerID, true, utils.ValidateContainerID},
		{"CNI_IFNAME", c.ifName, true, utils.ValidateInterfaceName},
		{"CNI_NETNS", c.netns, of.namespace, nil},
	} {
		switch {
		case v.value == "" && v.required:
			missing = append(missing, v.name)
		case v.value != "" && v.check != nil:
			if err := v.check(v.value); err != nil {
				return types.NewError(types.ErrInvalidEnvironmentVariables, v.name+": "+err.Msg, err.Details)
			}
		}
	}
	if len(missing) > 0 {
		return types.NewError(types.ErrInvalidEnvironmentVariables, "missing: "+strings.Join(missing, ", "), "")
	}
	return nil
}

// versionOf returns the version of a network configuration, if the plugin supports it.
func versionOf(data []byte) string {
	var c struct {
		CNIVersion string `json:"cniVersion"`
	}
	if json.Unmarshal(data, &c) != nil || !slices.Contains(Versions, c.CNIVersion) {
		return ""
	}
	return c.CNIVersion
}

// checkVersion refuses a network configuration whose version the plugin does not support, or which
// does not have the command.
func checkVersion(data []byte, name string, c command) error {
	var decoder version.ConfigDecoder
	v, err := decoder.Decode(data)
	if err != nil {
		return types.NewError(types.ErrDecodingFailure, "read the network configuration: "+err.Error(), "")
	}
	if !slices.Contains(Versions, v) {
		return types.NewError(types.ErrIncompatibleCNIVersion, fmt.Sprintf("the network configuration has cniVersion %q, the plugin supports %s", v, strings.Join(Versions, ", ")), "")
	}
	if has, err := version.GreaterThanOrEqualTo(v, c.since); err != nil || !has {
		return types.NewError(types.ErrIncompatibleCNIVersion, fmt.Sprintf("cniVersion %s has no %s, which came with %s", v, name, c.since), "")
	}
	return nil
}

// showVersions answers VERSION. A runtime may leave out the configuration, which has nothing but
// its own version.
func showVersions(data []byte, stdout io.Writer) error {
	asked := struct {
		CNIVersion string `json:"cniVersion"`
	}{version.Current()}
	if len(strings.TrimSpace(string(data))) > 0 {
		if err := json.Unmarshal(data, &asked); err != nil {
			return types.NewError(types.ErrDecodingFailure, "read the version of the runtime: "+err.Error(), "")
		}
	}
	err := json.NewEncoder(stdout).Encode(struct {
		CNIVersion        string   `json:"cniVersion"`
		SupportedVersions []string `json:"supportedVersions"`
	}{asked.CNIVersion, Versions})
	if err != nil {
		return types.NewError(types.ErrIOFailure, "write the versions: "+err.Error(), "")
	}
	return nil
}

// fail writes an error as the runtime expects it, and returns the exit code.
func fail(stdout, stderr io.Writer, answered string, err error) int {
	var e *types.Error
	if !errors.As(err, &e) {
		e = types.NewError(types.ErrInternal, err.Error(), "")
	}
	fmt.Fprintln(stderr, "sif:", e.Error())
	written := json.NewEncoder(stdout).Encode(struct {
		CNIVersion string `json:"cniVersion"`
		Code       uint   `json:"code"`
		Msg        string `json:"msg"`
		Details    string `json:"details,omitempty"`
	}{answered, e.Code, e.Msg, e.Details})
	if written != nil {
		fmt.Fprintln(stderr, "sif: write the error:", written)
	}
	return 1
}

// runtimeName returns the name of the program that called the plugin, or "" if it is not known.
func runtimeName() string {
	name, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", os.Getppid()))
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(name))
}
