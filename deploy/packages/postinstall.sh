#!/bin/sh
# After a package is installed or upgraded: user, directories, units. Nothing is started; there is no configuration yet.
set -eu
command -v systemctl >/dev/null || exit 0
systemd-sysusers wayleave.conf
systemd-tmpfiles --create wayleave.conf
systemctl daemon-reload || true # no systemd runs in a container
