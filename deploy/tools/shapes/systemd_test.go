package shapes

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// The units under a systemd of their own, in namespaces: started, reloaded, restarted, stopped, with all that they may not do. It leaves empty
// control groups behind on the machine, so it runs when it is asked for: WAYLEAVE_SYSTEMD=1, as root.
func TestUnitsRun(t *testing.T) {
	if os.Getenv("WAYLEAVE_SYSTEMD") == "" {
		t.Skip("WAYLEAVE_SYSTEMD is not set")
	}
	result := write(t, "result", "")
	script := fmt.Sprintf(`
set -eu
units=%[1]s/deploy/systemd
ip link set lo up
mount -t tmpfs tmpfs /mnt
for d in etc usr var; do mkdir -p /mnt/$d/u /mnt/$d/w; mount -t overlay overlay -o lowerdir=/$d,upperdir=/mnt/$d/u,workdir=/mnt/$d/w /$d; done
mount -t tmpfs tmpfs /run
mount -t cgroup2 cgroup2 /sys/fs/cgroup
cp %[2]s %[1]s/.tools/bin/envoy %[1]s/.tools/bin/bao /usr/bin/
cp $units/*.service $units/*.target /etc/systemd/system/
systemd-sysusers $units/wayleave.sysusers
systemd-tmpfiles --create $units/wayleave.tmpfiles
sed -e 's|address: https://vault.internal:8200|address: http://127.0.0.1:8200|' -e '/method: approle/,/secret_id_file/d' -e 's|^  auth:$|  auth: {method: token, token_file: token}|' $units/wayleave.yaml > /etc/wayleave/wayleave.yaml
for u in wayleave@ wayleave-envoy; do
  mkdir -p /etc/systemd/system/$u.service.d
  printf '[Service]\nStandardOutput=append:/mnt/%%s.log\nStandardError=append:/mnt/%%s.log\n' $u $u > /etc/systemd/system/$u.service.d/log.conf
done
# Nothing else of the machine's.
for u in systemd-udevd.service systemd-journald.service systemd-logind.service systemd-remount-fs.service systemd-sysctl.service systemd-modules-load.service \
  systemd-random-seed.service systemd-update-utmp.service systemd-tmpfiles-setup.service systemd-journald.socket systemd-journald-dev-log.socket \
  systemd-journald-audit.socket systemd-udevd-control.socket systemd-udevd-kernel.socket; do ln -sf /dev/null /etc/systemd/system/$u; done
printf '[Unit]\nDefaultDependencies=no\n' > /etc/systemd/system/only.target

export VAULT_TOKEN=of-this-test BAO_ADDR=http://127.0.0.1:8200 BAO_TOKEN=of-this-test HOME=/mnt
until_true() { n=0; until "$@" > /mnt/last 2>&1; do n=$((n+1)); [ $n -lt 150 ] || { echo "never: $*"; tail -n 20 /mnt/*.log; exit 1; }; sleep 0.2; done; }
bao server -dev -dev-no-store-token -dev-root-token-id=$VAULT_TOKEN > /mnt/bao.log 2>&1 &
until_true bao status
wayleave vault setup -c /etc/wayleave/wayleave.yaml > /mnt/setup.log
bao token create -orphan -policy=wayleave-gateway -period=24h -field=token > /etc/wayleave/token
chown wayleave /etc/wayleave/token; chmod 0400 /etc/wayleave/token

story() {
  until_true systemctl list-units
  systemctl start wayleave@a wayleave@b wayleave-envoy
  until_true curl -fsS -m 5 http://127.0.0.1:9180/readyz
  until_true curl -fsS -m 5 http://127.0.0.1:9181/readyz
  until_true curl -fsS -m 5 http://127.0.0.1:3128/.wayleave/v1/ca.pem
  systemctl reload wayleave-envoy
  until_true grep 'the new Envoy has taken over' /mnt/wayleave-envoy.log
  systemctl restart wayleave@a
  until_true curl -fsS -m 5 http://127.0.0.1:9180/readyz
  for unit in wayleave@a wayleave@b wayleave-envoy; do
    status=/proc/$(systemctl show -P MainPID $unit)/status
    grep -q 'CapEff:.0000000000000000' $status; grep -q 'NoNewPrivs:.1' $status; grep -q 'Seccomp:.2' $status
  done
  systemctl stop wayleave-envoy wayleave@a wayleave@b
  [ "$(systemctl show -P Result wayleave-envoy wayleave@a wayleave@b | sort -u | tr -d '\n')" = success ]
  echo all ended well
}
( (set -eu; story) > %[3]s 2>&1; kill -s RTMIN+14 1 ) &
exec env -u VAULT_TOKEN -u BAO_TOKEN container=unshare /lib/systemd/systemd --system --unit=only.target --log-level=err
`, root, wayleave, result)
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "unshare", "--mount", "--net", "--pid", "--cgroup", "--ipc", "--uts", "--fork", "--kill-child", "--mount-proc", "--propagation", "private", "sh", "-c", script)
	log, err := os.Create(filepath.Join(t.TempDir(), "systemd.log"))
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	cmd.Stdout, cmd.Stderr = log, log
	ended := cmd.Run()
	said, err := os.ReadFile(result)
	if err != nil || strings.TrimSpace(string(said)) != "all ended well" {
		rest, _ := os.ReadFile(log.Name())
		t.Errorf("%v, %v\n%s\n%s", ended, err, said, rest)
	}
}
