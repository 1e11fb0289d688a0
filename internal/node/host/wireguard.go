// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package host

import (
	"fmt"

	"github.com/sif-project/sif/internal/config"
	"github.com/sif-project/sif/internal/node/kernel"
	"github.com/sif-project/sif/internal/node/link"
)

const checkLinks = "wireguard"

// WireGuard tries whether encrypted links can be made: by the kernel, and in user space.
func WireGuard(device string) Finding {
	return judgeWireGuard(device, link.KernelSupport(), kernel.Try(link.UserspaceSupport))
}

func judgeWireGuard(device string, inKernel, inUserspace error) Finding {
	const modprobe = "modprobe wireguard (Linux 5.6 has it: install the distribution's kernel with all of its modules)"
	const mknod = "modprobe tun; mkdir -p /dev/net && mknod /dev/net/tun c 10 200"
	f := Finding{checkLinks, "WireGuard", Well, "works in the kernel", ""}
	switch {
	case inKernel == nil && device != config.DeviceUserspace:
	case device == config.DeviceKernel:
		f = Finding{checkLinks, "WireGuard", Wrong, fmt.Sprintf("does not work in the kernel, as link.device = %q needs it (%v)", device, inKernel), modprobe}
	case inUserspace == nil && device == config.DeviceUserspace:
		f.Detail = "works in user space"
	case inUserspace == nil:
		f = Finding{checkLinks, "WireGuard", Warning, fmt.Sprintf("works in user space only, where it is slower and ends with the process sif link (%v)", inKernel), modprobe}
	default:
		f = Finding{checkLinks, "WireGuard", Wrong, fmt.Sprintf("works neither in the kernel (%v) nor in user space (%v)", inKernel, inUserspace), modprobe + "; or " + mknod}
		if device == config.DeviceUserspace {
			f.Detail, f.Remedy = fmt.Sprintf("does not work in user space (%v)", inUserspace), mknod
		}
	}
	return f
}
