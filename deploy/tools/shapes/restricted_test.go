package shapes

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
)

// The pod of the chart without Kubernetes: its configuration and its arguments, with a real Envoy and OpenBao, as user 65532 without a
// capability, on a root that nobody can write to, and with volumes as the kubelet makes them for fsGroup.
func TestPodRunsRestricted(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("only root can become another user here")
	}
	for _, program := range []string{"unshare", "setpriv", "ip", "curl"} {
		if _, err := exec.LookPath(program); err != nil {
			t.Skipf("no %s here", program)
		}
	}
	v := values(t, chartDir+"/ci/least-values.yaml")
	v["config"].(map[string]any)["vault"] = map[string]any{
		"address": "http://127.0.0.1:8200",
		"auth":    map[string]any{"method": "token", "token_file": "/srv/wayleave/token"},
	}
	files, err := render(t, v)
	if err != nil {
		t.Fatal(err)
	}
	all := objects(t, "chart", manifests(files))
	config := ""
	for _, c := range of[*corev1.ConfigMap](all) {
		config += c.Data["wayleave.yaml"]
	}
	template, _ := pod(t, all)
	var commands []string
	for i, c := range append(template.Spec.InitContainers, template.Spec.Containers...) {
		args := strings.ReplaceAll(strings.Join(c.Args, " "), "/etc/wayleave/", "/srv/wayleave/") // /etc stays the machine's
		commands = append(commands, fmt.Sprintf("restricted /srv/bin/wayleave %s > /mnt/%s.log 2>&1 & %s=$!", args, c.Name, strings.ReplaceAll(c.Name, "-", "_")))
		if probe := c.StartupProbe; probe != nil { // the kubelet starts the next one when it is passed
			commands = append(commands, fmt.Sprintf("until_true curl -fsS http://127.0.0.1:%d%s", 9180+i, probe.HTTPGet.Path))
		}
	}

	script := fmt.Sprintf(`
set -eu
ip link set lo up
for at in /srv /mnt; do mount -t tmpfs -o mode=0755 tmpfs $at; done
mkdir /srv/wayleave /srv/bin
cp %[1]s /srv/wayleave/wayleave.yaml; cp %[2]s %[3]s/envoy %[3]s/bao /srv/bin/
for at in /run /var/lib; do mount -t tmpfs -o mode=0755 tmpfs $at; mkdir -p $at/wayleave; mount -t tmpfs -o mode=2777,gid=65532 tmpfs $at/wayleave; done
mount -t tmpfs -o mode=1777,size=16m tmpfs /tmp

until_true() { n=0; until "$@" > /mnt/last 2>&1; do n=$((n+1)); [ $n -lt 150 ] || { echo "never: $*"; tail -n 20 /mnt/*.log; exit 1; }; sleep 0.2; done; }
export VAULT_TOKEN=of-this-test BAO_ADDR=http://127.0.0.1:8200 BAO_TOKEN=of-this-test HOME=/mnt
/srv/bin/bao server -dev -dev-no-store-token -dev-root-token-id=$VAULT_TOKEN > /mnt/bao.log 2>&1 &
until_true /srv/bin/bao status
/srv/bin/wayleave vault setup -c /srv/wayleave/wayleave.yaml > /mnt/setup.log
/srv/bin/bao token create -orphan -policy=wayleave-gateway -period=24h -field=token > /srv/wayleave/token
chmod 0444 /srv/wayleave/*

mount -o remount,bind,ro /
if touch /usr/written 2> /dev/null; then echo "the root can be written to"; exit 1; fi
restricted() { exec setpriv --reuid=65532 --regid=65532 --clear-groups --no-new-privs --bounding-set=-all --inh-caps=-all env -i PATH=/srv/bin "$@"; }
%[4]s

until_true curl -fsS http://127.0.0.1:3128/.wayleave/v1/ca.pem
grep -q 'BEGIN CERTIFICATE' /mnt/last
kill -HUP $envoy
until_true grep 'the new Envoy has taken over' /mnt/envoy.log
until_true curl -fsS http://127.0.0.1:3128/.wayleave/v1/ca.pem

kill $envoy; wait $envoy
kill $gate_a $gate_b; wait $gate_a; wait $gate_b
echo all ended well
`, write(t, "wayleave.yaml", config), wayleave, filepath.Join(root, ".tools/bin"), strings.Join(commands, "\n"))
	out, err := output(t, "unshare", "--mount", "--net", "--pid", "--fork", "--kill-child", "--mount-proc", "--propagation", "private", "sh", "-c", script)
	if strings.Contains(out, "unshare failed") {
		t.Skipf("no namespaces here: %s", out)
	}
	if err != nil || strings.TrimSpace(out) != "all ended well" {
		t.Errorf("%v\n%s", err, out)
	}
}

// In a pod the worker's user reaches the gate in place of any host, names, and what is in the pod itself; everything else is refused, and
// other users go where they like.
func TestRedirectInPod(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("only root can become another user here")
	}
	for _, program := range []string{"unshare", "setpriv", "ip", "python3"} {
		if _, err := exec.LookPath(program); err != nil {
			t.Skipf("no %s here", program)
		}
	}
	script := fmt.Sprintf(`
set -eu
ip link set lo up
ip link add out type veth peer name far; ip link set far up; ip addr add 192.0.2.1/24 dev out; ip link set out up; ip route add default dev out
%s -f %s
python3 - <<'END'
import os, socket
gate = socket.create_server(("127.0.0.1", 3443))
inside = socket.create_server(("127.0.0.1", 8080))
def outcome(uid, address, kind=socket.SOCK_STREAM):
    pid = os.fork()
    if pid == 0:
        os.setuid(uid)
        with socket.socket(socket.AF_INET, kind) as s:
            s.settimeout(0.5)
            try:
                s.connect(address)
                if kind == socket.SOCK_DGRAM:
                    s.send(b"x"); s.recv(1)
                os._exit(0)   # connected
            except TimeoutError:
                os._exit(2)   # went out, where nobody answers
            except OSError:
                os._exit(1)   # refused
    return ["connected", "refused", "out"][os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])]
for uid, address, kind, want in [
    (1000, ("198.51.100.1", 443), socket.SOCK_STREAM, "connected"),
    (1000, ("127.0.0.1", 8080), socket.SOCK_STREAM, "connected"),
    (1000, ("198.51.100.1", 80), socket.SOCK_STREAM, "refused"),
    (1000, ("198.51.100.1", 443), socket.SOCK_DGRAM, "refused"),
    (65532, ("198.51.100.1", 443), socket.SOCK_STREAM, "out"),
]:
    got = outcome(uid, address, kind)
    if got != want:
        print(f"user {uid} to {address}, kind {kind}: {got}, not {want}")
END
`, tool(t, "nft"), filepath.Join(root, "deploy/nftables/redirect-pod.nft"))
	out, err := output(t, "unshare", "--net", "sh", "-c", script)
	if strings.Contains(out, "unshare failed") || strings.Contains(out, "Unknown device type") {
		t.Skipf("no namespaces, or no such device, here: %s", out)
	}
	if err != nil || out != "" {
		t.Errorf("%v\n%s", err, out)
	}
}
