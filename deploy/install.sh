#!/bin/sh
# Installs wayleave from a release, if it is what the release says it is.
#
#   WAYLEAVE_RELEASES=https://github.com/OWNER/wayleave/releases sh install.sh [VERSION] [DIRECTORY]
#
# VERSION: a tag such as v1.2.3. Default: the newest. DIRECTORY: default /usr/local/bin where it can be written, else ~/.local/bin.
# The archive is held to the release's checksums.txt, and that to its signature where cosign is installed; with
# WAYLEAVE_SIGNED_BY=https://github.com/OWNER/wayleave it must be, by the release workflow of that repository.
set -eu

die() { printf 'install: %s\n' "$*" >&2; exit 1; }
say() { printf 'install: %s\n' "$*" >&2; }

releases=${WAYLEAVE_RELEASES:-}
[ -n "$releases" ] || die "WAYLEAVE_RELEASES is not set: name the page of the releases, such as https://github.com/OWNER/wayleave/releases"
case $releases in https://* | file:///*) ;; *) die "$releases is not an https:// address" ;; esac
version=${1:-latest}
directory=${2:-}

case $(uname -s) in
  Linux) os=linux ;;
  Darwin) os=darwin ;;
  *) die "there is no release for $(uname -s)" ;;
esac
case $(uname -m) in
  x86_64 | amd64) arch=amd64 ;;
  aarch64 | arm64) arch=arm64 ;;
  *) die "there is no release for $(uname -m)" ;;
esac
if [ -z "$directory" ]; then
  directory=/usr/local/bin
  [ -w "$directory" ] || directory=$HOME/.local/bin
fi

if [ "$version" = latest ]; then from=$releases/latest/download; else from=$releases/download/$version; fi
archive=wayleave_${os}_${arch}.tar.gz
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
trap 'exit 1' HUP INT TERM

fetch() { curl -fsSL --proto '=https,file' --retry 3 -o "$work/$1" "$from/$1" || die "could not fetch $from/$1"; }
fetch checksums.txt
fetch "$archive"

if [ -n "${WAYLEAVE_SIGNED_BY:-}" ]; then
  command -v cosign >/dev/null || die "WAYLEAVE_SIGNED_BY is set, and cosign is not installed (docs.sigstore.dev)"
  fetch checksums.txt.sigstore.json
  cosign verify-blob --bundle "$work/checksums.txt.sigstore.json" \
    --certificate-oidc-issuer https://token.actions.githubusercontent.com \
    --certificate-identity-regexp "^$(printf %s "$WAYLEAVE_SIGNED_BY" | sed 's/[.[\*^$+?(){}|]/\\&/g')/\.github/workflows/release\.yaml@refs/tags/" \
    "$work/checksums.txt" >&2 || die "checksums.txt is not signed by the release workflow of $WAYLEAVE_SIGNED_BY; nothing was installed"
else
  say "the signature is not checked: set WAYLEAVE_SIGNED_BY to the repository to have cosign check it"
fi

want=$(awk -v name="$archive" '$2 == name { print $1 }' "$work/checksums.txt")
[ "${#want}" -eq 64 ] || die "checksums.txt does not have $archive; nothing was installed"
if command -v sha256sum >/dev/null; then have=$(sha256sum "$work/$archive"); else have=$(shasum -a 256 "$work/$archive"); fi
[ "${have%% *}" = "$want" ] || die "$archive is not what checksums.txt says: it has ${have%% *}, not $want; nothing was installed"

tar -xzf "$work/$archive" -C "$work" wayleave
mkdir -p "$directory"
# Renamed into place, so that one that runs is not written over.
cp "$work/wayleave" "$directory/.wayleave.$$"
chmod 0755 "$directory/.wayleave.$$"
mv -f "$directory/.wayleave.$$" "$directory/wayleave"
say "$("$directory/wayleave" --version) is in $directory"
case ":$PATH:" in *":$directory:"*) ;; *) say "put $directory on your PATH" ;; esac
