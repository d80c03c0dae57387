#!/bin/sh
# Before a package is removed, and not when it is upgraded: the gates that run end. What they kept stays in /var/lib/wayleave.
set -eu
case "${1:-}" in upgrade | 1) exit 0 ;; esac
command -v systemctl >/dev/null || exit 0
systemctl disable --now wayleave.target wayleave-envoy.service 'wayleave@*.service' wayleave-redirect.service || true
