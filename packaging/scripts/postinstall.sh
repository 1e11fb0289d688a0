#!/bin/sh
# Copyright (c) The SIF Authors
# SPDX-License-Identifier: MPL-2.0
#
# After an installation nothing is started. After an upgrade the daemons that run are restarted, which does not touch
# what they enforce: it is in the kernel and in Open vSwitch. sif-link is left alone, because its tunnels end with it:
# restart it when an interruption of some seconds suits you (systemctl restart sif-link).
# Called by dpkg as "configure [OLD-VERSION]", by rpm as "1" or, after an upgrade, "2".
set -e

upgrade=
case "$1" in
configure) upgrade=$2 ;;
1) ;;
2) upgrade=yes ;;
*) exit 0 ;; # dpkg undoes a removal or an upgrade that failed
esac

systemd-sysusers sif.conf
systemd-tmpfiles --create sif.conf
[ -d /run/systemd/system ] || exit 0
systemctl daemon-reload
[ -n "$upgrade" ] || exit 0
# A server of calls before those that call it.
for unit in sif-controller sif-engine sif-agent; do
	systemctl try-restart "$unit.service" || echo "sif: $unit did not start again; it keeps trying: journalctl -u $unit" >&2
done
if systemctl --quiet is-active sif-link.service; then
	echo "sif: sif-link still runs the earlier version, so that no tunnel is interrupted; restart it when that suits you: systemctl restart sif-link"
fi
